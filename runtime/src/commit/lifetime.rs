//! How long a state value lives, as its headers say, and which values the server may remove by
//! itself.
//!
//! A server that is killed brings back a message that a later one of its subject replaced, once
//! that later one has expired or was purged. So a message may get a TTL only if every version
//! before it ends no later. Each version says so of itself: it has a TTL if it could get one.

use std::time::Duration;

use async_nats::{HeaderMap, header};

use crate::effects::Effects;
use crate::event::timestamp;
use crate::names::EXPIRES_HEADER;

const SECOND: i64 = 1_000_000_000;
/// How much longer than what it replaces a delete marker lives: clocks differ, and the server
/// counts in seconds.
const SLACK: i64 = 60 * SECOND;

/// When a stored message ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// When the value expires, nanoseconds since 1970.
    pub(crate) until: Option<i64>,
    /// When the server removes it; every earlier version ends no later. `None`: it does not.
    pub(crate) ends: Option<i64>,
}

impl Lifetime {
    /// Of a message with these headers that was stored at this time, nanoseconds since 1970.
    pub(crate) fn of<'a>(
        header: impl Fn(&str) -> Option<&'a str>,
        stored: impl FnOnce() -> Option<i64>,
    ) -> Self {
        let says = header(EXPIRES_HEADER).and_then(|text| text.parse::<i64>().ok());
        let says = says.map(|ms| ms.saturating_mul(1_000_000));
        let ttl = header("Nats-TTL").and_then(ttl);
        let removed = ttl.and_then(|ttl| {
            let ttl = i64::try_from(ttl.as_nanos()).unwrap_or(i64::MAX);
            Some(stored()?.saturating_add(ttl))
        });
        Self {
            until: says.or(removed),
            // A client that knows nothing of Pelton sets a TTL whatever it replaces.
            ends: removed.filter(|_| says.is_some()),
        }
    }
}

/// A message TTL as NATS writes it; `None`: it does not expire.
fn ttl(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let found = seconds.or_else(|| humantime::parse_duration(text).ok());
    found.filter(|ttl| !ttl.is_zero())
}

/// When every stored version of a key that the effects replace has ended; `None`: not all of them
/// do.
fn ends(effects: &Effects, key: &str) -> Option<i64> {
    match effects.reads.get(key)? {
        0 => Some(i64::MIN),
        _ => effects.ends.get(key).copied(),
    }
}

/// Headers of a value that expires at `until`.
pub(super) fn expiring(effects: &Effects, key: &str, until: i64, headers: &mut HeaderMap) {
    headers.insert(EXPIRES_HEADER, until.div_euclid(1_000_000).to_string());
    if ends(effects, key).is_some_and(|ends| ends <= until) {
        headers.insert(header::NATS_MESSAGE_TTL, seconds_until(until));
    }
}

/// Headers of a delete marker: it goes by itself where all that it replaces does. Any other stays
/// until the commit stream's floor has passed it (`vacuum`).
pub(super) fn deleting(effects: &Effects, key: &str, headers: &mut HeaderMap) {
    headers.insert("KV-Operation", "DEL");
    if let Some(ends) = ends(effects, key) {
        let until = ends.max(timestamp::now()).saturating_add(SLACK);
        headers.insert(EXPIRES_HEADER, until.div_euclid(1_000_000).to_string());
        headers.insert(header::NATS_MESSAGE_TTL, seconds_until(until));
    }
}

/// The TTL of what is to be removed no earlier than `until`; the server takes whole seconds.
pub(super) fn seconds_until(until: i64) -> String {
    let left = until.saturating_sub(timestamp::now()).max(0);
    format!("{}s", (left / SECOND + 1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &'static str)]) -> Lifetime {
        let header = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| *value)
        };
        Lifetime::of(header, || Some(10 * SECOND))
    }

    #[test]
    fn headers_say_when_a_value_ends() {
        let at = |until: Option<i64>, ends: Option<i64>| Lifetime {
            until: until.map(|at| at * SECOND),
            ends: ends.map(|at| at * SECOND),
        };
        let expires = ("Pelton-Expires", "15000");
        for (headers, expected) in [
            (&[][..], at(None, None)),
            (&[("Nats-TTL", "never")], at(None, None)),
            // Of another client: what it replaced may live longer.
            (&[("Nats-TTL", "5s")], at(Some(15), None)),
            (&[("Nats-TTL", "1h0m5s")], at(Some(3615), None)),
            (&[expires], at(Some(15), None)),
            (&[expires, ("Nats-TTL", "6")], at(Some(15), Some(16))),
        ] {
            assert_eq!(of(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn only_what_outlives_all_before_it_goes_by_itself() {
        let until = timestamp::now() + 100 * SECOND;
        let ttl = |effects: &Effects| {
            let mut headers = HeaderMap::new();
            expiring(effects, "k", until, &mut headers);
            headers.get("Nats-TTL").map(|ttl| ttl.as_str().to_owned())
        };
        let read = |revision, ends: Option<i64>| Effects {
            reads: [("k".to_owned(), revision)].into(),
            ends: ends
                .map(|ends| ("k".to_owned(), ends))
                .into_iter()
                .collect(),
            ..Effects::default()
        };
        assert_eq!(ttl(&Effects::default()), None, "not read");
        assert_eq!(ttl(&read(7, None)), None, "one that stays");
        assert_eq!(
            ttl(&read(7, Some(until + 1))),
            None,
            "one that stays longer"
        );
        assert!(ttl(&read(7, Some(until))).is_some());
        assert!(ttl(&read(0, None)).is_some(), "none");

        let mut headers = HeaderMap::new();
        deleting(&read(7, None), "k", &mut headers);
        assert!(headers.get("Nats-TTL").is_none());
        deleting(&read(7, Some(until)), "k", &mut headers);
        let ttl = headers.get("Nats-TTL").map(|ttl| ttl.as_str().to_owned());
        assert!(["160s", "161s"].contains(&ttl.unwrap().as_str()));
    }
}
