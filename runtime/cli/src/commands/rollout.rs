//! `pelton rollout`: how far a new version is, and what ends its trial.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use clap::{Args, Subcommand};
use pelton_runtime::control::nodes::{self, Wanted};
use pelton_runtime::control::{functions, rollout};
use pelton_runtime::nats;
use pelton_runtime::records::{Chapter, FunctionRecord, SHARES};
use pelton_runtime::rollout::{Both, Summary};
use schemars::JsonSchema;
use serde::Serialize;

use super::deploy::trouble;
use crate::global::Global;
use crate::output::{Output, percent};
use crate::zone::local_time;

/// How often a followed rollout is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Watch a version that is being tried, promote it or take it back
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton rollout orders status -f\n  pelton rollout orders promote\n  \
    pelton rollout orders abort"
)]
pub struct RolloutArgs {
    /// The function.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME", global = true)]
    app: Option<String>,
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Show which versions get which share, how they fare, and what happened so far
    #[command(
        after_help = "Examples:\n  pelton rollout orders status\n  pelton rollout orders status -f"
    )]
    Status {
        /// Go on until no version is being tried any more.
        #[arg(long, short)]
        follow: bool,
    },
    /// Make the version that is being tried the active one, and wait until every live node runs it
    #[command(after_help = "Examples:\n  pelton rollout orders promote")]
    Promote {
        /// How long to wait until all live nodes run it.
        #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
    /// Take the version that is being tried back, and wait until no live node gives it events
    #[command(after_help = "Examples:\n  pelton rollout orders abort")]
    Abort {
        /// How long to wait until all live nodes have taken it back.
        #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RolloutStatus {
    /// The active version.
    pub version: u64,
    /// Whether it is the first, and no event goes to it yet.
    pub pending: bool,
    /// The version that is being tried.
    pub trial: Option<TrialStatus>,
    /// What happened, oldest first.
    pub story: Vec<Chapter>,
}

/// A version that is being tried.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TrialStatus {
    /// The version.
    pub version: u64,
    /// Its share of the keys, of 10,000.
    pub share: u32,
    /// Shares that follow.
    pub steps: Vec<u32>,
    /// How the active version fares since the other has its share.
    pub old: Summary,
    /// How the other one fares.
    pub new: Summary,
}

/// Runs one of its subcommands.
pub async fn run(args: RolloutArgs, global: &Global) -> anyhow::Result<()> {
    let js = nats::jetstream(&global.connect().await?);
    let output = global.output();
    let app = global.app(args.app, &js).await?;
    let function = args.function.as_str();
    match args.command {
        RolloutCommand::Status { follow } => loop {
            let status = status(&js, &app, function).await?;
            let over = status.trial.is_none();
            output.item(&status, |status| text(&output, status))?;
            if over || !follow {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        },
        RolloutCommand::Promote { wait } => {
            let record = rollout::promote(&js, &app, function, None, "asked for").await?;
            told(&js, &output, &record, wait).await
        }
        RolloutCommand::Abort { wait } => {
            let record = rollout::abort(&js, &app, function, None, "asked for").await?;
            told(&js, &output, &record, wait).await
        }
    }
}

/// Says what happened when all nodes have followed.
async fn told(
    js: &jetstream::Context,
    output: &Output,
    record: &FunctionRecord,
    wait: Duration,
) -> anyhow::Result<()> {
    let wanted = BTreeMap::from([(record.function.clone(), Wanted::of(record))]);
    let progress = output.progress("waiting for the nodes");
    let nodes = nodes::wait(js, &record.app, &wanted, wait).await?;
    drop(progress);
    let status = RolloutStatus {
        version: record.version,
        pending: false,
        trial: None,
        story: record.story.clone(),
    };
    output.document(&status, |status| {
        let last = status.story.last().map(rollout::text);
        last.unwrap_or_else(|| format!("version {} is active", status.version))
    })?;
    trouble(&nodes, wait).map_or(Ok(()), Err)
}

async fn status(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> anyhow::Result<RolloutStatus> {
    let (record, _) = functions::record(js, app, function).await?;
    let both = Both::of(&record, &nodes::list(js).await?);
    Ok(RolloutStatus {
        version: record.version,
        pending: record.pending,
        trial: record.trial.as_ref().map(|trial| TrialStatus {
            version: trial.record.version,
            share: trial.share,
            steps: trial.steps.clone(),
            old: (&both.old).into(),
            new: (&both.new).into(),
        }),
        story: record.story,
    })
}

fn text(output: &Output, status: &RolloutStatus) -> String {
    let mut parts: Vec<String> = status
        .story
        .iter()
        .map(|chapter| format!("{}  {}", local_time(&chapter.at), rollout::text(chapter)))
        .collect();
    match &status.trial {
        None if status.pending => parts.push(format!(
            "version {} is the first, and no event goes to it: its deploy has nodes load it, or was cut off",
            status.version
        )),
        None => parts.push(format!(
            "version {} is active, and none is being tried",
            status.version
        )),
        Some(trial) => {
            let row = |version: u64, share: u32, figures: &Summary| {
                vec![
                    version.to_string(),
                    percent(share),
                    figures.attempts.to_string(),
                    format!("{:.1} %", figures.failure_rate * 100.0),
                    format!("{:.1} ms", figures.p99_ms),
                ]
            };
            let rows = vec![
                row(status.version, SHARES - trial.share, &trial.old),
                row(trial.version, trial.share, &trial.new),
            ];
            let header = ["VERSION", "KEYS", "ATTEMPTS", "FAILED", "P99"];
            parts.push(output.table(&header, rows));
        }
    }
    parts.join("\n")
}
