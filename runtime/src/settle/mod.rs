//! Carries a verdict out. Nothing is let go before its successor is stored: effects, the record of a failed attempt,
//! or the dead letter.

pub(crate) mod dead;
pub(crate) mod park;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, Either};
use time::OffsetDateTime;

use crate::call::Answer;
use crate::commit::{
    CommitError, DeadLetter, Earlier, Fence, Follower, Origin, Parking, Transaction,
};
use crate::delivery::{TROUBLE_PAUSE, Worker, log_delivery};
use crate::effects::{Attempt, Effects, Failure, StateError, TimerChange};
use crate::event::Message;
use crate::mutation;
use crate::names::{AppNames, Txn};
use crate::records::{AttemptError, AttemptsRecord, FORMAT, rfc3339};
use crate::series::{Series, Work};
use crate::source::{Received, Return, Settlement};
use crate::telemetry::now_ns;
use crate::verdict::{self, History, Verdict};

/// Failures kept of one delivery: the latest.
const MAX_ERRORS: usize = 100;
/// What is kept of the message of a failure that is not the last.
const OLD_MESSAGE_BYTES: usize = 512;
/// Pause after the server refused even the dead letter: somebody has to look.
const STUCK_PAUSE: Duration = Duration::from_secs(30);
/// Pause before what a commit without a handler rests on is looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A delivery and what is known of its earlier attempts.
pub(crate) struct Case {
    record: AttemptsRecord,
    /// Whether `record` is stored, so that it must be cleared in the end.
    stored: bool,
    fence: Fence,
    /// Where it waits between attempts: the position engine's.
    park: Option<Park>,
    /// What the batch that takes it changes, whatever the handler does: a tick sets the next.
    timers: BTreeMap<String, TimerChange>,
}

/// A delivery's place in the park.
pub(crate) struct Park {
    pub(crate) partition: u16,
    /// Of what lies there; 0: nothing.
    pub(crate) revision: u64,
}

impl Park {
    fn subject(&self, worker: &Worker, received: &Received) -> String {
        let names = AppNames::new(worker.record.app.as_str());
        let Message {
            stream, sequence, ..
        } = &received.message;
        let key = received.key.as_deref();
        names.parked(&worker.name, stream, self.partition, key, *sequence)
    }
}

/// Where a delivery comes from; `known` is its transaction's id if that was made before.
fn origin(worker: &Worker, received: &Received, known: Option<Arc<str>>) -> Origin {
    let message = &received.message;
    Origin {
        function: worker.name.clone(),
        stream: message.stream.clone(),
        sequence: message.sequence,
        txn: known.unwrap_or_else(|| txn(worker, received).id()),
    }
}

/// A delivery's transaction.
pub(crate) fn txn(worker: &Worker, received: &Received) -> Txn {
    Txn {
        instance: worker.record.instance,
        stream: received.message.stream.clone(),
        life: received.life,
        sequence: received.message.sequence,
    }
}

/// How carrying out ended.
pub(crate) enum Carried {
    /// The source may settle so.
    Settled(Settlement),
    /// These keys changed since they were read: nothing was done, run the handler again.
    Conflict(Vec<String>),
    /// Nothing was done, for the server does not take them together: the first alone.
    TooLarge,
}

impl Case {
    /// Reads what earlier attempts left; a message that was never handed out before has none. `None`: it is committed.
    pub(crate) async fn open(
        worker: &Worker,
        received: &Received,
    ) -> Result<Option<Self>, StateError> {
        let origin = origin(worker, received, None);
        let earlier = match received.delivered {
            0 | 1 => Earlier::Nothing,
            _ => worker.attempts.load(&origin).await?,
        };
        Ok(match earlier {
            Earlier::Committed => None,
            Earlier::Nothing => Some(Self {
                record: AttemptsRecord::default(),
                stored: false,
                fence: Fence::Marker,
                park: None,
                timers: BTreeMap::new(),
            }),
            Earlier::Failed(record) => Some(Self {
                record,
                stored: true,
                fence: Fence::Marker,
                park: None,
                timers: BTreeMap::new(),
            }),
        })
    }

    /// A delivery of the position engine: `park` is where it waits between attempts, `record` what was found there.
    pub(crate) fn positioned(fence: Fence, park: Park, record: AttemptsRecord) -> Self {
        Self {
            record,
            stored: park.revision > 0,
            fence,
            park: Some(park),
            timers: BTreeMap::new(),
        }
    }

