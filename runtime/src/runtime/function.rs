//! One function on one node: loads the version that is deployed and the one that is tried, and lets them take events when they are ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::line::{self, HANDOVER, Line, Lost, backoff};
use super::sample;
use super::shared::Shared;
use crate::commit::{Attempts, NatsState};
use crate::config::InstanceMode;
use crate::delivery::Worker;
use crate::module_store;
use crate::names::AppNames;
use crate::records::{FunctionRecord, NodeFunction, NodeTrial, PAUSED, READY, TrialRecord};
use crate::rollout::Figures;
use crate::route::End;
use crate::sandbox::{Function, FunctionSpec};
use crate::source::Habits;
use crate::telemetry::Counters;

/// Messages of a function on this node that are out of their handlers and not settled.
const FINISHED: usize = 512;
/// Environment variables that hold secrets begin so.
const SECRET_PREFIX: &str = "PELTON_SECRET_";
/// For so long the active version waits for one that has a share, when a node starts.
const TRIAL_FIRST: Duration = Duration::from_secs(10);
const STARTING: &str = "starting";
const PAUSING: &str = "pausing";

/// A function that this node serves, or tries to.
pub(super) struct Running {
    record: FunctionRecord,
    /// Takes no events on this node.
    held: bool,
    desired: watch::Sender<FunctionRecord>,
    status: Arc<Mutex<Status>>,
    stop: CancellationToken,
    host: JoinHandle<Option<Line>>,
}

/// What the heartbeat says of it.
#[derive(Default)]
struct Status {
    /// The version that takes events; 0: none.
    serving: u64,
    counters: Arc<Counters>,
    text: String,
    lost: Lost,
    trial: Option<Tried>,
    /// One for each attempt that may be in a handler, and how many there are.
    handlers: Option<(Arc<Semaphore>, u32)>,
}

/// A version that is tried.
struct Tried {
    version: u64,
    share: u32,
    text: String,
    counters: Arc<Counters>,
    /// How the active one and this one had fared when it got its share.
    before: Option<(Figures, Figures)>,
}

impl Tried {
    /// As the heartbeat says it.
    fn report(&self) -> NodeTrial {
        let before = self.before.clone().unwrap_or_default().1;
        NodeTrial {
            version: self.version,
            share: self.share,
            status: self.text.clone(),
            figures: self.counters.figures().since(&before),
            busy: self.counters.running(),
        }
    }
}

impl Status {
    /// Attempts inside a handler, and how many there may be.
    fn load(&self) -> (u32, u32) {
        let Some((handlers, most)) = &self.handlers else {
            return (0, 0);
        };
        let free = u32::try_from(handlers.available_permits()).unwrap_or(u32::MAX);
        (most.saturating_sub(free), *most)
    }

    fn text(&self) -> String {
        match line::lock(&self.lost).values().next() {
            Some(why) => format!("failed: {why}"),
            None => self.text.clone(),
        }
    }
}

impl Running {
    /// Begins to load what is deployed.
    pub(super) fn start(record: FunctionRecord, shared: Arc<Shared>, held: bool) -> Self {
        let status = Arc::new(Mutex::new(Status {
            text: STARTING.into(),
            ..Status::default()
        }));
        let (desired, known) = watch::channel(wanted(&record, held));
        let stop = CancellationToken::new();
        let host = Host {
            instance: record.instance,
            status: status.clone(),
            shared,
            line: None,
            resting: Vec::new(),
            loaded: BTreeMap::new(),
            checked: BTreeMap::new(),
        };
        let host = tokio::spawn(host.run(known, stop.clone()));
        Self {
            record,
            held,
            desired,
            status,
            stop,
            host,
        }
    }

    /// Something else is deployed, or tried. Until it is ready, or for good if it cannot load, what serves goes on.
    pub(super) fn deploy(&mut self, record: FunctionRecord) {
        let mut status = lock(&self.status);
        if record.generation() != self.record.generation() {
            status.text = STARTING.into();
        }
        self.desired.send_replace(wanted(&record, self.held));
        self.record = record;
    }

    /// Whether this node is to take no events, whatever is deployed.
    pub(super) fn hold(&mut self, held: bool) {
        if self.held && !held {
            lock(&self.status).text = STARTING.into();
        }
        self.held = held;
        self.desired.send_replace(wanted(&self.record, held));
    }

    pub(super) fn serves(&self, record: &FunctionRecord) -> bool {
        self.record == *record
    }

