//! Carries a verdict out. Nothing is let go before its successor is stored: effects, the record of a failed attempt,
//! or the dead letter.

mod dead;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::commit::{CommitError, Earlier, Fence, Origin, Transaction};
use crate::delivery::{TROUBLE_PAUSE, Worker};
use crate::effects::{Attempt, Effects, Failure, StateError};
use crate::names;
use crate::records::{AttemptError, AttemptsRecord, FORMAT};
use crate::source::{Received, Settlement};
use crate::verdict::{self, History, Verdict};

/// Failures kept of one delivery: the latest.
const MAX_ERRORS: usize = 100;
/// What is kept of the message of a failure that is not the last.
const OLD_MESSAGE_BYTES: usize = 512;
/// Pause after the server refused even the dead letter: somebody has to look.
const STUCK_PAUSE: Duration = Duration::from_secs(30);

/// A delivery and what is known of its earlier attempts.
pub(crate) struct Case {
    pub(crate) origin: Origin,
    record: AttemptsRecord,
    /// Whether `record` is stored, so that it must be cleared in the end.
    stored: bool,
}

/// How carrying out ended.
pub(crate) enum Carried {
    /// The source may settle so.
    Settled(Settlement),
    /// These keys changed since they were read: nothing was done, run the handler again.
    Conflict(Vec<String>),
}

impl Case {
    /// Reads what earlier attempts left; a message that was never handed out before has none. `None`: it is committed.
    pub(crate) async fn open(
        worker: &Worker,
        received: &Received,
    ) -> Result<Option<Self>, StateError> {
        let (stream, sequence) = (&received.message.stream, received.message.sequence);
        let txn = names::txn(
            worker.record.instance,
            stream,
            received.stream_created,
            sequence,
        );
        let (function, stream) = (worker.record.function.clone(), stream.clone());
        let origin = Origin {
            function,
            stream,
            sequence,
            txn,
        };
        let earlier = match received.delivered {
            0 | 1 => Earlier::Nothing,
            _ => worker.attempts.load(&origin).await?,
        };
        let fresh = AttemptsRecord {
            format: FORMAT,
            txn: origin.txn.clone(),
            ..Default::default()
        };
        Ok(match earlier {
            Earlier::Committed => None,
            Earlier::Nothing => Some(Self {
                origin,
                record: fresh,
                stored: false,
            }),
            Earlier::Failed(record) => Some(Self {
                origin,
                record,
                stored: true,
            }),
        })
    }

    /// This attempt's number, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        self.record.attempts.saturating_add(1)
    }

    /// How long it is still to wait: another node's crash may have brought it back early.
    pub(crate) fn not_yet(&self) -> Option<Duration> {
        let left = self.record.not_before_ms.saturating_sub(now_ms());
        u64::try_from(left)
            .ok()
            .filter(|left| *left > 0)
            .map(Duration::from_millis)
    }

    fn history(&self) -> History {
        let since = self
            .record
            .deferred_since_ms
            .map_or(0, |since| now_ms().saturating_sub(since));
        History {
            attempt: self.attempt(),
            deferrals: self.record.deferrals,
            deferred_for: Duration::from_millis(u64::try_from(since).unwrap_or(0)),
        }
    }

    fn errors_with(&self, worker: &Worker, failure: &Failure) -> Vec<AttemptError> {
        let mut errors = self.record.errors.clone();
        if errors.len() >= MAX_ERRORS {
            errors.remove(0);
        }
        if let Some(last) = errors.last_mut() {
            cut(&mut last.message, OLD_MESSAGE_BYTES);
        }
        errors.push(AttemptError {
            attempt: self.attempt(),
            code: failure.code.clone(),
            message: failure.message.clone(),
            at: rfc3339(OffsetDateTime::now_utc()),
            version: worker.record.version,
        });
        errors
    }
}

/// Decides what becomes of an attempt and makes it so.
pub(crate) async fn carry_out(
    worker: &Worker,
    case: &Case,
    received: &Received,
    attempt: Attempt,
) -> Carried {
    let Attempt { result, effects } = attempt;
    let verdict = verdict::decide(&result, case.history(), worker.policy(), fastrand::f64());
    match (verdict, result) {
        (Verdict::Retry(after), Err(failure)) => {
            worker.counters.retried();
            tracing::info!(
                code = failure.code,
                message = failure.message,
                attempt = case.attempt(),
                ?after,
                "retry"
            );
            put_off(worker, case, &failure, after, true).await
        }
        (Verdict::Defer(after), Err(failure)) => {
            worker.counters.deferred();
            tracing::debug!(
                code = failure.code,
                message = failure.message,
                ?after,
                "deferred"
            );
            put_off(worker, case, &failure, after, false).await
        }
        (Verdict::DeadLetter { code, reason }, Err(failure)) => {
            let failure = Failure {
                code,
                message: reason,
                ..failure
            };
            give_up(worker, case, received, failure, effects.reads_only()).await
        }
        _ => commit(worker, case, received, effects).await,
    }
}

