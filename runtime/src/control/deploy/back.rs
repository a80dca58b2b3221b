//! Rollback: an older version becomes the active one again, as it was deployed. Its component and its settings are kept, so nothing is built.

use std::collections::BTreeSet;

use async_nats::jetstream;
use schemars::JsonSchema;
use serde::Serialize;

use super::apply::{Way, apply_function, refused};
use super::changes::between;
use super::plan::{FunctionAction, FunctionPlan};
use super::{Change, targets};
use crate::commit::stream;
use crate::control::nodes::Wanted;
use crate::control::{self, ControlError, functions, versions};
use crate::module_store;
use crate::names::AppNames;
use crate::records::{Controls, FunctionRecord, Input};

/// A rollback that is to be carried out.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Rollback {
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// The version that is active.
    pub from: u64,
    /// The version that will be.
    pub to: u64,
    /// What differs, from the one to the other.
    pub changes: Vec<Change>,
    /// Whether `from` is only tried, beside `to`, and gives its share back.
    pub withdraws: bool,
    #[serde(skip)]
    plan: FunctionPlan,
}

impl Rollback {
    /// One from a version to that of `record`, which stands under `revision` as `active` now.
    fn of(
        active: FunctionRecord,
        record: FunctionRecord,
        from: u64,
        changes: Vec<Change>,
        revision: u64,
    ) -> Self {
        let (function, to) = (record.function.clone(), record.version);
        Self {
            app: record.app.clone(),
            function: function.clone(),
            from,
            to,
            changes,
            withdraws: from != active.version,
            plan: FunctionPlan {
                function,
                action: FunctionAction::Back,
                version: to,
                previous_version: Some(active.version),
                digest: record.digest.clone(),
                bytes: 0,
                upload: false,
                changes: Vec::new(),
                inputs: Vec::new(),
                targets: record
                    .targets
                    .iter()
                    .map(|one| one.stream.clone())
                    .collect(),
                revision: Some(revision),
                previous: Some(active),
                trial: None,
                record,
            },
        }
    }

    /// What nodes run then.
    pub fn wanted(&self) -> Wanted {
        Wanted::of(&self.plan.record)
    }
}

/// Looks for the version to go back to: `to`, or the one that was active before; where one is tried, the active one. Changes nothing.
///
/// # Errors
/// No such function or version; one that takes its events in another way, or whose component is gone; NATS trouble.
pub async fn find(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    to: Option<u64>,
) -> Result<Rollback, ControlError> {
    let (active, revision) = functions::record(js, app, function).await?;
    let alone = to.is_none_or(|to| to == active.version);
    if let Some(trial) = active.trial.as_ref().filter(|_| alone) {
        let (from, changes) = (trial.record.version, between(&trial.record, &active));
        let record = FunctionRecord {
            trial: None,
            ..active.clone()
        };
        return Ok(Rollback::of(active, record, from, changes, revision));
    }
    let kept = versions::all(js, app, Some(function)).await?;
    let mut kept = versions::of_instance(kept, &active);
    kept.remove(&active.version);
    let known = kept.keys().rev().filter(|one| active.was_active(**one));
    let known: Vec<String> = known.map(u64::to_string).collect();
    let choice = match known.is_empty() {
        true => "deploy another one first".to_owned(),
        false => format!("name one of {} with --to", known.join(", ")),
    };
    // Who types it twice does not want the version back that was bad.
    if let Some(from) = active
        .previous
        .filter(|from| to.is_none() && *from > active.version)
    {
        let what = format!(
            "function {function} was rolled back to version {} from version {from}",
            active.version
        );
        return Err(ControlError::refused(what, choice));
    }
    let Some(to) = to.or(active.previous) else {
        let what = format!(
            "no version of {function} was active before version {}",
            active.version
        );
        return Err(ControlError::refused(what, choice));
    };
    if to == active.version {
        let what = format!("version {to} of {function} is the active one");
        return Err(ControlError::refused(what, choice));
    }
    let Some(older) = kept.remove(&to) else {
        let what = format!("function {function} has no version {to}");
        return Err(ControlError::not_found(what, choice));
    };
    if !active.was_active(to) {
        let what = format!(
            "version {to} of {function} was never active: it was taken back when it was tried"
        );
        return Err(ControlError::refused(what, choice));
    }
    fits(function, &active, &older, to)?;
    is_stored(js, &older).await?;
    let record = again(&active, older);
    let (from, changes) = (active.version, between(&active, &record));
    Ok(Rollback::of(active, record, from, changes, revision))
}

