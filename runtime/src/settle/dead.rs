//! A dead letter: the original message as its body, everything else in headers.

use time::OffsetDateTime;

use super::{Case, cut, rfc3339};
use crate::commit::DeadLetter;
use crate::delivery::Worker;
use crate::effects::{Failure, MAX_ERROR_BYTES};
use crate::event::{self, Headers};
use crate::records::{AttemptError, FORMAT};
use crate::source::Received;

/// What the subject of an outbox message and its batch headers may add, bytes.
const OVERHEAD: usize = 1024;

/// What is kept of an event's id, bytes.
const MAX_ID_BYTES: usize = 1024;

/// Original headers that a letter by reference repeats, bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Builds the letter; `None` when it would not fit inline. Without the body it says where the body is.
pub(super) fn letter(
    worker: &Worker,
    case: &Case,
    received: &Received,
    failure: &Failure,
    errors: &[AttemptError],
    inline: bool,
) -> Option<DeadLetter> {
    let message = &received.message;
    let mut reason = failure.message.clone();
    cut(&mut reason, MAX_ERROR_BYTES);
    let event_id = event::decode(message).map_or_else(
        |_| format!("{}:{}", message.stream, message.sequence),
        |decoded| decoded.event.id,
    );
    let mut event_id = event_id;
    cut(&mut event_id, MAX_ID_BYTES);
    // Headers that fill a message by themselves stay in the input alone, and older attempts in the logs.
    let weight: usize = message
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let kept: &[(String, String)] = if inline || weight <= MAX_HEADER_BYTES {
        &message.headers
    } else {
        &[]
    };
    let errors = if inline {
        errors
    } else {
        errors.last().map_or(&[][..], std::slice::from_ref)
    };
    let stored = OffsetDateTime::from_unix_timestamp_nanos(i128::from(message.stored))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let headers: Headers = [
        ("Pelton-Format", FORMAT.to_string()),
        ("Pelton-App", worker.record.app.clone()),
        ("Pelton-Function", worker.record.function.clone()),
        ("Pelton-Version", worker.record.version.to_string()),
        ("Pelton-Code", failure.code.clone()),
        ("Pelton-Reason", one_line(&reason)),
        ("Pelton-Subject", message.subject.clone()),
        ("Pelton-Stream", message.stream.clone()),
        ("Pelton-Sequence", message.sequence.to_string()),
        ("Pelton-Stored", rfc3339(stored)),
        ("Pelton-Event-Id", one_line(&event_id)),
        ("Pelton-Time", rfc3339(OffsetDateTime::now_utc())),
        ("Pelton-Txn", case.origin.txn.clone()),
        (
            "Pelton-Attempts",
            serde_json::to_string(errors).unwrap_or_default(),
        ),
        (
            "Pelton-Headers",
            serde_json::to_string(kept).unwrap_or_default(),
        ),
        (
            "Pelton-Body",
            if inline { "inline" } else { "reference" }.to_owned(),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    if inline && size + message.payload.len() + OVERHEAD > worker.max_payload {
        return None;
    }
    let payload = if inline {
        message.payload.clone()
    } else {
        Default::default()
    };
    Some(DeadLetter { headers, payload })
}

/// A header value ends at the line's end.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
