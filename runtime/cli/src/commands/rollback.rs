//! `pelton rollback`: makes an older version of a function the active one again.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use pelton_runtime::control::deploy::{self, Rollback};
use pelton_runtime::control::nodes::{self, Rollout};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;

use super::deploy::{clean_up, trouble};
use super::deploy_text;
use crate::global::Global;

/// Make an older version of a function active again
///
/// With the component and all settings that it was deployed with; state, positions and what waits stay as they are. Nodes take it over at
/// once: attempts under way end with the version that they began with.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton rollback orders\n  pelton rollback orders --to 3\n  \
    pelton rollback orders --to 3 --dry-run"
)]
pub struct RollbackArgs {
    /// The function.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// To which version. Default: the one that was active before; where one is being tried, the active one.
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until all live nodes run it.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// What a rollback did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RollbackReport {
    /// From which version to which.
    pub rollback: Rollback,
    /// Whether it was carried out.
    pub applied: bool,
    /// What the live nodes made of it.
    pub rollout: Option<Rollout>,
}

/// Rolls back.
pub async fn run(args: RollbackArgs, global: &Global) -> anyhow::Result<()> {
    let output = global.output();
    let js = nats::jetstream(&global.connect().await?);
    let app = global.app(args.app, &js).await?;
    let rollback = deploy::find(&js, &app, &args.function, args.to).await?;
    let mut report = RollbackReport {
        rollback,
        applied: false,
        rollout: None,
    };
    let mut failed = None;
    if !args.dry_run {
        let progress = output.progress("rolling back");
        deploy::back(&js, &report.rollback, |step| progress.step(step)).await?;
        progress.step("waiting for the nodes");
        let wanted = BTreeMap::from([(args.function.clone(), report.rollback.wanted())]);
        let rollout = nodes::wait(&js, &app, &wanted, args.wait).await?;
        drop(progress);
        clean_up(&js, &app, &output).await;
        failed = trouble(&rollout, args.wait);
        (report.applied, report.rollout) = (true, Some(rollout));
    }
    output.document(&report, text)?;
    failed.map_or(Ok(()), Err)
}

fn text(report: &RollbackReport) -> String {
    let Rollback {
        function,
        from,
        to,
        changes,
        ..
    } = &report.rollback;
    let mut lines = vec![match (report.applied, report.rollback.withdraws) {
        (true, true) => format!(
            "{function}: version {from}, which was tried, is taken back; version {to} has all keys"
        ),
        (false, true) => format!(
            "{function}: version {from}, which is tried, would be taken back; version {to} would have all keys"
        ),
        (true, false) => {
            format!("{function}: version {to} is active again, in place of version {from}")
        }
        (false, false) => {
            format!("{function}: version {to} would be active again, in place of version {from}")
        }
    }];
    lines.extend(changes.iter().map(deploy_text::change));
    lines.push(match &report.rollout {
        Some(rollout) => deploy_text::rollout(Some(rollout)),
        None => "dry run: nothing was changed".into(),
    });
    lines.join("\n")
}
