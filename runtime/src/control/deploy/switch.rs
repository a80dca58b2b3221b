//! The way back from positions to a queue: the positions are closed, so that no node commits by them any more; what they say
//! is done beyond the first message that is not gets the markers that the queue engine would have left; and the consumer begins there.
//!
//! What is parked has no place in a queue, so that it must be empty. The closed positions stay: should positions be wanted again before the queue has
//! come so far, they say what need not be done again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_nats::header;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::RawMessageErrorKind;
use serde_json::{Value, json};

use super::gone::is_gone;
use super::plan::FunctionPlan;
use crate::commit::MARKER_TTL;
use crate::config::{DeliveryMode, KeySource};
use crate::control::progress::{Guard, Place, Progress, records, rewrite};
use crate::control::scan::{Scan, scan};
use crate::control::{ControlError, open};
use crate::names::{AppNames, txn};
use crate::records::{FunctionRecord, Input, PositionRecord};
use crate::source;

/// Markers that are written at most, so that a deploy ends: the window of each partition, and as much again that others passed.
const MAX_MARKERS: usize = 131_072;
/// Markers on their way at the same time.
const AT_ONCE: usize = 256;

/// Makes the consumers of a function that was served by positions, where those are. Does nothing for any other.
///
/// # Errors
/// Something is parked; NATS trouble. Deploying again goes on, either way.
pub(super) async fn to_queue(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    let Some(previous) = function
        .previous
        .as_ref()
        .filter(|previous| previous.settings.delivery == DeliveryMode::ExactlyOnce)
    else {
        return Ok(());
    };
    step(&format!(
        "closing the positions of function {}",
        function.function
    ));
    for input in &previous.inputs {
        let place = place(names, &function.function, input);
        nothing_parked(&function.function, records(js, place).await?.values())?;
    }
    let guard = function.guard(names);
    let mut closed = BTreeMap::new();
    for input in &previous.inputs {
        let place = place(names, &function.function, input);
        let key = previous.settings.key.as_ref();
        let records = close(js, place, &guard, input.start, key).await?;
        closed.insert(input.stream.as_str(), records);
    }
    // Only now does it stay empty.
    let stored = closed.values().flat_map(BTreeMap::values);
    nothing_parked(&function.function, stored)?;
    hand_all_over(js, names, function, previous, &closed).await
}

/// Opens the positions again that were closed.
pub(super) async fn reopen(
    js: &jetstream::Context,
    names: &AppNames,
    guard: &Guard<'_>,
    record: &FunctionRecord,
) -> Result<(), ControlError> {
    for input in &record.inputs {
        let place = place(names, &record.function, input);
        rewrite(js, place, Some(guard), |_, stored| {
            let stored = stored.filter(|stored| stored.closed)?;
            Some(stored.clone().open())
        })
        .await?;
    }
    Ok(())
}

/// Every input that both versions read, from its closed positions, by stream.
async fn hand_all_over(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    previous: &FunctionRecord,
    closed: &BTreeMap<&str, BTreeMap<u16, PositionRecord>>,
) -> Result<(), ControlError> {
    for input in &function.record.inputs {
        let Some(records) = closed.get(input.stream.as_str()) else {
            continue;
        };
        let mut known = previous.inputs.iter();
        let Some(known) = known.find(|known| known.stream == input.stream) else {
            continue;
        };
        // What they say is of a stream that is gone; the one of its name has no consumer yet, which begins where `start` says.
        if is_gone(js, known).await? {
            continue;
        }
        let progress = Progress::new(known.start, records);
        hand_over(js, names, previous, &function.record, input, &progress).await?;
    }
    Ok(())
}

fn place<'a>(names: &'a AppNames, function: &'a str, input: &'a Input) -> Place<'a> {
    Place {
        names,
        function,
        stream: &input.stream,
    }
}