/// Refuses a version whose component somebody deleted.
async fn is_stored(js: &jetstream::Context, older: &FunctionRecord) -> Result<(), ControlError> {
    let stored = module_store::is_stored(js, &older.digest, None).await;
    if stored.map_err(|error| ControlError::nats("read the components", error))? {
        return Ok(());
    }
    Err(ControlError::refused(
        format!(
            "the component of version {} of {} is not stored any more",
            older.version, older.function
        ),
        "deploy it from its source",
    ))
}

/// Refuses a version that takes its events in another way: they would be passed by, or handled twice.
fn fits(
    function: &str,
    active: &FunctionRecord,
    older: &FunctionRecord,
    to: u64,
) -> Result<(), ControlError> {
    if older.settings.delivery != active.settings.delivery {
        return Err(ControlError::refused(
            format!("version {to} of {function} takes its events by the other delivery mode"),
            "deploy it from its manifest: a deploy hands the inputs over",
        ));
    }
    if older.settings.key != active.settings.key {
        return Err(ControlError::refused(
            format!("version {to} of {function} orders events by another `key`"),
            "deploy it from its manifest, as that says what becomes of the positions",
        ));
    }
    let unread = |input: &&Input| !active.inputs.iter().any(|one| one.stream == input.stream);
    if let Some(input) = older.inputs.iter().find(unread) {
        return Err(ControlError::refused(
            format!(
                "version {to} of {function} reads stream {}, which version {} does not: where it would begin there is not known",
                input.stream, active.version
            ),
            "deploy it from its manifest, with `start`",
        ));
    }
    Ok(())
}

/// The record that makes a version active again: what is done of its inputs stays done.
fn again(active: &FunctionRecord, mut older: FunctionRecord) -> FunctionRecord {
    for input in &mut older.inputs {
        let now = active.inputs.iter().find(|one| one.stream == input.stream);
        if let Some(now) = now {
            (input.start, input.begun) = (now.start, now.begun);
            (input.created, input.resets) = (now.created, now.resets);
        }
    }
    FunctionRecord {
        generation: active.generation() + 1,
        previous: Some(active.version),
        controls: Controls {
            paused: active.controls.paused.clone(),
            concurrency: None,
        },
        ..older
    }
}

/// Carries it out. Nodes notice by themselves.
///
/// # Errors
/// Somebody changed the function meanwhile; its component is gone; a stream cannot take part any more; NATS trouble.
pub async fn back(
    js: &jetstream::Context,
    rollback: &Rollback,
    mut step: impl FnMut(&str),
) -> Result<(), ControlError> {
    let names = AppNames::new(rollback.app.as_str());
    let plan = &rollback.plan;
    if rollback.withdraws {
        let (app, function, from) = (&rollback.app, &rollback.function, rollback.from);
        let withdrawn = control::rollout::abort(js, app, function, Some(from), "rolled back");
        return withdrawn.await.map(drop);
    }
    // What only the version before emits to keeps its source until all has arrived: `clean_up` sees to that, and nobody waits for it here.
    let before: BTreeSet<String> = plan
        .previous
        .iter()
        .flat_map(|one| &one.targets)
        .map(|one| one.stream.clone())
        .collect();
    for target in &plan.targets {
        targets::clear_leftovers(js, &names, target, &before).await?;
        let adopt = before.contains(target);
        let made = stream::ensure_target(js, &names, target, adopt).await;
        made.map_err(refused)?;
    }
    apply_function(js, &names, plan, None, &Way::AtOnce, &mut step).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Input;

    #[test]
    fn an_older_version_goes_on_where_the_newer_one_is() {
        let input = |start, created| Input {
            stream: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            start,
            begun: true,
            resets: 0,
            created,
        };
        let older = FunctionRecord {
            version: 3,
            inputs: vec![input(0, 1)],
            ..FunctionRecord::sample()
        };
        let active = FunctionRecord {
            version: 5,
            generation: 7,
            inputs: vec![input(90, 2)],
            ..FunctionRecord::sample()
        };
        let record = again(&active, older);
        assert_eq!(
            (record.version, record.generation, record.previous),
            (3, 8, Some(5))
        );
        assert_eq!(record.inputs, active.inputs);
    }
}
