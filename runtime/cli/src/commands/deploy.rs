//! `pelton deploy`: builds, compares with what runs, shows the plan, carries it out, and waits for the nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use pelton_runtime::config::Manifest;
use pelton_runtime::control::deploy::{self, Plan, Problem, Way};
use pelton_runtime::control::nodes::{self, Rollout, Wanted};
use pelton_runtime::control::rollout;
use pelton_runtime::nats;
use pelton_runtime::records::SHARES;
use schemars::JsonSchema;
use serde::Serialize;

use super::build::{build_functions, note_sdk};
use super::deploy_text;
use super::provenance;
use super::strategy::{self, Failed, Outcomes, StrategyArgs};
use crate::global::Global;
use crate::output::{Output, failure};

/// How often who waits for nodes looks whether it is still what is wanted.
const LOOK: Duration = Duration::from_millis(500);

/// Build and deploy functions
///
/// Prints what it will do, then does it: creates declared streams that are missing, stores the components, and has every live node load the
/// new versions and handle their `sample` events. What none can load never becomes active; the others become so, and it waits until every
/// live node runs them.
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
    #[command(flatten)]
    strategy: StrategyArgs,
    /// How long to wait until all live nodes run the new versions.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Do not wait for nodes: the new versions are active at once, and no node has tried them.
    #[arg(long, conflicts_with_all = ["wait", "canary", "blue_green"])]
    no_wait: bool,
}

/// What a deploy did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeployReport {
    /// What was planned.
    pub plan: Plan,
    /// Whether it was carried out, be it for some of the functions only: see `versions`.
    pub applied: bool,
    /// What became of the new versions, by function.
    pub versions: Outcomes,
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
    note_sdk(&manifest, global);
    let components = build_functions(&manifest, &args.functions).await?;
    let js = nats::jetstream(&client);
    let view = deploy::survey(&js, &manifest, &components).await?;
    let now = time::OffsetDateTime::now_utc();
    let mut plan = deploy::plan(&manifest, &components, &view, now)
        .map_err(|problems| all(&manifest, &problems))?;
    plan.made_of(&provenance::here(&manifest).await);
    if !output.is_json() {
        output.item(&plan, |plan| deploy_text::plan(&output, plan))?;
    }
    args.strategy.check(&plan)?;
    if args.dry_run {
        return report(&output, plan, false, Outcomes::new(), None);
    }
    let way = match args.no_wait {
        true => Way::AtOnce,
        false => args.strategy.way(),
    };
    let progress = output.progress("deploying");
    deploy::apply(&js, &manifest, &components, &plan, &way, |step| {
        progress.step(step)
    })
    .await?;
    progress.finish("registered");
    if args.no_wait {
        return report(&output, plan, true, Outcomes::new(), None);
    }
    let (outcomes, wanted, failed) = match way {
        Way::AtOnce => (Outcomes::new(), plan.versions(), Vec::new()),
        Way::Tried(_) => strategy::begin(&js, &plan, &args.strategy, args.wait, &output).await?,
    };
    let progress = output.progress("waiting for the nodes");
    let (rollout, overtaken) = follow(&js, &manifest.app, &wanted, args.wait).await?;
    drop(progress);
    clean_up(&js, &manifest.app, &output).await;
    let trouble = match overtaken.is_empty() {
        true => trouble(&rollout, args.wait),
        false => Some(changed(&overtaken)),
    };
    let applied = failed.is_empty() || outcomes.values().any(|one| one.share > 0);
    let rollout = (!wanted.is_empty()).then_some(rollout);
    report(&output, plan, applied, outcomes, rollout)?;
    Failed::error(&failed).or(trouble).map_or(Ok(()), Err)
}

/// Waits for the nodes, until somebody else makes something else of a function: what the nodes made of it, and what that is.
async fn follow(
    js: &jetstream::Context,
    app: &str,
    wanted: &BTreeMap<String, Wanted>,
    within: Duration,
) -> anyhow::Result<(Rollout, BTreeMap<String, String>)> {
    let waiting = nodes::wait(js, app, wanted, within);
    let watching = async {
        loop {
            tokio::time::sleep(LOOK).await;
            // What cannot be asked now is asked again; who waits for the nodes says what is wrong.
            let overtaken = rollout::overtaken(js, app, wanted).await;
            if let Ok(overtaken) = overtaken
                && !overtaken.is_empty()
            {
                return overtaken;
            }
        }
    };
    tokio::select! {
        rollout = waiting => Ok((rollout?, rollout::overtaken(js, app, wanted).await?)),
        overtaken = watching => {
            Ok((nodes::wait(js, app, wanted, Duration::ZERO).await?, overtaken))
        }
    }
}

fn changed(overtaken: &BTreeMap<String, String>) -> anyhow::Error {
    let whats = overtaken.iter();
    let whats = whats.map(|(function, what)| format!("{function}: {what}"));
    let first = overtaken.keys().next().map_or("FN", String::as_str);
    failure(
        format!(
            "deployed, and changed again before all nodes had followed: {}",
            whats.collect::<Vec<_>>().join("; ")
        ),
        format!("see `pelton rollout {first} status`"),
    )
}

fn report(
    output: &Output,
    plan: Plan,
    applied: bool,
    versions: Outcomes,
    rollout: Option<Rollout>,
) -> anyhow::Result<()> {
    let report = DeployReport {
        plan,
        applied,
        versions,
        rollout,
    };
    output.document(&report, |report| match &report.rollout {
        None if !report.applied && report.versions.is_empty() => {
            "dry run: nothing was changed".into()
        }
        None if !report.applied => "nothing new is active".into(),
        rollout => {
            let canaries = report.versions.iter();
            let canaries = canaries.filter(|(_, one)| (1..SHARES).contains(&one.share));
            let lines = canaries.map(|(function, one)| deploy_text::canary(function, one));
            let mut lines: Vec<String> = lines.collect();
            lines.push(deploy_text::rollout(rollout.as_ref()));
            lines.join("\n")
        }
    })
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
pub fn trouble(rollout: &Rollout, waited: Duration) -> Option<anyhow::Error> {
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
    let silent: Vec<&str> = rollout.silent.iter().map(String::as_str).collect();
    let who = match silent.as_slice() {
        [] => "some node".to_owned(),
        silent => silent.join(", "),
    };
    Some(failure(
        format!(
            "deployed, but after {} {who} does not run {} yet",
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