    /// Whether another version has a share of its events.
    pub(super) fn tries(&self) -> bool {
        let trial = self.record.trial.as_ref();
        trial.is_some_and(|trial| trial.share > 0)
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &str> {
        let tried = self
            .record
            .trial
            .iter()
            .flat_map(|trial| &trial.record.targets);
        let targets = self.record.targets.iter().chain(tried);
        targets.map(|target| target.stream.as_str())
    }

    /// Streams that its events come from.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &str> {
        self.record.inputs.iter().map(|input| input.stream.as_str())
    }

    /// When this version was deployed.
    pub(super) fn deployed(&self) -> OffsetDateTime {
        OffsetDateTime::parse(self.record.activated_at(), &Rfc3339)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn report(&self) -> NodeFunction {
        let status = lock(&self.status);
        let before = status
            .trial
            .as_ref()
            .and_then(|trial| trial.before.as_ref());
        let (busy, concurrency) = status.load();
        NodeFunction {
            app: self.record.app.clone(),
            function: self.record.function.clone(),
            version: status.serving,
            deployed: self.record.version,
            generation: self.record.generation(),
            status: status.text(),
            counts: status.counters.counts(),
            busy,
            concurrency,
            figures: before.map(|(before, _)| status.counters.figures().since(before)),
            trial: status.trial.as_ref().map(Tried::report),
        }
    }

    /// What the heartbeat says of it while it stops.
    pub(super) fn as_it_stops(&self) -> NodeFunction {
        NodeFunction {
            version: 0,
            status: PAUSING.into(),
            ..self.report()
        }
    }

    /// Stops taking, waits for what runs, then hands it back: at the deadline, or when the node is in a hurry.
    pub(super) async fn stop(self, deadline: Duration, hurry: CancellationToken) {
        self.stop.cancel();
        if let Ok(Some(line)) = self.host.await {
            line.stop(deadline, hurry).await;
        }
    }

    /// The same for a function that is gone, while the node goes on.
    pub(super) fn retire(self, shared: &Shared) {
        let leaves = shared.leaving.begin(&self.record.app);
        let stopped = self.stop(HANDOVER, shared.hurry.clone());
        shared.retiring.spawn(async move {
            stopped.await;
            drop(leaves);
        });
    }
}

/// What this node is to run of it.
fn wanted(record: &FunctionRecord, held: bool) -> FunctionRecord {
    let mut record = record.in_force();
    if held {
        record.controls.paused.get_or_insert_default();
    }
    record
}

/// Brings what runs in line with what is deployed.
struct Host {
    /// Which function of this name.
    instance: Uuid,
    status: Arc<Mutex<Status>>,
    shared: Arc<Shared>,
    /// What takes the events: with the version that is deployed or, until that is ready, with one before.
    line: Option<Line>,
    /// Those that come to rest, for the function is paused, or was.
    resting: Vec<JoinHandle<()>>,
    /// What is loaded, by version.
    loaded: BTreeMap<u64, Function>,
    /// What became of their sample events.
    checked: BTreeMap<u64, Result<(), String>>,
}

impl Host {
    async fn run(
        mut self,
        mut desired: watch::Receiver<FunctionRecord>,
        stop: CancellationToken,
    ) -> Option<Line> {
        loop {
            let record = desired.borrow_and_update().clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = desired.changed() => if changed.is_err() { break },
                () = self.follow(&record) => {}
            }
        }
        self.line
    }

