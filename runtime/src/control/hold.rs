//! What operators set of a function that runs: whether it takes events, and how many at once. It is part of the function's record, so that
//! every node follows it, the ones that start later, too.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use time::OffsetDateTime;

use super::nodes::{self, Wanted};
use super::{ControlError, ErrorKind, functions, rfc3339, rollout};
use crate::config::MAX_CONCURRENCY;
use crate::records::{Controls, FunctionRecord, Paused};

/// Has nodes take no more events of a function; what comes waits in its stream. The record afterwards.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn pause(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    by: &str,
) -> Result<FunctionRecord, ControlError> {
    let paused = paused(by, false);
    set(js, app, function, |controls| {
        // Whoever resets it at this moment does not have it take events again.
        if controls.paused.as_ref().is_none_or(|now| now.passing) {
            controls.paused = Some(paused.clone());
        }
    })
    .await
}

/// Has nodes take events of a function again. The record afterwards.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn resume(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<FunctionRecord, ControlError> {
    set(js, app, function, |controls| controls.paused = None).await
}

/// Attempts in flight per node, in place of what was deployed; none: as deployed. The record afterwards.
///
/// # Errors
/// There is no such function; more than nodes take; NATS trouble.
pub async fn set_concurrency(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    concurrency: Option<u32>,
) -> Result<FunctionRecord, ControlError> {
    if let Some(wanted) = concurrency.filter(|wanted| !(1..=MAX_CONCURRENCY).contains(wanted)) {
        return Err(ControlError::refused(
            format!("a concurrency of {wanted} is out of range"),
            format!("say 1 to {MAX_CONCURRENCY}"),
        ));
    }
    set(js, app, function, |controls| {
        controls.concurrency = concurrency
    })
    .await
}

fn paused(by: &str, passing: bool) -> Paused {
    Paused {
        at: rfc3339(OffsetDateTime::now_utc()),
        by: by.to_owned(),
        passing,
    }
}

/// Has nodes take no more events of a function, and waits until all live ones have confirmed. The record by then. If it was not paused
/// before, the pause is a passing one.
///
/// # Errors
/// A node has not confirmed: then the function goes on if it did before; NATS trouble.
pub(super) async fn at_rest(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    by: &str,
    within: Duration,
) -> Result<FunctionRecord, ControlError> {
    let passing = paused(by, true);
    let record = set(js, app, function, |controls| {
        controls.paused.get_or_insert_with(|| passing.clone());
    })
    .await?;
    let wanted = BTreeMap::from([(function.to_owned(), Wanted::of(&record))]);
    let nodes = nodes::wait(js, app, &wanted, within).await?;
    // Those that failed cannot load it, and have nothing of it under way.
    if nodes.silent.is_empty() {
        return Ok(record);
    }
    set(js, app, function, Controls::go_on).await?;
    let silent: Vec<String> = nodes.silent.into_iter().collect();
    Err(ControlError::new(
        ErrorKind::Conflict,
        format!(
            "function {function} did not come to rest within {within:?} on {}; nothing was changed",
            silent.join(", ")
        ),
        "see `pelton node ls` and their logs, or wait longer with --wait",
    ))
}

async fn set(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    change: impl Fn(&mut Controls),
) -> Result<FunctionRecord, ControlError> {
    let changed = rollout::change(js, app, function, |record| {
        let mut next = record.clone();
        change(&mut next.controls);
        if next == *record {
            return Ok(None);
        }
        next.generation = record.generation() + 1;
        Ok(Some(next))
    });
    match changed.await? {
        Some(record) => Ok(record),
        None => Ok(functions::record(js, app, function).await?.0),
    }
}
