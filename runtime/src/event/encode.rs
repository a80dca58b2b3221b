//! Draft to message: binary mode, values percent-encoded as the binding says.

use bytes::Bytes;

use super::Headers;

/// An event to be, as the contract's `draft`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The NATS subject to publish to.
    pub subject: String,
    /// None: made from the transaction and this draft's number.
    pub id: Option<String>,
    /// None: `/<app>/<function>`.
    pub source: Option<String>,
    /// None: the NATS subject.
    pub ty: Option<String>,
    /// None: now. Nanoseconds since 1970.
    pub time: Option<i64>,
    /// None: `application/json`.
    pub datacontenttype: Option<String>,
    /// `subject`, `dataschema` and extensions.
    pub attributes: Vec<(String, String)>,
    /// The data.
    pub data: Bytes,
}

/// What fills a draft's gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftDefaults {
    /// `<txn>.<n>`.
    pub id: String,
    /// `/<app>/<function>`.
    pub source: String,
    /// Now, nanoseconds since 1970.
    pub time: i64,
    /// Trace context to pass on: `traceparent`, `tracestate`.
    pub trace: Vec<(String, String)>,
}

/// A message ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The NATS subject.
    pub subject: String,
    /// `ce-*` headers and `content-type`.
    pub headers: Headers,
    /// The data.
    pub payload: Bytes,
}

/// Completes and encodes a draft.
///
/// # Errors
/// What is malformed: subject with a wildcard or an empty token, attribute name, time out of range.
pub fn encode(_draft: Draft, _defaults: DraftDefaults) -> Result<Outgoing, String> {
    Err("not built yet".into())
}
