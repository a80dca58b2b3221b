//! Message to event: the CloudEvents 1.0 NATS protocol binding, and plain messages.

use super::{Event, Headers, Message};

/// A message, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The event.
    pub event: Event,
    /// Headers that are no attributes (no `ce-*`), in their order, names in lower case.
    pub headers: Headers,
}

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EventError(pub String);

/// Decodes a message: structured mode, then binary mode, then plain.
///
/// # Errors
/// Malformed CloudEvents; a plain message is always an event.
pub fn decode(_message: &Message) -> Result<Decoded, EventError> {
    Err(EventError("not built yet".into()))
}
