//! Events: what a message means. Pure; the CloudEvents 1.0 NATS protocol binding is in `decode` and `encode`.

mod decode;
mod encode;
mod key;
mod structured;
pub mod subject;
pub mod timestamp;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use decode::unambiguous;
pub use decode::{Decoded, EventError, decode};
pub(crate) use encode::content_type;
pub use encode::{Draft, DraftDefaults, Outgoing, attribute_headers, encode};
pub use key::{MAX_KEY, key};

/// Names and values; names may repeat. Those of a message that was read are ordered by name,
/// regardless of case, and values of one name stay in the order of the message.
pub type Headers = Vec<(String, String)>;

/// The same of a message to be; most of their names are known beforehand.
pub type OutHeaders = Vec<(Cow<'static, str>, String)>;

/// As a message that was received has them.
pub fn owned(headers: OutHeaders) -> Headers {
    let headers = headers.into_iter();
    headers
        .map(|(name, value)| (name.into_owned(), value))
        .collect()
}

/// A stored message, as a source hands it over.
#[derive(Debug, Clone)]
pub struct Message {
    /// The NATS subject.
    pub subject: String,
    /// Headers as they came: names in any case, values possibly percent-encoded.
    pub headers: Headers,
    /// The body.
    pub payload: Bytes,
    /// Stream that holds it.
    pub stream: Arc<str>,
    /// Sequence there, from 1.
    pub sequence: u64,
    /// When it was stored, nanoseconds since 1970-01-01T00:00:00Z.
    pub stored: i64,
}

/// A CloudEvents 1.0 event; strings are decoded, never percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unique per source, never empty.
    pub id: String,
    /// The producer, a URI reference, never empty.
    pub source: String,
    /// What happened, never empty.
    pub ty: String,
    /// When it happened, nanoseconds since 1970-01-01T00:00:00Z.
    pub time: i64,
    /// The CloudEvents attribute `subject`, not the NATS subject.
    pub subject: Option<String>,
    /// Media type of `data`; none means JSON.
    pub datacontenttype: Option<String>,
    /// URI of the schema of `data`.
    pub dataschema: Option<String>,
    /// All other attributes; lower-case names, sorted, unique.
    pub extensions: std::collections::BTreeMap<String, String>,
    /// The payload.
    pub data: Bytes,
}

/// Where a message is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream's name.
    pub stream: Arc<str>,
    /// Its sequence there, from 1.
    pub sequence: u64,
}

/// One event handed to one function: the contract's `delivery`.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What happened.
    pub event: Event,
    /// The NATS subject.
    pub subject: String,
    /// None for a call, which no stream holds.
    pub position: Option<Position>,
    /// The ordering key.
    pub key: Option<Arc<str>>,
    /// Headers that are no event attributes, by name; lower-case names.
    pub headers: Headers,
    /// When the message was stored, nanoseconds since 1970: the contract's `clock.now`.
    pub stored: i64,
    /// This attempt, from 1.
    pub attempt: u32,
    /// 0: no limit.
    pub max_attempts: u32,
    /// Wall-clock time that this attempt may take.
    pub timeout: Duration,
    /// Whether a caller waits for a reply.
    pub expects_reply: bool,
}
