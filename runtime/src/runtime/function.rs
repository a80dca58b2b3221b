//! One function on one node: loads its version, takes deliveries from its inputs, and gives way to its successor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream;
use backon::{BackoffBuilder, ExponentialBuilder};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::leaving::Leaving;
use crate::call::Endpoint;
use crate::commit::{Attempts, Committer, NatsState};
use crate::config::{DeliveryMode, InstanceMode};
use crate::delivery::{self, Worker};
use crate::members::Members;
use crate::names::AppNames;
use crate::records::{FunctionRecord, Input, NodeFunction};
use crate::registry;
use crate::sandbox::{FunctionSpec, Sandbox};
use crate::source::{
    Habits, OpenContext, PositionSource, QueueSource, Received, Settlement, SourceError,
};
use crate::telemetry::{Counters, LogPublisher};

/// An old version may finish what it runs for this long after its successor took over.
const HANDOVER: Duration = Duration::from_secs(30);
/// An input that was open for so long was well: should it be lost, it is opened anew without delay.
const STEADY: Duration = Duration::from_secs(10);
/// Messages of a function on this node that are out of their handlers and not settled.
const FINISHED: usize = 512;
/// What hands back may take: a few acks.
const HAND_BACK: Duration = Duration::from_secs(2);
/// Environment variables that hold secrets begin so.
const SECRET_PREFIX: &str = "PELTON_SECRET_";

/// What all functions of a node use.
pub(super) struct Shared {
    consumer: jetstream::Context,
    pub(super) publisher: Client,
    pub(super) js: jetstream::Context,
    sandbox: Sandbox,
    logs: LogPublisher,
    /// Versions and functions on their way out.
    pub(super) retiring: TaskTracker,
    pub(super) leaving: Leaving,
    /// They are to hand back what still runs, at once.
    pub(super) hurry: CancellationToken,
    /// One per app: its batches in flight are bounded together.
    committers: Mutex<BTreeMap<String, Committer>>,
    /// This node's id.
    node: String,
    members: watch::Receiver<Members>,
}

impl Shared {
    pub(super) fn new(
        id: Uuid,
        client: Client,
        publisher: Client,
        js: jetstream::Context,
        sandbox: Sandbox,
        members: watch::Receiver<Members>,
    ) -> Self {
        let logs = LogPublisher::new(publisher.clone(), id.to_string());
        let committers = Mutex::default();
        Self {
            consumer: jetstream::new(client),
            publisher,
            js,
            sandbox,
            logs,
            retiring: TaskTracker::new(),
            leaving: Leaving::default(),
            hurry: CancellationToken::new(),
            committers,
            node: id.to_string(),
            members,
        }
    }

    fn committer(&self, names: &AppNames, state: &NatsState) -> Committer {
        let mut committers = self
            .committers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let members = self.members.clone();
            Committer::start(
                self.publisher.clone(),
                state.clone(),
                names.clone(),
                members,
            )
        };
        committers
            .entry(names.app().to_owned())
            .or_insert_with(make)
            .clone()
    }
}

/// A function's version that this node serves, or tries to.
pub(super) struct Running {
    record: FunctionRecord,
    status: Arc<Mutex<Status>>,
    counters: Arc<Counters>,
    /// Stop taking deliveries.
    stop: CancellationToken,
    /// Hand back what still runs.
    abort: CancellationToken,
    /// Where it is called, handed from version to version.
    endpoint: Endpoint,
    task: JoinHandle<()>,
}

/// What the heartbeat says of it.
struct Status {
    /// The version that takes events; 0: none.
    serving: u64,
    text: String,
    /// Inputs that cannot be read, and why.
    lost: BTreeMap<String, String>,
}

impl Status {
    fn text(&self) -> String {
        match self.lost.values().next() {
            Some(why) => format!("failed: {why}"),
            None => self.text.clone(),
        }
    }
}

impl Running {
    /// Loads the version; once it is ready the predecessor stops taking. If it cannot load, the predecessor goes on.
    pub(super) fn start(
        record: FunctionRecord,
        predecessor: Option<Running>,
        shared: Arc<Shared>,
    ) -> Self {
        let serving = predecessor
            .as_ref()
            .map_or(0, |running| lock(&running.status).serving);
        let status = Arc::new(Mutex::new(Status {
            serving,
            text: "starting".into(),
            lost: BTreeMap::new(),
        }));
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        let counters = Arc::new(Counters::default());
        let endpoint = predecessor
            .as_ref()
            .map(|running| running.endpoint.clone())
            .unwrap_or_default();
        let task = Task {
            record: record.clone(),
            status: status.clone(),
            counters: counters.clone(),
            stop: stop.clone(),
            abort: abort.clone(),
            endpoint: endpoint.clone(),
            shared,
        };
        let task = tokio::spawn(task.run(predecessor));
        Self {
            record,
            status,
            counters,
            stop,
            abort,
            endpoint,
            task,
        }
    }

