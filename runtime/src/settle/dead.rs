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
/// The server takes 64 KiB of headers. What the id, the attempts and the original headers may have of it; the reason and the rest
/// fit into what is left.
const MAX_ID_BYTES: usize = 1024;
const MAX_ATTEMPTS_BYTES: usize = 24 << 10;
const MAX_HEADERS_BYTES: usize = 24 << 10;

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
    let original = serde_json::to_string(&message.headers).unwrap_or_default();
    let original = match (original.len() <= MAX_HEADERS_BYTES, inline) {
        (true, _) => original,
        (false, true) => return None,
        // With the body, they are where the letter refers to.
        (false, false) => "[]".to_owned(),
    };
    let mut reason = failure.message.clone();
    cut(&mut reason, MAX_ERROR_BYTES);
    let mut event_id = event::decode(message).map_or_else(
        |_| format!("{}:{}", message.stream, message.sequence),
        |decoded| decoded.event.id,
    );
    cut(&mut event_id, MAX_ID_BYTES);
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
        ("Pelton-Attempts", latest(errors)),
        ("Pelton-Headers", original),
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

/// The latest errors that fit, as JSON.
fn latest(errors: &[AttemptError]) -> String {
    (0..=errors.len())
        .filter_map(|from| serde_json::to_string(errors.get(from..)?).ok())
        .find(|text| text.len() <= MAX_ATTEMPTS_BYTES)
        .unwrap_or_default()
}

/// A header value ends at the line's end.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
