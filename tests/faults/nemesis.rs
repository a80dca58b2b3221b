//! Whoever wishes the system ill: a seeded deck of faults, dealt out over the time of the run, some of them at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::nodes::Nodes;
use crate::operator::Operator;
use pelton_tests::proxy::Mode;

/// How long a server may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds of a run for each fault of a kind, at the most as many as it should see.
const SECONDS_FOR_EACH: [(Kind, u64); 15] = [
    (Kind::KillNode, 4),
    (Kind::KillServer, 12),
    (Kind::PauseNode, 12),
    (Kind::Cut, 20),
    (Kind::Hold, 20),
    (Kind::Delay, 25),
    (Kind::Leave, 25),
    (Kind::PauseServer, 40),
    (Kind::Rolling, 60),
    (Kind::Deploy, 20),
    (Kind::Full, 20),
    (Kind::Narrow, 45),
    (Kind::Canary, 25),
    (Kind::Rollback, 40),
    (Kind::Suspend, 30),
];

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `kill -9` of a node.
    KillNode,
    /// `kill -9` of a server.
    KillServer,
    /// A node sleeps beyond its lease.
    PauseNode,
    /// Connections of a node break and cannot be made.
    Cut,
    /// Bytes of a node wait, one way or both, and come late or never.
    Hold,
    /// Bytes of a node are late.
    Delay,
    /// A node leaves in order, and another comes.
    Leave,
    /// A server sleeps.
    PauseServer,
    /// All servers restart, one after the other.
    Rolling,
    /// New versions of all functions.
    Deploy,
    /// A target refuses what is new.
    Full,
    /// Functions may not emit to a target any more, and then again.
    Narrow,
    /// New versions get a share of the keys, and then all of them or none.
    Canary,
    /// New versions of all functions, and one of those is taken back.
    Rollback,
    /// No node takes events of a function for a while.
    Suspend,
}

/// One fault, with all that chance decides.
#[derive(Debug, Clone)]
struct Fault {
    kind: Kind,
    /// Which node or server, counted round.
    target: usize,
    lasts: Duration,
    mode: Mode,
    /// The way to this server alone.
    only: Option<usize>,
    /// What was held back is lost in the end.
    lost: bool,
}

/// Who and what faults happen to.
#[derive(Clone)]
pub(crate) struct Field {
    pub cluster: Arc<Cluster>,
    pub nodes: Arc<Nodes>,
    pub operator: Arc<Operator>,
    pub log: Log,
}

/// Faults that happened, with their times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<(OffsetDateTime, Kind, String)>>>);

