//! Removes a function: its nodes let go of it, then it is no more. Its events stay in their streams and its state in the app's bucket.

use std::time::Duration;

use async_nats::jetstream;
use schemars::JsonSchema;
use serde::Serialize;

use super::deploy::{clean_up, clear};
use super::functions::{self, FunctionStatus};
use super::{ControlError, ErrorKind, hold, versions};
use crate::config::DeliveryMode;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::FunctionRecord;

/// What becomes of a function's things.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Removal {
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// Its active version.
    pub version: u64,
    /// Events that it has not handled, and will not: they stay in their streams.
    pub unhandled: u64,
    /// Of these, those that wait for another attempt or another event, with their attempts so far.
    pub waiting: u64,
    /// Calls, ticks and timers that are due and not handled, those that wait among them: they go with it.
    pub calls: u64,
    /// Deliveries that it gave up on: they stay, and cannot be replayed without it.
    pub dead_letters: u64,
    /// Versions that are kept, and go with it.
    pub versions: usize,
}

/// What a removal would do. Changes nothing. Of one that was cut off, what is left to do.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn find(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<Removal, ControlError> {
    let info = match functions::info(js, app, function).await {
        Err(error) if error.kind == ErrorKind::NotFound => {
            return match versions::left_of(js, app, function).await? {
                Some(left) => Ok(Removal::of_what_is_left(&left)),
                None => Err(error),
            };
        }
        info => info?,
    };
    let FunctionStatus {
        version,
        inputs,
        internal,
        dead_letters,
        error,
        ..
    } = info.status;
    // Who removes it is told what goes with it.
    if let Some(error) = error {
        return Err(ControlError::nats("tell what would be removed", error));
    }
    Ok(Removal {
        app: app.to_owned(),
        function: function.to_owned(),
        version,
        unhandled: inputs.iter().filter_map(|one| one.pending).sum(),
        waiting: inputs.iter().map(|one| one.retrying + one.deferred).sum(),
        calls: internal.and_then(|one| one.pending).unwrap_or(0),
        dead_letters: dead_letters.unwrap_or(0),
        versions: versions::list(js, app, function).await?.len(),
    })
}

impl Removal {
    fn of_what_is_left(record: &FunctionRecord) -> Self {
        Self {
            app: record.app.clone(),
            function: record.function.clone(),
            version: record.version,
            unhandled: 0,
            waiting: 0,
            calls: 0,
            dead_letters: 0,
            versions: 0,
        }
    }
}

/// Removes it.
///
/// # Errors
/// A node does not let go within `within`, and nothing was changed; somebody changed it meanwhile; NATS trouble: removing it again goes on.
pub async fn carry_out(
    js: &jetstream::Context,
    removal: &Removal,
    by: &str,
    within: Duration,
    mut step: impl FnMut(&str),
) -> Result<(), ControlError> {
    let (app, function) = (removal.app.as_str(), removal.function.as_str());
    let record = match unregister(js, app, function, by, within, &mut step).await {
        // Its removal was cut off behind this.
        Err(error) if error.kind == ErrorKind::NotFound => {
            let left = versions::left_of(js, app, function).await?;
            left.ok_or(error)?
        }
        record => record?,
    };
    step("removing what only it had");
    let names = AppNames::new(app);
    clear(js, &names, &without_inputs(record.clone()), &mut step).await?;
    clean_up(js, app).await?;
    // Last: as long as they are there, it can be removed again.
    versions::forget(js, &record).await
}

/// Has the nodes let go of it and takes it out of the registry. The record that it had.
async fn unregister(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    by: &str,
    within: Duration,
    step: &mut impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    step("waiting for the nodes to let go of it");
    let rest = hold::at_rest(js, app, function, by, within).await?;
    match take_out(js, app, function, &rest.record).await {
        Ok(record) => Ok(record),
        Err(error) => Err(rest.undone(js, error).await),
    }
}

/// Takes it out of the registry, if its record is still as it was when nodes let go of it.
async fn take_out(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    rested: &FunctionRecord,
) -> Result<FunctionRecord, ControlError> {
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("remove function {function}"), why)
    };
    let (record, revision) = functions::record(js, app, function).await?;
    if record != *rested {
        return Err(ControlError::new(
            ErrorKind::Conflict,
            format!(
                "function {function} was changed by somebody else at the same time; nothing was removed"
            ),
            format!("see `pelton function info {function}`, then remove it again if it is to go"),
        ));
    }
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let key = AppNames::new(app).registry_function(function);
    let removed = store.delete_expect_revision(key, Some(revision)).await;
    removed.map_err(|error| failed(&error))?;
    Ok(record)
}

/// The record as of a function that reads by positions nothing, so that none of them is left for it.
pub(super) fn without_inputs(mut record: FunctionRecord) -> FunctionRecord {
    if record.settings.delivery == DeliveryMode::ExactlyOnce {
        record.inputs.clear();
    }
    record
}