    pub(super) fn serves(&self, record: &FunctionRecord) -> bool {
        self.record == *record
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &str> {
        self.record
            .targets
            .iter()
            .map(|target| target.stream.as_str())
    }

    /// When this version was deployed.
    pub(super) fn deployed(&self) -> OffsetDateTime {
        OffsetDateTime::parse(&self.record.deployed_at, &Rfc3339)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn report(&self) -> NodeFunction {
        let status = lock(&self.status);
        NodeFunction {
            app: self.record.app.clone(),
            function: self.record.function.clone(),
            version: status.serving,
            deployed: self.record.version,
            status: status.text(),
            counts: self.counters.counts(),
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
        tracing::warn!(
            function = self.record.function,
            "attempts still run; they are handed back"
        );
        self.abort.cancel();
        if tokio::time::timeout(HAND_BACK, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!(
                function = self.record.function,
                "NATS does not answer; they come again after their ack wait"
            );
            self.task.abort();
        }
    }

    /// The same for a version that gave way, or a function that is gone, while the node goes on.
    pub(super) fn retire(self, shared: &Shared) {
        let leaves = shared.leaving.begin(&self.record.app);
        let stopped = self.stop(HANDOVER, shared.hurry.clone());
        shared.retiring.spawn(async move {
            stopped.await;
            drop(leaves);
        });
    }
}

struct Task {
    record: FunctionRecord,
    status: Arc<Mutex<Status>>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    abort: CancellationToken,
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

impl Task {
    async fn run(self, predecessor: Option<Running>) {
        let (app, function, version) =
            (&self.record.app, &self.record.function, self.record.version);
        let Some(worker) = self.load().await else {
            // Stopped before it could load: what still serves stops with it.
            if let Some(predecessor) = predecessor {
                predecessor.stop(HANDOVER, self.abort.clone()).await;
            }
            return;
        };
        self.open_endpoint().await;
        if let Some(predecessor) = predecessor {
            predecessor.retire(&self.shared);
        }
        {
            let mut status = lock(&self.status);
            status.serving = version;
            status.text = "running".into();
        }
        tracing::info!(app, function, version, "running");
        let worker = Arc::new(worker);
        let running = TaskTracker::new();
        let pumps = self
            .record
            .inputs
            .iter()
            .map(|input| self.pump(input, &worker, &running));
        let internal = Input {
            stream: AppNames::new(app.as_str()).commit_stream(),
            subjects: Vec::new(),
            start: 0,
            begun: false,
            created: 0,
        };
        let internal = self.pump_positions(&internal, &worker);
        let calls = async {
            self.stop.cancelled().await;
            self.endpoint.close(&self.record, &self.abort).await;
        };
        tokio::join!(futures::future::join_all(pumps), internal, calls);
        running.close();
        running.wait().await;
        tracing::info!(app, function, version, "drained");
    }

    /// Lets the function be called.
    async fn open_endpoint(&self) {
        let (client, js) = (self.shared.publisher.clone(), self.shared.js.clone());
        let opened = self.endpoint.open(client, js, self.record.clone());
        if let Err(error) = opened.await {
            tracing::warn!(%error, function = self.record.function, "it cannot be called on this node");
        }
    }

    /// Until it is loaded or the function stops.
    async fn load(&self) -> Option<Worker> {
        for pause in backoff() {
            let loaded = tokio::select! {
                () = self.stop.cancelled() => return None,
                loaded = self.try_load() => loaded,
            };
            match loaded {
                Ok(worker) => return Some(worker),
                Err(why) => {
                    let FunctionRecord {
                        app,
                        function,
                        version,
                        ..
                    } = &self.record;
                    tracing::error!(app, function, version, why, "the version cannot be loaded");
                    lock(&self.status).text = format!("failed: {why}");
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
        }
        None
    }

    async fn try_load(&self) -> Result<Worker, String> {
        let record = &self.record;
        let max_payload = self.shared.publisher.server_info().max_payload;
        let concurrency = record.settings.concurrency.max(1) as usize;
        let spec = spec(record, max_payload)?;
        let component = registry::fetch_module(&self.shared.js, &record.digest)
            .await
            .map_err(|error| error.to_string())?;
        let function = self
            .shared
            .sandbox
            .load(&component, spec)
            .await
            .map_err(|error| error.to_string())?;
        let names = AppNames::new(record.app.as_str());
        let state = NatsState::new(
            self.shared.publisher.clone(),
            self.shared.js.clone(),
            names.clone(),
        );
        let committer = self.shared.committer(&names, &state);
        Ok(Worker {
            record: record.clone(),
            name: record.function.as_str().into(),
            function,
            state: Arc::new(committer.state().clone()),
            committer,
            attempts: Attempts::new(self.shared.js.clone(), state.clone(), names.clone()),
            client: self.shared.publisher.clone(),
            logs: self.shared.logs.clone(),
            counters: self.counters.clone(),
            habits: Habits::default(),
            handlers: Arc::new(Semaphore::new(concurrency)),
            unsettled: Arc::new(Semaphore::new(concurrency + FINISHED)),
            max_payload,
        })
    }

    /// Takes from one input until the function stops.
    async fn pump(&self, input: &Input, worker: &Arc<Worker>, running: &TaskTracker) {
        match self.record.settings.delivery {
            DeliveryMode::AtLeastOnce => self.pump_queue(input, worker, running).await,
            DeliveryMode::ExactlyOnce => self.pump_positions(input, worker).await,
        }
    }

    async fn pump_positions(&self, input: &Input, worker: &Arc<Worker>) {
        let mut pauses = backoff();
        loop {
            let (shared, begun) = (&self.shared, Instant::now());
            let names = AppNames::new(self.record.app.as_str());
            let context = OpenContext {
                worker: worker.clone(),
                input: input.clone(),
                node: shared.node.clone(),
                client: shared.publisher.clone(),
                js: shared.js.clone(),
                state: NatsState::new(shared.publisher.clone(), shared.js.clone(), names),
            };
            let (consumer, members) = (shared.consumer.clone(), shared.members.clone());
            let opened = PositionSource::open(context, consumer, members, self.abort.clone()).await;
            let ended = match opened {
                Ok(source) => {
                    lock(&self.status).lost.remove(&input.stream);
                    source.run(&self.stop).await
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            tracing::warn!(%error, function = self.record.function, "an input is lost; it is opened anew");
            lock(&self.status)
                .lost
                .insert(input.stream.clone(), error.to_string());
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

    /// Takes from one input until the function stops; opens it anew whenever it fails.
    async fn pump_queue(&self, input: &Input, worker: &Arc<Worker>, running: &TaskTracker) {
        let mut pauses = backoff();
        while !self.stop.is_cancelled() {
            let opened = tokio::select! {
                () = self.stop.cancelled() => return,
                opened = QueueSource::open(&self.shared.consumer, &self.record, input) => opened,
            };
            let failure = match opened {
                Ok(mut source) => {
                    lock(&self.status).lost.remove(&input.stream);
                    let taken = self.take(&mut source, worker, running).await;
                    source.hand_back().await;
                    match taken {
                        Ok(()) => return,
                        Err((error, progressed)) => {
                            if progressed {
                                pauses = backoff();
                            }
                            error
                        }
                    }
                }
                Err(error) => {
                    let why = error.to_string();
                    lock(&self.status).lost.insert(input.stream.clone(), why);
                    error
                }
            };
            tracing::warn!(function = self.record.function, stream = input.stream, error = %failure, "input lost; opening it anew");
            let pause = pauses.next().unwrap_or(HANDOVER);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Runs one message per permit. What was handed out to this node and waits for one is kept here, where it reports
    /// progress: in the client's buffer its ack wait would run out. `Err` tells whether anything was taken before.
    async fn take(
        &self,
        source: &mut QueueSource,
        worker: &Arc<Worker>,
        running: &TaskTracker,
    ) -> Result<(), (SourceError, bool)> {
        // More than the client ever asks for ahead, which is one and a half times `concurrency`.
        let bound = 2 * self.record.settings.concurrency.max(1) as usize;
        let mut waiting: VecDeque<Received> = VecDeque::new();
        let mut progressed = false;
        let mut progress = tokio::time::interval(delivery::PROGRESS);
        let permits = || {
            let (unsettled, handlers) = (worker.unsettled.clone(), worker.handlers.clone());
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
                given = &mut permit, if !waiting.is_empty() => {
                    permit = permits();
                    let Some((received, (unsettled, handler))) = waiting.pop_front().zip(given) else { continue };
                    let delivery = delivery::deliver(worker.clone(), received, handler, self.abort.clone());
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
            received
                .acker
                .settle(Settlement::Again(Duration::ZERO))
                .await;
        }
        ended
    }
}

/// What the sandbox must know of a version; secrets come from this process's environment.
fn spec(record: &FunctionRecord, max_payload: usize) -> Result<FunctionSpec, String> {
    let settings = &record.settings;
    let mut config = settings.config.clone();
    for name in &settings.secrets {
        let variable = format!("{SECRET_PREFIX}{name}");
        let value = std::env::var(&variable).map_err(|_| {
            format!(
                "secret {name} is not set on this node; set the environment variable {variable}"
            )
        })?;
        config.insert(name.clone(), value);
    }
    Ok(FunctionSpec {
        app: record.app.clone(),
        function: record.function.clone(),
        memory: settings.memory_bytes,
        timeout: Duration::from_millis(settings.timeout_ms),
        fresh: settings.instance == InstanceMode::Fresh,
        config,
        http: settings.allow.http.clone(),
        emit: settings.allow.emit.clone(),
        targets: record.targets.clone(),
        max_payload,
    })
}

/// Endless, 0.1 s to 5 s: what cannot be loaded or opened now may be later.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .build()
}

fn lock(status: &Mutex<Status>) -> std::sync::MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
