//! `pelton deploy`: builds, compares with what runs, shows the plan, carries it out, and waits for the nodes.

use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use pelton_runtime::config::Manifest;
use pelton_runtime::control::deploy::{self, Plan, Problem};
use pelton_runtime::control::nodes::{self, Rollout};
use schemars::JsonSchema;
use serde::Serialize;

use super::build::build_functions;
use super::deploy_text;
use crate::global::Global;
use crate::output::{Output, failure};

/// Build and deploy functions
///
/// Prints what it will do, then does it: creates declared streams that are missing, stores the components, registers
/// new versions, and waits until every live node runs them.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton deploy --dry-run\n  pelton deploy\n  \
    pelton deploy orders --env staging --context staging"
)]
pub struct DeployArgs {
    /// Deploy only these functions. Default: all of the manifest.
    #[arg(value_name = "FUNCTION")]
    functions: Vec<String>,
    /// Show the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until all live nodes run the new versions.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Do not wait for nodes.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

/// What a deploy did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeployReport {
    /// What was planned.
    pub plan: Plan,
    /// Whether it was carried out.
    pub applied: bool,
    /// What the live nodes made of it; none when nobody waited.
    pub rollout: Option<Rollout>,
}

/// Deploys.
pub async fn run(args: DeployArgs, global: &Global) -> anyhow::Result<()> {
    let output = global.output();
    let manifest = global.manifest()?;
    ensure_supported(&manifest)?;
    // Before a build that takes a while: without a server it is of no use.
    let client = global.connect().await?;
    let components = build_functions(&manifest, &args.functions).await?;
    let js = jetstream::new(client);
    let view = deploy::survey(&js, &manifest, &components).await?;
    let now = time::OffsetDateTime::now_utc();
    let plan = deploy::plan(&manifest, &components, &view, now)
        .map_err(|problems| all(&manifest, &problems))?;
    if !output.is_json() {
        output.item(&plan, |plan| deploy_text::plan(&output, plan))?;
    }
    if args.dry_run {
        return report(&output, plan, false, None);
    }
    let progress = output.progress("deploying");
    deploy::apply(&js, &manifest, &components, &plan, |step| {
        progress.step(step)
    })
    .await?;
    progress.finish("deployed");
    let rollout = if args.no_wait {
        None
    } else {
        let rollout = wait(&js, &output, &manifest, &plan, args.wait).await?;
        clean_up(&js, &manifest.app, &output).await;
        Some(rollout)
    };
    let trouble = rollout
        .as_ref()
        .and_then(|rollout| trouble(rollout, args.wait));
    report(&output, plan, true, rollout)?;
    trouble.map_or(Ok(()), Err)
}

fn report(
    output: &Output,
    plan: Plan,
    applied: bool,
    rollout: Option<Rollout>,
) -> anyhow::Result<()> {
    let report = DeployReport {
        plan,
        applied,
        rollout,
    };
    output.document(&report, |report| {
        if report.applied {
            deploy_text::rollout(report.rollout.as_ref())
        } else {
            "dry run: nothing was changed".into()
        }
    })
}

async fn wait(
    js: &jetstream::Context,
    output: &Output,
    manifest: &Manifest,
    plan: &Plan,
    within: Duration,
) -> anyhow::Result<Rollout> {
    let progress = output.progress("waiting for the nodes");
    let rollout = nodes::wait(js, &manifest.app, &plan.versions(), within).await?;
    drop(progress);
    Ok(rollout)
}

/// Removes what only earlier versions needed. Failing at it is no failure of the deploy: the next one does it.
pub async fn clean_up(js: &jetstream::Context, app: &str, output: &Output) {
    if let Err(error) = deploy::clean_up(js, app).await {
        output.note(&format!(
            "note: consumers that are not needed any more stay until the next deploy: {error}"
        ));
    }
}

/// What a script must not overlook in a rollout.
fn trouble(rollout: &Rollout, waited: Duration) -> Option<anyhow::Error> {
    if let Some(first) = rollout.failed.first() {
        let whys = rollout.failed.iter().map(|one| {
            format!(
                "{} on {} ({}): {}",
                one.function, one.host, one.node, one.why
            )
        });
        return Some(failure(
            format!(
                "deployed, but not running everywhere: {}",
                whys.collect::<Vec<_>>().join("; ")
            ),
            format!(
                "mend that and deploy again; `pelton function info {}` shows every node",
                first.function
            ),
        ));
    }
    if rollout.nodes == 0 || rollout.waiting.is_empty() {
        return None;
    }
    Some(failure(
        format!(
            "deployed, but after {} some node does not run {} yet",
            humantime::format_duration(waited),
            rollout.waiting.join(", ")
        ),
        "look at `pelton function ls` and the node's log, or give more time with --wait 60s",
    ))
}

/// Refuses what the manifest may say and no node of this release can do.
pub fn ensure_supported(manifest: &Manifest) -> anyhow::Result<()> {
    let all: Vec<String> = manifest
        .unsupported()
        .iter()
        .map(ToString::to_string)
        .collect();
    anyhow::ensure!(all.is_empty(), all.join("\n"));
    Ok(())
}

/// Problems with their places in the manifest, one after another, each as an error of its own.
pub fn all(manifest: &Manifest, problems: &[Problem]) -> anyhow::Error {
    let located = problems
        .iter()
        .map(|problem| problem.located(manifest).to_string());
    anyhow::anyhow!(located.collect::<Vec<_>>().join("\nerror: "))
}
