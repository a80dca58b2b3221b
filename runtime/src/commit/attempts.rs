//! What failed attempts of a delivery leave, until it is settled.

use std::time::Duration;

use async_nats::header;
use async_nats::jetstream::message::PublishMessage;

use super::state::NatsState;
use super::transaction::Origin;
use crate::effects::StateError;
use crate::names::AppNames;
use crate::nats::Connection;
use crate::records::{self, AttemptsRecord};

/// Attempt records outlive the longest `retry-after` (24 h) and then go, should their function be gone.
const ATTEMPTS_TTL: Duration = Duration::from_secs(48 * 3600);

/// What happened to a delivery before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing that is known.
    Nothing,
    /// Attempts failed or were put off.
    Failed(AttemptsRecord),
    /// It committed; only its ack was lost.
    Committed,
}

/// Records of attempts that failed, kept in the commit stream until their delivery is settled.
#[derive(Clone)]
pub struct Attempts {
    nats: Connection,
    state: NatsState,
    names: AppNames,
}

impl Attempts {
    /// The records of the app that `names` names.
    pub fn new(nats: Connection, state: NatsState, names: AppNames) -> Self {
        Self { nats, state, names }
    }

    /// What earlier attempts of this delivery left.
    ///
    /// # Errors
    /// NATS did not answer, or the record cannot be read.
    pub async fn load(&self, origin: &Origin) -> Result<Earlier, StateError> {
        let Origin {
            function,
            stream,
            sequence,
            txn,
        } = origin;
        let record = self.names.attempts(function, stream, *sequence);
        let marker = self.names.marker(function, stream, *sequence);
        let found = self
            .state
            .last(vec![record.clone(), marker.clone()])
            .await?;
        if found
            .get(&marker)
            .is_some_and(|last| last.payload == txn.as_bytes())
        {
            return Ok(Earlier::Committed);
        }
        let Some(last) = found.get(&record).filter(|last| !last.deleted) else {
            return Ok(Earlier::Nothing);
        };
        let found: AttemptsRecord = serde_json::from_slice(&last.payload)
            .map_err(|error| StateError(format!("{record} holds no attempts record: {error}")))?;
        if found.format != records::FORMAT {
            let (format, known) = (found.format, records::FORMAT);
            return Err(StateError(format!(
                "{record} has format {format}, this node reads {known}"
            )));
        }
        // A record of another transaction was left by a stream of the same name.
        Ok(if *found.txn == **txn {
            Earlier::Failed(found)
        } else {
            Earlier::Nothing
        })
    }

    /// Replaces the record, unless the delivery committed meanwhile through another copy of its message.
    ///
    /// # Errors
    /// NATS did not confirm it, or the delivery is committed.
    pub async fn store(&self, origin: &Origin, record: &AttemptsRecord) -> Result<(), StateError> {
        let subject = self
            .names
            .attempts(&origin.function, &origin.stream, origin.sequence);
        let body = serde_json::to_vec(record).map_err(|error| StateError(error.to_string()))?;
        let marker = self
            .names
            .marker(&origin.function, &origin.stream, origin.sequence);
        let message = PublishMessage::build()
            .payload(body.into())
            .header(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0")
            .header("Nats-Expected-Last-Subject-Sequence-Subject", marker)
            .header(
                header::NATS_MESSAGE_TTL,
                format!("{}s", ATTEMPTS_TTL.as_secs()),
            );
        let ack = self
            .nats
            .jetstream()
            .send_publish(subject, message)
            .await
            .map_err(|error| StateError(error.to_string()))?;
        ack.await.map_err(|error| StateError(error.to_string()))?;
        Ok(())
    }
}
