//! The node's part in native tests: state in memory, everything else collected to be looked at.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::context::Level;
use crate::draft::Draft;
use crate::event::Timestamp;
use crate::{Error, Result, subject};

/// How long a value with a TTL may live.
const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600);

/// A line that a handler logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// The text.
    pub message: String,
}

/// What [`Context::test`](crate::Context::test) stands on: fill `state` and `config` before the call, look at the rest after it.
///
/// Unlike a node it takes nothing back when a handler fails, it allows every subject, and it has no limits.
#[derive(Debug)]
pub struct TestHost {
    /// What `ctx.now()` answers; 2026-01-01T00:00:00Z until a test sets it.
    pub now: Timestamp,
    /// Every key and its value; [`Table`](crate::Table) reads and writes it typed.
    pub state: BTreeMap<String, Vec<u8>>,
    /// Keys whose values expire, and after how long; [`expire`](Self::expire) lets one do so.
    pub expiring: BTreeMap<String, Duration>,
    /// What `ctx.config` answers.
    pub config: BTreeMap<String, String>,
    /// What was emitted, in order.
    pub emitted: Vec<Draft>,
    /// What is to be emitted at a time, by name.
    pub scheduled: BTreeMap<String, (Timestamp, Draft)>,
    /// The last reply: media type and data.
    pub replied: Option<(Option<String>, Vec<u8>)>,
    /// The error that was replied instead: code and message.
    pub replied_error: Option<(String, String)>,
    /// What was logged, in order.
    pub logged: Vec<LogLine>,
    /// What answers HTTP requests; without one they fail.
    #[cfg(feature = "http")]
    pub http: Option<crate::http::TestServer>,
}

impl Default for TestHost {
    fn default() -> Self {
        Self {
            expiring: BTreeMap::new(),
            now: Timestamp::TEST,
            state: BTreeMap::new(),
            config: BTreeMap::new(),
            emitted: Vec::new(),
            scheduled: BTreeMap::new(),
            replied: None,
            replied_error: None,
            logged: Vec::new(),
            #[cfg(feature = "http")]
            http: None,
        }
    }
}

impl TestHost {
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        check_key(key)?;
        Ok(self.state.get(key).cloned())
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let below = |key: &&String| {
            prefix.is_empty()
                || key
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with('.'))
        };
        let keys = self.state.keys().filter(below);
        let behind = keys.filter(|key| after.is_none_or(|after| key.as_str() > after));
        Ok(behind.take(limit as usize).cloned().collect())
    }

    /// Lets the time of a key's value pass: from now on there is nothing. No effect on a value
    /// without a TTL.
    pub fn expire(&mut self, key: &str) {
        if self.expiring.remove(key).is_some() {
            self.state.remove(key);
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) -> Result {
        check_key(key)?;
        self.expiring.remove(key);
        self.state.insert(key.to_owned(), value);
        Ok(())
    }

    pub(crate) fn set_with_ttl(&mut self, key: &str, value: Vec<u8>, ttl: Duration) -> Result {
        check_key(key)?;
        if !TTL.contains(&ttl) {
            let text = format!("`{key}` is to expire after {ttl:?}; give 1 s to 366 days");
            return Err(Error::reject("pelton-limit", text));
        }
        self.expiring.insert(key.to_owned(), ttl);
        self.state.insert(key.to_owned(), value);
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: &str) -> Result {
        check_key(key)?;
        self.expiring.remove(key);
        self.state.remove(key);
        Ok(())
    }

    pub(crate) fn emit(&mut self, draft: Draft) -> Result {
        check_draft(&draft)?;
        self.emitted.push(draft);
        Ok(())
    }

    pub(crate) fn emit_at(&mut self, name: &str, time: Timestamp, draft: Draft) -> Result {
        check_key(name)?;
        check_draft(&draft)?;
        self.scheduled.insert(name.to_owned(), (time, draft));
        Ok(())
    }

    pub(crate) fn cancel(&mut self, name: &str) -> Result {
        check_key(name)?;
        self.scheduled.remove(name);
        Ok(())
    }

    pub(crate) fn reply(&mut self, content_type: Option<&str>, data: Vec<u8>) -> Result {
        self.replied = Some((content_type.map(str::to_owned), data));
        self.replied_error = None;
        Ok(())
    }

    pub(crate) fn reply_error(&mut self, code: &str, message: &str) -> Result {
        self.replied_error = Some((code.to_owned(), message.to_owned()));
        self.replied = None;
        Ok(())
    }

    pub(crate) fn log(&mut self, level: Level, _context: &str, message: &str) {
        let message = message.to_owned();
        self.logged.push(LogLine { level, message });
    }

    pub(crate) fn config(&self, name: &str) -> Result<Option<String>> {
        Ok(self.config.get(name).cloned())
    }
}