impl Log {
    fn say(&self, kind: Kind, what: String) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.push((OffsetDateTime::now_utc(), kind, what));
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<(OffsetDateTime, Kind, String)> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// How many of each kind.
    pub(crate) fn counts(&self) -> BTreeMap<Kind, u64> {
        let mut counts = BTreeMap::new();
        for (_, kind, _) in self.all() {
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}

/// Faults that a run of so many seconds must at least have seen, by kind.
pub(crate) fn least(seconds: u64) -> impl Iterator<Item = (Kind, u64)> {
    SECONDS_FOR_EACH
        .into_iter()
        .map(move |(kind, each)| (kind, seconds * 3 / (each * 4)))
}

/// Lets faults happen for `duration`, and returns when all of them are over.
///
/// # Errors
/// One of them could not be done, which is no fault of the system.
pub(crate) async fn rage(field: &Field, seed: u64, duration: Duration) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let deck = deck(&mut rng, duration.as_secs());
    let begun = Instant::now();
    let mut under_way = JoinSet::new();
    let gap = duration.div_f64(deck.len().max(1) as f64);
    for (n, fault) in deck.into_iter().enumerate() {
        let due = gap.mul_f64(n as f64 + rng.f64());
        tokio::time::sleep_until((begun + due).into()).await;
        under_way.spawn(happen(field.clone(), fault));
    }
    while let Some(one) = under_way.join_next().await {
        one??;
    }
    Ok(())
}

fn deck(rng: &mut Rng, seconds: u64) -> Vec<Fault> {
    let mut deck = Vec::new();
    for (kind, each) in SECONDS_FOR_EACH {
        for _ in 0..seconds.div_ceil(each) {
            let held = [Mode::HoldAnswers, Mode::HoldRequests, Mode::HoldAll];
            let mode = match kind {
                Kind::Cut => Mode::Cut,
                Kind::Delay => Mode::Delay(Duration::from_millis(rng.u64(5..60))),
                _ => held.get(rng.usize(..3)).copied().unwrap_or(Mode::HoldAll),
            };
            let lasts = match kind {
                Kind::KillNode | Kind::Leave => rng.u64(0..1500),
                Kind::KillServer => rng.u64(200..2500),
                // A lease is three seconds.
                Kind::PauseNode => rng.u64(3500..6500),
                Kind::PauseServer => rng.u64(1500..5000),
                Kind::Cut | Kind::Hold | Kind::Delay => rng.u64(500..6000),
                Kind::Full | Kind::Narrow | Kind::Canary | Kind::Suspend => rng.u64(500..5000),
                Kind::Deploy | Kind::Rollback => 0,
                Kind::Rolling => 1000,
            };
            deck.push(Fault {
                kind,
                target: rng.usize(..1000),
                lasts: Duration::from_millis(lasts),
                mode,
                only: rng.bool().then(|| rng.usize(..3)),
                lost: rng.bool(),
            });
        }
    }
    rng.shuffle(&mut deck);
    deck
}

async fn happen(field: Field, fault: Fault) -> Result<()> {
    match fault.kind {
        Kind::KillServer | Kind::PauseServer | Kind::Rolling => to_server(&field, &fault).await,
        Kind::Deploy
        | Kind::Full
        | Kind::Narrow
        | Kind::Canary
        | Kind::Rollback
        | Kind::Suspend => to_app(&field, &fault).await,
        _ => to_node(&field, &fault).await,
    }
}

async fn to_app(field: &Field, fault: &Fault) -> Result<()> {
    let Fault { kind, lasts, .. } = *fault;
    let operator = &field.operator;
    field.log.say(kind, format!("{kind:?} is asked for"));
    match kind {
        Kind::Full => operator.fill(fault.target, lasts).await,
        Kind::Narrow => operator.narrow_for(lasts).await,
        Kind::Canary => operator.canary(fault.lost, lasts).await,
        Kind::Rollback => operator.roll_back(fault.target).await,
        Kind::Suspend => operator.suspend(fault.target, lasts).await,
        _ => operator.deploy().await,
    }
}

async fn to_server(field: &Field, fault: &Fault) -> Result<()> {
    let Fault { kind, lasts, .. } = *fault;
    let cluster = &field.cluster;
    let _trouble = cluster.trouble.lock().await;
    let n = fault.target % cluster.len();
    let mut server = cluster.server(n)?.lock().await;
    match kind {
        Kind::KillServer => {
            field
                .log
                .say(kind, format!("server {n} is killed for {lasts:?}"));
            server.kill().await?;
            tokio::time::sleep(lasts).await;
            server.start()?;
        }
        Kind::PauseServer => {
            field
                .log
                .say(kind, format!("server {n} sleeps for {lasts:?}"));
            server.signal("STOP").await?;
            tokio::time::sleep(lasts).await;
            server.signal("CONT").await?;
        }
        _ => {
            drop(server);
            for n in 0..cluster.len() {
                field.log.say(kind, format!("server {n} restarts in order"));
                let mut server = cluster.server(n)?.lock().await;
                server.stop(PATIENCE).await?;
                server.start()?;
                cluster.up().await?;
            }
        }
    }
    cluster.up().await
}

async fn to_node(field: &Field, fault: &Fault) -> Result<()> {
    let Fault {
        kind,
        lasts,
        mode,
        only,
        ..
    } = *fault;
    let n = fault.target % field.nodes.len();
    let only = only.filter(|only| *only < field.cluster.len());
    let mut node = field.nodes.node(n)?.lock().await;
    node.revive()?;
    match kind {
        Kind::KillNode => {
            field
                .log
                .say(kind, format!("node {n} is killed for {lasts:?}"));
            node.kill().await?;
            tokio::time::sleep(lasts).await;
            node.start()?;
        }
        Kind::Leave => {
            field.log.say(kind, format!("node {n} leaves"));
            node.leave().await?;
            tokio::time::sleep(lasts).await;
            node.start()?;
        }
        Kind::PauseNode => {
            field
                .log
                .say(kind, format!("node {n} sleeps for {lasts:?}"));
            node.signal("STOP").await?;
            tokio::time::sleep(lasts).await;
            node.signal("CONT").await?;
        }
        _ => {
            let way = only.map_or("all servers".to_owned(), |only| format!("server {only}"));
            let lost = if fault.lost { ", then lost" } else { "" };
            field.log.say(
                kind,
                format!("{mode:?} between node {n} and {way} for {lasts:?}{lost}"),
            );
            node.network(mode, only);
            tokio::time::sleep(lasts).await;
            if fault.lost && kind == Kind::Hold {
                node.network(Mode::Cut, only);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            node.network(Mode::Open, None);
        }
    }
    Ok(())
}