    /// Never ends: what cannot be loaded is tried again, and then there is nothing to do until something else is deployed.
    async fn follow(&mut self, record: &FunctionRecord) {
        if std::mem::replace(&mut self.instance, record.instance) != record.instance {
            self.loaded.clear();
            self.checked.clear();
        }
        self.checked.retain(|_, checked| checked.is_ok());
        let tried = record.trial.as_ref().map(|trial| trial.record.version);
        // The one before stays warm: a rollback finds it ready.
        let warm = record.warm_for(OffsetDateTime::now_utc());
        let before = record.previous.filter(|_| warm != Some(Duration::ZERO));
        let known = [Some(record.version), before, tried];
        self.keep(&known);
        for pause in backoff() {
            let active = self.settle_active(record).await;
            let trial = self.settle_trial(record).await;
            if active && trial {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        if let Some(left) = warm.filter(|left| !left.is_zero()) {
            tokio::time::sleep(left).await;
            self.keep(&[Some(record.version), tried]);
        }
        std::future::pending().await
    }

    /// Lets other versions go.
    fn keep(&mut self, known: &[Option<u64>]) {
        let is_known = |version: &u64| known.contains(&Some(*version));
        self.loaded.retain(|version, _| is_known(version));
        self.checked.retain(|version, _| is_known(version));
    }

    /// Whether the active version is where it should be.
    async fn settle_active(&mut self, record: &FunctionRecord) -> bool {
        let FunctionRecord {
            app,
            function,
            version,
            ..
        } = record;
        let paused = record.controls.paused.is_some();
        if paused && !record.pending {
            self.rest().await;
            return true;
        }
        if self.line.as_ref().is_some_and(|line| line.has(record)) {
            lock(&self.status).text = "running".into();
            return true;
        }
        self.load_trial_first(record).await;
        let loaded = match self.ready(record, record.pending).await {
            Ok(loaded) => loaded,
            Err(why) => {
                tracing::error!(app, function, version, why, "the version cannot be loaded");
                lock(&self.status).text = format!("failed: {why}");
                return false;
            }
        };
        if record.pending {
            lock(&self.status).text = if paused { PAUSED } else { READY }.into();
            return true;
        }
        let worker = self.worker(record, loaded);
        let counters = worker.counters.clone();
        let shared = &self.shared;
        match &self.line {
            Some(line) if line.carries(record) => {
                let trial = record.trial.as_ref().filter(|trial| trial.share > 0);
                let stays = trial.map(|trial| trial.record.version);
                line.turn(worker, stays, shared).await;
            }
            before => {
                let endpoint = before.as_ref().map(Line::endpoint).unwrap_or_default();
                let line = Line::open(worker, endpoint, shared.clone()).await;
                let lost = line.lost.clone();
                if let Some(before) = self.line.replace(line) {
                    // A pause waits for it, too.
                    self.resting.retain(|one| !one.is_finished());
                    self.resting.push(before.retire(shared));
                }
                lock(&self.status).lost = lost;
            }
        }
        let handlers = self.line.as_ref().map(Line::handlers);
        let mut status = lock(&self.status);
        (status.serving, status.counters) = (*version, counters);
        status.handlers = handlers.map(|one| (one, record.settings.concurrency.max(1)));
        // Its counters begin anew, and so does what the one that is tried is compared with.
        if let Some(tried) = &mut status.trial {
            let now = tried.counters.figures();
            tried.before = tried.before.take().map(|_| (Figures::default(), now));
        }
        status.text = "running".into();
        drop(status);
        tracing::info!(app, function, version, "running");
        true
    }

    /// Takes no events any more, and says so when what was under way has ended.
    async fn rest(&mut self) {
        if let Some(line) = self.line.take() {
            self.resting.push(line.retire(&self.shared));
            let mut status = lock(&self.status);
            // Other nodes may take its partitions over, one by one as they come to rest.
            (status.serving, status.lost) = (0, Lost::default());
            status.text = PAUSING.into();
        }
        // One by one: this is dropped when something else is wanted, and goes on when a pause is wanted again.
        while let Some(resting) = self.resting.last_mut() {
            let _ = resting.await;
            self.resting.pop();
        }
        let mut status = lock(&self.status);
        status.handlers = None;
        status.text = PAUSED.into();
    }

    /// Whether the version that is tried is where it should be.
    async fn settle_trial(&mut self, record: &FunctionRecord) -> bool {
        let Some(trial) = &record.trial else {
            lock(&self.status).trial = None;
            if let Some(line) = &self.line {
                line.end_trial(&self.shared);
            }
            return true;
        };
        let TrialRecord { record, share, .. } = trial.as_ref();
        self.note_trial(record.version, STARTING, *share);
        let ready = self.ready(record, *share == 0).await;
        match ready.and_then(|loaded| self.place_trial(record, loaded, *share)) {
            Ok(()) => self.note_trial(record.version, READY, *share),
            Err(why) => {
                let FunctionRecord {
                    app,
                    function,
                    version,
                    ..
                } = record;
                tracing::error!(
                    app,
                    function,
                    version,
                    why,
                    "the version that is tried cannot be loaded"
                );
                self.note_trial(record.version, &format!("failed: {why}"), *share);
                return false;
            }
        }
        true
    }

    fn place_trial(
        &self,
        record: &FunctionRecord,
        loaded: Function,
        share: u32,
    ) -> Result<(), String> {
        let Some(line) = self.line.as_ref().filter(|_| share > 0) else {
            return Ok(());
        };
        if !line.carries(record) {
            return Err(
                "it takes its events in another way than the active version: deploy it at once"
                    .into(),
            );
        }
        let counters = line.try_out(share, &self.shared, record, || self.worker(record, loaded));
        if let Some(tried) = &mut lock(&self.status).trial
            && !Arc::ptr_eq(&tried.counters, &counters)
        {
            tried.counters = counters;
            if let Some((_, before)) = &mut tried.before {
                *before = Figures::default();
            }
        }
        Ok(())
    }

    fn note_trial(&self, version: u64, text: &str, share: u32) {
        let mut status = lock(&self.status);
        let active = status.counters.figures();
        let known = status.trial.take().filter(|tried| tried.version == version);
        let mut tried = known.unwrap_or_else(|| Tried {
            version,
            share: 0,
            text: String::new(),
            counters: Arc::default(),
            before: None,
        });
        tried.text = text.to_owned();
        if share != tried.share {
            tried.before = Some((active, tried.counters.figures()));
        }
        tried.share = share;
        status.trial = Some(tried);
    }

    /// The version, loaded and seen to handle its sample event: nothing goes to it before. `once`: a sample that failed is not tried again until
    /// something else is deployed, for nothing depends on it.
    async fn ready(&mut self, record: &FunctionRecord, once: bool) -> Result<Function, String> {
        let loaded = self.load(record).await?;
        // Who goes back has no use for a version that was well then and is refused now.
        let back = record
            .previous
            .is_some_and(|before| before > record.version);
        let known = self.checked.get(&record.version);
        let checked = match known.filter(|known| once || known.is_ok()) {
            Some(known) => known.clone(),
            None if back => Ok(()),
            None => sample::check(&loaded, record).await,
        };
        self.checked.insert(record.version, checked.clone());
        checked.map(|()| loaded)
    }

    /// Where nothing takes events yet, a version with a share is to be there when they come: its keys are not the active one's.
    async fn load_trial_first(&mut self, record: &FunctionRecord) {
        let trial = record.trial.as_ref().filter(|trial| trial.share > 0);
        if let Some(trial) = trial.filter(|_| self.line.is_none()) {
            // Should it fail, that is said when it is its turn.
            let ready = self.ready(&trial.record, false);
            let _ = tokio::time::timeout(TRIAL_FIRST, ready).await;
        }
    }

    /// The version's component, ready to be called.
    async fn load(&mut self, record: &FunctionRecord) -> Result<Function, String> {
        if let Some(loaded) = self.loaded.get(&record.version) {
            return Ok(loaded.clone());
        }
        let spec = spec(record, self.shared.connections.commits.max_payload())?;
        let js = self.shared.connections.commits.jetstream();
        let component = module_store::fetch(&js, &record.digest).await;
        let component = component.map_err(|error| error.to_string())?;
        let loaded = self.shared.sandbox.load(&component, spec).await;
        let loaded = loaded.map_err(|error| error.to_string())?;
        self.loaded.insert(record.version, loaded.clone());
        Ok(loaded)
    }

    fn worker(&self, record: &FunctionRecord, function: Function) -> Worker {
        let shared = &self.shared;
        let concurrency = record.settings.concurrency.max(1) as usize;
        let names = AppNames::new(record.app.as_str());
        let nats = &shared.connections.commits;
        let state = NatsState::new(nats.clone(), names.clone());
        let committer = shared.committer(&names, &state);
        let counters = Arc::default();
        let FunctionRecord { app, version, .. } = record;
        let meters = &shared.meters;
        meters.register(app, &record.function, *version, &counters);
        Worker {
            record: record.clone(),
            name: record.function.as_str().into(),
            function,
            state: Arc::new(committer.state().clone()),
            committer,
            attempts: Attempts::new(nats.clone(), state.clone(), names.clone()),
            nats: nats.clone(),
            logs: shared.logs.clone(),
            counters,
            habits: Habits::default(),
            handlers: Arc::new(Semaphore::new(concurrency)),
            unsettled: Arc::new(Semaphore::new(concurrency + FINISHED)),
            max_payload: nats.max_payload(),
            end: End::new(),
        }
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

fn lock(status: &Mutex<Status>) -> std::sync::MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