    /// What is known of earlier attempts, to be stored.
    fn record(&self, worker: &Worker, received: &Received) -> AttemptsRecord {
        AttemptsRecord {
            format: FORMAT,
            txn: txn(worker, received).id().to_string(),
            ..self.record.clone()
        }
    }

    /// What makes an outcome durable, with nothing of the delivery left waiting.
    fn ending(
        &self,
        worker: &Worker,
        received: &Received,
        mut effects: Effects,
        dead: Option<DeadLetter>,
    ) -> Transaction {
        effects.timers.extend(self.timers.clone());
        let parking = self.park.as_ref().filter(|_| self.stored);
        let origin = origin(worker, received, effects.txn.take());
        Transaction {
            effects,
            dead,
            clear_attempts: self.stored && self.park.is_none(),
            parking: parking.map(|park| Parking {
                subject: park.subject(worker, received),
                revision: park.revision,
                message: None,
            }),
            ..Transaction::new(origin, self.fence.clone())
        }
    }

    /// It was settled by a commit whose answer was lost; the position engine's may have been put off, too: the park tells.
    fn settled_before(&self) -> Settlement {
        match self.park {
            None => Settlement::Done,
            Some(_) => Settlement::Parked(Duration::ZERO, Return::Retry),
        }
    }

    /// Whether no handler has seen it yet.
    pub(crate) fn is_untried(&self) -> bool {
        self.record.attempts == 0 && self.record.deferrals == 0
    }

    /// Has the batch that takes the delivery change a timer's record, too.
    pub(crate) fn set(&mut self, record: String, change: TimerChange) {
        self.timers.insert(record, change);
    }

    /// Whether one of these is a record that was read for the delivery, not by its handler: it is to be read anew.
    pub(crate) fn is_stale(&self, changed: &[String]) -> bool {
        changed.iter().any(|one| self.timers.contains_key(one))
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

    /// How long its next attempt is still to wait, by the version that failed at it: who takes it over from another node does not know otherwise.
    /// One that was deferred, too, may let others of its key pass: none, it is asked.
    pub(crate) fn retries_in(&self, version: u64) -> Option<Duration> {
        let failed = self.record.errors.last()?;
        let waits = failed.version == version && self.record.deferrals == 0;
        waits.then(|| self.not_yet()).flatten()
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

/// Decides what becomes of an attempt at the first of these, with which others may go along, and makes it so.
///
/// It decides at once, so that thousands that wait for their commit hold nothing but what is to be committed.
pub(crate) fn carry_out<'a>(
    worker: &'a Worker,
    work: &[Work<'a>],
    series: Box<Series>,
) -> impl Future<Output = Carried> + 'a {
    let Some(Work { case, received }) = work.first().copied() else {
        return Either::Right(future::ready(Carried::Settled(Settlement::Done)).boxed());
    };
    let Series {
        attempt, followers, ..
    } = *series;
    let Attempt { result, effects } = attempt;
    let verdict = verdict::decide(&result, case.history(), worker.policy(), fastrand::f64());
    if matches!(verdict, Verdict::Retry(_) | Verdict::Defer(_)) {
        worker.committer.forget(&effects);
    }
    match (verdict, result) {
        (Verdict::Retry(after), Err(failure)) => {
            worker.counters.retried();
            log_delivery!(
                info,
                worker,
                received.message,
                code = failure.code,
                reason = failure.message,
                attempt = case.attempt(),
                ?after,
                "retry"
            );
            let put_off = put_off(worker, case, received, failure, after, Return::Retry);
            Either::Right(put_off.boxed())
        }
        (Verdict::Defer(after), Err(failure)) => {
            worker.counters.deferred();
            log_delivery!(
                debug,
                worker,
                received.message,
                code = failure.code,
                reason = failure.message,
                ?after,
                "deferred"
            );
            let put_off = put_off(worker, case, received, failure, after, Return::Deferred);
            Either::Right(put_off.boxed())
        }
        (Verdict::DeadLetter { code, reason }, Err(failure)) => {
            let failure = Failure {
                code,
                message: reason,
                ..failure
            };
            let reads = effects.reads_only();
            Either::Right(give_up(worker, case, received, failure, reads).boxed())
        }
        _ => Either::Left(commit(worker, case, received, effects, followers)),
    }
}

fn commit<'a>(
    worker: &'a Worker,
    case: &'a Case,
    received: &'a Received,
    mut effects: Effects,
    followers: Vec<Follower>,
) -> impl Future<Output = Carried> + 'a {
    let caller = received.caller.as_ref();
    let answer = caller.map(|_| Answer::done(effects.reply.take()));
    let answered = caller.and_then(|caller| caller.answered(&worker.record, answer.as_ref()));
    let nothing = effects.is_empty() && followers.iter().all(|one| one.emits.is_empty());
    if nothing && !case.stored && case.timers.is_empty() && answered.is_none() {
        let now = now_ns();
        let stored = followers.iter().map(|one| one.stored);
        for stored in std::iter::once(received.message.stored).chain(stored) {
            worker.counters.committed(0);
            worker.counters.took(stored, now);
        }
        let told = tell(worker, received, answer);
        return Either::Left(told.map(|()| Carried::Settled(Settlement::Done)));
    }
    let mut transaction = case.ending(worker, received, effects, None);
    transaction.answered = answered;
    transaction.followers = followers;
    let transaction = Arc::new(transaction);
    Either::Right(store(worker, case, received, transaction, answer))
}

