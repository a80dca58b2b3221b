//! Removes a function: its nodes let go of it, then it is no more. Its events stay in their streams and its state in the app's bucket.

use std::time::Duration;

use async_nats::jetstream;
use schemars::JsonSchema;
use serde::Serialize;

use super::deploy::{clean_up, clear};
use super::functions::{self, FunctionStatus};
use super::{ControlError, hold, versions};
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
    /// Deliveries that it gave up on: they stay, and cannot be replayed without it.
    pub dead_letters: u64,
    /// Versions that are kept, and go with it.
    pub versions: usize,
}

/// What a removal would do. Changes nothing.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn find(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<Removal, ControlError> {
    let FunctionStatus {
        version,
        pending,
        retrying,
        deferred,
        dead_letters,
        ..
    } = functions::info(js, app, function).await?.status;
    Ok(Removal {
        app: app.to_owned(),
        function: function.to_owned(),
        version,
        unhandled: pending,
        waiting: retrying + deferred,
        dead_letters,
        versions: versions::list(js, app, function).await?.len(),
    })
}

/// Removes it.
///
/// # Errors
/// A node does not let go within `within`, and nothing was changed; somebody deployed it meanwhile; NATS trouble: removing it again goes on.
pub async fn carry_out(
    js: &jetstream::Context,
    removal: &Removal,
    by: &str,
    within: Duration,
    mut step: impl FnMut(&str),
) -> Result<(), ControlError> {
    let (app, function) = (removal.app.as_str(), removal.function.as_str());
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("remove function {function}"), why)
    };
    step("waiting for the nodes to let go of it");
    hold::at_rest(js, app, function, by, within).await?;
    let (record, revision) = functions::record(js, app, function).await?;
    let names = AppNames::new(app);
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let key = names.registry_function(function);
    let removed = store.delete_expect_revision(key, Some(revision)).await;
    removed.map_err(|error| failed(&error))?;
    step("removing what only it had");
    clear(js, &names, &without_inputs(record), &mut step).await?;
    versions::forget(js, app, function).await?;
    clean_up(js, app).await
}

/// The record as of a function that reads by positions nothing, so that none of them is left for it.
fn without_inputs(mut record: FunctionRecord) -> FunctionRecord {
    if record.settings.delivery == DeliveryMode::ExactlyOnce {
        record.inputs.clear();
    }
    record
}
