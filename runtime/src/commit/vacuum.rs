//! Removes delete markers of state keys, and whatever else is dead in the commit stream.
//!
//! A delete marker cannot simply expire, however late: should the server be killed after that, the
//! deleted value would be there again (`floor`). Nor does a purge help. So the floor rises first:
//! from then on, what is dead below it counts as absent for every reader, and can be removed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, Message};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::floor::{Builder, Floor};
use super::lifetime::Lifetime;
use super::state::FLOOR_FRESH;
use super::stream::{self, StreamError};
use crate::event::timestamp;
use crate::names::AppNames;
use crate::nats::raw::{self, Which};

/// How long a floor is known before anything is removed by it: longer than any reader believes an
/// earlier one.
const GRACE: Duration = Duration::from_secs(20);
const _: () = assert!(GRACE.as_secs() > FLOOR_FRESH.as_secs());
/// Between two looks through all of a stream.
const PAUSE: Duration = Duration::from_secs(15);
/// Between two counts of what is below the floor: each makes a reader on the server.
const COUNT: Duration = Duration::from_secs(30);
/// A stream with so many messages is looked through whenever it has changed; a larger one when a
/// part of it may be new.
const SMALL: u64 = 10_000;
const PART: u64 = 4;
/// A list of so many that are alive is short, and worth a single marker.
const FEW: u64 = 1000;
/// Messages that one look reads: a few seconds.
const MAX_READ: u64 = 2_000_000;
/// Messages that one look removes one by one, and so many at the same time.
const MAX_PURGES: usize = 20_000;
const AT_ONCE: usize = 16;
/// Sequences that one purge of many messages spans: nothing is stored meanwhile.
const STEP: u64 = 20_000;
/// Longest silence while the stream is read.
const SILENCE: Duration = Duration::from_secs(5);
/// Nothing is cleaned for so long after a message was met that no client can read: each look at it
/// would break the connection.
const REST: Duration = Duration::from_secs(600);
/// How its reader pulls, and when the server forgets one.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(2);
const FORGOTTEN: Duration = Duration::from_secs(5);
/// A value that has expired so long ago, nanoseconds, has expired by most clocks. A node whose
/// clock is further behind meets a conflict and reads again.
const EXPIRED: i64 = 10 * 1_000_000_000;

/// What earlier looks at one app's commit stream found.
#[derive(Debug, Default)]
pub struct Vacuum {
    floor: Floor,
    /// When this node first saw that floor.
    since: Option<Instant>,
    /// Messages below it when nothing dead was left there; later there can only be fewer.
    below: Option<u64>,
    /// When they were counted.
    counted: Option<Instant>,
    /// The stream's last sequence at the last look, and at the last one through all of it. What is
    /// younger than the former is left alone.
    seen: u64,
    looked: u64,
    /// When that last look was.
    at: Option<Instant>,
    /// Until when nothing is read: a message lies there that no client can read.
    rests: Option<Instant>,
    /// Does not wait: for tests.
    hasty: bool,
}

/// What a look did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Idle,
    /// The floor rose to this sequence.
    Raised(u64),
    /// So many dead messages were removed.
    Removed(u64),
    /// So many were removed that a killed server had brought back.
    Revived(u64),
}

/// Where the stream stands.
struct Bounds {
    first: u64,
    last: u64,
    messages: u64,
}

/// What is needed to look at one app's stream.
struct Place<'a> {
    js: &'a jetstream::Context,
    names: &'a AppNames,
    stream: Stream<()>,
    /// Up to here it was read the last time.
    reached: AtomicU64,
}

impl Vacuum {
    /// Removes what is dead below the floor; if there is nothing, raises the floor. One node of an
    /// app should do it; two are harmless.
    ///
    /// # Errors
    /// NATS trouble; the next look tries again.
    pub async fn look(
        &mut self,
        js: &jetstream::Context,
        names: &AppNames,
    ) -> Result<Look, StreamError> {
        if self.rests.is_some_and(|until| Instant::now() < until) {
            return Ok(Look::Idle);
        }
        let Some(bounds) = bounds(js, names).await? else {
            return Ok(Look::Idle);
        };
        let stream = js.get_stream_no_info(names.commit_stream()).await;
        let stream = stream.map_err(|error| StreamError(error.to_string()))?;
        let place = Place {
            js,
            names,
            stream,
            reached: AtomicU64::new(0),
        };
        let looked = self.look_at(&place, bounds).await;
        if looked.is_err() && place.met_unreadable().await {
            self.rests = Some(Instant::now() + REST);
        }
        looked
    }

