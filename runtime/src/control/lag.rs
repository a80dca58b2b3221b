//! How far a function is behind in one of its inputs, for either engine: what is pending, how old the oldest of it is, and what
//! waits for another attempt or another event.
//!
//! The queue engine's consumer counts what is pending. Positions do not: what lies beyond the least of them is read, until
//! the end of what any of them has done, or for so many messages; all that lies beyond is counted by the server.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::progress::{self, Place, Progress};
use super::scan::look;
use super::{ControlError, open};
use crate::call;
use crate::config::DeliveryMode;
use crate::event::{Message, subject};
use crate::names::{self, AppNames};
use crate::records::{AttemptsRecord, FunctionRecord, Input, PositionRecord, rfc3339};
use crate::settle::park::{self, Parked};
use crate::source;

/// Messages of an input, and deliveries that wait, that one look reads at most: it takes a fraction of a second.
const READ: u64 = 10_000;
/// Bytes of them: direct gets bring bodies, too.
const BYTES: usize = 16 << 20;

/// Messages, and bytes, of all functions of an app that are read at once.
const WIDE: u64 = 50_000;
const WIDE_BYTES: usize = 32 << 20;

/// What lies in the commit stream for each function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Park,
    Due,
}

impl Kind {
    /// The token behind the app in the subjects of this kind; the function follows.
    fn token(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::Due => "due",
        }
    }
}

/// Messages of one kind by function; none: there are too many, or one cannot be read.
type ByFunction = Option<BTreeMap<String, Vec<Message>>>;

/// What one listing has read and several functions need, so that each is requested once.
pub(crate) struct Looks {
    js: jetstream::Context,
    /// Whether all functions of an app are looked at.
    wide: bool,
    streams: BTreeMap<String, Option<Stream>>,
    /// By app and kind.
    known: BTreeMap<(String, Kind), ByFunction>,
}