async fn close(
    js: &jetstream::Context,
    place: Place<'_>,
    guard: &Guard<'_>,
    start: u64,
    key: Option<&KeySource>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    rewrite(js, place, Some(guard), |_, stored| {
        let new = || PositionRecord::new("", start, std::iter::empty(), (0, 0));
        // Closed ones, too: who was about to open them must find another revision.
        let record = stored.cloned().unwrap_or_else(new);
        Some(record.close(key.cloned()))
    })
    .await
}

/// What is done of an input beyond where its positions begin.
#[derive(Default)]
pub(super) struct Beyond {
    /// By partition.
    done: BTreeMap<u16, Vec<u64>>,
    /// A message that is known to be done, and when it was stored; 0: none.
    witness: (u64, i64),
}

impl Beyond {
    /// A partition's position that begins behind `start`.
    pub(super) fn position(
        &self,
        partition: u16,
        start: u64,
        key: Option<&KeySource>,
    ) -> PositionRecord {
        let done = self.done.get(&partition).into_iter().flatten().copied();
        PositionRecord {
            // Should this deploy not end, the next one can read what is done here.
            key: key.cloned(),
            ..PositionRecord::new("", start, done, self.witness)
        }
    }
}

/// What the positions that were there before the queue say is done beyond `input.start`, up to where the queue has done everything, if it never got
/// that far: by the partition that each has by `key` now.
pub(super) async fn done_beyond(
    js: &jetstream::Context,
    place: Place<'_>,
    input: &Input,
    key: Option<&KeySource>,
) -> Result<Beyond, ControlError> {
    let mut found = Beyond::default();
    // Closed, or begun by a deploy that did not end.
    let closed = records(js, place).await?;
    let progress = Progress::new(0, &closed);
    let Some(before) = closed.values().next().map(|record| record.key.clone()) else {
        return Ok(found);
    };
    if progress.end() <= input.start || !is_witnessed(js, place.stream, &closed).await? {
        return Ok(found);
    }
    let Some(stream) = open(js, place.stream).await? else {
        return Ok(found);
    };
    let beyond = Scan {
        filters: input.subjects.clone(),
        from: DeliverPolicy::ByStartSequence {
            start_sequence: input.start + 1,
        },
        headers_only: false,
    };
    found.witness = witness(&closed);
    let (doing, name) = (format!("read stream {}", place.stream), place.stream.into());
    scan(js, &stream, beyond, |message| {
        let info = message.info();
        let info = info.map_err(|error| ControlError::nats(&doing, error))?;
        let message = source::message(message, &info, &name);
        if message.sequence > progress.end() {
            return Ok(ControlFlow::Break(()));
        }
        if progress.is_done(before.as_ref(), &message) {
            let partition = source::partition(key, &message);
            let done = found.done.entry(partition).or_default();
            done.push(message.sequence);
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(found)
}

/// The latest message that these know to be done, and when it was stored; 0: none.
fn witness(positions: &BTreeMap<u16, PositionRecord>) -> (u64, i64) {
    let witness = positions.values();
    let witness = witness.map(|one| (one.witness, one.witness_stored));
    witness.max().unwrap_or_default()
}

/// Whether a stream still is the one that these positions are about: the latest message that they know to be done is the same, or gone by age.
pub(super) async fn is_witnessed(
    js: &jetstream::Context,
    stream: &str,
    positions: &BTreeMap<u16, PositionRecord>,
) -> Result<bool, ControlError> {
    let (witness, stored) = witness(positions);
    let Some(opened) = open(js, stream).await? else {
        return Ok(false);
    };
    if witness == 0 || opened.cached_info().state.last_sequence < witness {
        return Ok(false);
    }
    match opened.get_raw_message(witness).await {
        Ok(found) => Ok(i64::try_from(found.time.unix_timestamp_nanos()) == Ok(stored)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(true),
        Err(error) => Err(ControlError::nats(format!("read stream {stream}"), error)),
    }
}

/// What these say is parked is refused: the records, for something that has ended may still lie in the park.
fn nothing_parked<'a>(
    function: &str,
    records: impl IntoIterator<Item = &'a PositionRecord>,
) -> Result<(), ControlError> {
    let parked: usize = records.into_iter().map(|record| record.parked.len()).sum();
    if parked == 0 {
        return Ok(());
    }
    Err(ControlError::refused(
        format!(
            "function {function} cannot change to delivery = \"at-least-once\": {parked} of its deliveries are parked, \
             to be tried again or until another event of their key has come, and a queue has no place for them"
        ),
        format!(
            "wait until `pelton function info {function}` shows none waiting, with a node running, or keep delivery = \"exactly-once\""
        ),
    ))
}

/// Marks what is done beyond the first message that is not, and makes the consumer begin with that one.
async fn hand_over(
    js: &jetstream::Context,
    names: &AppNames,
    previous: &FunctionRecord,
    record: &FunctionRecord,
    input: &Input,
    progress: &Progress,
) -> Result<(), ControlError> {
    let doing = format!("make a consumer on stream {}", input.stream);
    let Some(stream) = open(js, &input.stream).await? else {
        return Ok(());
    };
    let beyond = Scan {
        filters: input.subjects.clone(),
        from: DeliverPolicy::ByStartSequence {
            start_sequence: progress.floor() + 1,
        },
        headers_only: false,
    };
    let name = input.stream.as_str().into();
    let (mut first, mut done) = (None, Vec::new());
    scan(js, &stream, beyond, |message| {
        let info = message
            .info()
            .map_err(|error| ControlError::nats(&doing, error))?;
        let message = source::message(message, &info, &name);
        if message.sequence > progress.end() || done.len() >= MAX_MARKERS {
            first = first.or(Some(message.sequence));
            return Ok(ControlFlow::Break(()));
        }
        match progress.is_done(previous.settings.key.as_ref(), &message) {
            false => first = first.or(Some(message.sequence)),
            // All before the first one that is not done is behind the consumer's begin.
            true if first.is_some() => done.push(message.sequence),
            true => {}
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    if done.len() >= MAX_MARKERS {
        return Err(ControlError::refused(
            format!(
                "more than {MAX_MARKERS} events of stream {} are done beyond one that is not",
                input.stream
            ),
            "let the function catch up, then deploy again",
        ));
    }
    let created = stream.cached_info().created.unix_timestamp_nanos();
    let life = input.life(i64::try_from(created).unwrap_or_default());
    let markers = done.iter().map(|sequence| {
        let subject = names.marker(&record.function, &input.stream, *sequence);
        let txn = txn(record.instance, &input.stream, life, *sequence);
        (subject, txn)
    });
    mark(js, markers.collect())
        .await
        .map_err(|why| ControlError::nats("mark what is done", why))?;
    let first = first.unwrap_or(progress.end().max(progress.floor()) + 1);
    let consumer = format!(
        "{}.{}",
        input.stream,
        names.consumer(&record.function, record.instance)
    );
    // One that an earlier try left begins where that one saw.
    let _: Value = js
        .request(format!("CONSUMER.DELETE.{consumer}"), &json!({}))
        .await
        .map_err(|error| ControlError::nats(&doing, error))?;
    source::ensure_consumer_from(&stream, record, input, first)
        .await
        .map_err(|error| ControlError::nats(&doing, error))
}

async fn mark(js: &jetstream::Context, markers: Vec<(String, Arc<str>)>) -> Result<(), String> {
    for some in markers.chunks(AT_ONCE) {
        let mut acks = Vec::new();
        for (subject, txn) in some {
            let message = PublishMessage::build()
                .payload(txn.to_string().into())
                .header(header::NATS_MESSAGE_TTL, MARKER_TTL);
            let ack = js.send_publish(subject.clone(), message).await;
            acks.push(ack.map_err(|error| error.to_string())?);
        }
        for ack in acks {
            ack.await.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
