//! Where the position engine begins in each input: said once, by the deploy that gives it the input, and kept in the function's record.
//!
//! A function that was served by the queue engine goes on where its consumer is. For that the consumer is paused and has to
//! come to rest: what was handed out and is neither done nor waiting cannot be told apart from outside.

use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::clean_up::request;
use super::plan::FunctionPlan;
use super::switch::{Beyond, done_beyond, is_witnessed};
use crate::config::{DeliveryMode, Start};
use crate::control::progress::{Guard, Place, begin as positions, records, rewrite};
use crate::control::scan::{Scan, scan};
use crate::control::{ControlError, open};
use crate::names::AppNames;
use crate::records::{FunctionRecord, Input, PositionRecord, rfc3339};
use crate::source;

/// How long a consumer may take to come to rest: an attempt takes 5 s unless the manifest says more.
const REST: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// For how long it is paused at first: should the deploy be killed, it goes on by itself.
const SHORT: Duration = Duration::from_secs(60);
/// For how long when it has come to rest: it is deleted when all nodes have taken the new version over.
const LONG: Duration = Duration::from_secs(3600);

/// What served an input before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing; or the stream was another one.
    Nothing,
    Queue,
    Positions,
}

/// The record to register: each input has its start. Positions that say otherwise are brought in line.
///
/// # Errors
/// The queue engine's consumer does not come to rest; NATS trouble.
pub(super) async fn begin(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    step: &mut impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    let mut record = function.record.clone();
    let mut paused = Vec::new();
    let begun = inputs(js, names, function, &mut record, &mut paused, step).await;
    let pause_for = if begun.is_ok() { LONG } else { Duration::ZERO };
    for place in &paused {
        pause(js, place, pause_for).await?;
    }
    begun.map(|()| record)
}

/// Has the consumers of a queue go on that were paused.
pub(super) async fn go_on(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
) -> Result<(), ControlError> {
    let consumer = names.consumer(&record.function, record.instance);
    for input in &record.inputs {
        let place = format!("{}.{consumer}", input.stream);
        pause(js, &place, Duration::ZERO).await?;
    }
    Ok(())
}

async fn inputs(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    record: &mut FunctionRecord,
    paused: &mut Vec<String>,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    let name = &function.function;
    let start = record.settings.start.clone();
    let consumer = names.consumer(name, record.instance);
    let guard = function.guard(names);
    for input in &mut record.inputs {
        let mut before = before(function, input);
        let left = Place {
            names,
            function: name,
            stream: &input.stream.clone(),
        };
        if before == Before::Nothing && came_back(js, function, input, left).await? {
            step(&format!(
                "function {name} read stream {} before: it goes on where it was",
                input.stream
            ));
            created(js, input).await?;
            (before, input.start, input.begun) = (Before::Positions, 0, true);
        }
        match before {
            Before::Positions => {}
            Before::Nothing => first(js, input, start.as_ref()).await?,
            Before::Queue => {
                let place = format!("{}.{consumer}", input.stream);
                step(&format!(
                    "waiting for consumer {consumer} of stream {} to come to rest",
                    input.stream
                ));
                match pause(js, &place, SHORT).await? {
                    true => {
                        paused.push(place.clone());
                        input.start = rest(js, name, &input.stream, &place).await?;
                    }
                    false if start.is_some() => first(js, input, start.as_ref()).await?,
                    false => return Err(nowhere(name, &consumer, &input.stream)),
                }
                created(js, input).await?;
            }
        }
        let stream = input.stream.clone();
        let place = Place {
            names,
            function: name,
            stream: &stream,
        };
        if before == Before::Positions && input.begun {
            if bring_in_line(js, place, &guard, None).await? {
                continue;
            }
            step(&lost(names, name, input, start.as_ref())?);
            first(js, input, start.as_ref()).await?;
        }
        let done = match before {
            Before::Queue => done_beyond(js, place, input, record.settings.key.as_ref()).await?,
            _ => Beyond::default(),
        };
        let key = record.settings.key.as_ref();
        let make = |partition| done.position(partition, input.start, key);
        write(js, place, &guard, before, &make).await?;
        input.begun = true;
    }
    Ok(())
}

/// Writes the positions with which a function begins.
async fn write(
    js: &jetstream::Context,
    place: Place<'_>,
    guard: &Guard<'_>,
    before: Before,
    make: &(dyn Fn(u16) -> PositionRecord + Sync),
) -> Result<(), ControlError> {
    match before {
        // Some may be there, and what they say stays.
        Before::Positions => drop(bring_in_line(js, place, guard, Some(make)).await?),
        Before::Queue => positions(js, place, guard, make).await?,
        // Of a stream before this one of its name there may be some, which nodes still hold.
        Before::Nothing => {
            let anew = |partition, _: Option<&PositionRecord>| Some(make(partition));
            rewrite(js, place, Some(guard), anew).await?;
        }
    }
    Ok(())
}

/// Refuses to guess where the function is.
fn nowhere(function: &str, consumer: &str, stream: &str) -> ControlError {
    ControlError::refused(
        format!(
            "consumer {consumer} of stream {stream} is gone, which said how far function {function} is"
        ),
        "say `start`: \"new\", \"all\" or a time",
    )
}

/// Whether an input that the version before did not read was read by one before that, and is still the same: then its positions say how far.
async fn came_back(
    js: &jetstream::Context,
    function: &FunctionPlan,
    input: &Input,
    place: Place<'_>,
) -> Result<bool, ControlError> {
    let reads = |one: &FunctionRecord| one.inputs.iter().any(|known| known.stream == input.stream);
    let Some(previous) = &function.previous else {
        return Ok(false);
    };
    if previous.settings.delivery != DeliveryMode::ExactlyOnce || reads(previous) {
        return Ok(false);
    }
    let positions = records(js, place).await?;
    let all = positions.len() == usize::from(source::PARTITIONS);
    // Closed ones are of a time before a queue took over, which has gone on since.
    let all = all && positions.values().all(|position| !position.closed);
    Ok(all && is_witnessed(js, place.stream, &positions).await?)
}