impl Looks {
    pub(super) fn new(js: &jetstream::Context, wide: bool) -> Self {
        Self {
            js: js.clone(),
            wide,
            streams: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    pub(super) fn js(&self) -> &jetstream::Context {
        &self.js
    }

    /// The stream; none: it does not exist.
    pub(super) async fn stream(&mut self, name: &str) -> Result<Option<Stream>, ControlError> {
        if let Some(known) = self.streams.get(name) {
            return Ok(known.clone());
        }
        let found = open(&self.js, name).await?;
        self.streams.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    /// Calls `each` with the messages of a function under a filter, as [`look`] does.
    async fn commits(
        &mut self,
        (names, function): (&AppNames, &str),
        kind: Kind,
        filter: &str,
        mut each: impl FnMut(&Message, u64) -> Result<ControlFlow<()>, ControlError>,
    ) -> Result<(), ControlError> {
        let Some(stream) = self.stream(&names.commit_stream()).await? else {
            return Ok(());
        };
        if self.wide {
            self.load(names, kind, &stream).await;
        }
        let key = (names.app().to_owned(), kind);
        let Some(Some(known)) = self.known.get(&key) else {
            return look(&self.js.client(), &stream, filter, 1, each).await;
        };
        let all = known.get(function).into_iter().flatten();
        let found: Vec<&Message> = all
            .filter(|message| subject::matches(filter, &message.subject))
            .collect();
        for (message, left) in found.iter().zip((0..found.len() as u64).rev()) {
            if each(message, left)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Reads the messages of all functions of an app, unless that was done.
    async fn load(&mut self, names: &AppNames, kind: Kind, stream: &Stream) {
        let key = (names.app().to_owned(), kind);
        if self.known.contains_key(&key) {
            return;
        }
        let start = names.kind_prefix(kind.token());
        let filter = format!("{start}>");
        let mut found: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        let (mut read, mut whole) = (Read::default(), true);
        let each = |message: &Message, _| {
            let rest = message.subject.strip_prefix(&start);
            if let Some((function, _)) = rest.and_then(|rest| rest.split_once('.')) {
                let messages = found.entry(function.to_owned()).or_default();
                messages.push(message.clone());
            }
            whole = !read.exceeds(message, WIDE, WIDE_BYTES);
            Ok(match whole {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        };
        let looked = look(&self.js.client(), stream, &filter, 1, each).await;
        if let Err(error) = &looked {
            tracing::debug!(error = error.what, "read function by function");
        }
        let found = (whole && looked.is_ok()).then_some(found);
        self.known.insert(key, found);
    }
}

/// How much one look has read.
#[derive(Debug, Default)]
struct Read {
    messages: u64,
    bytes: usize,
}

impl Read {
    /// Counts a message; whether that is enough.
    fn note(&mut self, message: &Message) -> bool {
        self.exceeds(message, READ, BYTES)
    }

    fn exceeds(&mut self, message: &Message, messages: u64, bytes: usize) -> bool {
        self.messages += 1;
        self.bytes += message.payload.len();
        self.messages >= messages || self.bytes >= bytes
    }
}

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
    /// positions at most so many: of those beyond the first 10,000 (or 16 MiB) that no position
    /// passed, some may be done.
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
        self.note(parked.message.sequence, time(parked.message.stored));
    }

    fn waits(&mut self, record: &AttemptsRecord) {
        match record.deferred_since_ms {
            Some(_) => self.deferred += 1,
            None => self.retrying += 1,
        }
    }
}

/// Reads how far a function is in one of its inputs. After an error, `status` keeps what was read.
pub(super) async fn of(
    looks: &mut Looks,
    names: &AppNames,
    record: &FunctionRecord,
    input: &Input,
    status: &mut InputStatus,
) -> Result<(), ControlError> {
    let stream = looks.stream(&input.stream).await?;
    match record.settings.delivery {
        DeliveryMode::AtLeastOnce => {
            let Some(stream) = stream else {
                return Ok(());
            };
            status.consumer = Some(names.consumer(&record.function, record.instance));
            queue(&stream, status).await;
            // What waits is not acknowledged.
            if status.in_flight > Some(0) {
                let created = stream.cached_info().created.unix_timestamp_nanos();
                let life = input.life(i64::try_from(created).unwrap_or_default());
                recorded(looks, names, record, life, status).await?;
            }
        }
        DeliveryMode::ExactlyOnce => {
            let place = Place {
                names,
                function: &record.function,
                stream: &input.stream,
            };
            let positions = positions(looks, place).await?;
            // What waits does so whether its stream is there or not.
            let waiting = parked(looks, place, &positions, status).await?;
            let Some(stream) = stream else {
                return Ok(());
            };
            let progress = Progress::new(input.start, &positions);
            let behind = behind(looks.js(), &stream, record, input, &progress, status).await?;
            status.pending = Some(waiting + behind);
        }
    }
    Ok(())
}

/// Positions are rewritten all the time, so a batch by batch read of all functions would chase
/// them;
/// those of one input come in one consistent answer.
async fn positions(
    looks: &mut Looks,
    place: Place<'_>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    match looks.stream(&place.names.commit_stream()).await? {
        Some(_) => progress::records(looks.js(), place).await,
        None => Ok(BTreeMap::new()),
    }
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
    looks: &mut Looks,
    names: &AppNames,
    record: &FunctionRecord,
    life: i64,
    status: &mut InputStatus,
) -> Result<(), ControlError> {
    let filter = names.attempts_filter(&record.function, &status.stream);
    let mut read = Read::default();
    let of = (names, record.function.as_str());
    let stream = status.stream.clone();
    let each = |message: &Message, more| {
        let known = serde_json::from_slice::<AttemptsRecord>(&message.payload).ok();
        let sequence = message.subject.rsplit('.').next();
        let sequence = sequence.and_then(|token| token.parse().ok());
        let known = known.zip(sequence).filter(|(known, sequence)| {
            let txn = names::txn(record.instance, &stream, life, *sequence);
            *known.txn == *txn
        });
        if let Some((known, _)) = known {
            status.waits(&known);
        }
        if read.note(message) {
            status.retrying += more;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    };
    looks.commits(of, Kind::Park, &filter, each).await
}

/// Counts what waits in the park of the position engine. The positions name it; whatever else lies
/// there has ended.
async fn parked(
    looks: &mut Looks,
    place: Place<'_>,
    positions: &BTreeMap<u16, PositionRecord>,
    status: &mut InputStatus,
) -> Result<u64, ControlError> {
    let waiting = waiting(positions);
    if waiting.is_empty() {
        return Ok(0);
    }
    let known = in_park(looks, place).await?;
    for parked in known.iter().filter(|(place, _)| waiting.contains(place)) {
        status.parked(parked.1);
    }
    let all = waiting.len() as u64;
    // Of those that were not read, most wait for another attempt.
    status.retrying += all.saturating_sub(status.retrying + status.deferred);
    Ok(all)
}

/// What positions name of the park: partition and sequence.
fn waiting(positions: &BTreeMap<u16, PositionRecord>) -> HashSet<(u16, u64)> {
    let all = positions.iter();
    all.flat_map(|(partition, record)| record.parked_sequences().map(|at| (*partition, at)))
        .collect()
}

/// What lies in the park of an input, by partition and sequence; the first 10,000.
async fn in_park(
    looks: &mut Looks,
    place: Place<'_>,
) -> Result<BTreeMap<(u16, u64), Parked>, ControlError> {
    let filter = place
        .names
        .parked_filter(place.function, place.stream, None);
    let of = (place.names, place.function);
    let (mut found, mut read) = (BTreeMap::new(), Read::default());
    let each = |message: &Message, _| {
        found.extend(read_parked(message, place.stream));
        Ok(match read.note(message) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    };
    looks.commits(of, Kind::Park, &filter, each).await?;
    Ok(found)
}

/// Where a message of the park belongs, partition and sequence, and what it says; none: it is none that this release wrote.
fn read_parked(message: &Message, stream: &str) -> Option<((u16, u64), Parked)> {
    let mut tokens = message.subject.rsplit('.');
    let sequence = tokens.next()?.parse().ok()?;
    let partition = tokens.nth(1)?.parse().ok()?;
    let parked = park::read(&message.headers, bytes::Bytes::new(), stream, sequence)?;
    Some(((partition, sequence), parked))
}

/// What is there for a function that comes from no stream of the user's: calls, ticks and timers that are due. None: nothing is. Beyond
/// the first 10,000 that lie there, answers of calls among them, nothing is counted.
pub(super) async fn internal(
    looks: &mut Looks,
    names: &AppNames,
    record: &FunctionRecord,
) -> Result<Option<InputStatus>, ControlError> {
    let (function, stream) = (record.function.as_str(), names.commit_stream());
    let filter = names.due_filter(function);
    let (mut due, mut read) = (BTreeMap::new(), Read::default());
    let key = record.settings.key.as_ref();
    let each = |message: &Message, _| {
        if !call::is_left(&message.headers) {
            let partition = source::partition_of_due(key, message);
            due.insert(message.sequence, (message.stored, partition));
        }
        Ok(match read.note(message) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    };
    let of = (names, function);
    looks.commits(of, Kind::Due, &filter, each).await?;
    let place = Place {
        names,
        function,
        stream: &stream,
    };
    let mut parked = in_park(looks, place).await?;
    if !parked.is_empty() || !due.is_empty() {
        let positions = positions(looks, place).await?;
        let waiting = waiting(&positions);
        parked.retain(|place, _| waiting.contains(place));
        // What has ended is there again because its server was killed.
        due.retain(|sequence, (_, partition)| {
            let record = positions.get(partition);
            record.is_none_or(|record| !record.has_ended(*sequence))
        });
    }
    let mut status = InputStatus {
        subjects: vec![filter],
        stream,
        ..InputStatus::default()
    };
    for ((_, sequence), one) in &parked {
        status.parked(one);
        // A call that has an id stays where it was, too.
        due.remove(sequence);
    }
    for (sequence, (stored, _)) in &due {
        status.note(*sequence, time(*stored));
    }
    let pending = (parked.len() + due.len()) as u64;
    status.pending = Some(pending);
    Ok((pending > 0).then_some(status))
}

/// How many events positions have not passed.
async fn behind(
    js: &jetstream::Context,
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
    progress: &Progress,
    status: &mut InputStatus,
) -> Result<u64, ControlError> {
    let from = progress.floor() + 1;
    if stream.cached_info().state.last_sequence < from {
        return Ok(0);
    }
    let key = record.settings.key.as_ref();
    let (mut behind, mut read) = (0, Read::default());
    for filter in &input.subjects {
        look(&js.client(), stream, filter, from, |message, more| {
            if !progress.is_done(key, message) {
                behind += 1;
                status.note(message.sequence, time(message.stored));
            }
            if read.note(message) || message.sequence > progress.end() {
                behind += more;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    }
    Ok(behind)
}

fn time(nanoseconds: i64) -> OffsetDateTime {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds));
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
