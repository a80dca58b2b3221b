//! What a node does for the streams beside serving: clears outboxes of what has arrived, and puts back settings of commit
//! streams. On a task of its own, so that a slow NATS does not hold up heartbeats. Every node does it; twice is harmless.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::every;
use crate::commit::bygone::Bygone;
use crate::commit::site::{self, Sites};
use crate::commit::vacuum::{Look, Vacuum};
use crate::commit::{outbox, stream, transport};
use crate::members::Members;
use crate::names::AppNames;
use crate::nats::Connection;

/// How often outboxes are cleared of what has arrived.
const PURGE: Duration = Duration::from_secs(2);
/// How often the commit streams' settings are looked at, and some records of timers: nobody alters them in a sound system.
const MEND: Duration = Duration::from_secs(10);
/// How often other sites are looked for. One small message per app.
const SITES: Duration = Duration::from_secs(3);
/// How often delete markers are looked for, and what is below the floor.
const VACUUM: Duration = Duration::from_secs(5);
/// How often what has not left the outbox is looked at.
const WATCH: Duration = Duration::from_secs(5);
/// An emitted event takes milliseconds to its target: one that is so old is stuck.
const STUCK: time::Duration = time::Duration::seconds(10);

/// The longest that a target keeps a leader that does not fetch, so that one which no leader can serve is let alone.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is known of a target that emitted events do not reach.
#[derive(Debug, Default)]
struct Stuck {
    /// It was said.
    said: bool,
    /// How often another leader was asked for.
    elections: u32,
}

/// What a node serves of one app.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Served {
    /// Streams that its functions read.
    pub(super) inputs: BTreeSet<String>,
    /// Streams that its functions emit to.
    pub(super) targets: BTreeSet<String>,
    /// When a function of it was last deployed.
    pub(super) deployed: OffsetDateTime,
}

/// By app.
pub(super) type Apps = BTreeMap<String, Served>;

pub(super) struct Janitor {
    nats: Connection,
    pub(super) apps: watch::Receiver<Apps>,
    sites: Arc<Sites>,
    /// This node's id.
    node: String,
    members: watch::Receiver<Members>,
    /// What each target of each app had stored at the last purge.
    purged: HashMap<(String, String), outbox::Purged>,
    /// Apps and targets that emitted events do not reach.
    stuck: HashMap<(String, String), Stuck>,
    /// Apps and targets whose outbox could not be cleared the last time.
    failing: BTreeSet<(String, String)>,
    /// Of each app, what is known of records that a killed server brought back.
    bygone: HashMap<String, Bygone>,
    /// Of each app, how far its commit stream is cleaned.
    vacuums: HashMap<String, Vacuum>,
}

impl Janitor {
    pub(super) fn new(
        nats: Connection,
        apps: watch::Receiver<Apps>,
        sites: Arc<Sites>,
        node: String,
        members: watch::Receiver<Members>,
    ) -> Self {
        Self {
            nats,
            apps,
            sites,
            node,
            members,
            purged: HashMap::new(),
            stuck: HashMap::new(),
            failing: BTreeSet::new(),
            bygone: HashMap::new(),
            vacuums: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let sites = check_sites(self.sites.clone(), stop.clone());
        tokio::join!(sites, self.keep(stop));
    }

    async fn keep(&mut self, stop: CancellationToken) {
        let (mut purge, mut mend, mut watch) = (every(PURGE), every(MEND), every(WATCH));
        let mut vacuum = every(VACUUM);
        loop {
            let apps = self.apps.borrow().clone();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = purge.tick() => self.purge(apps).await,
                _ = mend.tick() => self.mend(apps).await,
                _ = watch.tick() => self.watch(apps).await,
                _ = vacuum.tick() => self.vacuum(apps).await,
            }
        }
    }

    async fn purge(&mut self, apps: Apps) {
        for (app, Served { mut targets, .. }) in apps {
            let names = AppNames::new(app.as_str());
            targets.insert(names.dead_stream());
            for target in targets {
                let key = (app.clone(), target);
                let purged = self.purged.entry(key.clone()).or_default();
                match outbox::purge(&self.nats.jetstream(), &names, &key.1, purged).await {
                    Ok(()) => {
                        self.failing.remove(&key);
                    }
                    // Said once, until it goes well again.
                    Err(error) if self.failing.insert(key) => {
                        tracing::warn!(%error, app, "an outbox is not cleared of what has arrived");
                    }
                    Err(error) => tracing::debug!(%error, app, "an outbox is not cleared"),
                }
            }
        }
    }

