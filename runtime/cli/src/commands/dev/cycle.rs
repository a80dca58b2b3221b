//! One turn of `pelton dev`: read the manifest, build, deploy, wait until the node runs what was deployed.

use std::time::Duration;

use async_nats::jetstream;
use pelton_runtime::config::{FunctionSettings, KeySource, Manifest};
use pelton_runtime::control::deploy::{self, FunctionAction, Way};
use pelton_runtime::control::nodes;
use pelton_runtime::names::TICK_SUBJECT;
use time::OffsetDateTime;

use super::events::RunningFunction;
use crate::commands::build::build_functions;
use crate::commands::deploy::{all, clean_up, ensure_supported};
use crate::commands::new::names::Subject;
use crate::global::Global;
use crate::output::Output;

/// How long a node may take to compile and start what was deployed.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a turn came to.
pub(super) struct Turn {
    /// All functions.
    pub(super) functions: Vec<RunningFunction>,
    /// Those that this turn changed.
    pub(super) changed: Vec<RunningFunction>,
}

/// Builds everything and deploys what differs.
///
/// # Errors
/// Anything wrong with the manifest, the sources or the streams: then nothing was changed.
pub(super) async fn turn(
    js: &jetstream::Context,
    manifest: &Manifest,
    global: &Global,
) -> anyhow::Result<Turn> {
    ensure_supported(manifest)?;
    let components = build_functions(manifest, &[]).await?;
    let view = deploy::survey(js, manifest, &components).await?;
    let plan = deploy::plan(manifest, &components, &view, OffsetDateTime::now_utc())
        .map_err(|problems| all(manifest, &problems))?;
    for note in &plan.notes {
        global.output().note(&format!("note: {note}"));
    }
    deploy::apply(js, manifest, &components, &plan, &Way::AtOnce, |step| {
        tracing::debug!(step, "deploy");
    })
    .await?;
    let rollout = nodes::wait(js, &plan.app, &plan.versions(), START_LIMIT).await?;
    clean_up(js, &plan.app, &global.output()).await;
    report(&rollout, global.output());
    let running = |function: &deploy::FunctionPlan| {
        let component = components.get(&function.function);
        let mut subjects = component
            .into_iter()
            .flat_map(|component| &component.handlers)
            .map(|handler| handler.subject.as_str());
        let declared = manifest.functions.get(&function.function);
        RunningFunction {
            function: function.function.clone(),
            version: function.version,
            example: subjects
                .find(|subject| *subject != TICK_SUBJECT)
                .and_then(|subject| Subject::new(subject).ok())
                .map(|subject| subject.example),
            ticks: declared.is_some_and(|one| can_call_tick(&one.settings)),
        }
    };
    let changed = plan.functions.iter();
    Ok(Turn {
        functions: plan.functions.iter().map(running).collect(),
        changed: changed
            .filter(|one| one.action != FunctionAction::Unchanged)
            .map(running)
            .collect(),
    })
}

/// Whether there are ticks, and a call can bring one about: a key by a token that their subject
/// lacks would be missing.
fn can_call_tick(settings: &FunctionSettings) -> bool {
    let tokens = TICK_SUBJECT.split('.').count();
    let keyless = match settings.key {
        Some(KeySource::Token(at)) => usize::try_from(at).is_ok_and(|at| at > tokens),
        _ => false,
    };
    settings.schedule.is_some() && !keyless
}

/// A version that a node cannot start is deployed all the same: said, and mended by the next change.
fn report(rollout: &nodes::Rollout, output: Output) {
    for failure in &rollout.failed {
        output.note(&format!(
            "function {} does not run: {}",
            failure.function, failure.why
        ));
    }
    for function in &rollout.waiting {
        output.note(&format!(
            "function {function} was not running after {} s",
            START_LIMIT.as_secs()
        ));
    }
}
