//! Atomic batch publish (ADR-50): n−1 plain publishes and one request, all stored or none.

use async_nats::client::{PublishErrorKind, RequestErrorKind};
use async_nats::{Client, HeaderMap, Request};
use bytes::Bytes;
use serde::Deserialize;

use crate::nats::answered;

/// Messages in one batch, at most (the server's limit).
pub(super) const MAX_MESSAGES: usize = 1000;

/// A condition of a batch failed (`wrong last sequence`); which one is not said.
const CONDITION_FAILED: u64 = 10071;
/// Another batch in flight holds a subject that a condition names.
const IN_FLIGHT_CONFLICT: u64 = 10164;
/// The batch lost messages on its way: gap, leader change.
const INCOMPLETE: u64 = 10176;
/// More than 50 batches in flight on the stream.
const TOO_MANY_IN_FLIGHT: u64 = 10210;
/// The stream, the account or the server is full or short of resources: all pass with time.
const FULL: [u64; 6] = [10002, 10008, 10023, 10028, 10047, 10077];
/// `message size exceeds maximum allowed`; also what the client itself refuses to send.
pub(super) const TOO_LARGE: u64 = 10054;
/// `header size exceeds maximum allowed of 64k`.
pub(super) const HEADERS_TOO_LARGE: u64 = 10097;
/// More messages than a batch may have.
pub(super) const TOO_MANY: u64 = 10199;

/// One message of a batch.
#[derive(Debug, Clone)]
pub(super) struct BatchMessage {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

/// Why a batch was not stored, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BatchError {
    /// A condition failed; nothing was stored.
    #[error("a condition of the batch failed")]
    Condition,
    /// Contention that passes with time; nothing was stored.
    #[error("the commit stream is busy: {0}")]
    Busy(String),
    /// No answer: it may be stored.
    #[error("no answer from the commit stream: {0}")]
    Unknown(String),
    /// Refused for good; nothing was stored.
    #[error("the commit stream refused the batch: {description} ({code})")]
    Refused { code: u64, description: String },
}

#[derive(Deserialize)]
struct Ack {
    /// Sequence of the last message.
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Publishes all messages or none and waits for the answer.
///
/// The sequence of the first message. A single message needs no batch: its conditions hold by themselves.
pub(super) async fn publish(
    client: &Client,
    messages: Vec<BatchMessage>,
) -> Result<u64, BatchError> {
    let count = messages.len();
    // Unlike that of any other under way on the stream, 50 at most: of the system's randomness, for two nodes with one id would be in each
    // other's batch. Short, for every message carries it.
    let id = format!("{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
    for (index, message) in messages.into_iter().enumerate() {
        let BatchMessage {
            subject,
            mut headers,
            payload,
        } = message;
        if count > 1 {
            headers.insert(async_nats::header::NATS_BATCH_ID, id.as_str());
            headers.insert(
                async_nats::header::NATS_BATCH_SEQUENCE,
                (index + 1).to_string(),
            );
        }
        if index + 1 < count {
            client
                .publish_with_headers(subject, headers, payload)
                .await
                .map_err(|error| match error.kind() {
                    PublishErrorKind::MaxPayloadExceeded => too_large(&error),
                    _ => BatchError::Unknown(error.to_string()),
                })?;
            continue;
        }
        if count > 1 {
            headers.insert(async_nats::header::NATS_BATCH_COMMIT, "1");
        }
        let request = Request::new()
            .headers(headers)
            .payload(payload)
            .timeout(None);
        let answer = answered(client, client.send_request(subject, request))
            .await
            .map_err(|error| BatchError::Unknown(error.to_string()))?
            .map_err(|error| match error.kind() {
                RequestErrorKind::MaxPayloadExceeded => too_large(&error),
                _ => BatchError::Unknown(error.to_string()),
            })?;
        let last = read_ack(&answer.payload)?;
        return Ok((last + 1).saturating_sub(count as u64));
    }
    Ok(0)
}

/// The client sends nothing that the server would close the connection for.
fn too_large(error: &dyn std::fmt::Display) -> BatchError {
    BatchError::Refused {
        code: TOO_LARGE,
        description: error.to_string(),
    }
}

fn read_ack(payload: &[u8]) -> Result<u64, BatchError> {
    let ack: Ack =
        serde_json::from_slice(payload).map_err(|error| BatchError::Unknown(error.to_string()))?;
    let Some(ApiError {
        err_code,
        description,
    }) = ack.error
    else {
        return Ok(ack.seq);
    };
    Err(match err_code {
        CONDITION_FAILED => BatchError::Condition,
        IN_FLIGHT_CONFLICT | INCOMPLETE | TOO_MANY_IN_FLIGHT => {
            BatchError::Busy(format!("{description} ({err_code})"))
        }
        code if FULL.contains(&code) => BatchError::Busy(format!("{description} ({code})")),
        code => BatchError::Refused { code, description },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_told_apart() {
        assert_eq!(
            read_ack(br#"{"stream":"KV_a","seq":7,"batch":"b","count":2}"#),
            Ok(7)
        );
        let refused = |code: u64| {
            read_ack(
                format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"d"}}}}"#)
                    .as_bytes(),
            )
        };
        assert_eq!(refused(10071), Err(BatchError::Condition));
        assert!(matches!(refused(10164), Err(BatchError::Busy(_))));
        assert!(matches!(refused(10210), Err(BatchError::Busy(_))));
        assert!(matches!(
            refused(10054),
            Err(BatchError::Refused { code: 10054, .. })
        ));
        assert!(matches!(read_ack(b"nonsense"), Err(BatchError::Unknown(_))));
    }
}
