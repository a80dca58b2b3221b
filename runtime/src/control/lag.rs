//! How far a function is behind in one of its inputs, for either engine: what is pending, how old the oldest of it is, and what
//! waits for another attempt or another event.
//!
//! The queue engine's consumer counts what is pending. Positions do not: what lies beyond the least of them is read, until
//! the end of what any of them has done, or for so many messages; all that lies beyond is counted by the server.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self};
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::progress::{self, Place, Progress};
use super::scan::{Scan, scan};
use super::{ControlError, open};
use crate::call;
use crate::config::{DeliveryMode, KeySource};
use crate::names::{self, AppNames};
use crate::nats::headers;
use crate::records::{AttemptsRecord, FunctionRecord, Input, PositionRecord, rfc3339};
use crate::settle::park::{self, Parked};
use crate::source;

/// Messages of an input, and deliveries that wait, that one look reads at most: it takes a fraction of a second.
const READ: u64 = 10_000;

/// An input stream of a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InputStatus {
    /// The stream.
    pub stream: String,
    /// The subjects taken from it.
    pub subjects: Vec<String>,
    /// The durable consumer there; none: positions say how far the function is.
    pub consumer: Option<String>,
    /// Events not yet done with, those that wait among them; none: there is no such stream or consumer (any more). With
    /// positions at most so many: beyond the first 10,000 that no position passed, some may be done.
    pub pending: Option<u64>,
    /// Of these, how many were handed to nodes; none: positions do not tell.
    pub in_flight: Option<u64>,
    /// Of these, how many wait for another attempt, or behind such a one of their key.
    pub retrying: u64,
    /// Of these, how many wait for another event.
    pub deferred: u64,
    /// Sequence of the oldest.
    pub oldest_sequence: Option<u64>,
    /// When it was stored, RFC 3339.
    pub oldest_stored_at: Option<String>,
    /// Its age since then, milliseconds.
    pub oldest_pending_ms: Option<u64>,
}

impl InputStatus {
    /// Notes an event that is pending, if none is older.
    fn note(&mut self, sequence: u64, stored: OffsetDateTime) {
        if self.oldest_sequence.is_some_and(|known| known <= sequence) {
            return;
        }
        let age = OffsetDateTime::now_utc() - stored;
        self.oldest_sequence = Some(sequence);
        self.oldest_stored_at = Some(rfc3339(stored));
        self.oldest_pending_ms = u64::try_from(age.whole_milliseconds()).ok();
    }

    /// Counts one that waits in the park.
    fn parked(&mut self, parked: &Parked) {
        self.waits(&parked.record);
        let stored = i128::from(parked.message.stored);
        let stored = OffsetDateTime::from_unix_timestamp_nanos(stored);
        let stored = stored.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        self.note(parked.message.sequence, stored);
    }

    fn waits(&mut self, record: &AttemptsRecord) {
        match record.deferred_since_ms {
            Some(_) => self.deferred += 1,
            None => self.retrying += 1,
        }
    }
}

/// How a function fares in one of its inputs.
pub(super) async fn of(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    input: &Input,
) -> Result<InputStatus, ControlError> {
    let mut status = InputStatus {
        stream: input.stream.clone(),
        subjects: input.subjects.clone(),
        ..InputStatus::default()
    };
    let stream = open(js, &input.stream).await?;
    match record.settings.delivery {
        DeliveryMode::AtLeastOnce => {
            let Some(stream) = stream else {
                return Ok(status);
            };
            status.consumer = Some(names.consumer(&record.function));
            queue(&stream, &mut status).await;
            // What waits is not acknowledged.
            if status.in_flight > Some(0) {
                let created = stream.cached_info().created.unix_timestamp_nanos();
                let life = input.life(i64::try_from(created).unwrap_or_default());
                recorded(js, names, record, life, &mut status).await?;
            }
        }
        DeliveryMode::ExactlyOnce => {
            let place = Place {
                names,
                function: &record.function,
                stream: &input.stream,
            };
            let positions = progress::records(js, place).await?;
            // What waits does so whether its stream is there or not.
            let waiting = parked(js, names, record, &positions, &mut status).await?;
            let Some(stream) = stream else {
                return Ok(status);
            };
            let progress = Progress::new(input.start, &positions);
            let behind = behind(&stream, record, input, &progress, &mut status).await?;
            status.pending = Some(waiting + behind);
        }
    }
    Ok(status)
}

async fn queue(stream: &Stream, status: &mut InputStatus) {
    // No consumer: somebody deleted it.
    let consumer = status.consumer.clone().unwrap_or_default();
    let Ok(info) = stream.consumer_info(&consumer).await else {
        return;
    };
    let in_flight = info.num_ack_pending as u64;
    status.in_flight = Some(in_flight);
    status.pending = Some(info.num_pending + in_flight);
    if status.pending == Some(0) {
        return;
    }
    // Nothing up to the ack floor is pending, so the first match behind it is the oldest.
    let from = info.ack_floor.stream_sequence + 1;
    for subject in status.subjects.clone() {
        let message = stream
            .raw_message_builder()
            .sequence(from)
            .next_by_subject(&subject)
            .send()
            .await;
        // An error means that none is left of this subject.
        if let Ok(message) = message {
            status.note(message.sequence, message.time);
        }
    }
}

