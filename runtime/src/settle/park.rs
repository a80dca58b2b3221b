//! The park: deliveries of the position engine that wait for their next attempt. The position moves on past them, so that
//! other keys do, too; whoever takes a partition over finds them here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Case, STUCK_PAUSE};
use crate::commit::{CommitError, Parking};
use crate::delivery::{TROUBLE_PAUSE, Worker, log_delivery};
use crate::effects::Effects;
use crate::event::{Headers, Message};
use crate::mutation;
use crate::records::{AttemptsRecord, FORMAT};
use crate::source::{Received, Return, Settlement};

/// The server takes 64 KiB of headers: what the attempts and the original headers may have of it.
const MAX_ATTEMPTS_BYTES: usize = 24 << 10;
const MAX_HEADERS_BYTES: usize = 24 << 10;
/// What subject, batch headers and the other headers may add, bytes.
const OVERHEAD: usize = 4 << 10;

const RECORD: &str = "Pelton-Attempts";
const SUBJECT: &str = "Pelton-Subject";
const STORED: &str = "Pelton-Stored-Ns";
const HEADERS: &str = "Pelton-Headers";
const BODY: &str = "Pelton-Body";

/// A delivery as it was parked.
pub(crate) struct Parked {
    pub(crate) record: AttemptsRecord,
    /// The message; without headers and body if `whole` does not say otherwise.
    pub(crate) message: Message,
    /// Whether all of the message is here. Otherwise it is in the input, being too large to be kept beside its record.
    pub(crate) whole: bool,
}

/// Parks a delivery in the batch that moves its position past it.
pub(super) async fn store(
    worker: &Worker,
    case: &Case,
    received: &Received,
    record: &AttemptsRecord,
    after: Duration,
    how: Return,
) -> Settlement {
    let mut transaction = case.ending(worker, received, Effects::default(), None);
    transaction.parking = case.park.as_ref().map(|park| Parking {
        subject: park.subject(worker, received),
        revision: park.revision,
        message: Some(write(record, &received.message, worker.max_payload)),
    });
    if mutation::is("park-in-memory") {
        transaction.parking = None;
        let _ = worker.committer.commit(Arc::new(transaction)).await;
        return Settlement::Again(after);
    }
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) | Err(CommitError::Duplicate) => Settlement::Parked(after, how),
        Err(CommitError::Lost) => Settlement::Lost,
        Err(error @ (CommitError::Unavailable(_) | CommitError::Conflict(_))) => {
            log_delivery!(
                warn,
                worker,
                received.message,
                %error,
                "the delivery could not be parked for its next attempt; it runs again"
            );
            Settlement::Again(TROUBLE_PAUSE)
        }
        Err(error) => {
            log_delivery!(
                error,
                worker,
                received.message,
                %error,
                "the delivery cannot be parked for its next attempt; it runs again after {STUCK_PAUSE:?}"
            );
            Settlement::Again(STUCK_PAUSE)
        }
    }
}

/// Parks a delivery that was not tried, because an earlier one of its key keeps its place.
pub(crate) async fn behind(worker: &Worker, case: &Case, received: &Received) -> Settlement {
    store(
        worker,
        case,
        received,
        &case.record(worker, received),
        Duration::ZERO,
        Return::Retry,
    )
    .await
}

/// A delivery of which nothing is known but where it was.
pub(crate) fn lost(stream: &Arc<str>, sequence: u64) -> Parked {
    Parked {
        record: AttemptsRecord::default(),
        message: Message {
            subject: String::new(),
            headers: Headers::new(),
            payload: Bytes::new(),
            stream: stream.clone(),
            sequence,
            stored: 0,
        },
        whole: false,
    }
}

/// A delivery as it lies in the park: headers and body.
pub(crate) fn write(
    record: &AttemptsRecord,
    message: &Message,
    max_payload: usize,
) -> (Headers, Bytes) {
    let mut record = record.clone();
    let mut attempts = serde_json::to_string(&record).unwrap_or_default();
    while attempts.len() > MAX_ATTEMPTS_BYTES && !record.errors.is_empty() {
        record.errors.remove(0);
        attempts = serde_json::to_string(&record).unwrap_or_default();
    }
    let original = serde_json::to_string(&message.headers).unwrap_or_default();
    let size = attempts.len() + original.len() + message.payload.len() + OVERHEAD;
    let inline = original.len() <= MAX_HEADERS_BYTES && size <= max_payload;
    let mut headers = vec![
        ("Pelton-Format".to_owned(), FORMAT.to_string()),
        (RECORD.to_owned(), attempts),
        (SUBJECT.to_owned(), message.subject.clone()),
        (STORED.to_owned(), message.stored.to_string()),
    ];
    if inline {
        headers.push((HEADERS.to_owned(), original));
    }
    let body = if inline { "inline" } else { "input" };
    headers.push((BODY.to_owned(), body.to_owned()));
    let payload = if inline {
        message.payload.clone()
    } else {
        Bytes::new()
    };
    (headers, payload)
}

/// Reads what [`store`] wrote; `None`: it is nothing that this release wrote.
pub(crate) fn read(
    headers: &Headers,
    payload: Bytes,
    stream: &str,
    sequence: u64,
) -> Option<Parked> {
    let text = |wanted: &str| {
        let mut all = headers.iter();
        all.find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    let record = serde_json::from_str(text(RECORD)?).ok()?;
    let whole = text(BODY)? == "inline";
    let headers = match whole {
        true => serde_json::from_str(text(HEADERS)?).ok()?,
        false => Headers::new(),
    };
    let message = Message {
        subject: text(SUBJECT)?.to_owned(),
        headers,
        payload,
        stream: stream.into(),
        sequence,
        stored: text(STORED)?.parse().ok()?,
    };
    Some(Parked {
        record,
        message,
        whole,
    })
}
