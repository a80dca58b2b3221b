//! A version that takes its events by the other engine than the active one: nodes try it as any other, and only then are the inputs handed over, for
//! from then on the active one cannot go on.

use async_nats::jetstream::{self, kv};
use time::OffsetDateTime;

use super::apply::{json_bytes, registry_bucket, take_inputs};
use super::begin::go_on;
use super::plan::FunctionPlan;
use super::switch::reopen;
use crate::config::DeliveryMode;
use crate::control::progress::{Guard, changed};
use crate::control::{ControlError, ErrorKind, functions, rollout};
use crate::names::AppNames;
use crate::records::FunctionRecord;
use crate::rollout::promoted;

/// Tries: somebody may set something of the function meanwhile that is no reason not to go on.
const TRIES: usize = 3;

/// Hands the inputs over to a version that takes them by the other engine, when nodes have tried it, and makes it the active one: the record then.
/// If that cannot be, this one is taken back, and the active version goes on with them.
///
/// # Errors
/// Somebody has deployed another version meanwhile, reset the function, or taken this one back; the inputs cannot be handed over now, for what
/// waits of them; NATS trouble, after which deploying again goes on.
pub async fn hand_over(
    js: &jetstream::Context,
    app: &str,
    function: &FunctionPlan,
    why: &str,
    step: &mut impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    let names = AppNames::new(app);
    let mut tries = 0;
    let handed = loop {
        tries += 1;
        let (active, revision) = match still_tried(js, app, function).await {
            Ok(found) => found,
            Err(error) => break Err(error),
        };
        let planned = FunctionPlan {
            previous: Some(active.clone()),
            revision: Some(revision),
            ..function.clone()
        };
        match attempt(js, &names, &planned, active, why, step).await {
            Err(error) if error.kind == ErrorKind::Conflict && tries < TRIES => {}
            done => break done,
        }
    };
    if let Err(error) = &handed {
        let (name, version) = (&function.function, Some(function.version));
        let taken_back = rollout::abort(js, app, name, version, &error.what).await;
        // Somebody else was first. What cannot be done now, for NATS is away, the next deploy does.
        if taken_back.is_err() {
            let _ = give_back(js, &names, name).await;
        }
    }
    handed
}

/// The record beside whose active version this one is tried still, and its revision.
async fn still_tried(
    js: &jetstream::Context,
    app: &str,
    function: &FunctionPlan,
) -> Result<(FunctionRecord, u64), ControlError> {
    let name = &function.function;
    let (active, revision) = functions::record(js, app, name).await?;
    let tried = active.trial.as_ref().map(|trial| trial.record.version);
    let planned = function.previous.as_ref().map(|previous| &previous.inputs);
    if tried != Some(function.version) || planned != Some(&active.inputs) {
        return Err(changed(name));
    }
    let paused = active.controls.paused.as_ref();
    if let Some(paused) = paused.filter(|paused| paused.passing) {
        return Err(ControlError::refused(
            format!(
                "{} resets or removes function {name} at this moment",
                paused.by
            ),
            "deploy again when that has ended",
        ));
    }
    Ok((active, revision))
}

async fn attempt(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    mut active: FunctionRecord,
    why: &str,
    step: &mut impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    let name = &function.function;
    let inputs = take_inputs(js, names, function, step).await?.inputs;
    if let Some(trial) = &mut active.trial {
        trial.record.inputs = inputs;
    }
    let next = promoted(&active, why, None, OffsetDateTime::now_utc());
    let (Some(next), Some(revision)) = (next, function.revision) else {
        return Err(changed(name));
    };
    let store = registry_bucket(js).await?;
    let key = names.registry_function(name);
    let stored = store.update(&key, json_bytes(&next)?, revision).await;
    stored.map_err(|error| match error.kind() {
        kv::UpdateErrorKind::WrongLastRevision => changed(name),
        _ => ControlError::nats(format!("register function {name}"), error),
    })?;
    rollout::publish(&js.client(), &next).await;
    Ok(next)
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
    let (active, revision) = functions::record(js, names.app(), function).await?;
    // Another deploy is at it.
    if hands_over(&active) {
        return Ok(());
    }
    let guard = Guard {
        app: names.app(),
        function,
        revision: Some(revision),
    };
    let given = match active.settings.delivery {
        DeliveryMode::ExactlyOnce => reopen(js, names, &guard, &active).await,
        DeliveryMode::AtLeastOnce => go_on(js, names, &active).await,
    };
    match given {
        // Or is now.
        Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
        given => given,
    }
}