async fn store(
    worker: &Worker,
    case: &Case,
    received: &Received,
    transaction: Arc<Transaction>,
    answer: Option<Answer>,
) -> Carried {
    match worker.committer.commit(transaction.clone()).await {
        Ok(()) => {
            let now = now_ns();
            worker.counters.committed(transaction.effects.emits.len());
            worker.counters.took(received.message.stored, now);
            for follower in &transaction.followers {
                worker.counters.committed(follower.emits.len());
                worker.counters.took(follower.stored, now);
            }
            tell(worker, received, answer).await;
            Carried::Settled(Settlement::Done)
        }
        Err(CommitError::Duplicate) => Carried::Settled(case.settled_before()),
        Err(CommitError::Lost) => Carried::Settled(Settlement::Lost),
        Err(CommitError::Conflict(keys)) => Carried::Conflict(keys),
        Err(error @ CommitError::Unavailable(_)) => {
            Carried::Settled(hand_back(worker, received, &error))
        }
        Err(error) if error.is_size() && !transaction.followers.is_empty() => Carried::TooLarge,
        Err(error) if error.is_size() => {
            let why = format!("the effects of this attempt are too large for the server: {error}");
            let failure = Failure::reject("pelton-too-large", why);
            let reads = transaction.effects.reads_only();
            Box::pin(give_up(worker, case, received, failure, reads)).await
        }
        Err(error) => Carried::Settled(stuck(worker, received, &error)),
    }
}

/// Commits what no handler was asked for. What it rests on may have changed: then it is to be looked at anew.
pub(crate) async fn pass_on(
    worker: &Worker,
    case: &Case,
    received: &Received,
    effects: Effects,
) -> Settlement {
    let transaction = case.ending(worker, received, effects, None);
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) | Err(CommitError::Duplicate) => Settlement::Done,
        Err(CommitError::Lost) => Settlement::Lost,
        Err(CommitError::Conflict(_)) => Settlement::Again(LOOK_AGAIN),
        Err(error @ CommitError::Unavailable(_)) => hand_back(worker, received, &error),
        Err(error) => stuck(worker, received, &error),
    }
}

/// Gives up what no handler was asked for, as [`pass_on`] commits it.
pub(crate) async fn refuse(
    worker: &Worker,
    case: &Case,
    received: &Received,
    failure: Failure,
    effects: Effects,
) -> Settlement {
    match give_up(worker, case, received, failure, effects).await {
        Carried::Settled(settlement) => settlement,
        Carried::Conflict(_) | Carried::TooLarge => Settlement::Again(LOOK_AGAIN),
    }
}

