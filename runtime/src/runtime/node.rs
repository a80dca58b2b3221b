//! The node's one task: follows the registry, starts and stops functions, says that it lives, clears outboxes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use futures::StreamExt;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RuntimeOptions;
use super::function::{Running, Shared};
use crate::commit::{outbox, stream};
use crate::names::{AppNames, NODES_BUCKET};
use crate::records::{FORMAT, NodeRecord};
use crate::registry::{self, Change};
use crate::sandbox::Sandbox;

/// A third of the entry's life: two beats may be lost.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often outboxes are cleared of what has arrived.
const PURGE: Duration = Duration::from_secs(2);
/// How often the commit streams' settings are looked at: nobody alters them in a sound system.
const MEND: Duration = Duration::from_secs(10);
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
    /// What each target of each app had stored at the last purge.
    purged: HashMap<(String, String), u64>,
}

impl Node {
    pub(super) fn new(
        id: Uuid,
        options: RuntimeOptions,
        publisher: Client,
        js: jetstream::Context,
        sandbox: Sandbox,
    ) -> Self {
        let started_at = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let shared = Arc::new(Shared::new(
            id,
            options.client.clone(),
            publisher,
            js,
            sandbox,
        ));
        Self {
            id,
            options,
            started_at,
            shared,
            functions: BTreeMap::new(),
            purged: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        tracing::info!(node = %self.id, name = self.options.node_name, "serving");
        while !stop.is_cancelled() {
            match registry::watch(&self.shared.js).await {
                Ok(changes) => self.follow(changes, &stop).await,
                Err(error) => {
                    tracing::warn!(%error, "the registry cannot be watched; trying again")
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
        }
        self.drain().await;
        tracing::info!(node = %self.id, "stopped");
    }

    /// Until the watch ends or the node is to stop.
    async fn follow(
        &mut self,
        mut changes: impl futures::Stream<Item = Change> + Unpin,
        stop: &CancellationToken,
    ) {
        let mut heartbeat = every(HEARTBEAT);
        let mut purge = every(PURGE);
        let mut mend = every(MEND);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                change = changes.next() => match change {
                    Some(change) => {
                        self.apply(change);
                        self.beat().await;
                    }
                    None => return,
                },
                _ = heartbeat.tick() => self.beat().await,
                _ = purge.tick() => self.purge().await,
                _ = mend.tick() => self.mend().await,
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Deployed(record) => {
                if !self.options.apps.is_empty() && !self.options.apps.contains(&record.app) {
                    return;
                }
                let key = (record.app.clone(), record.function.clone());
                // A watch that begins anew repeats what is known.
                if self
                    .functions
                    .get(&key)
                    .is_some_and(|running| running.serves(&record))
                {
                    return;
                }
                let predecessor = self.functions.remove(&key);
                let running = Running::start(*record, predecessor, self.shared.clone());
                self.functions.insert(key, running);
            }
            Change::Removed { app, function } => {
                if let Some(running) = self.functions.remove(&(app, function)) {
                    running.stop_in_background();
                }
            }
        }
    }

    async fn beat(&self) {
        let record = NodeRecord {
            format: FORMAT,
            node: self.id.to_string(),
            host: self.options.node_name.clone(),
            pid: std::process::id(),
            pelton: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.clone(),
            apps: self.options.apps.clone(),
            functions: self.functions.values().map(Running::report).collect(),
        };
        let Ok(body) = serde_json::to_vec(&record) else {
            return;
        };
        // Without an ack: the next beat comes in a second.
        let subject = format!("$KV.{NODES_BUCKET}.{}", self.id);
        if let Err(error) = self.shared.publisher.publish(subject, body.into()).await {
            tracing::debug!(%error, "a heartbeat was lost");
        }
    }

    async fn purge(&mut self) {
        let mut targets: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for ((app, _), running) in &self.functions {
            let of_app = targets.entry(app).or_default();
            of_app.insert(AppNames::new(app.as_str()).dead_stream());
            of_app.extend(running.targets().map(str::to_owned));
        }
        for (app, of_app) in targets {
            let names = AppNames::new(app);
            for target in of_app {
                let purged = self
                    .purged
                    .entry((app.to_owned(), target.clone()))
                    .or_default();
                if let Err(error) = outbox::purge(&self.shared.js, &names, &target, purged).await {
                    tracing::debug!(%error, "the outbox was not cleared");
                    return;
                }
            }
        }
    }

    async fn mend(&self) {
        let apps: BTreeSet<&str> = self.functions.keys().map(|(app, _)| app.as_str()).collect();
        for app in apps {
            if let Err(error) =
                stream::mend_commit_stream(&self.shared.js, &AppNames::new(app)).await
            {
                tracing::warn!(%error, "the commit stream could not be checked");
            }
        }
    }

    async fn drain(&mut self) {
        let functions = std::mem::take(&mut self.functions);
        let stops = functions
            .into_values()
            .map(|running| running.stop(self.options.drain_deadline));
        futures::future::join_all(stops).await;
        let subject = format!("$KV.{NODES_BUCKET}.{}", self.id);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        if self
            .shared
            .publisher
            .publish_with_headers(subject, headers, Default::default())
            .await
            .is_ok()
        {
            let _ = tokio::time::timeout(HEARTBEAT, self.shared.publisher.flush()).await;
        }
        let _ = tokio::time::timeout(HEARTBEAT, self.options.client.flush()).await;
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