    async fn look_at(&mut self, place: &Place<'_>, bounds: Bounds) -> Result<Look, StreamError> {
        let (js, names) = (place.js, place.names);
        let floor = Floor::read(js, names, &self.floor).await?;
        if floor != self.floor || self.since.is_none() {
            (self.floor, self.since, self.below) = (floor, Some(Instant::now()), None);
        }
        if bounds.first >= self.floor.sequence {
            self.below = Some(0);
        } else if self.below.is_none() || self.is_due() {
            let below = place.below(&bounds, self.floor.sequence).await?;
            if self.below.is_none_or(|before| below > before) {
                return self.clear(place, &bounds, below).await;
            }
            (self.below, self.counted) = (Some(below), Some(Instant::now()));
        }
        let upto = std::mem::replace(&mut self.seen, bounds.last);
        let grown = upto.saturating_sub(self.looked);
        let few = grown == 0 || bounds.messages > SMALL && grown < bounds.messages / PART;
        let early = self.at.is_some_and(|at| at.elapsed() < PAUSE) && !self.hasty;
        if few || early {
            return Ok(Look::Idle);
        }
        (self.looked, self.at) = (upto, Some(Instant::now()));
        let Some(risen) = place.survey(&self.floor, &bounds, upto).await? else {
            return Ok(Look::Idle);
        };
        let before = self.floor.sequence;
        match risen.store(&js.client(), js, names, before).await? {
            true => Ok(Look::Raised(risen.sequence)),
            false => Ok(Look::Idle),
        }
    }

    /// Whether it is time to look whether a killed server has brought anything back.
    fn is_due(&self) -> bool {
        let counted = self.counted;
        self.hasty || counted.is_none_or(|counted| counted.elapsed() >= COUNT)
    }

    /// Removes what is dead below the floor, once all readers know of it.
    async fn clear(
        &mut self,
        place: &Place<'_>,
        bounds: &Bounds,
        below: u64,
    ) -> Result<Look, StreamError> {
        let known = self.since.is_some_and(|since| since.elapsed() >= GRACE);
        if !known && !self.hasty {
            return Ok(Look::Idle);
        }
        let removed = place.purge_dead(&self.floor, bounds.first).await?;
        let before = self.below;
        if removed == 0 {
            // As it should be: alive, or gone by now.
            self.below = Some(below);
            return Ok(Look::Idle);
        }
        Ok(match before {
            // The next look says whether anything is left.
            None => Look::Removed(removed),
            Some(_) => Look::Revived(removed),
        })
    }
}

async fn bounds(js: &jetstream::Context, names: &AppNames) -> Result<Option<Bounds>, StreamError> {
    let info = stream::info(js, &names.commit_stream()).await?;
    Ok(info.map(|info| {
        let number = |name: &str| info["state"][name].as_u64().unwrap_or(0);
        Bounds {
            first: number("first_seq"),
            last: number("last_seq"),
            messages: number("messages"),
        }
    }))
}