    /// Says once that events do not reach a target, and once that they do again; helps where a target does not fetch.
    async fn watch(&mut self, apps: Apps) {
        for (app, Served { mut targets, .. }) in apps {
            let names = AppNames::new(app.as_str());
            targets.insert(names.dead_stream());
            for target in targets {
                match transport::waiting(&self.nats.jetstream(), &names, &target).await {
                    Ok(waiting) => self.watched((app.clone(), target), waiting).await,
                    Err(error) => {
                        tracing::debug!(%error, app, target, "the outbox is not watched");
                    }
                }
            }
        }
    }

    async fn watched(&mut self, key: (String, String), waiting: Option<transport::Waiting>) {
        let now = OffsetDateTime::now_utc();
        let waiting = waiting.filter(|waiting| now - waiting.since > transport::SILENT);
        let Some(waiting) = waiting else {
            if self.stuck.remove(&key).is_some_and(|stuck| stuck.said) {
                let (app, target) = key;
                tracing::info!(app, target, "emitted events reach their stream again");
            }
            return;
        };
        let (app, target) = (key.0.clone(), key.1.clone());
        let stuck = self.stuck.entry(key).or_default();
        if now - waiting.since > STUCK && !stuck.said {
            stuck.said = true;
            let transport::Waiting {
                since, why, fix, ..
            } = waiting;
            tracing::warn!(app, target, %since, why, fix, "emitted events do not reach their stream; they wait in the outbox");
        }
        let tenure = transport::SILENT * 2_u32.saturating_pow(stuck.elections.min(16));
        if let Some(since) = waiting.deaf
            && now - since > tenure.min(PATIENCE)
        {
            stuck.elections += 1;
            match transport::step_down(&self.nats.jetstream(), &target).await {
                Ok(()) => {
                    tracing::info!(
                        app,
                        target,
                        "the stream does not fetch emitted events: it gets another leader"
                    );
                }
                Err(error) => tracing::debug!(%error, app, "emitted events go on waiting"),
            }
        }
    }

    /// Removes delete markers, and what a killed server brought back.
    async fn vacuum(&mut self, apps: Apps) {
        for (app, _) in apps {
            let names = AppNames::new(app.as_str());
            let leads = {
                let members = self.members.borrow();
                members.is_complete() && members.oldest_of(&app) == Some(&self.node)
            };
            if !leads {
                continue;
            }
            let vacuum = self.vacuums.entry(app.clone()).or_default();
            match vacuum.look(&self.nats.jetstream(), &names).await {
                Ok(Look::Idle) => {}
                Ok(Look::Raised(floor)) => tracing::debug!(app, floor, "floor raised"),
                Ok(Look::Removed(messages)) => {
                    tracing::debug!(app, messages, "delete markers removed");
                }
                Ok(Look::Revived(messages)) => tracing::info!(
                    app,
                    messages,
                    "removed deleted data that a killed server had brought back"
                ),
                Err(error) => tracing::debug!(%error, app, "the commit stream is not cleaned"),
            }
        }
    }

    async fn mend(&mut self, apps: Apps) {
        for (app, served) in apps {
            let names = AppNames::new(app.as_str());
            let js = self.nats.jetstream();
            if let Err(error) = stream::mend_commit_stream(&js, &names, served.deployed).await {
                tracing::warn!(%error, app, "the commit stream is not as it should be");
            }
            let bygone = self.bygone.entry(app.clone()).or_default();
            match bygone.look(&js, &names).await {
                Ok(0) => {}
                Ok(records) => {
                    tracing::info!(
                        records,
                        app,
                        "timers that a killed server brought back are removed"
                    );
                }
                Err(error) => tracing::debug!(%error, app, "records of timers are not looked at"),
            }
        }
    }
}

/// Looks for other JetStreams that store what this node writes, for as long as it runs: a leaf
/// connection may come back with other settings.
async fn check_sites(sites: Arc<Sites>, stop: CancellationToken) {
    let mut tick = every(SITES);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let all = sites.all();
        let checks = all.iter().map(|site| site.check(site::PATIENT));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = futures::future::join_all(checks) => {}
        }
    }
}
