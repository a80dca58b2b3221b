//! The verifier: real nodes and real servers, a seeded mix of work, faults of all kinds, and then an audit of the streams.
//!
//! `make faults` runs it, with `SEED`, `DURATION` (seconds of faults) and `CLUSTER` (1 or 3 servers). It fails on any violation of exactly-once, on work that does not end, and when there was too little of work or faults to
//! say anything.

#![expect(clippy::print_stdout, reason = "a program of its own, which reports")]

mod audit;
mod cluster;
mod floor;
mod history;
mod nemesis;
mod nodes;
mod operator;
mod positions;
mod publisher;
mod settings;
mod timers;
mod workload;
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pelton_tests::{Nats, build, within};

use crate::audit::{Known, Outside, Violation, audit};
use crate::cluster::Cluster;
use crate::history::{clock, history};
use crate::nemesis::{Field, Kind, Log};
use crate::nodes::Nodes;
use crate::operator::Operator;
use crate::publisher::Published;
use crate::settings::Settings;
use crate::workload::Workload;
use crate::world::{World, commits, inputs};

/// Nodes.
const NODES: usize = 3;
/// Until everything is done once the faults are over: longer than any delay of a retry, and than a lease.
const DRAIN: Duration = Duration::from_secs(90);
/// Violations that are shown, and those of them with the history of their key.
const SHOWN: usize = 20;
const HISTORIES: usize = 6;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::read() {
        Ok(Some(settings)) => settings,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning 1 test\nfaults: {settings}");
    let begun = Instant::now();
    let ended = tokio::select! {
        ended = run(&settings) => ended,
        // Dropping what runs ends the children.
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let took = begun.elapsed().as_secs();
    let failed = u32::from(ended.is_err());
    let word = if failed == 0 { "ok" } else { "FAILED" };
    if let Err(error) = ended {
        println!("faults: {error:#}\nfaults: again with {settings}");
    }
    println!("test faults ... {word}\n");
    println!(
        "test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {took}s\n",
        1 - failed
    );
    ExitCode::from(u8::from(failed > 0))
}

/// SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// The run's folder: logs and data, kept when it failed.
fn folder(settings: &Settings) -> Result<PathBuf> {
    let folder = build::scratch()?.join(format!("faults-{}-{}", settings.cluster, settings.seed));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

async fn run(settings: &Settings) -> Result<()> {
    let folder = folder(settings)?;
    let cluster = Arc::new(Cluster::start(&folder, settings.cluster).await?);
    let nats = cluster.client().await?;
    let operator = Operator::new(&cluster.url(), &nats, settings.cluster).await?;
    let nodes = Nodes::start(&folder, operator.project(), &cluster, NODES).await?;
    let nodes = Arc::new(nodes);
    let log = Log::default();
    let field = Field {
        cluster: cluster.clone(),
        nodes: nodes.clone(),
        operator: Arc::new(operator),
        log: log.clone(),
    };

    let published = Arc::new(Published::default());
    let begun = Instant::now();
    let outside = under_fire(settings, &nats, &field, &published).await?;
    println!(
        "faults: the last fault is over after {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    for n in 0..nodes.len() {
        nodes.node(n)?.lock().await.revive()?;
    }
    let begun = Instant::now();
    let drained = drain(&nats).await;
    println!(
        "faults: drained after {:.1} s",
        begun.elapsed().as_secs_f64()
    );

    let world = World::read(&nats).await?;
    let known = Known {
        outside,
        acked: std::mem::take(
            &mut published
                .acked
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        ),
        narrow: field.operator.narrow(),
    };
    let mut violations = audit(&world, &known);
    if let Err(error) = drained {
        violations.push(Violation {
            about: String::new(),
            what: format!("stuck: {error:#}"),
        });
    }
    summary(&world, &log, &published);
    report(&violations, &world, &known.outside, &log, &folder)?;
    enough(settings, &world, &log)?;
    shared(&field.operator, &log)?;
    drop((field, nodes, nats));
    drop(cluster);
    Ok(std::fs::remove_dir_all(&folder)?)
}

/// Work and faults at the same time; all of both are over in the end.
async fn under_fire(
    settings: &Settings,
    nats: &Nats,
    field: &Field,
    published: &Arc<Published>,
) -> Result<Vec<Outside>> {
    let workload = Workload::new(settings.seed);
    let producer = publisher::produce(
        nats.clone(),
        workload,
        settings.rate,
        settings.inputs,
        published.clone(),
    );
    let producer = tokio::spawn(producer);
    let interferer = publisher::interfere(nats.clone(), settings.seed ^ 1, published.clone());
    let interferer = tokio::spawn(interferer);
    let raged = nemesis::rage(field, settings.seed ^ 2, settings.duration).await;
    published.stop.store(true, Ordering::Relaxed);
    raged?;
    producer.await??;
    let outside = interferer.await??;
    // A server that restarted knows how far a target has come only from the next event: each gets one.
    publisher::finish(nats).await?;
    Ok(outside)
}

/// Waits until every delivery is done and nothing is left in park and outbox.
async fn drain(nats: &Nats) -> Result<()> {
    let work = inputs(nats, "WORK", 0).await?;
    within(DRAIN, "everything to be done", || async {
        let commits = commits(nats).await?;
        let left = &commits.leftovers;
        let first = left.first();
        ensure!(
            left.is_empty(),
            "{} left over, such as {first:?}",
            left.len()
        );
        let mut all = work.clone();
        all.extend(inputs(nats, "CHAIN", 0).await?);
        let missing = positions::missing(&all, &commits);
        let first = missing.first().map(|(delivery, _)| delivery.to_string());
        ensure!(
            missing.is_empty(),
            "{} not done, such as {first:?}",
            missing.len()
        );
        Ok(Some(()))
    })
    .await
}

fn summary(world: &World, log: &Log, published: &Published) {
    let dead = world
        .facts
        .iter()
        .filter(|fact| fact.code.is_some())
        .count();
    let keys: BTreeSet<&str> = world
        .inputs
        .iter()
        .map(|input| input.key.as_str())
        .collect();
    println!(
        "faults: {} events published; {} inputs over {} keys; {} deliveries committed, {dead} dead-lettered, {} told",
        published.events.load(Ordering::Relaxed),
        world.inputs.len(),
        keys.len(),
        world.facts.len() - dead,
        world.told.len(),
    );
    let counts = log.counts().into_iter();
    let counts: Vec<String> = counts.map(|(kind, n)| format!("{kind:?} {n}")).collect();
    println!("faults: {}", counts.join(", "));
    let coded = |code: &str| {
        let facts = world.facts.iter();
        facts
            .filter(|fact| fact.code.as_deref() == Some(code))
            .count()
    };
    println!(
        "faults: {} timers came, {} events were not allowed, {} too large; {} leftovers in copies that do not lead",
        world
            .told
            .iter()
            .filter(|told| told.timer.is_some())
            .count(),
        coded("pelton-not-allowed"),
        coded("pelton-limit"),
        world.commits.apart,
    );
}

/// Shows what is wrong, with the history of the first keys concerned.
fn report(
    violations: &[Violation],
    world: &World,
    outside: &[Outside],
    log: &Log,
    folder: &std::path::Path,
) -> Result<()> {
    for violation in violations.iter().take(SHOWN) {
        println!("VIOLATION {}: {}", violation.about, violation.what);
    }
    // One of each kind.
    let mut shown = BTreeSet::new();
    for Violation { about, what } in violations {
        let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        if shown.len() < HISTORIES && shown.insert(kind) {
            println!("--- history of {about:?}, because {what}");
            for line in history(about, world, outside, log) {
                println!("{line}");
            }
        }
    }
    if !violations.is_empty() {
        let mut text = String::new();
        for Violation { about, what } in violations {
            text += &format!("{about}: {what}\n");
        }
        std::fs::write(folder.join("violations.log"), &text)?;
        text.clear();
        for (time, _, what) in log.all() {
            text += &format!("{} {what}\n", clock(time));
        }
        std::fs::write(folder.join("faults.log"), text)?;
    }
    ensure!(
        violations.is_empty(),
        "{} violations; logs and data are in {}",
        violations.len(),
        folder.display()
    );
    Ok(())
}

/// Canaries so short that no node says how they fare prove nothing: of some, one is longer.
fn shared(operator: &Operator, log: &Log) -> Result<()> {
    let (old, new) = operator.shares();
    println!(
        "faults: during canaries {old} attempts of the active versions, {new} of those that were tried"
    );
    let canaries = log.counts().get(&Kind::Canary).copied().unwrap_or(0);
    ensure!(
        canaries < 3 || old > 0 && new > 0,
        "{canaries} canaries, and not both versions had deliveries"
    );
    Ok(())
}

/// A run that saw little proves nothing.
fn enough(settings: &Settings, world: &World, log: &Log) -> Result<()> {
    let (ended, wanted) = (world.facts.len() as u64, settings.successes());
    ensure!(
        ended >= wanted,
        "only {ended} deliveries ended, of {wanted} at least"
    );
    let (inputs, wanted) = (world.inputs.len() as u64, settings.least);
    ensure!(
        inputs >= wanted,
        "only {inputs} inputs, of {wanted} at least"
    );
    let counts = log.counts();
    for (kind, wanted) in nemesis::least(settings.duration.as_secs()) {
        let seen = counts.get(&kind).copied().unwrap_or(0);
        ensure!(
            seen >= wanted,
            "only {seen} of {kind:?}, of {wanted} at least"
        );
    }
    Ok(())
}