/// Stores the attempt, then lets the source hand the message out again.
async fn put_off(
    worker: &Worker,
    case: &Case,
    received: &Received,
    failure: Failure,
    after: Duration,
    how: Return,
) -> Carried {
    // Tried before its time, for another one of its key had ended: it waits on as it did.
    if let (Return::Deferred, Some(_), Some(left)) = (how, &case.park, case.not_yet()) {
        return Carried::Settled(Settlement::Parked(left, how));
    }
    let mut record = case.record(worker, received);
    record.not_before_ms =
        now_ms().saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    if how == Return::Retry {
        record.attempts = record.attempts.saturating_add(1);
        record.errors = case.errors_with(worker, &failure);
    } else {
        record.deferrals = record.deferrals.saturating_add(1);
        record.deferred_since_ms.get_or_insert(now_ms());
    }
    if case.park.is_some() {
        return Carried::Settled(park::store(worker, case, received, &record, after, how).await);
    }
    match worker
        .attempts
        .store(&origin(worker, received, None), &record)
        .await
    {
        Ok(()) => Carried::Settled(Settlement::Again(after)),
        Err(error) => {
            log_delivery!(
                warn,
                worker,
                received.message,
                %error,
                "a failed attempt could not be recorded; it will not be counted"
            );
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
    log_delivery!(
        warn,
        worker,
        received.message,
        code = failure.code,
        reason = failure.message,
        attempts = errors.len(),
        "dead letter"
    );
    let letter = dead::letter(
        &worker.record,
        &received.message,
        &txn(worker, received).id(),
        &failure,
        &errors,
        worker.max_payload,
    );
    let reads = match mutation::is("read-only-verdicts") {
        true => Effects::default(),
        false => reads,
    };
    let mut transaction = case.ending(worker, received, reads, Some(letter));
    let caller = received.caller.as_ref();
    let answer = caller.map(|_| Answer::given_up(&failure));
    transaction.answered =
        caller.and_then(|caller| caller.answered(&worker.record, answer.as_ref()));
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) => {
            worker.counters.dead_lettered();
            tell(worker, received, answer).await;
            Carried::Settled(Settlement::Done)
        }
        Err(CommitError::Duplicate) => Carried::Settled(case.settled_before()),
        Err(CommitError::Lost) => Carried::Settled(Settlement::Lost),
        Err(CommitError::Conflict(keys)) => Carried::Conflict(keys),
        Err(error @ CommitError::Unavailable(_)) => {
            Carried::Settled(hand_back(worker, received, &error))
        }
        Err(error) => Carried::Settled(stuck(worker, received, &error)),
    }
}

/// Lets go of a call that nobody waits for any more and no handler has seen.
pub(crate) async fn drop_late(worker: &Worker, case: &Case, received: &Received) -> Settlement {
    log_delivery!(
        info,
        worker,
        received.message,
        "a call was not begun within its caller's time; it is dropped"
    );
    let mut transaction = case.ending(worker, received, Effects::default(), None);
    let caller = received.caller.as_ref();
    transaction.answered = caller.and_then(|caller| caller.answered(&worker.record, None));
    if transaction.answered.is_none() && !case.stored {
        return Settlement::Done;
    }
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) => {
            tell(worker, received, Some(Answer::Dropped)).await;
            Settlement::Done
        }
        Err(CommitError::Duplicate) => case.settled_before(),
        Err(CommitError::Lost) => Settlement::Lost,
        Err(error) => {
            log_delivery!(
                warn,
                worker,
                received.message,
                %error,
                "a late call could not be dropped; it is tried again"
            );
            Settlement::Again(TROUBLE_PAUSE)
        }
    }
}

/// Tells the caller, if there is one, what was committed.
async fn tell(worker: &Worker, received: &Received, answer: Option<Answer>) {
    if let (Some(caller), Some(answer)) = (&received.caller, answer) {
        let client = worker.nats.client();
        let told = answer.tell(caller, &client, &worker.record);
        Box::pin(told).await;
    }
}

/// Nothing is let go: the message comes again, and again, until somebody has looked.
fn stuck(worker: &Worker, received: &Received, error: &CommitError) -> Settlement {
    log_delivery!(
        error,
        worker,
        received.message,
        %error,
        "the delivery cannot be settled; it is handed back for {STUCK_PAUSE:?}"
    );
    Settlement::Again(STUCK_PAUSE)
}

fn hand_back(worker: &Worker, received: &Received, error: &CommitError) -> Settlement {
    log_delivery!(
        warn,
        worker,
        received.message,
        %error,
        "could not commit; the delivery is handed back"
    );
    Settlement::Again(TROUBLE_PAUSE.mul_f64(1.0 + fastrand::f64()))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
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
