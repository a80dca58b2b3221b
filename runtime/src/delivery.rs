//! The spine: what happens to one event. The outer function watches (span, time, progress, settling); the inner one
//! only says the steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::call::Caller;
use crate::commit::{self, Attempts, Committer, Locks, Room, Turn, Wanted};
use crate::config::RetryPolicy;
use crate::effects::{Attempt, Disposition, Effects, Failure, StateReader};
use crate::event::{self, Decoded, Delivery, EventError, MAX_KEY, Position};
use crate::names::ONLY_HEADER;
use crate::nats::Connection;
use crate::records::FunctionRecord;
use crate::route::End;
use crate::sandbox::{self, Call, LogLine, LogLines};
use crate::series::{self, Series, Work};
use crate::settle::{self, Carried, Case};
use crate::source::{Habits, Received, Settlement};
use crate::telemetry::{Counters, LogPublisher, LogSource};

/// Commits of one delivery that are refused because its reads went stale, before that counts as a failed attempt.
const MAX_CONFLICTS: u32 = 16;
/// Runs of one delivery, those included that ended because others waited for their turn at its keys: each such run is
/// followed by a turn at one key more.
const MAX_RUNS: u32 = 512;
/// Upper bound of the random pause before the first such rerun; it doubles up to 64 times that, so that many deliveries
/// of one key spread out instead of meeting again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(10);
const MAX_DOUBLINGS: u32 = 6;
/// A third of the ack wait: two reports may be lost.
pub(crate) const PROGRESS: Duration = Duration::from_secs(10);
/// Pause before a delivery is handed out again when NATS did not answer.
pub(crate) const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// One function's version, ready to take deliveries.
pub(crate) struct Worker {
    pub(crate) record: FunctionRecord,
    /// The function's name.
    pub(crate) name: Arc<str>,
    pub(crate) function: sandbox::Function,
    pub(crate) state: Arc<dyn StateReader>,
    pub(crate) committer: Committer,
    pub(crate) attempts: Attempts,
    /// For answers to callers.
    pub(crate) nats: Connection,
    pub(crate) logs: LogPublisher,
    pub(crate) counters: Arc<Counters>,
    /// What its handlers were seen to read.
    pub(crate) habits: Habits,
    /// One for each attempt inside a handler; what waits for its commit holds none.
    pub(crate) handlers: Arc<Semaphore>,
    /// One for each message taken from a queue and not settled: what waits for its commit, or for its turn at a key.
    pub(crate) unsettled: Arc<Semaphore>,
    /// Largest message the server takes, bytes.
    pub(crate) max_payload: usize,
    pub(crate) end: End,
}

impl Worker {
    pub(crate) fn policy(&self) -> &RetryPolicy {
        &self.record.settings.retry
    }

    fn lacks_key(&self, received: &Received) -> bool {
        received.key.is_none() && self.record.settings.key.is_some()
    }
}

/// Writes a log line about one delivery that names it.
macro_rules! log_delivery {
    ($level:ident, $worker:expr, $message:expr, $($rest:tt)+) => {{
        let (record, message) = (&$worker.record, &$message);
        tracing::$level!(
            app = record.app,
            function = record.function,
            version = record.version,
            stream = &*message.stream,
            sequence = message.sequence,
            subject = message.subject,
            $($rest)+
        )
    }};
}
pub(crate) use log_delivery;

/// Takes one delivery to its end; when `abort` fires first, it is handed back. `permit` is one of the worker's handlers.
pub(crate) async fn deliver(
    worker: Arc<Worker>,
    received: Received,
    permit: OwnedSemaphorePermit,
    abort: CancellationToken,
) {
    let started = Instant::now();
    worker.counters.delivered();
    if received.is_new() {
        worker.counters.consumed(1);
    }
    let settlement = tokio::select! {
        settlement = reporting_progress(&received, handle(&worker, &received, permit)) => settlement,
        () = abort.cancelled() => Settlement::Again(Duration::ZERO),
    };
    if let Err(error) = received.acker.settle(settlement).await {
        log_delivery!(
            warn,
            worker,
            received.message,
            %error,
            "the delivery could not be settled; it comes again when its ack wait is over"
        );
    }
    log_delivery!(debug, worker, received.message, ?settlement, elapsed = ?started.elapsed(), "settled");
}

/// The way of one event: decode, invoke, carry out the verdict; again when what it read went stale.
async fn handle(worker: &Worker, received: &Received, permit: OwnedSemaphorePermit) -> Settlement {
    if meant_for_another(worker, received) {
        worker.counters.committed(0);
        return Settlement::Done;
    }
    let case = match Case::open(worker, received).await {
        Ok(Some(case)) => case,
        // It committed before; only its ack was lost.
        Ok(None) => return Settlement::Done,
        Err(error) => {
            log_delivery!(
                warn,
                worker,
                received.message,
                %error,
                "earlier attempts cannot be read; the delivery is handed back"
            );
            return Settlement::Again(TROUBLE_PAUSE);
        }
    };
    if let Some(wait) = case.not_yet() {
        return Settlement::Again(wait);
    }
    let work = Work {
        case: &case,
        received,
    };
    run(worker, &[work], permit).await.0
}

