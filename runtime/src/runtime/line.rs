//! What takes a function's events on one node: its inputs, open from version to version as long as those read the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shared::Shared;
use crate::call::Endpoint;
use crate::commit::NatsState;
use crate::commit::site::Site;
use crate::config::DeliveryMode;
use crate::delivery::{self, Worker};
use crate::names::AppNames;
use crate::records::{FunctionRecord, Input};
use crate::route::{Lineup, Route, Switch};
use crate::source::{
    InternalInputs, OpenContext, PositionSource, QueueSource, Received, Settlement, SourceError,
    Undelivered,
};
use crate::telemetry::Counters;

/// An old version may finish what it runs for this long after its successor took over.
pub(super) const HANDOVER: Duration = Duration::from_secs(30);
/// An input that was open for so long was well: should it be lost, it is opened anew without delay.
const STEADY: Duration = Duration::from_secs(10);
/// What hands back may take: a few acks.
const HAND_BACK: Duration = Duration::from_secs(2);

/// Inputs that cannot be read, and why.
pub(super) type Lost = Arc<Mutex<BTreeMap<String, String>>>;

/// A function's open inputs.
pub(super) struct Line {
    switch: Switch,
    pub(super) lost: Lost,
    /// Stop taking deliveries.
    stop: CancellationToken,
    /// Hand back what still runs.
    abort: CancellationToken,
    /// Where it is called, handed from line to line.
    endpoint: Endpoint,
    task: JoinHandle<()>,
}

