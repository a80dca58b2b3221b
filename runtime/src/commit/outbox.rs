//! Clears the outbox of what has reached its target stream. Every node does it; doing it twice is harmless.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::stream::{self, StreamError};
use crate::names::AppNames;

/// Until a commit stream is so old, a target may still report how far it had read an earlier one of that name.
const SETTLED: time::Duration = time::Duration::minutes(2);

/// An idle outbox is cleared once more after this time: a server that is killed during a purge may
/// bring back a part of it.
const AGAIN: Duration = Duration::from_secs(60);

/// What earlier rounds found of one target.
#[derive(Debug, Default)]
pub struct Purged {
    /// When the commit stream was made.
    created: String,
    /// What the target reported when this node first saw that stream.
    first: Option<u64>,
    /// Up to here its outbox is cleared.
    upto: u64,
    /// When that was.
    at: Option<Instant>,
}

/// Removes from the app's outbox what `target` has stored; what it does not report is kept. `purged` remembers how far
/// the last round came, so that an idle outbox costs one look at the target.
///
/// # Errors
/// NATS trouble; the next round tries again.
pub async fn purge(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    purged: &mut Purged,
) -> Result<(), StreamError> {
    let commit = names.commit_stream();
    let Some(target_info) = stream::info(js, target).await? else {
        return Ok(());
    };
    let sources = target_info["sources"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let source = sources
        .iter()
        .find(|source| source["name"] == commit.as_str());
    // Unknown after a restart until the next message comes: then nothing is purged.
    let reached = source.and_then(|source| source["seq"].as_u64());
    let lately = purged.at.is_some_and(|at| at.elapsed() < AGAIN);
    if reached.is_some() && reached == Some(purged.upto) && lately {
        return Ok(());
    }
    // Looked at after the target: what that reported is not of a later stream than this one.
    let Some(info) = stream::info(js, &commit).await? else {
        return Ok(());
    };
    let created = info["created"].as_str().unwrap_or_default();
    if purged.created != created {
        *purged = Purged {
            created: created.to_owned(),
            first: reached,
            ..Purged::default()
        };
    }
    let Some(reached) = reached else {
        return Ok(());
    };
    // A commit stream that was made anew counts from 1 again, while targets older than it remember the former one for a while: what
    // they report then would clear what they have not read.
    let target_made = time_of(&target_info);
    let made = time_of(&info);
    let younger = target_made
        .zip(made)
        .is_some_and(|(target, commit)| target > commit);
    let old = made.is_some_and(|made| OffsetDateTime::now_utc() - made > SETTLED);
    let settled = younger || old || purged.first != Some(reached);
    if !settled || info["state"]["last_seq"].as_u64() < Some(reached) {
        return Ok(());
    }
    remove(js, names, target, json!({ "seq": reached + 1 })).await?;
    (purged.upto, purged.at) = (reached, Some(Instant::now()));
    Ok(())
}

/// Removes all of the app's outbox for `target`: what is there is not to arrive.
///
/// # Errors
/// NATS trouble.
pub async fn clear(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
) -> Result<(), StreamError> {
    remove(js, names, target, json!({})).await
}

/// Removes of the app's outbox for `target` what was stored up to this message.
///
/// # Errors
/// NATS trouble.
pub async fn clear_up_to(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    sequence: u64,
) -> Result<(), StreamError> {
    remove(js, names, target, json!({ "seq": sequence + 1 })).await
}

async fn remove(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    mut request: Value,
) -> Result<(), StreamError> {
    request["filter"] = json!(names.outbox_filter(target));
    let failed = |why: &dyn std::fmt::Display| {
        StreamError(format!("cannot purge the outbox for {target}: {why}"))
    };
    let answer: Value = js
        .request(format!("STREAM.PURGE.{}", names.commit_stream()), &request)
        .await
        .map_err(|error| failed(&error))?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => Err(failed(&error["description"])),
    }
}

/// When a stream was made.
fn time_of(info: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(info["created"].as_str()?, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::fresh_server;
    use crate::nats::connect;

    async fn emit(js: &jetstream::Context, names: &AppNames, count: usize) {
        for n in 0..count {
            let subject = names.outbox("OUT", &format!("txn{n}"), 0, "out.x");
            js.publish(subject, "".into()).await.unwrap().await.unwrap();
        }
    }

    async fn held(js: &jetstream::Context, name: &str) -> u64 {
        let mut stream = js.get_stream(name).await.unwrap();
        stream.info().await.unwrap().state.messages
    }

    #[tokio::test]
    async fn a_commit_stream_made_anew_loses_nothing_of_its_outbox() {
        let (server, _data) = fresh_server().await;
        let js = jetstream::new(connect(&server.options(), "test").await.unwrap());
        let names = AppNames::new("shop");
        stream::ensure_commit_stream(&js, &names, 1).await.unwrap();
        let out = jetstream::stream::Config {
            name: "OUT".into(),
            subjects: vec!["out.>".into()],
            ..Default::default()
        };
        js.create_stream(out).await.unwrap();
        stream::ensure_target(&js, &names, "OUT", true)
            .await
            .unwrap();

        // A node that was there from the beginning clears what has arrived.
        let mut early = Purged::default();
        purge(&js, &names, "OUT", &mut early).await.unwrap();
        emit(&js, &names, 20).await;
        while held(&js, "KV_shop").await > 0 {
            purge(&js, &names, "OUT", &mut early).await.unwrap();
        }
        assert_eq!(held(&js, "OUT").await, 20);

        js.delete_stream("KV_shop").await.unwrap();
        stream::ensure_commit_stream(&js, &names, 1).await.unwrap();
        emit(&js, &names, 30).await;
        // The target may not have begun to read it, and still say 20.
        let mut late = Purged::default();
        for purged in [&mut early, &mut late] {
            for _ in 0..5 {
                purge(&js, &names, "OUT", purged).await.unwrap();
            }
        }
        let (waiting, arrived) = (held(&js, "KV_shop").await, held(&js, "OUT").await - 20);
        assert!(waiting + arrived >= 30, "{waiting} wait, {arrived} arrived");
    }
}
