//! A dead letter: the original message as its body, everything else in headers.

use bytes::Bytes;
use time::OffsetDateTime;

use super::cut;
use crate::commit::DeadLetter;
use crate::effects::{Failure, MAX_ERROR_BYTES};
use crate::event::{self, Headers, Message};
use crate::records::{AttemptError, FORMAT, FunctionRecord, rfc3339};

/// What the subject of an outbox message and its batch headers may add, bytes.
const OVERHEAD: usize = 1024;
/// The server takes 64 KiB of headers. What the id, the attempts and the original headers may have of it; the reason and the rest
/// fit into what is left.
const MAX_ID_BYTES: usize = 1024;
const MAX_ATTEMPTS_BYTES: usize = 24 << 10;
const MAX_HEADERS_BYTES: usize = 24 << 10;

/// Builds the letter; `txn` is the id of the transaction that the delivery would have been. An original that does not fit beside what is known of it goes into parts: its headers as JSON,
/// then its body, cut where a message is half full.
pub(crate) fn letter(
    function: &FunctionRecord,
    message: &Message,
    txn: &str,
    failure: &Failure,
    errors: &[AttemptError],
    max_payload: usize,
) -> DeadLetter {
    let original = serde_json::to_string(&message.headers).unwrap_or_default();
    let mut headers = known(function, message, txn, failure, errors);
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    let whole = size + original.len() + message.payload.len() + OVERHEAD;
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
    if original.len() <= MAX_HEADERS_BYTES && whole <= max_payload {
        add("Pelton-Headers", original);
        let payload = message.payload.clone();
        return DeadLetter {
            headers,
            payload,
            parts: Vec::new(),
        };
    }
    let length = original.len();
    let mut all = original.into_bytes();
    all.extend_from_slice(&message.payload);
    let all = Bytes::from(all);
    let piece = (max_payload / 2).max(1);
    let parts: Vec<Bytes> = (0..all.len())
        .step_by(piece)
        .map(|from| all.slice(from..all.len().min(from + piece)))
        .collect();
    add("Pelton-Parts", parts.len().to_string());
    add("Pelton-Headers-Length", length.to_string());
    DeadLetter {
        headers,
        payload: Bytes::new(),
        parts,
    }
}

/// What is known of the delivery, without the original message.
fn known(
    function: &FunctionRecord,
    message: &Message,
    txn: &str,
    failure: &Failure,
    errors: &[AttemptError],
) -> Headers {
    let mut reason = failure.message.clone();
    cut(&mut reason, MAX_ERROR_BYTES);
    let mut event_id = event::decode(message).map_or_else(
        |_| format!("{}:{}", message.stream, message.sequence),
        |decoded| decoded.event.id,
    );
    cut(&mut event_id, MAX_ID_BYTES);
    let stored = OffsetDateTime::from_unix_timestamp_nanos(i128::from(message.stored))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    [
        ("Pelton-Format", FORMAT.to_string()),
        ("Pelton-App", function.app.clone()),
        ("Pelton-Function", function.function.clone()),
        ("Pelton-Version", function.version.to_string()),
        ("Pelton-Code", failure.code.clone()),
        ("Pelton-Reason", one_line(&reason)),
        ("Pelton-Subject", message.subject.clone()),
        ("Pelton-Stream", message.stream.to_string()),
        ("Pelton-Sequence", message.sequence.to_string()),
        ("Pelton-Stored", rfc3339(stored)),
        ("Pelton-Event-Id", one_line(&event_id)),
        ("Pelton-Time", rfc3339(OffsetDateTime::now_utc())),
        ("Pelton-Txn", txn.to_owned()),
        ("Pelton-Attempts", latest(errors)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
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