impl Line {
    /// Opens the inputs of a version.
    pub(super) async fn open(worker: Worker, endpoint: Endpoint, shared: Arc<Shared>) -> Self {
        let (switch, route) = Route::new(Lineup {
            active: Arc::new(worker),
            trial: None,
        });
        let (stop, abort, lost) = (
            CancellationToken::new(),
            CancellationToken::new(),
            Lost::default(),
        );
        open_endpoint(&endpoint, &switch.lineup().active.record, &shared).await;
        let pumps = Pumps {
            route,
            lost: lost.clone(),
            stop: stop.clone(),
            abort: abort.clone(),
            endpoint: endpoint.clone(),
            shared,
        };
        Self {
            switch,
            lost,
            stop,
            abort,
            endpoint,
            task: tokio::spawn(pumps.run()),
        }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// One permit for each attempt that may be inside a handler.
    pub(super) fn handlers(&self) -> Arc<Semaphore> {
        self.switch.lineup().active.handlers.clone()
    }

    /// Whether what this version takes is what is taken already, in the same way.
    pub(super) fn carries(&self, record: &FunctionRecord) -> bool {
        let now = &self.switch.lineup().active.record;
        let (old, new) = (&now.settings, &record.settings);
        // The client is told once how many messages to ask for.
        let pulls = old.concurrency == new.concurrency || new.delivery == DeliveryMode::ExactlyOnce;
        now.instance == record.instance
            && now.inputs == record.inputs
            && old.delivery == new.delivery
            && old.key == new.key
            && old.max_in_flight == new.max_in_flight
            && old.schedule == new.schedule
            && pulls
    }

    /// Whether this very activation takes the events.
    pub(super) fn has(&self, record: &FunctionRecord) -> bool {
        let now = &self.switch.lineup().active.record;
        now.instance == record.instance
            && now.version == record.version
            && now.generation() == record.generation()
    }

    /// From now on deliveries begin with this version, and with the one that is tried if it is the one that `stays`; those that have begun end
    /// with theirs.
    pub(super) async fn turn(&self, mut worker: Worker, stays: Option<u64>, shared: &Shared) {
        open_endpoint(&self.endpoint, &worker.record, shared).await;
        let before = self.switch.lineup();
        let now = &before.active.record.settings;
        for permits in [&before.active.handlers, &before.active.unsettled] {
            resize(permits, now.concurrency, worker.record.settings.concurrency);
        }
        share_permits(&mut worker, &before.active);
        retire_worker(&before.active, shared);
        let is_to_stay = |trial: &Worker| stays == Some(trial.record.version);
        let trial = before.trial.and_then(|(trial, share)| {
            if is_to_stay(&trial) {
                return Some((trial, share));
            }
            retire_worker(&trial, shared);
            None
        });
        self.switch.turn(Lineup {
            active: Arc::new(worker),
            trial,
        });
    }

    /// Gives this share of keys to a version that is tried: the one that has a share already, or one that `make` makes. Its counters.
    pub(super) fn try_out(
        &self,
        share: u32,
        shared: &Shared,
        record: &FunctionRecord,
        make: impl FnOnce() -> Worker,
    ) -> Arc<Counters> {
        let mut lineup = self.switch.lineup();
        let trial = match lineup.trial.take() {
            Some((trial, had)) if trial.record.version == record.version => {
                if had == share {
                    return trial.counters.clone();
                }
                trial
            }
            other => {
                if let Some((other, _)) = other {
                    retire_worker(&other, shared);
                }
                let mut worker = make();
                share_permits(&mut worker, &lineup.active);
                Arc::new(worker)
            }
        };
        let counters = trial.counters.clone();
        lineup.trial = Some((trial, share));
        self.switch.turn(lineup);
        counters
    }

    /// From now on all deliveries begin with the active version.
    pub(super) fn end_trial(&self, shared: &Shared) {
        let Lineup { active, trial } = self.switch.lineup();
        if let Some((trial, _)) = trial {
            retire_worker(&trial, shared);
            self.switch.turn(Lineup {
                active,
                trial: None,
            });
        }
    }

    /// Stops taking, waits for what runs, then hands it back: at the deadline, or when the node is in a hurry.
    pub(super) async fn stop(mut self, deadline: Duration, hurry: CancellationToken) {
        self.stop.cancel();
        tokio::select! {
            _ = &mut self.task => return,
            () = tokio::time::sleep(deadline) => {}
            () = hurry.cancelled() => {}
        }
        let FunctionRecord { app, function, .. } = &self.switch.lineup().active.record;
        tracing::warn!(app, function, "attempts still run; they are handed back");
        self.abort.cancel();
        if tokio::time::timeout(HAND_BACK, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!(
                app,
                function,
                "NATS does not answer; they come again after their ack wait"
            );
            self.task.abort();
        }
    }

    /// The same for one that gave way, or a function that is gone, while the node goes on.
    pub(super) fn retire(self, shared: &Shared) -> JoinHandle<()> {
        let leaves = shared
            .leaving
            .begin(&self.switch.lineup().active.record.app);
        let stopped = self.stop(HANDOVER, shared.hurry.clone());
        shared.retiring.spawn(async move {
            stopped.await;
            drop(leaves);
        })
    }
}

/// All versions of a function on a node have its attempts at once together.
fn share_permits(worker: &mut Worker, with: &Worker) {
    (worker.handlers, worker.unsettled) = (with.handlers.clone(), with.unsettled.clone());
}

/// Says that a version gives way until the last delivery with it has ended.
fn retire_worker(worker: &Worker, shared: &Shared) {
    let FunctionRecord {
        app,
        function,
        version,
        ..
    } = worker.record.clone();
    let (leaves, ended) = (shared.leaving.begin(&app), worker.end.token());
    let hurry = shared.hurry.clone();
    shared.retiring.spawn(async move {
        let hurried = async {
            hurry.cancelled().await;
            tokio::time::sleep(HAND_BACK).await;
        };
        tokio::select! {
            () = ended.cancelled() => tracing::info!(app, function, version, "drained"),
            // Of a node that leaves, others take over what NATS does not answer for.
            () = hurried => tracing::warn!(app, function, version, "deliveries of it have not ended"),
        }
        drop(leaves);
    });
}

/// Brings permits for `old` to those for `new`; those that are in use go when they are given back.
fn resize(permits: &Arc<Semaphore>, old: u32, new: u32) {
    let (old, new) = (old.max(1), new.max(1));
    permits.add_permits(new.saturating_sub(old) as usize);
    if new < old {
        let permits = permits.clone();
        tokio::spawn(async move {
            if let Ok(gone) = permits.acquire_many_owned(old - new).await {
                gone.forget();
            }
        });
    }
}

/// Lets the function be called.
async fn open_endpoint(endpoint: &Endpoint, record: &FunctionRecord, shared: &Shared) {
    let site = shared.sites.of(&AppNames::new(record.app.as_str()));
    if let Err(error) = endpoint
        .open(&shared.connections, site, record.clone())
        .await
    {
        let FunctionRecord { app, function, .. } = &record;
        tracing::warn!(%error, app, function, "the function cannot be called on this node");
    }
}

/// The inputs at work.
struct Pumps {
    route: Route,
    lost: Lost,
    stop: CancellationToken,
    abort: CancellationToken,
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

impl Pumps {
    async fn run(self) {
        let first = self.route.worker();
        let record = &first.record;
        let running = TaskTracker::new();
        let inputs = record.inputs.clone();
        let names = AppNames::new(record.app.as_str());
        let internal = Input {
            stream: names.commit_stream(),
            subjects: Vec::new(),
            start: 0,
            begun: false,
            resets: 0,
            created: 0,
        };
        let delivery = record.settings.delivery;
        // A version ends when the last delivery that has it does.
        drop(first);
        let pumps = inputs.iter().map(|input| async {
            match delivery {
                DeliveryMode::AtLeastOnce => self.pump_queue(input, &running).await,
                DeliveryMode::ExactlyOnce => self.pump_positions(input, None).await,
            }
        });
        let calls = async {
            self.stop.cancelled().await;
            let last = self.route.worker();
            self.endpoint.close(&last.record, &self.abort).await;
        };
        let shared = self.shared.internal_inputs(&names);
        let internal = self.pump_positions(&internal, Some(shared));
        tokio::join!(futures::future::join_all(pumps), internal, calls);
        running.close();
        running.wait().await;
        let FunctionRecord {
            app,
            function,
            version,
            ..
        } = &self.route.worker().record;
        tracing::info!(app, function, version, "drained");
    }

