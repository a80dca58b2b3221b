//! `pelton function`: what is deployed, where it runs, and what waits for it.

use clap::{Args, Subcommand};
use pelton_runtime::config::{DeliveryMode, FunctionSettings, KeySource};
use pelton_runtime::control::functions::{self, FunctionInfo, FunctionStatus, OnNode, TrialShare};
use pelton_runtime::control::lag::InputStatus;
use pelton_runtime::control::versions::{self, VersionStatus};
use pelton_runtime::nats;
use pelton_runtime::records::{Provenance, SHARES, TrialRecord};

use super::hold::{self, OneFunction};
use super::remove::{self, RemoveArgs};
use super::reset::{self, ResetArgs};
use crate::global::Global;
use crate::output::{Output, duration_ms, percent};
use crate::zone::local_time;

/// Digits of a digest or a commit that a person compares.
const SHORT: usize = 12;

/// Look at deployed functions; pause, resume, set, reset and remove them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton function ls\n  pelton function info orders\n  \
    pelton function ls --json"
)]
pub struct FunctionArgs {
    #[command(subcommand)]
    command: FunctionCommand,
}

#[derive(Debug, Subcommand)]
enum FunctionCommand {
    /// List functions with their version, status and pending events
    #[command(
        after_help = "Examples:\n  pelton function ls\n  pelton function ls --app shop --json"
    )]
    Ls {
        /// Of one app. Default: all of the account.
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
    },
    /// List the versions of a function that are kept: which is active, who made each, of what
    #[command(
        after_help = "Examples:\n  pelton function versions orders\n  pelton function versions orders --json"
    )]
    Versions {
        /// The function.
        function: String,
        /// Of which app. Default: the manifest's, else the only one there is.
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
    },
    /// Have all nodes take no more events of a function; what comes waits in its streams
    #[command(
        after_help = "Examples:\n  pelton function pause orders\n  pelton function pause orders --wait 2m"
    )]
    Pause(OneFunction),
    /// Have all nodes take events of a function again
    #[command(after_help = "Examples:\n  pelton function resume orders")]
    Resume(OneFunction),
    /// Change settings of a function that runs, until a new version is deployed
    #[command(
        after_help = "Examples:\n  pelton function set orders --concurrency 8\n  \
        pelton function set orders --concurrency deployed"
    )]
    Set {
        #[command(flatten)]
        which: OneFunction,
        /// Attempts in flight on each node; `deployed`: what was deployed.
        #[arg(long, value_name = "N", value_parser = concurrency)]
        concurrency: Concurrency,
    },
    /// Have a function begin elsewhere in its inputs: at the start, at an event, at a time, or with what is new
    ///
    /// All nodes let go of it first. What it handles again is another delivery than the first time: its state writes are made and its events are
    /// emitted once more. What waits for another attempt from before that place goes on waiting; on a queue (at-least-once) it is passed by, too, and
    /// counted as such. Asks first.
    #[command(
        after_help = "Examples:\n  pelton function reset orders --to start --dry-run\n  \
        pelton function reset orders --to 1200 --stream ORDERS --yes\n  \
        pelton function reset orders --to 2026-01-31T08:00:00Z"
    )]
    Reset(ResetArgs),
    /// Remove a function: its events stay in their streams, its state in the app's bucket. Asks first
    #[command(
        after_help = "Examples:\n  pelton function rm orders --dry-run\n  pelton function rm orders --yes"
    )]
    Rm(RemoveArgs),
    /// Show one function: settings, nodes, inputs and what waits in them
    #[command(
        after_help = "Examples:\n  pelton function info orders\n  pelton function info orders --app shop --json"
    )]
    Info {
        /// The function.
        function: String,
        /// Of which app. Default: the manifest's, else the only one there is.
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
    },
}

/// Attempts in flight; none: as deployed.
#[derive(Debug, Clone, Copy)]
struct Concurrency(Option<u32>);

