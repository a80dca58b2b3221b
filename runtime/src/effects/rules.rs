//! What a function may emit, and where that goes: `allow.emit` and the streams that cover it.

use super::{Failure, HEADER_RESERVE};
use crate::event::{Outgoing, subject};
use crate::records::Target;

/// The part of a function's settings that its effects are judged by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The app's name.
    pub app: String,
    /// The function's name.
    pub function: String,
    /// Patterns of subjects that may be emitted to.
    pub emit: Vec<String>,
    /// Streams that cover them.
    pub targets: Vec<Target>,
    /// Largest message the server takes, bytes, headers included.
    pub max_payload: usize,
}

impl Rules {
    /// The stream that an event with this subject goes to.
    ///
    /// # Errors
    /// `pelton-event-invalid`, `pelton-not-allowed`; each says what to change.
    pub fn target(&self, to: &str) -> Result<&Target, Failure> {
        if to.len() > subject::MAX_SUBJECT {
            return Err(Failure::reject(
                "pelton-event-invalid",
                format!(
                    "the event's subject has {} bytes and may have {}: put what is long into its \
                     data or an attribute",
                    to.len(),
                    subject::MAX_SUBJECT
                ),
            ));
        }
        if !subject::is_subject(to) {
            return Err(Failure::reject(
                "pelton-event-invalid",
                format!(
                    "subject {to:?} cannot be published to: tokens between dots must not be empty, \
                     and `*`, `>`, spaces and control characters are not allowed"
                ),
            ));
        }
        if !self
            .emit
            .iter()
            .any(|pattern| subject::matches(pattern, to))
        {
            return Err(Failure::reject(
                "pelton-not-allowed",
                format!(
                    "function {function} may not emit to {to}; if it should, add to \
                     [functions.{function}.allow] emit = [\"{to}\"] in pelton.toml and deploy",
                    function = self.function,
                ),
            ));
        }
        self.targets
            .iter()
            .find(|target| target.subjects.iter().any(|p| subject::matches(p, to)))
            .ok_or_else(|| {
                Failure::reject(
                    "pelton-not-allowed",
                    format!(
                        "no stream covers {to}, so nothing would keep the event; add a stream with \
                         subjects = [\"{to}\"] to pelton.toml and deploy"
                    ),
                )
            })
    }

    /// Whether the message fits the server and its target, with room for what a commit adds.
    ///
    /// # Errors
    /// `pelton-limit`: one that does not fit would block its target's source for good.
    pub fn fits(&self, target: &Target, message: &Outgoing) -> Result<(), Failure> {
        let size = wire_size(message);
        let limit = target
            .max_message_size
            .map_or(self.max_payload, |max| self.max_payload.min(max as usize));
        // What comes by a source says where it comes from, with the subject once more.
        let reserve = HEADER_RESERVE + message.subject.len();
        let room = limit.saturating_sub(reserve);
        if size <= room {
            return Ok(());
        }
        Err(Failure::reject(
            "pelton-limit",
            format!(
                "the event for {} has {size} bytes with its headers; stream {} takes at most {room} \
                 ({limit} less {reserve} for Pelton's headers): put larger data into the object \
                 store and emit a reference, or raise the stream's max_msg_size and the server's max_payload",
                message.subject, target.stream,
            ),
        ))
    }

    /// Longest state value, bytes.
    pub fn max_value(&self) -> usize {
        self.max_payload.saturating_sub(HEADER_RESERVE)
    }
}

/// Bytes of headers and payload on the wire, which is what the server's limits count.
fn wire_size(message: &Outgoing) -> usize {
    let headers: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + ": \r\n".len())
        .sum();
    headers + "NATS/1.0\r\n\r\n".len() + message.payload.len()
}