    /// Takes from one input until the function stops and opens it again whenever it fails. `inputs`
    /// is the shared reader of an internal input.
    async fn pump_positions(&self, input: &Input, inputs: Option<Arc<InternalInputs>>) {
        let mut pauses = backoff();
        loop {
            let (shared, begun) = (&self.shared, Instant::now());
            let worker = self.route.worker();
            let names = AppNames::new(worker.record.app.as_str());
            drop(worker);
            let site = shared.sites.of(&names);
            let context = OpenContext {
                route: self.route.clone(),
                input: input.clone(),
                node: shared.node.clone(),
                nats: shared.connections.commits.clone(),
                inputs: shared.connections.inputs.clone(),
                state: NatsState::new(shared.connections.commits.clone(), names),
                internal_inputs: inputs.clone(),
            };
            let members = shared.members.clone();
            let abort = self.abort.clone();
            let opened = match self.admit(&site).await {
                Ok(()) => PositionSource::open(context, members, abort).await,
                Err(refused) => Err(refused),
            };
            let ended = match opened {
                Ok(source) => {
                    let well = || drop(lock(&self.lost).remove(&input.stream));
                    tokio::select! {
                        ended = source.run(&self.stop, well) => ended,
                        // At once, as if the node had died: releasing partitions would write
                        // records.
                        why = site.refused() => Err(SourceError(why.to_string())),
                    }
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            // The shared reader logs its failure once for all functions.
            let said = inputs.as_ref().is_some_and(|one| one.lost().is_some());
            self.note_lost(input, &error, said);
            if begun.elapsed() > STEADY {
                pauses = backoff();
            }
            let pause = pauses.next().unwrap_or(STEADY);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Records that an input cannot be read and logs each reason once. `said`: it was logged
    /// already.
    fn note_lost(&self, input: &Input, error: &SourceError, said: bool) {
        let why = error.to_string();
        let before = lock(&self.lost).insert(input.stream.clone(), why.clone());
        let worker = self.route.worker();
        let FunctionRecord { app, function, .. } = &worker.record;
        let stream = &input.stream;
        if said || before.as_ref() == Some(&why) {
            tracing::debug!(
                app,
                function,
                stream,
                error = why,
                "the input is still lost"
            );
        } else {
            tracing::warn!(
                app,
                function,
                stream,
                error = why,
                "input lost; opening it again"
            );
        }
    }

    /// Takes from one input until the function stops; opens it anew whenever it fails.
    async fn pump_queue(&self, input: &Input, running: &TaskTracker) {
        let mut pauses = backoff();
        let inputs = &self.shared.connections.inputs;
        let mut undelivered = Undelivered::new(inputs);
        while !self.stop.is_cancelled() {
            let record = self.route.worker().record.clone();
            let site = self.shared.sites.of(&AppNames::new(record.app.as_str()));
            let open = async {
                self.admit(&site).await?;
                QueueSource::open(inputs, &record, input, &mut undelivered).await
            };
            let opened = tokio::select! {
                () = self.stop.cancelled() => return,
                opened = open => opened,
            };
            match opened {
                Ok(mut source) => {
                    lock(&self.lost).remove(&input.stream);
                    let taken = self.take(&mut source, running, &site).await;
                    let new = source.hand_back().await;
                    self.route.worker().counters.consumed(new);
                    match taken {
                        Ok(()) => return,
                        Err((error, progressed)) => {
                            if progressed {
                                pauses = backoff();
                            }
                            tracing::warn!(function = record.function, stream = input.stream, %error, "input lost; opening it anew");
                        }
                    }
                }
                Err(error) => self.note_lost(input, &error, false),
            }
            let pause = pauses.next().unwrap_or(HANDOVER);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Refuses to take events of an app whose records another JetStream stores, too.
    async fn admit(&self, site: &Site) -> Result<(), SourceError> {
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            admitted = site.admit() => admitted.map_err(|why| SourceError(why.to_string())),
        }
    }

    fn deliver(
        &self,
        received: Received,
        handler: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<> {
        let message = &received.message;
        let place = format!("{}:{}", message.stream, message.sequence);
        let worker = self.route.pick(&place);
        delivery::deliver(worker, received, handler, self.abort.clone())
    }

    /// Runs one message per permit. What was handed out to this node and waits for one is kept here, where it reports
    /// progress: in the client's buffer its ack wait would run out. `Err` tells whether anything was taken before.
    async fn take(
        &self,
        source: &mut QueueSource<'_>,
        running: &TaskTracker,
        site: &Site,
    ) -> Result<(), (SourceError, bool)> {
        let first = self.route.worker();
        // More than the client ever asks for ahead, which is one and a half times `concurrency`.
        let bound = 2 * first.record.settings.concurrency.max(1) as usize;
        let (unsettled, handlers) = (first.unsettled.clone(), first.handlers.clone());
        drop(first);
        let mut waiting: VecDeque<Received> = VecDeque::new();
        let mut progressed = false;
        let mut progress = tokio::time::interval(delivery::PROGRESS);
        let permits = || {
            let (unsettled, handlers) = (unsettled.clone(), handlers.clone());
            Box::pin(async move {
                // They are never closed.
                let unsettled = unsettled.acquire_owned().await.ok()?;
                Some((unsettled, handlers.acquire_owned().await.ok()?))
            })
        };
        // Asked for only while something waits, and kept until it is given: asking anew would lose its place.
        let mut permit = permits();
        let ended = loop {
            tokio::select! {
                () = self.stop.cancelled() => break Ok(()),
                why = site.refused() => break Err((SourceError(why.to_string()), progressed)),
                given = &mut permit, if !waiting.is_empty() => {
                    permit = permits();
                    let Some((received, (unsettled, handler))) = waiting.pop_front().zip(given) else { continue };
                    let delivery = self.deliver(received, handler);
                    running.spawn(async move {
                        delivery.await;
                        drop(unsettled);
                    });
                }
                received = source.next(), if waiting.len() < bound => match received {
                    Ok(received) => {
                        progressed = true;
                        waiting.push_back(received);
                    }
                    Err(error) => break Err((error, progressed)),
                },
                _ = progress.tick() => for received in &waiting {
                    received.acker.progress().await;
                },
            }
        };
        for received in waiting {
            if received.is_new() {
                self.route.worker().counters.consumed(1);
            }
            // What cannot be handed back comes again when its ack wait is over.
            let _ = received
                .acker
                .settle(Settlement::Again(Duration::ZERO))
                .await;
        }
        ended
    }
}

/// Endless, 0.1 s to 5 s: what cannot be loaded or opened now may be later.
pub(super) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .build()
}

pub(super) fn lock(
    lost: &Mutex<BTreeMap<String, String>>,
) -> MutexGuard<'_, BTreeMap<String, String>> {
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}
