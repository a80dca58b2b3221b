//! The node's one task: follows the registry, starts and stops functions, says that it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::conductor::{Conductor, Trials};
use super::function::Running;
use super::health::Health;
use super::janitor::{Apps, Janitor, Served};
use super::observer::Observer;
use super::shared::Shared;
use super::station::Station;
use super::steward::Steward;
use super::{Connections, RuntimeOptions};
use crate::members::{self, Heard, Members};
use crate::names::NODES_BUCKET;
use crate::records::{FORMAT, NodeFunction, NodeLimits, NodeOrder, NodeRecord};
use crate::registry::{self, Change, RegistryError};
use crate::sandbox::Sandbox;

/// A third of the entry's life: two beats may be lost.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause before the registry is watched anew.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// App and function.
type Key = (String, String);

pub(super) struct Node {
    id: Uuid,
    options: RuntimeOptions,
    started_at: String,
    shared: Arc<Shared>,
    functions: BTreeMap<Key, Running>,
    /// What of them is said while the node stops.
    stopping: Vec<NodeFunction>,
    /// For the janitor.
    apps: watch::Sender<Apps>,
    /// For the conductor.
    trials: watch::Sender<Trials>,
    /// For whoever listens to other nodes' heartbeats.
    members: Option<watch::Sender<Members>>,
    /// The latest heartbeat.
    latest: watch::Sender<NodeRecord>,
    /// Whether it takes no more events.
    draining: bool,
    health: Arc<Health>,
    /// Where metrics and health are asked for.
    listener: Option<TcpListener>,
}

