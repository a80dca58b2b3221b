//! A version that takes its events by the other engine than the active one: nodes try it as any other, and only then are the inputs handed over, for
//! from then on the active one cannot go on.

use async_nats::jetstream;

use super::apply::{overtaken, take_inputs};
use super::begin::go_on;
use super::plan::FunctionPlan;
use super::switch::reopen;
use crate::config::DeliveryMode;
use crate::control::{ControlError, ErrorKind, functions, rollout};
use crate::names::AppNames;
use crate::records::FunctionRecord;

/// Hands the inputs over to a version that takes them by the other engine, when nodes have tried it, and makes it the active one: the record then.
///
/// # Errors
/// Somebody has deployed another version meanwhile, reset the function, or taken this one back; the inputs cannot be handed over now, for what
/// waits of them; NATS trouble. Deploying again goes on.
pub async fn hand_over(
    js: &jetstream::Context,
    app: &str,
    function: &FunctionPlan,
    why: &str,
    mut step: impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    let (name, version) = (&function.function, function.version);
    let names = AppNames::new(app);
    let (active, _) = functions::record(js, app, name).await?;
    let tried = active.trial.as_ref().map(|trial| trial.record.version);
    let planned = function.previous.as_ref().map(|previous| &previous.inputs);
    if tried != Some(version) || planned != Some(&active.inputs) {
        return Err(overtaken(name));
    }
    let inputs = take_inputs(js, &names, function, &mut step).await?.inputs;
    let taken = rollout::take_over(js, app, name, version, &inputs, why).await;
    if taken
        .as_ref()
        .is_err_and(|error| error.kind != ErrorKind::Nats)
    {
        give_back(js, &names, name).await?;
    }
    taken
}

/// Whether the version that is tried takes its events by the other engine.
pub(in crate::control) fn hands_over(record: &FunctionRecord) -> bool {
    let other = |tried: &FunctionRecord| tried.settings.delivery != record.settings.delivery;
    let trial = record.trial.as_ref();
    trial.is_some_and(|trial| other(&trial.record))
}

/// Has the active version go on with its inputs, which a deploy that did not end may have taken from it.
pub(in crate::control) async fn give_back(
    js: &jetstream::Context,
    names: &AppNames,
    function: &str,
) -> Result<(), ControlError> {
    let (active, _) = functions::record(js, names.app(), function).await?;
    // Another deploy is at it.
    if hands_over(&active) {
        return Ok(());
    }
    match active.settings.delivery {
        DeliveryMode::ExactlyOnce => reopen(js, names, &active).await,
        DeliveryMode::AtLeastOnce => go_on(js, names, &active).await,
    }
}
