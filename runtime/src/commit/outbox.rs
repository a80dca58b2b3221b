//! Clears the outbox of what has reached its target stream. Every node does it; doing it twice is harmless.

use async_nats::jetstream;

use super::stream::{self, StreamError};
use crate::names::AppNames;

/// Removes from the app's outbox what `target` has stored; what it does not report is kept. `purged` remembers how far
/// the last round came, so that an idle outbox costs one look at the target.
///
/// # Errors
/// NATS trouble; the next round tries again.
pub async fn purge(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    purged: &mut u64,
) -> Result<(), StreamError> {
    let commit = names.commit_stream();
    let Some(info) = stream::info(js, target).await? else {
        return Ok(());
    };
    let sources = info["sources"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let source = sources
        .iter()
        .find(|source| source["name"] == commit.as_str());
    // Unknown after a restart until the next message comes: then nothing is purged. Less than before: the commit
    // stream was made anew, and counts from 1 again.
    let Some(reached) = source
        .and_then(|source| source["seq"].as_u64())
        .filter(|reached| reached != purged)
    else {
        return Ok(());
    };
    let request = serde_json::json!({ "filter": names.outbox_filter(target), "seq": reached + 1 });
    let failed = |why: &dyn std::fmt::Display| {
        StreamError(format!("cannot purge the outbox for {target}: {why}"))
    };
    let answer: serde_json::Value = js
        .request(format!("STREAM.PURGE.{commit}"), &request)
        .await
        .map_err(|error| failed(&error))?;
    if let Some(error) = answer.get("error") {
        return Err(failed(&error["description"]));
    }
    *purged = reached;
    Ok(())
}