fn concurrency(text: &str) -> Result<Concurrency, String> {
    match text {
        "deployed" => Ok(Concurrency(None)),
        _ => text
            .parse()
            .map(|number| Concurrency(Some(number)))
            .map_err(|_| "a number, or `deployed`".to_owned()),
    }
}

/// Runs one of its subcommands.
pub async fn run(args: FunctionArgs, global: &Global) -> anyhow::Result<()> {
    let js = nats::jetstream(&global.connect().await?);
    let output = global.output();
    match args.command {
        FunctionCommand::Ls { app } => {
            let all = functions::list(&js, app.as_deref()).await?;
            output.document(&all, |all| table(&output, all))?;
            unreadable(&all)
        }
        FunctionCommand::Pause(which) => hold::pause(which, global).await,
        FunctionCommand::Resume(which) => hold::resume(which, global).await,
        FunctionCommand::Reset(args) => reset::run(args, global).await,
        FunctionCommand::Rm(args) => remove::run(args, global).await,
        FunctionCommand::Set { which, concurrency } => {
            hold::set(which, concurrency.0, global).await
        }
        FunctionCommand::Versions { function, app } => {
            let app = global.app(app, &js).await?;
            let versions = versions::list(&js, &app, &function).await?;
            output.document(&versions, |versions| self::versions(&output, versions))
        }
        FunctionCommand::Info { function, app } => {
            let app = global.app(app, &js).await?;
            let info = functions::info(&js, &app, &function).await?;
            output.document(&info, |info| whole(&output, info))
        }
    }
}

/// Fails where nothing of any function could be read.
fn unreadable(all: &[FunctionStatus]) -> anyhow::Result<()> {
    let first = all.iter().find_map(|one| one.error.as_ref());
    match first.filter(|_| all.iter().all(|one| one.error.is_some())) {
        Some(why) => anyhow::bail!("no function's state can be read: {why}"),
        None => Ok(()),
    }
}

/// A count; `?`: it cannot be read.
fn count(count: Option<u64>) -> String {
    count.map_or_else(|| "?".into(), |count| count.to_string())
}

fn table(output: &Output, all: &[FunctionStatus]) -> String {
    if all.is_empty() {
        return "no functions are deployed; start with `pelton deploy`".into();
    }
    let rows = all.iter().map(|one| {
        let serving = one.nodes.iter().filter(|node| !node.draining);
        let running = serving.clone().filter(|node| node.version == one.version);
        vec![
            one.app.clone(),
            one.function.clone(),
            one.version.to_string(),
            one.trial.as_ref().map_or_else(|| "-".into(), canary),
            one.summary().to_owned(),
            format!("{}/{}", running.count(), serving.count()),
            count(one.pending),
            one.oldest_pending_ms
                .map_or_else(|| "-".into(), duration_ms),
            one.retrying.to_string(),
            one.deferred.to_string(),
            count(one.dead_letters),
        ]
    });
    let header = [
        "APP", "FUNCTION", "VERSION", "CANARY", "STATUS", "NODES", "PENDING", "OLDEST", "RETRYING",
        "DEFERRED", "DEAD",
    ];
    let mut parts = vec![output.table(&header, rows.collect())];
    let errors = all.iter().filter_map(|one| {
        let why = one.error.as_deref()?;
        Some(format!("{}/{}: {why}", one.app, one.function))
    });
    parts.extend(errors);
    parts.join("\n")
}

/// The version that is tried, in a column.
fn canary(trial: &TrialShare) -> String {
    match trial.share {
        0 => format!("{} (loading)", trial.version),
        share => format!("{} ({})", trial.version, percent(share)),
    }
}

/// What a version is at present, in a column.
fn role(version: &VersionStatus) -> String {
    match (version.active, version.tried) {
        (true, _) if version.share < SHARES => format!("active ({})", percent(version.share)),
        (true, _) => "active".to_owned(),
        (_, true) if version.share == 0 => "loading".to_owned(),
        (_, true) => format!("canary ({})", percent(version.share)),
        _ => String::new(),
    }
}