/// The contract's rule: 1 to 256 bytes, tokens not empty.
fn check_key(key: &str) -> Result {
    let bytes = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=/.".contains(&byte);
    if key.len() > 256 || !key.bytes().all(bytes) || key.split('.').any(str::is_empty) {
        let text = format!(
            "`{key}` is no key: 1 to 256 bytes of A-Z a-z 0-9 - _ = / . and no empty token"
        );
        return Err(Error::reject("pelton-key-invalid", text));
    }
    Ok(())
}

/// The contract's rules for events, as far as they do not depend on a manifest.
fn check_draft(draft: &Draft) -> Result {
    let is_name = |name: &str| {
        (1..=20).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let text = if !subject::is_subject(&draft.subject) {
        format!("`{}` is no subject to publish to", draft.subject)
    } else if let Some((name, _)) = draft.attributes.iter().find(|(name, _)| !is_name(name)) {
        format!("attribute `{name}`: a name is 1 to 20 bytes of a-z 0-9")
    } else {
        return Ok(());
    };
    Err(Error::reject("pelton-event-invalid", text))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Context, Draft, Event, Level, Timestamp};

    #[test]
    fn everything_is_collected() {
        let mut ctx = Context::test();
        ctx.config.insert("currency".into(), "EUR".into());
        assert_eq!(ctx.require_config("currency").unwrap(), "EUR");
        assert_eq!(ctx.require_config("x").unwrap_err().code, "config-missing");
        ctx.emit(Draft::new("a.b", &1).id("e-1")).unwrap();
        ctx.emit_at("timer", Timestamp(5), Draft::new("a.c", &2))
            .unwrap();
        ctx.emit_at("other", Timestamp(5), Draft::new("a.c", &2))
            .unwrap();
        ctx.cancel("other").unwrap();
        ctx.reply(&"ok").unwrap();
        ctx.warn("odd");
        assert_eq!(ctx.emitted[0].json::<u8>().unwrap(), 1);
        assert_eq!(ctx.scheduled.keys().collect::<Vec<_>>(), ["timer"]);
        assert_eq!(ctx.replied, Some((None, b"\"ok\"".to_vec())));
        assert_eq!(
            (ctx.logged[0].level, ctx.logged[0].message.as_str()),
            (Level::Warn, "odd")
        );
        assert!(!ctx.delivery().is_last_attempt());
    }

    #[test]
    fn a_test_sets_the_time() {
        let mut ctx = Context::test();
        assert_eq!(ctx.now(), Event::test_bytes("a", *b"1").time);
        ctx.now = Timestamp(7_000_000_000);
        assert_eq!(ctx.now().seconds(), 7);
        ctx.delivery_mut().attempt = 2;
        ctx.emit_after("soon", Duration::from_secs(30), Draft::new("a.b", &1))
            .unwrap();
        assert_eq!(ctx.scheduled["soon"].0, Timestamp(37_000_000_000));
    }

    #[test]
    fn the_last_reply_counts_be_it_an_error_or_not() {
        let mut ctx = Context::test();
        ctx.reply(&1).unwrap();
        ctx.reply_error("quote-unknown", format_args!("no quote {}", 7))
            .unwrap();
        assert_eq!(ctx.replied, None);
        let error = ctx.replied_error.clone().unwrap();
        assert_eq!(error, ("quote-unknown".into(), "no quote 7".into()));
        ctx.reply(&2).unwrap();
        assert_eq!(ctx.replied_error, None);
    }

    #[test]
    fn malformed_events_are_refused_as_a_node_would() {
        let mut ctx = Context::test();
        for draft in [
            Draft::new("a.*", &1),
            Draft::new("a..b", &1),
            Draft::new("a", &1).attribute("Upper", "x"),
        ] {
            assert_eq!(ctx.emit(draft).unwrap_err().code, "pelton-event-invalid");
        }
        let keys_must_be_text = std::collections::BTreeMap::from([((1, 2), 3)]);
        let error = ctx.emit(Draft::new("a", &keys_must_be_text)).unwrap_err();
        assert_eq!(error.code, "data-invalid");
        assert!(ctx.emitted.is_empty());
    }
}