/// Has the positions of an input say where the function is: those that a deploy closed that did not end, and those that are missing, which begin
/// there. `None`: a missing one was lost, and stays away. Whether all are there.
async fn bring_in_line(
    js: &jetstream::Context,
    place: Place<'_>,
    guard: &Guard<'_>,
    begin: Option<&(dyn Fn(u16) -> PositionRecord + Sync)>,
) -> Result<bool, ControlError> {
    let found = rewrite(js, place, Some(guard), |partition, stored| match stored {
        Some(stored) => stored.closed.then(|| stored.clone().open()),
        None => begin.map(|begin| begin(partition)),
    });
    Ok(found.await?.len() == usize::from(source::PARTITIONS))
}

/// What a deploy does about lost positions, if `start` says where the function is to begin.
fn lost(
    names: &AppNames,
    function: &str,
    input: &Input,
    start: Option<&Start>,
) -> Result<String, ControlError> {
    let (stream, commit) = (&input.stream, names.commit_stream());
    if start.is_some() {
        return Ok(format!(
            "positions in stream {stream} are gone: it begins anew where `start` says"
        ));
    }
    Err(ControlError::refused(
        format!(
            "positions of function {function} in stream {stream} are gone: the commit stream {commit} was emptied, limited or restored"
        ),
        "restore that stream, or say where the function begins anew: `start` = \"new\", \"all\" or a time",
    ))
}

fn before(function: &FunctionPlan, input: &Input) -> Before {
    let Some(previous) = &function.previous else {
        return Before::Nothing;
    };
    let known = previous.inputs.iter().find(|known| {
        let same = known.created == 0 || known.created == input.created;
        known.stream == input.stream && same
    });
    match (known, previous.settings.delivery) {
        (None, _) => Before::Nothing,
        (Some(_), DeliveryMode::AtLeastOnce) => Before::Queue,
        (Some(_), DeliveryMode::ExactlyOnce) => Before::Positions,
    }
}

/// Begins as the manifest says.
async fn first(
    js: &jetstream::Context,
    input: &mut Input,
    start: Option<&Start>,
) -> Result<(), ControlError> {
    let last = created(js, input).await?;
    input.start = match start {
        None | Some(Start::All) => 0,
        Some(Start::New) => last,
        Some(Start::Time(text)) => before_time(js, &input.stream, text).await?.unwrap_or(last),
    };
    Ok(())
}

/// Notes when the stream was made, which a deploy may just have done; its last sequence.
async fn created(js: &jetstream::Context, input: &mut Input) -> Result<u64, ControlError> {
    let stream = js
        .get_stream(&input.stream)
        .await
        .map_err(|error| ControlError::nats(format!("read stream {}", input.stream), error))?;
    let info = stream.cached_info();
    input.created = i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default();
    Ok(info.state.last_sequence)
}

/// The sequence before the first message that was stored at this time or later.
pub(in crate::control) async fn before_time(
    js: &jetstream::Context,
    stream: &str,
    text: &str,
) -> Result<Option<u64>, ControlError> {
    let start_time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| {
        ControlError::refused(
            format!("{text:?} is no time: {error}"),
            "write it as 2026-01-31T08:00:00Z",
        )
    })?;
    let Some(stream) = open(js, stream).await? else {
        return Ok(None);
    };
    let after = Scan {
        filters: Vec::new(),
        from: DeliverPolicy::ByStartTime { start_time },
        headers_only: true,
    };
    let mut found = None;
    scan(js, &stream, after, |message| {
        found = message.info().ok().map(|info| info.stream_sequence);
        Ok(ControlFlow::Break(()))
    })
    .await?;
    Ok(found.map(|sequence| sequence.saturating_sub(1)))
}

/// Pauses a consumer, named `<stream>.<consumer>`, or lets it go on (zero). `false`: there is none.
async fn pause(
    js: &jetstream::Context,
    place: &str,
    length: Duration,
) -> Result<bool, ControlError> {
    let doing = format!("pause consumer {place}");
    let until = if length.is_zero() {
        json!({})
    } else {
        json!({ "pause_until": rfc3339(OffsetDateTime::now_utc() + length) })
    };
    let answer = request(js, &format!("CONSUMER.PAUSE.{place}"), until, &doing).await?;
    Ok(!answer.is_null())
}

/// Waits until nothing is handed out any more: up to the sequence that this gives, everything is done.
async fn rest(
    js: &jetstream::Context,
    function: &str,
    stream: &str,
    place: &str,
) -> Result<u64, ControlError> {
    let doing = format!("read consumer {place}");
    let until = tokio::time::Instant::now() + REST;
    loop {
        let info = request(js, &format!("CONSUMER.INFO.{place}"), json!({}), &doing).await?;
        let open = info["num_ack_pending"].as_u64();
        if let (Some(true), Some(0)) = (info["paused"].as_bool(), open) {
            return Ok(info["delivered"]["stream_seq"].as_u64().unwrap_or(0));
        }
        if tokio::time::Instant::now() >= until {
            return Err(ControlError::refused(
                format!(
                    "function {function} cannot change its delivery now: {} events of stream {stream} are being handled, or wait for \
                     another attempt or another event",
                    open.unwrap_or(0)
                ),
                format!(
                    "wait until `pelton function info {function}` shows none in flight, with a node running, then deploy again; \
                         it goes on as it was"
                ),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}