impl Place<'_> {
    fn failed(&self, why: &dyn std::fmt::Display) -> StreamError {
        let name = self.names.commit_stream();
        StreamError(format!("cannot clean stream {name}: {why}"))
    }

    /// How many messages lie below a sequence. A few more or less while the stream is written to.
    async fn below(&self, bounds: &Bounds, sequence: u64) -> Result<u64, StreamError> {
        let consumer = self.consumer(sequence).await?;
        let from = consumer.cached_info().num_pending;
        self.forget(&consumer.cached_info().name).await;
        Ok(bounds.messages.saturating_sub(from))
    }

    /// The highest floor that is worth it; `None`: nothing is to be gained.
    async fn survey(
        &self,
        floor: &Floor,
        bounds: &Bounds,
        upto: u64,
    ) -> Result<Option<Floor>, StreamError> {
        let mut builder = Builder::default();
        let (mut dead, mut end) = (0_u64, bounds.first);
        self.read(bounds.first, upto, |sequence, message| {
            if floor.is_dead(sequence) || is_dead(self.names, message) {
                dead += 1;
            } else if !is_own(self.names, message) && !builder.push(sequence) {
                return false;
            }
            end = sequence + 1;
            true
        })
        .await?;
        let risen = builder.floor(end);
        let worth = dead >= risen.alive().saturating_sub(FEW) / PART;
        if dead == 0 || end <= floor.sequence || !worth {
            return Ok(None);
        }
        // Whoever is missing in the list is taken for dead: it is made sure that nobody is.
        let mut complete = true;
        self.read(bounds.first, end - 1, |sequence, message| {
            let gone = floor.is_dead(sequence) || is_dead(self.names, message);
            complete &= gone || is_own(self.names, message) || !risen.is_dead(sequence);
            complete
        })
        .await?;
        match complete {
            true => Ok(Some(risen)),
            false => Err(self.failed(&"two readings of it differ")),
        }
    }

    /// Removes what is dead below the floor: all state keys up to the first that is alive at once,
    /// the rest one by one.
    async fn purge_dead(&self, floor: &Floor, first: u64) -> Result<u64, StreamError> {
        let mut dead: Vec<(String, u64)> = Vec::new();
        let (mut row, mut end) = (None, first);
        let state = self.names.state_prefix();
        let upto = floor.sequence - 1;
        self.read(first, upto, |sequence, message| {
            let subject = message.subject.as_str();
            let is_state = subject.starts_with(&state);
            match floor.is_dead(sequence) {
                true if is_state && row.is_none() => {}
                true => dead.push((subject.to_owned(), sequence)),
                false if is_state => row = row.or(Some(sequence)),
                false => {}
            }
            end = sequence + 1;
            dead.len() < MAX_PURGES
        })
        .await?;
        let until = row.unwrap_or(end);
        let (mut removed, mut at) = (0, first);
        while at < until {
            at = until.min(at + STEP);
            removed += self.purge(format!("{state}>"), at).await?;
        }
        let purges = dead.into_iter();
        let purges = purges.map(|(subject, at)| self.purge(subject, at + 1));
        let mut purges = futures::stream::iter(purges).buffer_unordered(AT_ONCE);
        while let Some(purged) = purges.try_next().await? {
            removed += purged;
        }
        Ok(removed)
    }

    /// Removes what matches and is stored before this sequence.
    async fn purge(&self, filter: String, before: u64) -> Result<u64, StreamError> {
        let answer: Value = self
            .js
            .request(
                format!("STREAM.PURGE.{}", self.names.commit_stream()),
                &json!({ "filter": filter, "seq": before }),
            )
            .await
            .map_err(|error| self.failed(&error))?;
        match answer.get("error") {
            None => Ok(answer["purged"].as_u64().unwrap_or(0)),
            Some(error) => Err(self.failed(&error["description"])),
        }
    }

    /// Reads the headers of what the stream's leader has from `first` up to `last`, until `each`
    /// says no.
    async fn read(
        &self,
        first: u64,
        last: u64,
        mut each: impl FnMut(u64, &Message) -> bool,
    ) -> Result<(), StreamError> {
        let consumer = self.consumer(first).await?;
        let name = consumer.cached_info().name.clone();
        if consumer.cached_info().num_pending == 0 {
            self.forget(&name).await;
            return Ok(());
        }
        self.reached
            .store(first.saturating_sub(1), Ordering::Relaxed);
        let pull = consumer.stream().expires(EXPIRES).heartbeat(HEARTBEAT);
        let mut messages = pull.messages().await.map_err(|error| self.failed(&error))?;
        let mut read = 0;
        let ended = loop {
            let Ok(next) = tokio::time::timeout(SILENCE, messages.next()).await else {
                break Err(self.failed(&"no message for 5 s, though there are more"));
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => break Err(self.failed(&error)),
                None => break Err(self.failed(&"the reader ended")),
            };
            read += 1;
            let (sequence, pending) = match message.info() {
                Ok(info) if info.consumer_sequence == read => (info.stream_sequence, info.pending),
                Ok(_) => break Err(self.failed(&"the connection broke")),
                Err(error) => break Err(self.failed(&error)),
            };
            if sequence > last || !each(sequence, &message) {
                break Ok(());
            }
            self.reached.store(sequence, Ordering::Relaxed);
            if pending == 0 || read >= MAX_READ {
                break Ok(());
            }
        };
        drop(messages);
        self.forget(&name).await;
        ended
    }

    /// Whether it could not be read because of a message that breaks the connection.
    async fn met_unreadable(&self) -> bool {
        let next = Which::Next(self.reached.load(Ordering::Relaxed) + 1, ">");
        let stream = self.names.commit_stream();
        let found = raw::get(self.js, &stream, next).await.ok().flatten();
        let Some((why, found)) = found.and_then(|found| Some((found.unreadable.clone()?, found)))
        else {
            return false;
        };
        let (sequence, subject) = (found.sequence, found.subject);
        tracing::warn!(
            app = self.names.app(),
            stream,
            sequence,
            subject,
            why,
            "the commit stream is not cleaned while this message lies there; write the key again or delete it"
        );
        true
    }

    async fn consumer(&self, first: u64) -> Result<PullConsumer, StreamError> {
        let config = pull::Config {
            description: Some("Pelton cleaning".into()),
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: first.max(1),
            },
            headers_only: true,
            ..Default::default()
        };
        let consumer = self.stream.create_consumer(config).await;
        consumer.map_err(|error| self.failed(&error))
    }

    /// It would stay for half a minute, and a stream has only so many places for readers.
    async fn forget(&self, consumer: &str) {
        let _ = self.stream.delete_consumer(consumer).await;
    }
}

/// Whether a message is a deleted key, or a value that has expired and stays all the same.
fn is_dead(names: &AppNames, message: &Message) -> bool {
    if !message.subject.starts_with(&names.state_prefix()) {
        return false;
    }
    let header = |name: &str| Some(message.headers.as_ref()?.get(name)?.as_str());
    if header("KV-Operation").is_some() || header("Nats-Marker-Reason").is_some() {
        return true;
    }
    let stored = || {
        let info = message.info().ok()?;
        i64::try_from(info.published.unix_timestamp_nanos()).ok()
    };
    let until = Lifetime::of(header, stored).until;
    until.is_some_and(|until| until < timestamp::now() - EXPIRED)
}

/// Whether it is a record of the floor, which is stored once more when that rises.
fn is_own(names: &AppNames, message: &Message) -> bool {
    let subject = message.subject.as_str();
    subject == names.floor() || subject == names.alive()
}

#[cfg(test)]
mod tests;