/// What waits, as the queue engine records it. A record of another life of the input is left over: what it is of is gone, or was begun anew.
async fn recorded(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    life: i64,
    status: &mut InputStatus,
) -> Result<(), ControlError> {
    let Some(commits) = open(js, &names.commit_stream()).await? else {
        return Ok(());
    };
    let filter = names.waiting_filter(&record.function, &status.stream);
    let mut read = 0;
    scan(&commits, all(filter, false), |message| {
        let known = serde_json::from_slice::<AttemptsRecord>(&message.payload).ok();
        let sequence = message.subject.rsplit('.').next();
        let sequence = sequence.and_then(|token| token.parse().ok());
        let known = known.zip(sequence).filter(|(known, sequence)| {
            let txn = names::txn(record.instance, &status.stream, life, *sequence);
            names.is_of_queue(&message.subject) && *known.txn == *txn
        });
        if let Some((known, _)) = known {
            status.waits(&known);
        }
        read += 1;
        if read >= READ {
            status.retrying += message.info().map_or(0, |info| info.pending);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })
    .await
}

/// What waits in the park of the position engine; how many. What positions do not name there has ended.
async fn parked(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    positions: &BTreeMap<u16, PositionRecord>,
    status: &mut InputStatus,
) -> Result<u64, ControlError> {
    let Some(commits) = open(js, &names.commit_stream()).await? else {
        return Ok(0);
    };
    let waiting = waiting(positions);
    if waiting.is_empty() {
        return Ok(0);
    }
    let filter = names.parked_filter(&record.function, &status.stream, None);
    let mut read = 0;
    scan(&commits, all(filter, true), |message| {
        let found = in_park(message, &status.stream);
        if let Some((_, found)) = found.filter(|(place, _)| waiting.contains(place)) {
            status.parked(&found);
        }
        read += 1;
        if read >= READ {
            status.retrying += message.info().map_or(0, |info| info.pending);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(status.retrying + status.deferred)
}

/// What positions name of the park: partition and sequence.
fn waiting(positions: &BTreeMap<u16, PositionRecord>) -> HashSet<(u16, u64)> {
    let all = positions.iter();
    all.flat_map(|(partition, record)| record.parked_sequences().map(|at| (*partition, at)))
        .collect()
}

/// Where a message of the park belongs, partition and sequence, and what it says; none: it is none that this release wrote.
fn in_park(message: &jetstream::Message, stream: &str) -> Option<((u16, u64), Parked)> {
    let mut tokens = message.subject.rsplit('.');
    let sequence = tokens.next()?.parse().ok()?;
    let partition = tokens.nth(1)?.parse().ok()?;
    let headers = message.headers.as_ref()?;
    let parked = park::read(
        &crate::nats::headers(Some(headers)),
        bytes::Bytes::new(),
        stream,
        sequence,
    )?;
    Some(((partition, sequence), parked))
}

/// What is there for a function that comes from no stream of the user's: calls, ticks and timers that are due. None: nothing is. Beyond
/// the first 10,000 that lie there, answers of calls among them, nothing is counted.
pub(super) async fn internal(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
) -> Result<Option<InputStatus>, ControlError> {
    let (function, stream) = (record.function.as_str(), names.commit_stream());
    let Some(commits) = open(js, &stream).await? else {
        return Ok(None);
    };
    let due_filter = names.due_filter(function);
    let parked_filter = names.parked_filter(function, &stream, None);
    let both = Scan {
        filters: vec![due_filter.clone(), parked_filter],
        from: DeliverPolicy::LastPerSubject,
        headers_only: true,
    };
    let (mut due, mut parked, mut read) = (BTreeMap::new(), BTreeMap::new(), 0);
    scan(&commits, both, |message| {
        if names.due_for(&message.subject).is_none() {
            parked.extend(in_park(message, &stream));
        } else if !call::is_left(&headers(message.headers.as_ref())) {
            let info = message.info();
            let info = info.map_err(|error| ControlError::nats(format!("read {stream}"), error))?;
            due.insert(info.stream_sequence, info.published);
        }
        read += 1;
        Ok(match read >= READ {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })
    .await?;
    if !parked.is_empty() {
        let place = Place {
            names,
            function,
            stream: &stream,
        };
        let waiting = waiting(&progress::records(js, place).await?);
        parked.retain(|place, _| waiting.contains(place));
    }
    let mut status = InputStatus {
        stream,
        subjects: vec![due_filter],
        ..InputStatus::default()
    };
    for ((_, sequence), one) in &parked {
        status.parked(one);
        // A call that has an id stays where it was, too.
        due.remove(sequence);
    }
    for (sequence, stored) in &due {
        status.note(*sequence, *stored);
    }
    let pending = (parked.len() + due.len()) as u64;
    status.pending = Some(pending);
    Ok((pending > 0).then_some(status))
}

/// How many events positions have not passed.
async fn behind(
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
    progress: &Progress,
    status: &mut InputStatus,
) -> Result<u64, ControlError> {
    let key = record.settings.key.as_ref();
    let beyond = Scan {
        filters: input.subjects.clone(),
        from: DeliverPolicy::ByStartSequence {
            start_sequence: progress.floor() + 1,
        },
        // A key may lie in the body.
        headers_only: matches!(key, None | Some(KeySource::Token(_))),
    };
    let name = input.stream.as_str().into();
    let (mut behind, mut read) = (0, 0);
    scan(stream, beyond, |taken| {
        let failed = |why: &dyn std::fmt::Display| {
            ControlError::nats(format!("read stream {}", input.stream), why)
        };
        let info = taken.info().map_err(|error| failed(&error))?;
        let message = source::message(taken, &info, &name);
        if !progress.is_done(key, &message) {
            behind += 1;
            let stored = OffsetDateTime::from_unix_timestamp_nanos(i128::from(message.stored));
            status.note(
                message.sequence,
                stored.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            );
        }
        read += 1;
        if message.sequence > progress.end() || read >= READ {
            behind += taken.info().map_err(|error| failed(&error))?.pending;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(behind)
}

fn all(filter: String, headers_only: bool) -> Scan {
    Scan {
        filters: vec![filter],
        from: DeliverPolicy::LastPerSubject,
        headers_only,
    }
}