/// The same for the position engine, whose deliveries are nobody's but this node's: those of one key that follow each other. How it
/// ended, and for how many of them; the others were not begun.
pub(crate) async fn position(
    worker: &Worker,
    work: &[Work<'_>],
    permit: OwnedSemaphorePermit,
    abort: &CancellationToken,
) -> (Settlement, usize) {
    let late = |caller: &Caller| caller.is_late(settle::now_ms());
    if let [Work { case, received }] = work
        && case.is_untried()
        && received.caller.as_ref().is_some_and(late)
    {
        return (Box::pin(settle::drop_late(worker, case, received)).await, 1);
    }
    tokio::select! {
        // Most end at once.
        biased;
        ended = run(worker, work, permit) => ended,
        () = abort.cancelled() => (Settlement::Again(Duration::ZERO), 1),
    }
}

/// Invokes and carries out the verdict, again while what was read has changed.
async fn run(
    worker: &Worker,
    mut work: &[Work<'_>],
    permit: OwnedSemaphorePermit,
) -> (Settlement, usize) {
    let locks = worker.committer.locks();
    let mut permit = Some(permit);
    let mut turn: Option<Turn> = None;
    let mut lost = 0;
    for _ in 0..MAX_RUNS {
        if permit.is_none() {
            permit = worker.handlers.clone().acquire_owned().await.ok();
        }
        let expected = worker.committer.expect();
        // Not part of what a delivery takes while it waits for its commit: thousands may.
        let gathered = Box::pin(series::gather(worker, work)).await;
        let Some(series) = gathered else {
            return (Settlement::Done, 0);
        };
        if let Some(key) = work.first().and_then(|one| one.received.key.as_deref()) {
            worker.habits.learn(key, &series.attempt.effects);
        }
        let touched = commit::touched(&series.attempt.effects);
        let mut conflict = locks.taken(&touched, turn.as_ref());
        // Others wait for their turn at what this one touched.
        let overtakes = !conflict.is_empty();
        if overtakes {
            drop(expected);
        } else {
            let _room = finished(worker, work, &series, &mut permit).await;
            drop(expected);
            let count = 1 + series.followers.len();
            match settle::carry_out(worker, work, series).await {
                Carried::Settled(Settlement::Done) => return (Settlement::Done, count),
                // Whoever would have gone along waits behind it again.
                Carried::Settled(settlement) => return (settlement, 1),
                Carried::Conflict(keys) if work.iter().any(|one| one.case.is_stale(&keys)) => {
                    return (Settlement::Again(settle::LOOK_AGAIN), 1);
                }
                Carried::Conflict(keys) => conflict = keys,
                // Together they are too much for the server.
                Carried::TooLarge => work = work.get(..1).unwrap_or(work),
            }
            lost += 1;
            if lost >= MAX_CONFLICTS {
                break;
            }
            let bound = CONFLICT_PAUSE * 2u32.pow((lost - 1).min(MAX_DOUBLINGS));
            tokio::time::sleep(bound.mul_f64(fastrand::f64())).await;
        }
        tracing::debug!(keys = ?conflict, overtakes, "what was read has changed; running again");
        permit.take();
        turn = Some(next_turn(locks, turn, &conflict, &touched).await);
    }
    let why = format!(
        "state that the handler read changed before it committed, {MAX_CONFLICTS} times in a row"
    );
    let failure = failed(Failure::retry("pelton-conflict", why));
    let failure = Box::new(Series::of(failure));
    let given_up = Box::pin(settle::carry_out(worker, work, failure));
    let settlement = match given_up.await {
        Carried::Settled(settlement) => settlement,
        _ => Settlement::Again(TROUBLE_PAUSE),
    };
    (settlement, 1)
}

/// One attempt at a delivery, on state as `state` gives it.
pub(crate) async fn attempt(
    worker: &Worker,
    work: Work<'_>,
    state: Arc<dyn StateReader>,
) -> Attempt {
    let call = match call(worker, work, state) {
        Ok(call) => call,
        Err(result) => {
            let effects = Effects::default();
            return Attempt { result, effects };
        }
    };
    let (logs, began) = (call.logs.clone(), Instant::now());
    let in_handler = worker.counters.in_handler();
    let attempt = worker.function.invoke(call).await;
    drop(in_handler);
    let failed = attempt
        .result
        .as_ref()
        .is_err_and(|failure| failure.disposition != Disposition::Defer);
    worker.counters.attempted(began.elapsed(), failed);
    let lines = logs.take();
    if !lines.is_empty() {
        Box::pin(publish(worker, work, lines)).await;
    }
    attempt
}

/// A turn at what a delivery had one at before and what it lost at now. The old one ends first: nobody waits with keys in
/// hand for others out of order.
async fn next_turn(
    locks: &Locks,
    before: Option<Turn>,
    conflict: &[String],
    touched: &Wanted,
) -> Turn {
    let mut wanted = before
        .as_ref()
        .map_or_else(Wanted::new, |turn| turn.wanted().clone());
    drop(before);
    for key in conflict {
        let writes = touched.get(key).copied().unwrap_or_default();
        let known = wanted.entry(key.clone()).or_default();
        *known = *known || writes;
    }
    locks.turn(wanted).await
}

/// What waits for its commit makes way for the next attempt, as soon as there is room for it to wait.
async fn finished<'a>(
    worker: &'a Worker,
    work: &[Work<'_>],
    series: &Series,
    permit: &mut Option<OwnedSemaphorePermit>,
) -> Option<Room<'a>> {
    if series.attempt.result.is_err() || series.is_empty() {
        return None;
    }
    let messages = work.iter().take(1 + series.followers.len());
    let messages: usize = messages.map(|one| one.received.message.payload.len()).sum();
    let bytes = series.bytes() + messages;
    let room = worker.committer.room(bytes).await;
    permit.take();
    Some(room)
}

/// What the handler is called with; or how a delivery ends that it is not to see.
fn call(
    worker: &Worker,
    Work { case, received }: Work<'_>,
    state: Arc<dyn StateReader>,
) -> Result<Box<Call>, Result<(), Failure>> {
    let message = &received.message;
    if meant_for_another(worker, received) {
        return Err(Ok(()));
    }
    let malformed = |why: EventError| Failure::reject("pelton-event-malformed", why.to_string());
    let decoded = event::decode(message).map_err(|why| Err(malformed(why)))?;
    if worker.lacks_key(received) {
        return Err(Err(Failure::reject(
            "pelton-key-missing",
            "the event has no key where `key` of the function says",
        )));
    }
    if let Some(key) = received.key.as_ref().filter(|key| key.len() > MAX_KEY) {
        let why = format!("the event's key has {} bytes, {MAX_KEY} at most", key.len());
        return Err(Err(Failure::reject("pelton-key-too-long", why)));
    }
    let Decoded { event, mut headers } = decoded;
    if received.internal {
        // By which Pelton and NATS steered it.
        headers.retain(|(name, _)| !name.starts_with("pelton-") && !name.starts_with("nats-"));
    }
    let settings = &worker.record.settings;
    let delivery = Delivery {
        event,
        subject: message.subject.clone(),
        position: (!received.internal).then(|| Position {
            stream: message.stream.clone(),
            sequence: message.sequence,
        }),
        key: received.key.clone().filter(|_| settings.key.is_some()),
        headers,
        stored: message.stored,
        attempt: case.attempt(),
        max_attempts: settings.retry.max_attempts,
        timeout: Duration::from_millis(settings.timeout_ms),
        expects_reply: received.caller.is_some(),
    };
    Ok(Box::new(Call {
        delivery,
        txn: settle::txn(worker, received),
        state,
        logs: LogLines::default(),
    }))
}

/// Publishes what an attempt logged.
async fn publish(worker: &Worker, Work { case, received }: Work<'_>, lines: Vec<LogLine>) {
    let message = &received.message;
    let source = LogSource {
        event_id: event::decode(message).map_or_else(|_| String::new(), |one| one.event.id),
        stream: message.stream.to_string(),
        sequence: message.sequence,
        attempt: case.attempt(),
    };
    for line in lines {
        worker.logs.publish(&worker.record, &source, line).await;
    }
}

fn failed(failure: Failure) -> Attempt {
    Attempt {
        result: Err(failure),
        effects: Effects::default(),
    }
}

/// A replayed event goes to one function only; the others let it pass.
fn meant_for_another(worker: &Worker, received: &Received) -> bool {
    let me = (worker.record.app.as_str(), worker.record.function.as_str());
    let headers = received.message.headers.iter();
    let mut only = headers
        .filter(|(name, _)| name.eq_ignore_ascii_case(ONLY_HEADER))
        .map(|(_, value)| value.split_once('/') == Some(me))
        .peekable();
    // One that names this function and another, too, is malformed, and that is for decoding to say.
    only.peek().is_some() && !only.any(|is_me| is_me)
}

async fn reporting_progress(
    received: &Received,
    work: impl Future<Output = Settlement>,
) -> Settlement {
    tokio::pin!(work);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS, PROGRESS);
    loop {
        tokio::select! {
            settlement = &mut work => return settlement,
            _ = tick.tick() => received.acker.progress().await,
        }
    }
}
