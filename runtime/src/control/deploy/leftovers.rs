//! What an earlier function of the same name left behind, whose entry of the registry somebody deleted: it must not come to life
//! with the new one, which is another function.
//!
//! Timers are taken back as a handler would do it, for a timer's name may hold another function's by now. Positions that the new
//! function reads are written anew and not purged: of a subject that was written more than once, a server that is killed
//! may bring an earlier message back. What else is purged was written once, or means nothing without its position.

use std::collections::BTreeSet;

use async_nats::jetstream;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use super::clean_up::request;
use super::timers::scan_timers;
use crate::commit::set_timer;
use crate::config::DeliveryMode;
use crate::control::progress::{Place, rewrite};
use crate::control::{ControlError, open};
use crate::effects::TimerChange;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::{FunctionRecord, PositionRecord, TimerRecord};

/// Timers that are taken back at the same time: each is a request or three.
const AT_ONCE: usize = 16;

/// Clears what lies there for a function that has no entry in the registry yet. Does nothing where it has one.
///
/// # Errors
/// NATS trouble. Deploying again goes on.
pub(in crate::control) async fn clear(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    let function = &record.function;
    let Some(commit) = open(js, &names.commit_stream()).await? else {
        return Ok(());
    };
    // Before the registry is asked: what is stored later may be of a deploy that registers the function at this moment.
    let last = commit.cached_info().state.last_sequence;
    if last == 0 || is_registered(js, names, function).await? {
        return Ok(());
    }
    // Before what is due is purged: one of them may become due at any moment.
    timers(js, names, function, &commit, last, step).await?;
    positions(js, names, record, &commit, last).await?;
    for left in [
        names.due_filter(function),
        names.all_parked(function),
        names.all_markers(function),
    ] {
        purge(&commit, &left, last).await?;
    }
    if record.settings.delivery == DeliveryMode::AtLeastOnce {
        for input in &record.inputs {
            consumers(js, names, function, &input.stream).await?;
        }
    }
    Ok(())
}

/// Deletes the consumers of earlier functions of this name: each has a nonce of its own.
async fn consumers(
    js: &jetstream::Context,
    names: &AppNames,
    function: &str,
    stream: &str,
) -> Result<(), ControlError> {
    let doing = format!("look for consumers of stream {stream}");
    let Some(opened) = open(js, stream).await? else {
        return Ok(());
    };
    let all: Result<Vec<String>, _> = opened.consumer_names().try_collect().await;
    let all = all
        .map_err(|error| ControlError::nats(&doing, error))?
        .into_iter();
    for consumer in all.filter(|one| names.is_consumer_of(one, function)) {
        let doing = format!("delete consumer {consumer} of stream {stream}");
        let delete = format!("CONSUMER.DELETE.{stream}.{consumer}");
        request(js, &delete, json!({}), &doing).await?;
    }
    Ok(())
}

/// Whether there is an entry, be it one that nobody can read. The stream's leader is asked, for a follower may lag.
async fn is_registered(
    js: &jetstream::Context,
    names: &AppNames,
    function: &str,
) -> Result<bool, ControlError> {
    let bucket = format!("KV_{REGISTRY_BUCKET}");
    let Some(registry) = open(js, &bucket).await? else {
        return Ok(false);
    };
    let key = names.registry_function(function);
    let entry = last_of(&registry, &format!("$KV.{REGISTRY_BUCKET}.{key}")).await?;
    Ok(entry.is_some_and(|entry| entry.headers.get("KV-Operation").is_none()))
}

/// Takes back the timers that lie as schedules or as messages that are due, and the next tick.
async fn timers(
    js: &jetstream::Context,
    names: &AppNames,
    function: &str,
    commit: &Stream,
    last: u64,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    let mut found = Vec::new();
    scan_timers(js, commit, names, |timer| {
        if timer.function == function {
            found.push((timer.record.to_owned(), Some(timer.id.to_owned())));
        }
    })
    .await?;
    if !found.is_empty() {
        step(&format!(
            "taking back {} timers of an earlier function {function}",
            found.len()
        ));
    }
    found.push((names.tick(function), None));
    futures::stream::iter(found)
        .map(async |(subject, id)| {
            take_back(js, names, function, commit, subject, id.as_deref()).await?;
            match id {
                Some(id) => purge(commit, &names.at(&id), last).await,
                None => Ok(()),
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Has a timer's record say that there is none, if it names this one, or whatever it names.
async fn take_back(
    js: &jetstream::Context,
    names: &AppNames,
    function: &str,
    commit: &Stream,
    subject: String,
    id: Option<&str>,
) -> Result<(), ControlError> {
    let Some(held) = last_of(commit, &subject).await? else {
        return Ok(());
    };
    let record = TimerRecord::read(&held.payload);
    let Some(record) = record.filter(|record| id.is_none_or(|id| id == record.id)) else {
        return Ok(());
    };
    let change = TimerChange {
        revision: held.sequence,
        before: Some(record.id),
        next: None,
    };
    // Should the name have been given to another timer since, it is that one's.
    set_timer(&js.client(), names, function, subject, change)
        .await
        .map(drop)
        .map_err(|error| ControlError::nats("take a timer back", error))
}

/// Positions of the internal input begin behind all that lies there. Those of the function's inputs are left to [`begin`](super::begin).
async fn positions(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    commit: &Stream,
    last: u64,
) -> Result<(), ControlError> {
    let function = &record.function;
    let all = names.positions_filter(function, "*");
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(format!("list {all}"), why);
    let subjects = commit.info_with_subjects(&all).await;
    let subjects: Vec<(String, usize)> = subjects
        .map_err(|error| failed(&error))?
        .try_collect()
        .await
        .map_err(|error| failed(&error))?;
    let streams: BTreeSet<&str> = subjects
        .iter()
        .filter_map(|(subject, _)| subject.rsplit('.').nth(1))
        .collect();
    let by_positions = record.settings.delivery == DeliveryMode::ExactlyOnce;
    for stream in streams {
        let read = by_positions && record.inputs.iter().any(|input| input.stream == stream);
        if stream == names.commit_stream() {
            let place = Place {
                names,
                function,
                stream,
            };
            let begin = PositionRecord::new("", last, std::iter::empty(), (0, 0));
            rewrite(js, place, None, |_, stored| {
                stored
                    .filter(|stored| stored.sequence < last || !stored.parked.is_empty())
                    .map(|_| begin.clone())
            })
            .await?;
        } else if !read {
            purge(commit, &names.positions_filter(function, stream), last).await?;
        }
    }
    Ok(())
}

/// The last message under a subject, as the stream's leader has it.
pub(super) async fn last_of(
    stream: &Stream,
    subject: &str,
) -> Result<Option<StreamMessage>, ControlError> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(ControlError::nats(format!("read {subject}"), error)),
    }
}

/// Removes what is stored under a subject up to this message.
async fn purge(stream: &Stream, subject: &str, last: u64) -> Result<(), ControlError> {
    let purge = stream.purge().filter(subject).sequence(last + 1);
    purge
        .await
        .map(drop)
        .map_err(|error| ControlError::nats(format!("purge {subject}"), error))
}
