//! Targets come and go: one that no function emits to any more gives its source back, but never while events wait for it.
//!
//! The source goes when every node has taken the new versions over, for until then an old one may still emit. What lies in
//! the outbox of a target that is new to the app is of an earlier life, and would arrive a second time.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream;

use super::apply::refused;
use super::timers::scan_timers;
use crate::commit::stream::{self, StreamError};
use crate::commit::{outbox, transport};
use crate::control::{ControlError, nodes, open};
use crate::names::AppNames;
use crate::records::FunctionRecord;

/// How long events may take to arrive: milliseconds, unless something keeps them.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
/// How long attempts of versions that gave way are waited for: an idle node says within two heartbeats that there are none.
const SETTLED: Duration = Duration::from_secs(3);

/// Waits until nothing is under way to targets that are to go.
///
/// # Errors
/// Something stays in the outbox; NATS trouble.
pub(super) async fn arrived(
    js: &jetstream::Context,
    names: &AppNames,
    going: &BTreeSet<String>,
) -> Result<(), ControlError> {
    for target in going {
        let until = tokio::time::Instant::now() + PATIENCE;
        while let Some(waiting) = transport::waiting(js, names, target)
            .await
            .map_err(refused)?
        {
            if tokio::time::Instant::now() >= until {
                return Err(ControlError::refused(
                    format!(
                        "stream {target} is no target of app {} any more, but emitted events wait for it in the outbox: {}",
                        names.app(),
                        waiting.why
                    ),
                    format!(
                        "{}; then deploy again. To give those events up: nats stream purge {} --subject='{}'",
                        waiting.fix,
                        names.commit_stream(),
                        names.outbox_filter(target)
                    ),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Clears the outbox of a target that the app did not have before the deploy.
///
/// # Errors
/// NATS trouble.
pub(super) async fn clear_leftovers(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    known: &BTreeSet<String>,
) -> Result<(), ControlError> {
    let sourced = stream::is_target(js, names, target)
        .await
        .map_err(refused)?;
    if known.contains(target) || sourced {
        return Ok(());
    }
    outbox::clear(js, names, target).await.map_err(refused)
}

/// Takes the app's source from streams that none of these functions emits to, if all that was for them has arrived.
///
/// # Errors
/// NATS trouble; the next deploy tries again.
pub(super) async fn give_back(
    js: &jetstream::Context,
    names: &AppNames,
    streams: &[String],
    records: &[FunctionRecord],
) -> Result<(), ControlError> {
    let mut wanted: BTreeSet<&str> = records
        .iter()
        .flat_map(FunctionRecord::all_targets)
        .map(|target| target.stream.as_str())
        .collect();
    let dead = names.dead_stream();
    wanted.insert(&dead);
    let mut going = Vec::new();
    for target in streams.iter().filter(|one| !wanted.contains(one.as_str())) {
        let sourced = stream::is_target(js, names, target).await;
        if sourced.map_err(refused)? {
            going.push(target);
        }
    }
    let Some(commit) = open(js, &names.commit_stream()).await? else {
        return Ok(());
    };
    // What still runs of a version that gave way may emit; then the next deploy does it.
    if going.is_empty() || !nodes::settled(js, names.app(), SETTLED).await? {
        return Ok(());
    }
    let last = commit.cached_info().state.last_sequence;
    // What was allowed when it was set leaves when it is due. Timers of a function that is gone nobody handles.
    let mut awaited = BTreeSet::new();
    scan_timers(js, &commit, names, |timer| {
        if records.iter().any(|one| one.function == timer.function) {
            awaited.extend(timer.target.map(str::to_owned));
        }
    })
    .await?;
    going.retain(|target| !awaited.contains(*target));
    for target in going {
        give_one_back(js, names, target, last)
            .await
            .map_err(refused)?;
    }
    Ok(())
}

/// What came for it since the commit stream ended with `last` may have arrived or not.
async fn give_one_back(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    last: u64,
) -> Result<(), StreamError> {
    if transport::waiting(js, names, target).await?.is_some() {
        return Ok(());
    }
    stream::remove_source(js, names, target).await?;
    outbox::clear_up_to(js, names, target, last).await
}
