//! An event as a handler sees it: CloudEvents attributes and typed data.

use std::time::Duration;

use crate::Result;
use crate::payload::{Payload, Raw};

/// A point in time, in nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds since 1970-01-01T00:00:00Z.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// When tests take place: 2026-01-01T00:00:00Z.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) const TEST: Self = Self(1_767_225_600_000_000_000);
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Stops at the end of time, which is in 2262.
    fn add(self, duration: Duration) -> Self {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// A CloudEvents 1.0 event, its data read as `T` (see [`Payload`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<T> {
    /// Unique per source, never empty. A plain message has its `Nats-Msg-Id`, else `<stream>:<sequence>`.
    pub id: String,
    /// The producer, a URI reference, never empty. A plain message has its stream's name.
    pub source: String,
    /// What happened (the attribute `type`), never empty. A plain message has its NATS subject.
    pub ty: String,
    /// When it happened, as the producer says; where it does not, when the message was stored. See
    /// also [`Context::now`](crate::Context::now), which no producer can set.
    pub time: Timestamp,
    /// The NATS subject, by which handlers are chosen. The CloudEvents attribute `subject` is among `attributes`.
    pub subject: String,
    /// Media type of the data; none means JSON.
    pub content_type: Option<String>,
    /// `subject`, `dataschema` and extensions, `traceparent` among them.
    pub attributes: Vec<(String, String)>,
    /// What happened, in detail.
    pub data: T,
}

impl<T> Event<T> {
    /// A token of the NATS subject, counted from 1 as in the manifest: token 2 of `orders.o-1.paid` is `o-1`.
    pub fn token(&self, number: usize) -> Option<&str> {
        self.subject.split('.').nth(number.checked_sub(1)?)
    }

    /// A CloudEvents attribute beyond the fields of this type.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Event<Raw> {
    /// The same event with its data read as `T`.
    ///
    /// # Errors
    /// A reject with code `payload-invalid` that names field and position.
    pub fn decode<T: Payload>(self) -> Result<Event<T>> {
        let data = T::decode(self.data.0)?;
        Ok(Event {
            id: self.id,
            source: self.source,
            ty: self.ty,
            time: self.time,
            subject: self.subject,
            content_type: self.content_type,
            attributes: self.attributes,
            data,
        })
    }

    /// For tests: an event whose data is these bytes. Its id is `test-1`; change any field as the test needs it.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn test_bytes(subject: &str, data: impl Into<Vec<u8>>) -> Self {
        Event {
            id: "test-1".to_owned(),
            source: "test".to_owned(),
            ty: subject.to_owned(),
            time: Timestamp::TEST,
            subject: subject.to_owned(),
            content_type: None,
            attributes: Vec::new(),
            data: Raw(data.into()),
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl<T: Payload> Event<T> {
    /// For tests: an event whose data went through JSON as it would on its way here. Its id is `test-1`; change any
    /// field as the test needs it.
    ///
    /// # Panics
    /// When `T` cannot be read from that JSON; see [`Event::test_bytes`] for data that is meant to be wrong.
    #[expect(
        clippy::panic,
        reason = "a test's own data is wrong: the test must say so"
    )]
    pub fn test(subject: &str, data: impl serde::Serialize) -> Self {
        let decoded = serde_json::to_vec(&data)
            .map_err(crate::Error::from)
            .and_then(|json| Event::test_bytes(subject, json).decode());
        match decoded {
            Ok(event) => event,
            Err(error) => panic!("Event::test({subject:?}, …): {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_count_from_one() {
        let event = Event::test_bytes("orders.o-1.paid", *b"1");
        assert_eq!(event.token(2), Some("o-1"));
        assert_eq!(event.token(0), None);
        assert_eq!(event.token(4), None);
    }

    #[test]
    fn decoding_keeps_the_attributes() {
        let mut raw = Event::test_bytes("a.b", *b"[1,2]");
        raw.id = "e-7".into();
        raw.attributes.push(("traceparent".into(), "00-1".into()));
        let event: Event<Vec<u8>> = raw.decode().unwrap();
        assert_eq!((event.id.as_str(), &event.data[..]), ("e-7", &[1, 2][..]));
        assert_eq!(event.attribute("traceparent"), Some("00-1"));
        assert_eq!(event.attribute("subject"), None);
    }

    #[test]
    fn times_add_up() {
        let time = Timestamp(-1) + Duration::from_secs(2);
        assert_eq!(time.seconds(), 1);
        assert_eq!(Timestamp(-1).seconds(), -1);
        assert_eq!(time + Duration::MAX, Timestamp(i64::MAX));
    }
}