async fn commit(worker: &Worker, case: &Case, received: &Received, effects: Effects) -> Carried {
    if effects.is_empty() && !case.stored {
        worker.counters.committed(0);
        return Carried::Settled(Settlement::Done);
    }
    let emitted = effects.emits.len();
    let transaction = Transaction {
        origin: case.origin.clone(),
        effects,
        dead: None,
        clear_attempts: case.stored,
        parking: None,
        fence: Fence::Marker,
    };
    let transaction = Arc::new(transaction);
    match worker.committer.commit(transaction.clone()).await {
        Ok(()) => {
            worker.counters.committed(emitted);
            Carried::Settled(Settlement::Done)
        }
        Err(CommitError::Duplicate) => Carried::Settled(Settlement::Done),
        Err(CommitError::Conflict(keys)) => Carried::Conflict(keys),
        Err(error @ CommitError::Unavailable(_)) => hand_back(&error),
        Err(error) if error.is_size() => {
            let why = format!("the effects of this attempt are too large for the server: {error}");
            give_up(
                worker,
                case,
                received,
                Failure::reject("pelton-too-large", why),
                transaction.effects.reads_only(),
            )
            .await
        }
        Err(error) => stuck(&error),
    }
}

/// Stores the attempt, then lets the source hand the message out again.
async fn put_off(
    worker: &Worker,
    case: &Case,
    failure: &Failure,
    after: Duration,
    attempt: bool,
) -> Carried {
    let mut record = case.record.clone();
    record.not_before_ms =
        now_ms().saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    if attempt {
        record.attempts = record.attempts.saturating_add(1);
        record.errors = case.errors_with(worker, failure);
    } else {
        record.deferrals = record.deferrals.saturating_add(1);
        record.deferred_since_ms.get_or_insert(now_ms());
    }
    match worker.attempts.store(&case.origin, &record).await {
        Ok(()) => Carried::Settled(Settlement::Again(after)),
        Err(error) => {
            tracing::warn!(%error, "a failed attempt could not be recorded; it will not be counted");
            Carried::Settled(Settlement::Again(after.max(TROUBLE_PAUSE)))
        }
    }
}

/// Stores the dead letter with the reads that the verdict rests on.
async fn give_up(
    worker: &Worker,
    case: &Case,
    received: &Received,
    failure: Failure,
    reads: Effects,
) -> Carried {
    let errors = case.errors_with(worker, &failure);
    tracing::warn!(
        code = failure.code,
        reason = failure.message,
        attempts = errors.len(),
        "dead letter"
    );
    let transaction = Transaction {
        origin: case.origin.clone(),
        effects: reads,
        dead: Some(dead::letter(worker, case, received, &failure, &errors)),
        clear_attempts: case.stored,
        parking: None,
        fence: Fence::Marker,
    };
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) => {
            worker.counters.dead_lettered();
            Carried::Settled(Settlement::Done)
        }
        Err(CommitError::Duplicate) => Carried::Settled(Settlement::Done),
        Err(CommitError::Conflict(keys)) => Carried::Conflict(keys),
        Err(error @ CommitError::Unavailable(_)) => hand_back(&error),
        Err(error) => stuck(&error),
    }
}

/// Nothing is let go: the message comes again, and again, until somebody has looked.
fn stuck(error: &CommitError) -> Carried {
    tracing::error!(%error, "a delivery cannot be settled; it is handed back for {STUCK_PAUSE:?}");
    Carried::Settled(Settlement::Again(STUCK_PAUSE))
}

fn hand_back(error: &CommitError) -> Carried {
    tracing::warn!(%error, "could not commit; the delivery is handed back");
    Carried::Settled(Settlement::Again(
        TROUBLE_PAUSE.mul_f64(1.0 + fastrand::f64()),
    ))
}

fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339)
        .unwrap_or_else(|_| time.unix_timestamp().to_string())
}

fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
