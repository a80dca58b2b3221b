//! `pelton node`: which nodes live, what they run, and taking one out of service.

use std::time::Duration;

use clap::{Args, Subcommand};
use pelton_runtime::control::nodes;
use pelton_runtime::nats;
use pelton_runtime::records::NodeRecord;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::global::Global;
use crate::output::{Output, duration_ms, failure};

/// Look at nodes, and take one out of service
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton node ls\n  pelton node drain worker-3\n  pelton node ls --json"
)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// List the live nodes: release, what they run, load, state
    #[command(after_help = "Examples:\n  pelton node ls\n  pelton node ls --json")]
    Ls,
    /// Have a node take no more events, end what runs, and leave its share to the others; it stays alive until you stop it
    #[command(
        after_help = "Examples:\n  pelton node drain worker-3\n  pelton node drain 0197c3 --wait 2m\n  \
        pelton node drain worker-3 --undo"
    )]
    Drain {
        /// Its name, its id, or the beginning or the end of that, as `node ls` prints them.
        node: String,
        /// Have it take events again.
        #[arg(long)]
        undo: bool,
        /// How long to wait until it has confirmed; what runs may take up to 30 s to end.
        #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// Runs one of its subcommands.
pub async fn run(args: NodeArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.connect().await?;
    let js = nats::jetstream(&client);
    let output = global.output();
    match args.command {
        NodeCommand::Ls => {
            let all = nodes::list(&js).await?;
            output.document(&all, |all| table(&output, all))
        }
        NodeCommand::Drain { node, undo, wait } => {
            let found = nodes::find(&nodes::list(&js).await?, &node)?;
            let progress = output.progress(&format!("waiting for {}", found.host));
            let now = nodes::drain(&client, &js, &found.node, !undo, wait).await?;
            drop(progress);
            output.document(&now, drained)?;
            match now.is_settled(!undo) {
                true => Ok(()),
                false => Err(failure(
                    format!(
                        "after {} {} ({}) is {}{}",
                        humantime::format_duration(wait),
                        now.host,
                        now.node,
                        now.state(),
                        if undo {
                            ", and does not run all its functions"
                        } else {
                            ""
                        }
                    ),
                    "it goes on by itself: look with `pelton node ls`, or wait longer with --wait",
                )),
            }
        }
    }
}

fn drained(node: &NodeRecord) -> String {
    match node.state() {
        "drained" => format!(
            "{} ({}) is drained: nothing runs there, and it can be stopped; `pelton node drain {} --undo` has it serve again",
            node.host, node.node, node.node
        ),
        state => format!("{} ({}) is {state}", node.host, node.node),
    }
}

fn table(output: &Output, all: &[NodeRecord]) -> String {
    if all.is_empty() {
        return "no node is alive; start one with `pelton run`".into();
    }
    let rows = all.iter().map(|node| {
        let running = node.functions.iter().filter(|one| one.status == "running");
        let busy: u32 = node.functions.iter().map(|one| one.busy).sum();
        let most: u32 = node.functions.iter().map(|one| one.concurrency).sum();
        vec![
            node.host.clone(),
            node.node.clone(),
            node.state().to_owned(),
            node.pelton.clone(),
            up(node),
            match node.apps.is_empty() {
                true => "all".to_owned(),
                false => node.apps.join(", "),
            },
            format!("{}/{}", running.count(), node.functions.len()),
            format!("{busy}/{most}"),
            node.memory_bytes
                .map_or_else(|| "-".into(), |bytes| format!("{} MiB", bytes >> 20)),
        ]
    });
    let header = [
        "NODE", "ID", "STATE", "PELTON", "UP", "APPS", "RUNNING", "BUSY", "MEMORY",
    ];
    let mut parts = vec![output.table(&header, rows.collect())];
    let failing = all.iter().flat_map(|node| {
        let functions = node.functions.iter();
        functions.flat_map(|one| {
            let trial = one.trial.iter();
            let trial = trial.filter_map(|trial| Some((trial.version, trial.failure()?)));
            let active = one.failure().map(|why| (one.deployed, why));
            let failures = active.into_iter().chain(trial);
            failures.map(|(version, why)| {
                format!("{}: {} version {version}: {why}", node.host, one.function)
            })
        })
    });
    parts.extend(failing);
    parts.join("\n")
}

fn up(node: &NodeRecord) -> String {
    let started = OffsetDateTime::parse(&node.started_at, &Rfc3339);
    let since = started.map(|started| OffsetDateTime::now_utc() - started);
    let ms = since
        .ok()
        .and_then(|since| u64::try_from(since.whole_milliseconds()).ok());
    // Whole seconds are enough.
    ms.map_or_else(|| "-".into(), |ms| duration_ms(ms / 1000 * 1000))
}
