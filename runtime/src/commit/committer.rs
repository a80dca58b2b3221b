//! Sends transactions and finds out what a refusal means: a duplicate, a conflict, or trouble that passes.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, message::PublishMessage};
use async_nats::{Client, header};
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Semaphore;

use super::batch::{self, BatchError, BatchMessage};
use super::state::NatsState;
use super::transaction::{Origin, Transaction};
use crate::effects::StateError;
use crate::names::AppNames;
use crate::records::{self, AttemptsRecord};

/// Batches of one app in flight from this node; the server takes 50 per stream from all nodes together.
const IN_FLIGHT: usize = 16;
/// Wait for the answer of one batch.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Sends of one transaction before its delivery is handed back; with the backoff below some
/// twenty seconds when NATS is silent.
const TRIES: usize = 8;
/// Attempt records outlive the longest `retry-after` (24 h) and then go, should their function be gone.
const ATTEMPTS_TTL: Duration = Duration::from_secs(48 * 3600);

/// Why a transaction is not committed now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It was committed before: nothing is left to do.
    #[error("committed before")]
    Duplicate,
    /// These keys changed since they were read: run the handler again.
    #[error("changed since they were read: {0:?}")]
    Conflict(Vec<String>),
    /// NATS does not answer or is busy: hand the delivery back.
    #[error("{0}")]
    Unavailable(String),
    /// The server will never take it.
    #[error("{description} ({code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// Its text.
        description: String,
    },
}

/// Commits to one app's stream; cheap to clone.
#[derive(Clone)]
pub struct Committer {
    client: Client,
    state: NatsState,
    names: AppNames,
    permits: Arc<Semaphore>,
}

/// What the conditions look like after one of them failed.
enum Culprit {
    Duplicate,
    StaleMarker(u64),
    Keys(Vec<String>),
    None,
}

impl CommitError {
    /// Whether it was refused for its size, so that sending less may help.
    pub fn is_size(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: batch::TOO_LARGE | batch::HEADERS_TOO_LARGE | batch::TOO_MANY,
                ..
            }
        )
    }
}

impl Committer {
    /// A committer for the app that `names` names.
    pub fn new(client: Client, state: NatsState, names: AppNames) -> Self {
        Self {
            client,
            state,
            names,
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
        }
    }

    /// Makes a transaction durable, or says why not. Sending it again after `Unavailable` is safe: the marker
    /// refuses a second one.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut marker = 0;
        let mut backoff = backoff();
        let mut last = String::new();
        for _ in 0..TRIES {
            let messages = transaction.messages(&self.names, marker);
            if messages.len() > batch::MAX_MESSAGES {
                let description = format!(
                    "{} messages in one commit, {} fit",
                    messages.len(),
                    batch::MAX_MESSAGES
                );
                return Err(CommitError::Refused {
                    code: batch::TOO_MANY,
                    description,
                });
            }
            match self.send(messages).await {
                Ok(()) => return Ok(()),
                Err(BatchError::Refused { code, description }) => {
                    return Err(CommitError::Refused { code, description });
                }
                Err(BatchError::Condition) => match self.culprit(transaction, marker).await {
                    Ok(Culprit::Duplicate) => return Err(CommitError::Duplicate),
                    Ok(Culprit::Keys(keys)) => return Err(CommitError::Conflict(keys)),
                    Ok(Culprit::StaleMarker(sequence)) => {
                        marker = sequence;
                        continue;
                    }
                    // It failed against a batch in flight that was then dropped.
                    Ok(Culprit::None) => {
                        last = "a condition failed against a batch in flight".into()
                    }
                    Err(error) => last = error.to_string(),
                },
                Err(error @ (BatchError::Busy(_) | BatchError::Unknown(_))) => {
                    last = error.to_string()
                }
            }
            tokio::time::sleep(backoff.next().unwrap_or(TIMEOUT)).await;
        }
        Err(CommitError::Unavailable(last))
    }

    /// A permit bounds the batches in flight; what waits between two sends holds none.
    async fn send(&self, messages: Vec<BatchMessage>) -> Result<(), BatchError> {
        let closed = |_| BatchError::Unknown("shutting down".into());
        let _permit = self.permits.acquire().await.map_err(closed)?;
        batch::publish(&self.client, messages, TIMEOUT).await
    }

    /// One read of all conditions' subjects tells which of them no longer hold.
    async fn culprit(&self, transaction: &Transaction, marker: u64) -> Result<Culprit, StateError> {
        let Origin {
            function,
            stream,
            sequence,
            txn,
        } = &transaction.origin;
        let marker_subject = self.names.marker(function, stream, *sequence);
        let conditions = transaction.conditions(&self.names);
        let mut subjects: Vec<String> = conditions
            .iter()
            .map(|(subject, _)| subject.clone())
            .collect();
        subjects.push(marker_subject.clone());
        let found = self.state.last(subjects).await?;
        if let Some(stored) = found.get(&marker_subject) {
            if stored.payload == txn.as_bytes() {
                return Ok(Culprit::Duplicate);
            }
            if stored.sequence != marker {
                return Ok(Culprit::StaleMarker(stored.sequence));
            }
        } else if marker != 0 {
            // The stale marker expired meanwhile.
            return Ok(Culprit::StaleMarker(0));
        }
        let prefix = self.names.state_prefix();
        let changed = |(subject, expected): (String, u64)| {
            let now = found.get(&subject).map_or(0, |last| last.sequence);
            (now != expected).then(|| subject.strip_prefix(&prefix).unwrap_or(&subject).to_owned())
        };
        let keys: Vec<String> = conditions.into_iter().filter_map(changed).collect();
        Ok(if keys.is_empty() {
            Culprit::None
        } else {
            Culprit::Keys(keys)
        })
    }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(TRIES)
        .build()
}

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
    js: jetstream::Context,
    state: NatsState,
    names: AppNames,
}

impl Attempts {
    /// The records of the app that `names` names.
    pub fn new(js: jetstream::Context, state: NatsState, names: AppNames) -> Self {
        Self { js, state, names }
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
        Ok(if found.txn == *txn {
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
            .js
            .send_publish(subject, message)
            .await
            .map_err(|error| StateError(error.to_string()))?;
        ack.await.map_err(|error| StateError(error.to_string()))?;
        Ok(())
    }
}