impl Node {
    pub(super) fn new(
        id: Uuid,
        options: RuntimeOptions,
        connections: Connections,
        sandbox: Sandbox,
        listener: Option<TcpListener>,
    ) -> Self {
        let started_at = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let (members, known) = watch::channel(Members::default());
        let shared = Arc::new(Shared::new(id, connections, sandbox, known));
        Self {
            id,
            options,
            started_at,
            shared,
            functions: BTreeMap::new(),
            stopping: Vec::new(),
            apps: watch::Sender::new(Apps::new()),
            trials: watch::Sender::new(Trials::new()),
            members: Some(members),
            latest: watch::Sender::default(),
            draining: false,
            health: Arc::new(Health::new()),
            listener,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        tracing::info!(node = %self.id, name = self.options.node_name, "serving");
        let measures = self.listener.is_some();
        // Answers until the end: also that the node drains.
        let station = self.listener.take().map(|listener| {
            let station = Station {
                shared: self.shared.clone(),
                health: self.health.clone(),
                name: self.options.node_name.clone(),
            };
            AbortOnDropHandle::new(tokio::spawn(station.run(listener)))
        });
        self.latest.send_replace(self.record());
        let (steward, mut orders) = Steward::new(
            self.shared.connections.requests.clone(),
            self.latest.subscribe(),
        );
        tokio::spawn(steward.run(stop.clone()));
        self.start_helpers(measures, &stop);
        let mut changes = registry::Watch::new(self.shared.connections.inputs.clone());
        while !stop.is_cancelled() {
            self.health.turned();
            let failed = self.follow(&mut changes, &mut orders, &stop).await;
            if let Some(error) = failed {
                let why = error.to_string();
                if self.health.watches(Some(why)) {
                    tracing::warn!(%error, "the registry cannot be watched; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
        }
        self.health.drains();
        self.drain().await;
        drop(station);
        tracing::info!(node = %self.id, "stopped");
    }

    /// What goes on beside the node's task.
    fn start_helpers(&mut self, measures: bool, stop: &CancellationToken) {
        let shared = &self.shared;
        let janitor = Janitor::new(
            shared.connections.commits.clone(),
            self.apps.subscribe(),
            shared.sites.clone(),
            self.id.to_string(),
            shared.members.clone(),
        );
        tokio::spawn(janitor.run(stop.clone()));
        let conductor = Conductor {
            nats: shared.connections.commits.clone(),
            node: self.id.to_string(),
            trials: self.trials.subscribe(),
        };
        tokio::spawn(conductor.run(stop.clone()));
        let heard = Heard::default();
        if measures {
            let observer = Observer {
                nats: shared.connections.commits.clone(),
                node: self.id.to_string(),
                apps: self.apps.subscribe(),
                members: shared.members.clone(),
                heard: heard.clone(),
                meters: shared.meters.clone(),
                health: self.health.clone(),
            };
            tokio::spawn(observer.run(stop.clone()));
        }
        if let Some(members) = self.members.take() {
            tokio::spawn(members::follow(
                shared.connections.requests.clone(),
                members,
                heard,
                stop.clone(),
            ));
        }
    }

    /// Until the watch fails, which is returned, or the node is to stop.
    async fn follow(
        &mut self,
        changes: &mut registry::Watch,
        orders: &mut mpsc::Receiver<NodeOrder>,
        stop: &CancellationToken,
    ) -> Option<RegistryError> {
        let mut heartbeat = every(HEARTBEAT);
        let health = self.health.clone();
        loop {
            health.turned();
            tokio::select! {
                () = stop.cancelled() => return None,
                change = changes.next() => match change {
                    Ok(change) => {
                        self.apply(change);
                        self.announce();
                        self.beat().await;
                    }
                    Err(error) => return Some(error),
                },
                Some(order) = orders.recv() => {
                    self.obey(order);
                    self.beat().await;
                }
                _ = heartbeat.tick() => {
                    if changes.is_open() {
                        health.watches(None);
                    }
                    self.beat().await;
                }
                () = health.news() => {
                    self.beat().await;
                    heartbeat.reset();
                }
            }
        }
    }

    fn obey(&mut self, NodeOrder { drain }: NodeOrder) {
        if self.draining != drain {
            let what = if drain {
                "draining: no events are taken any more"
            } else {
                "serving again"
            };
            tracing::info!(node = %self.id, "{what}, as asked for");
        }
        self.draining = drain;
        self.health.rests(drain);
        for running in self.functions.values_mut() {
            running.hold(drain);
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Deployed(record) => {
                if !self.options.apps.is_empty() && !self.options.apps.contains(&record.app) {
                    return;
                }
                let key = (record.app.clone(), record.function.clone());
                match self.functions.get_mut(&key) {
                    // A watch that begins anew repeats what is known.
                    Some(running) if running.serves(&record) => {}
                    Some(running) => running.deploy(*record),
                    None => {
                        let running = Running::start(*record, self.shared.clone(), self.draining);
                        self.functions.insert(key, running);
                    }
                }
            }
            Change::Removed { app, function } => {
                if let Some(running) = self.functions.remove(&(app, function)) {
                    running.retire(&self.shared);
                }
            }
        }
    }

    fn record(&self) -> NodeRecord {
        // Before what leaves is asked for: a version leaves before its successor says that it runs.
        let mut functions: Vec<NodeFunction> =
            self.functions.values().map(Running::report).collect();
        if self.stopping.is_empty() {
            self.health.saw(functions.clone());
        }
        functions.extend(self.stopping.iter().cloned());
        NodeRecord {
            format: FORMAT,
            node: self.id.to_string(),
            host: self.options.node_name.clone(),
            pid: std::process::id(),
            pelton: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.clone(),
            apps: self.options.apps.clone(),
            functions,
            tries: true,
            draining: self.draining,
            limits: NodeLimits {
                cpus: std::thread::available_parallelism()
                    .map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
                instances: self.options.max_instances,
                memory_bytes: self.options.max_memory,
            },
            memory_bytes: memory(),
            retiring: self.shared.leaving.apps(),
            metrics: self.options.http.is_some(),
            counted: self.health.counted(),
        }
    }

    async fn beat(&self) {
        let record = self.record();
        self.latest.send_replace(record.clone());
        let Ok(body) = serde_json::to_vec(&record) else {
            return;
        };
        // Without an ack: the next beat comes in a second.
        let subject = format!("$KV.{NODES_BUCKET}.{}", self.id);
        let client = self.shared.connections.commits.client();
        let published = client.publish(subject, body.into());
        // While NATS is away, the client takes only so much.
        match tokio::time::timeout(HEARTBEAT, published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a heartbeat was lost"),
            Err(_) => tracing::debug!("a heartbeat was lost: the client takes nothing more"),
        }
    }

    /// Tells the janitor what is served now.
    fn announce(&self) {
        let mut apps = Apps::new();
        for ((app, _), running) in &self.functions {
            let served = apps.entry(app.clone()).or_insert_with(|| Served {
                inputs: BTreeSet::new(),
                targets: BTreeSet::new(),
                deployed: OffsetDateTime::UNIX_EPOCH,
            });
            served.targets.extend(running.targets().map(str::to_owned));
            served.inputs.extend(running.inputs().map(str::to_owned));
            served.deployed = served.deployed.max(running.deployed());
        }
        self.apps.send_replace(apps);
        let tried = self.functions.iter();
        let tried = tried.filter(|(_, running)| running.tries());
        self.trials
            .send_replace(tried.map(|(key, _)| key.clone()).collect());
    }

    async fn drain(&mut self) {
        let deadline = self.options.drain_deadline;
        let hurry = self.shared.hurry.clone();
        let functions = std::mem::take(&mut self.functions);
        self.draining = true;
        self.stopping = functions.values().map(Running::as_it_stops).collect();
        let stops = functions
            .into_values()
            .map(|running| running.stop(deadline, hurry.clone()));
        let retiring = async {
            self.shared.retiring.close();
            if tokio::time::timeout(deadline, self.shared.retiring.wait())
                .await
                .is_err()
            {
                hurry.cancel();
                self.shared.retiring.wait().await;
            }
        };
        let stopped = async { tokio::join!(futures::future::join_all(stops), retiring) };
        tokio::pin!(stopped);
        // It lives, and what runs is its own until it has ended: others take each partition when it is let go.
        let mut heartbeat = every(HEARTBEAT);
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                _ = heartbeat.tick() => self.beat().await,
            }
        }
        // NATS may be away: the entry then expires by itself.
        let _ = tokio::time::timeout(HEARTBEAT, self.leave()).await;
    }

    async fn leave(&self) {
        let subject = format!("$KV.{NODES_BUCKET}.{}", self.id);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        let client = self.shared.connections.commits.client();
        let left = client
            .publish_with_headers(subject, headers, Default::default())
            .await;
        if left.is_ok() && client.flush().await.is_ok() {
            let _ = self.shared.connections.inputs.client().flush().await;
        }
    }
}

/// Memory that this process has, bytes, where the system says so.
pub(super) fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

pub(super) fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
