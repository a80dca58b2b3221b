//! Clears the outbox of what has reached its target stream. Every node does it; doing it twice is harmless.

use std::collections::BTreeSet;

use async_nats::jetstream;

use super::stream::{self, StreamError};
use crate::names::AppNames;

/// Removes from the app's outbox what each target has stored; what a target does not report is kept.
///
/// # Errors
/// The first trouble met; the rest waits for the next round.
pub async fn purge(js: &jetstream::Context, names: &AppNames, targets: &BTreeSet<String>) -> Result<(), StreamError> {
    let commit = names.commit_stream();
    for target in targets {
        let Some(info) = stream::info(js, target).await? else { continue };
        let sources = info["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let reached = sources.iter().find(|source| source["name"] == commit.as_str()).and_then(|s| s["seq"].as_u64());
        // Unknown after a restart until the next message comes: then nothing is purged.
        let Some(reached) = reached.filter(|sequence| *sequence > 0) else { continue };
        let answer: serde_json::Value = js
            .request(
                format!("STREAM.PURGE.{commit}"),
                &serde_json::json!({ "filter": names.outbox_filter(target), "seq": reached + 1 }),
            )
            .await
            .map_err(|error| StreamError(format!("cannot purge the outbox for {target}: {error}")))?;
        if let Some(error) = answer.get("error") {
            return Err(StreamError(format!("cannot purge the outbox for {target}: {}", error["description"])));
        }
    }
    Ok(())
}