fn versions(output: &Output, versions: &[VersionStatus]) -> String {
    let rows = versions.iter().map(|one| {
        let Provenance { by, git, .. } = &one.record.provenance;
        let commit = git.as_ref().map(|git| {
            let short: String = git.commit.chars().take(SHORT).collect();
            short + if git.dirty { "+" } else { "" }
        });
        let digest: String = one.record.digest.chars().take(SHORT).collect();
        let unknown = || "-".to_owned();
        vec![
            one.version.to_string(),
            role(one),
            one.nodes.to_string(),
            local_time(&one.record.deployed_at),
            Some(by.clone())
                .filter(|by| !by.is_empty())
                .unwrap_or_else(unknown),
            commit.unwrap_or_else(unknown),
            digest,
        ]
    });
    let header = [
        "VERSION",
        "",
        "NODES",
        "DEPLOYED",
        "BY",
        "COMMIT",
        "COMPONENT",
    ];
    output.table(&header, rows.collect())
}

fn whole(output: &Output, info: &FunctionInfo) -> String {
    let (status, record) = (&info.status, &info.record);
    let mut parts = vec![facts(output, info)];
    let mut inputs: Vec<Vec<String>> = status.inputs.iter().map(input).collect();
    inputs.extend(status.internal.iter().map(internal));
    let header = [
        "STREAM",
        "SUBJECTS",
        "PENDING",
        "IN FLIGHT",
        "OLDEST",
        "CONSUMER",
    ];
    parts.push(output.table(&header, inputs));
    let stuck = status.targets.iter().filter_map(|target| {
        let age = target.oldest_waiting_ms?;
        let why = target.blocked.as_deref().unwrap_or_default();
        let fix = target.fix.as_deref().unwrap_or_default();
        Some(format!(
            "emitted events wait for {} since {}: {why}\n  fix: {fix}",
            target.stream,
            duration_ms(age)
        ))
    });
    parts.extend(stuck);
    let handlers = record
        .handlers
        .iter()
        .map(|one| vec![one.handler.clone(), one.subject.clone()]);
    parts.push(output.table(&["HANDLER", "SUBJECT"], handlers.collect()));
    let header = ["NODE", "ID", "VERSION", "STATUS"];
    parts.push(output.table(&header, status.nodes.iter().flat_map(on_node).collect()));
    parts.join("\n\n")
}

/// What a node says of the active version, and of one that is tried.
fn on_node(node: &OnNode) -> Vec<Vec<String>> {
    let row = |version: u64, status: String| {
        vec![
            node.host.clone(),
            node.node.clone(),
            version.to_string(),
            status,
        ]
    };
    let status = match node.draining {
        true => format!("{}, the node drains", node.status),
        false => node.status.clone(),
    };
    let mut rows = vec![row(node.version, status)];
    rows.extend(node.trial.iter().map(|trial| {
        let share = percent(trial.share);
        row(
            trial.version,
            format!("canary with {share} of the keys: {}", trial.status),
        )
    }));
    rows
}

fn facts(output: &Output, info: &FunctionInfo) -> String {
    let (status, record) = (&info.status, &info.record);
    let record = &record.in_force();
    let (settings, retry) = (&record.settings, &record.settings.retry);
    let targets = record.targets.iter().map(|one| one.stream.as_str());
    let limits = format!(
        "{} at once per node, {} per attempt, {} MiB",
        settings.concurrency,
        duration_ms(settings.timeout_ms),
        settings.memory_bytes >> 20
    );
    let retries = format!(
        "{} attempts, {} to {} between them, defers up to {}",
        retry.max_attempts,
        duration_ms(retry.initial_delay_ms),
        duration_ms(retry.max_delay_ms),
        duration_ms(retry.max_defer_ms)
    );
    let mut facts = vec![
        (
            "function",
            format!("{} of app {}", status.function, status.app),
        ),
        (
            "version",
            format!(
                "{}, deployed {}",
                status.version,
                local_time(&status.deployed_at)
            ),
        ),
    ];
    facts.extend(
        info.record
            .trial
            .iter()
            .map(|trial| ("canary", tried(trial))),
    );
    facts.extend([
        ("status", self::status(info)),
        (
            "component",
            format!("{} (contract {})", record.digest, record.contract),
        ),
        ("emits to", list(targets)),
        ("limits", limits),
        ("retries", retries),
        ("delivery", delivery(settings)),
        ("pending", format!("{} events", count(status.pending))),
        (
            "waiting",
            format!(
                "{} for another attempt, {} for another event",
                status.retrying, status.deferred
            ),
        ),
        ("dead letters", count(status.dead_letters)),
    ]);
    if let Some(why) = &status.error {
        facts.push(("not readable", why.clone()));
    }
    output.fields(&facts)
}

/// The version that is tried: its share, since when, and the shares that follow.
fn tried(trial: &TrialRecord) -> String {
    let version = trial.record.version;
    if trial.share == 0 {
        return format!("version {version}: nodes load it, and no event goes to it yet");
    }
    let steps: Vec<String> = trial.steps.iter().map(|share| percent(*share)).collect();
    let next = match steps.is_empty() {
        true => String::new(),
        false => format!("; next: {}", steps.join(", ")),
    };
    format!(
        "version {version} with {} of the keys since {}{next}",
        percent(trial.share),
        local_time(&trial.since)
    )
}

/// In a word, and who paused it, or set what is not as deployed.
fn status(info: &FunctionInfo) -> String {
    let mut text = info.status.summary().to_owned();
    let controls = &info.record.controls;
    if let Some(paused) = &controls.paused {
        let why = match paused.passing {
            true => ", for a reset or a removal",
            false => "",
        };
        text += &format!(" since {} by {}{why}", local_time(&paused.at), paused.by);
    }
    if controls.concurrency.is_some() {
        let deployed = info.record.settings.concurrency;
        text += &format!("; concurrency is set, in place of {deployed}");
    }
    text
}

fn delivery(settings: &FunctionSettings) -> String {
    let mode = match settings.delivery {
        DeliveryMode::ExactlyOnce => "exactly-once",
        DeliveryMode::AtLeastOnce => "at-least-once",
    };
    match &settings.key {
        None => format!("{mode}, in no order"),
        Some(KeySource::Token(at)) => format!("{mode}, in order per token {at} of the subject"),
        Some(KeySource::Attribute(name)) => format!("{mode}, in order per attribute {name}"),
        Some(KeySource::Data(pointer)) => {
            format!("{mode}, in order per field {pointer} of the data")
        }
    }
}

fn input(input: &InputStatus) -> Vec<String> {
    let oldest = match (input.oldest_pending_ms, input.oldest_sequence) {
        (Some(age), Some(sequence)) => format!("{} (at {sequence})", duration_ms(age)),
        _ => "-".into(),
    };
    vec![
        input.stream.clone(),
        input.subjects.join(", "),
        input
            .pending
            .map_or_else(|| missing(input), |n| n.to_string()),
        input
            .in_flight
            .map_or_else(|| "-".into(), |n| n.to_string()),
        oldest,
        input.consumer.clone().unwrap_or_else(|| "none".into()),
    ]
}

/// What comes from no stream of the user's: where it lies means nothing to a person.
fn internal(due: &InputStatus) -> Vec<String> {
    let mut row = input(due);
    row.splice(..2, ["calls and timers".to_owned(), "-".to_owned()]);
    row
}

/// What an input lacks of which nobody can say what is pending.
fn missing(input: &InputStatus) -> String {
    match input.consumer {
        None => "no such stream".into(),
        Some(_) => "no consumer".into(),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        return "nothing".into();
    }
    names.join(", ")
}
