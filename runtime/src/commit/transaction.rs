//! One delivery as a batch: its marker, the checks of what it read, its writes, its outbox, its dead letter.

use std::borrow::Cow;
use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;

use async_nats::header::{self, HeaderMap, HeaderName};
use bytes::Bytes;

use super::batch::BatchMessage;
use super::position::Partition;
use super::{lifetime, timers};
use crate::effects::{Effects, Emit, Write};
use crate::event::{Headers, OutHeaders};
use crate::mutation;
use crate::names::AppNames;
use crate::nats::{append, header_map, header_value};

/// How long a marker suppresses duplicates of its delivery.
pub(crate) const MARKER_TTL: &str = "1h";
/// Leftovers that only carried a condition or cleared a record; the shortest the server knows.
pub(super) const SCRAP_TTL: &str = "1s";
/// What a message adds to its body: subject, headers of the batch, and what the server keeps of it.
const MESSAGE_OVERHEAD: usize = 256;

/// What a schedule's own headers may have, beyond those that a commit adds anyway.
const SCHEDULE_OVERHEAD: usize = 512;

/// Where a delivery comes from, as far as its commit must know.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The function.
    pub function: Arc<str>,
    /// The input stream.
    pub stream: Arc<str>,
    /// The sequence there.
    pub sequence: u64,
    /// The transaction's id (`names::txn`).
    pub txn: Arc<str>,
}

/// A delivery given up on, as stored in the app's dead-letter stream.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// `Pelton-*` headers.
    pub headers: Headers,
    /// The original payload; empty when it is in `parts`.
    pub payload: Bytes,
    /// The original message in pieces, where it does not fit into one message together with what is known of it.
    pub parts: Vec<Bytes>,
}

/// What keeps a delivery from being committed twice.
#[derive(Debug, Clone)]
pub enum Fence {
    /// A marker of its own, which must not be there yet: the queue engine.
    Marker,
    /// The position of its partition, which moves past it: the position engine.
    Position {
        /// The partition.
        partition: Partition,
        /// When the message was stored, nanoseconds since 1970; `None`: the record is only brought up to date.
        stored: Option<i64>,
    },
}

/// What becomes of the copy that waits for another attempt; the position engine's, under its park subject.
#[derive(Debug, Clone)]
pub struct Parking {
    /// The subject.
    pub subject: String,
    /// The revision that it must have: 0 for what was not parked before.
    pub revision: u64,
    /// What to keep, headers and body; `None`: nothing any more.
    pub message: Option<(Headers, Bytes)>,
}

/// What takes the place of a call in its function's internal input when it ends.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The subject.
    pub subject: String,
    /// The answer, which goes away by itself; `None`: there is none.
    pub message: Option<(Headers, Bytes)>,
}

/// A later delivery of the same partition that goes along: what it read and wrote is among the first one's.
#[derive(Debug, Clone)]
pub struct Follower {
    /// Its sequence in the input stream.
    pub sequence: u64,
    /// When its message was stored, nanoseconds since 1970.
    pub stored: i64,
    /// Its transaction's id: what it emits is its own.
    pub txn: Arc<str>,
    /// What it emits.
    pub emits: Vec<Emit>,
}

impl Follower {
    /// Bytes of its events.
    pub fn bytes(&self) -> usize {
        let emits = self.emits.iter();
        emits
            .map(|emit| emit.payload.len() + size(&emit.headers))
            .sum()
    }
}

/// Everything that becomes durable together.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Whose effects these are.
    pub origin: Origin,
    /// What lets it be committed once.
    pub fence: Fence,
    /// State writes with the revisions they rest on, and emitted events.
    pub effects: Effects,
    /// The dead letter, when the delivery is given up on.
    pub dead: Option<DeadLetter>,
    /// Whether a record of earlier attempts is to be cleared.
    pub clear_attempts: bool,
    /// Its copy that waits, when it was or is to be parked.
    pub parking: Option<Parking>,
    /// What remains of a call that may be asked again.
    pub answered: Option<Answered>,
    /// Those that go along, in their order; only with a position as fence.
    pub followers: Vec<Follower>,
}

impl Transaction {
    /// One without effects.
    pub fn new(origin: Origin, fence: Fence) -> Self {
        Self {
            origin,
            fence,
            effects: Effects::default(),
            dead: None,
            clear_attempts: false,
            parking: None,
            answered: None,
            followers: Vec::new(),
        }
    }

    /// The subjects of the state keys that it read, of its copy that waits, and of records of timers.
    pub(super) fn rests_on(&self, names: &AppNames) -> impl Iterator<Item = String> {
        let reads = self.effects.reads.keys().map(|key| names.state(key));
        let parked = self.parking.iter().map(|one| one.subject.clone());
        reads
            .chain(parked)
            .chain(self.effects.timers.keys().cloned())
    }

    /// The partition whose position moves.
    pub(super) fn partition(&self) -> Option<&Partition> {
        match &self.fence {
            Fence::Marker => None,
            Fence::Position { partition, .. } => Some(partition),
        }
    }

    /// The latest revision among all that it rests on.
    pub(super) fn seen(&self) -> u64 {
        let reads = self.effects.reads.values().copied();
        let timers = self.effects.timers.values().map(|change| change.revision);
        let parked = self.parking.iter().map(|one| one.revision);
        let position = self.partition().and_then(Partition::revision);
        let all = reads.chain(timers).chain(parked).chain(position);
        all.max().unwrap_or(0)
    }

    /// The messages that the position moves past, and when they were stored.
    pub(super) fn past(&self) -> impl Iterator<Item = (u64, i64)> {
        let own = match self.fence {
            Fence::Position { stored, .. } => stored.map(|stored| (self.origin.sequence, stored)),
            Fence::Marker => None,
        };
        let followers = self.followers.iter();
        own.into_iter()
            .chain(followers.map(|one| (one.sequence, one.stored)))
    }

    /// How many deliveries it ends or puts off.
    pub(super) fn deliveries(&self) -> usize {
        let only_position = matches!(self.fence, Fence::Position { stored: None, .. });
        usize::from(!only_position) + self.followers.len()
    }

    /// Whether it is in the park from now on, or not any more.
    pub(super) fn parks(&self) -> Option<(u64, bool)> {
        let parking = self.parking.as_ref()?;
        Some((self.origin.sequence, parking.message.is_some()))
    }

    /// What it emits: transaction's id, number there, event.
    fn emits(&self) -> impl Iterator<Item = (&str, usize, &Emit)> {
        let own = (self.origin.txn.as_ref(), &self.effects.emits);
        let followers = self.followers.iter();
        let all = std::iter::once(own).chain(followers.map(|one| (one.txn.as_ref(), &one.emits)));
        all.flat_map(|(txn, emits)| {
            emits
                .iter()
                .enumerate()
                .map(move |(n, emit)| (txn, n, emit))
        })
    }

    /// Whether it waited in the park, or is put back there: then its position has moved past it before, and names it for as long as it has
    /// not ended.
    pub(super) fn was_parked(&self) -> bool {
        let back = matches!(self.fence, Fence::Position { stored: None, .. });
        self.parking
            .as_ref()
            .is_some_and(|one| back || one.revision > 0)
    }

    /// Whether its partition tells that it has ended, or is parked, by a batch that had no answer.
    pub(super) fn is_settled(&self, partition: &Partition) -> bool {
        match self.was_parked() {
            true => !partition.is_parked(self.origin.sequence),
            false => self.past().any(|(sequence, _)| partition.is_done(sequence)),
        }
    }

    /// The marker's subject, if it has one.
    pub(super) fn marker(&self, names: &AppNames) -> Option<String> {
        if let Fence::Position { .. } = self.fence {
            return None;
        }
        let Origin {
            function,
            stream,
            sequence,
            ..
        } = &self.origin;
        Some(names.marker(function, stream, *sequence))
    }

    /// How many messages it is, without its position, which others may share.
    pub(super) fn count(&self) -> usize {
        let Effects {
            reads,
            writes,
            timers,
            ..
        } = &self.effects;
        let checks = reads
            .keys()
            .filter(|key| !writes.contains_key(*key))
            .count();
        let dead = self.dead.as_ref().map_or(0, |dead| 1 + dead.parts.len());
        let marker = matches!(self.fence, Fence::Marker);
        let singles = [
            marker,
            self.clear_attempts,
            self.parking.is_some(),
            self.answered.is_some(),
        ];
        let singles = singles.into_iter().filter(|one| *one).count();
        let timers = timers.len() + self.effects.set_timers().count();
        checks + writes.len() + self.emits().count() + timers + dead + singles
    }

    /// Bytes of its largest message: body and the headers that are its own.
    pub(super) fn largest(&self) -> usize {
        let writes = self.effects.writes.values().map(Write::size);
        let emits = self.emits();
        let emits = emits.map(|(_, _, emit)| emit.payload.len() + size(&emit.headers));
        let parked = self
            .aside()
            .map(|(headers, payload)| payload.len() + size(headers));
        let timers = self.effects.set_timers();
        let timers = timers.map(|one| one.payload.len() + size(&one.headers) + SCHEDULE_OVERHEAD);
        let dead = self.dead.iter().flat_map(|dead| {
            let letter = dead.payload.len() + size(&dead.headers);
            dead.parts.iter().map(Bytes::len).chain([letter])
        });
        writes
            .chain(emits)
            .chain(dead)
            .chain(parked)
            .chain(timers)
            .max()
            .unwrap_or(0)
    }

    /// What it keeps that is no effect: the copy that waits, the answer.
    fn aside(&self) -> impl Iterator<Item = &(Headers, Bytes)> {
        let parked = self.parking.iter().filter_map(|one| one.message.as_ref());
        let answered = self.answered.iter();
        parked.chain(answered.filter_map(|one| one.message.as_ref()))
    }

    /// About how many bytes it is: bodies and headers, and something for each subject.
    pub(super) fn bytes(&self) -> usize {
        let dead = self.dead.as_ref().map_or(0, |dead| {
            let parts: usize = dead.parts.iter().map(Bytes::len).sum();
            dead.payload.len() + parts + size(&dead.headers)
        });
        let parked: usize = self
            .aside()
            .map(|(headers, payload)| payload.len() + size(headers))
            .sum();
        let followers: usize = self.followers.iter().map(Follower::bytes).sum();
        self.effects.bytes() + followers + dead + parked + self.count() * MESSAGE_OVERHEAD
    }

    /// Adds its messages to a batch. `marker` is the sequence that the marker's subject must have: 0, or that of a
    /// stale marker which an input stream of the same name left before it was made anew. `checked` are the keys that
    /// the batch checks already.
    pub(super) fn lay_out<'a>(
        &'a self,
        names: &AppNames,
        marker: u64,
        checked: &mut HashSet<&'a str>,
        messages: &mut Vec<BatchMessage>,
    ) {
        let Origin {
            function,
            stream,
            sequence,
            txn,
        } = &self.origin;
        if let Some(subject) = self.marker(names) {
            let mut headers = expecting(marker);
            headers.insert(header::NATS_MESSAGE_TTL, MARKER_TTL);
            messages.push(BatchMessage {
                subject,
                headers,
                payload: Bytes::copy_from_slice(txn.as_bytes()),
            });
        }
        self.push_checks(names, checked, messages);
        self.push_writes(names, messages);
        timers::push_records(&self.effects.timers, names, messages);
        self.push_outbox(names, messages);
        if self.clear_attempts {
            messages.push(scrap(
                names.attempts(function, stream, *sequence),
                HeaderMap::new(),
                SCRAP_TTL,
            ));
        }
        if let Some(Parking {
            subject,
            revision,
            message,
        }) = &self.parking
        {
            messages.push(aside(subject, expecting(*revision), message.as_ref()));
        }
        if let Some(Answered { subject, message }) = &self.answered {
            messages.push(aside(subject, HeaderMap::new(), message.as_ref()));
        }
    }

    /// A key that was read but not written is checked by a message of its own, which names the key's subject.
    fn push_checks<'a>(
        &'a self,
        names: &AppNames,
        checked: &mut HashSet<&'a str>,
        messages: &mut Vec<BatchMessage>,
    ) {
        for (key, revision) in &self.effects.reads {
            if self.effects.writes.contains_key(key) || !checked.insert(key) {
                continue;
            }
            messages.push(self.check(names, key, *revision));
        }
    }

    /// A message that carries the condition on a key, and nothing else.
    fn check(&self, names: &AppNames, key: &str, revision: u64) -> BatchMessage {
        let mut headers = expecting(revision);
        headers.insert(
            "Nats-Expected-Last-Subject-Sequence-Subject",
            names.state(key),
        );
        scrap(names.check(&self.origin.function), headers, SCRAP_TTL)
    }

    fn push_writes(&self, names: &AppNames, messages: &mut Vec<BatchMessage>) {
        for (key, write) in &self.effects.writes {
            let mut headers = HeaderMap::new();
            let seen = self.effects.reads.get(key);
            if seen == Some(&0) && *write == Write::Delete {
                // There is nothing to delete; a marker would only take up room.
                messages.push(self.check(names, key, 0));
                continue;
            }
            if let Some(revision) = seen.filter(|_| !mutation::is("key-revision")) {
                headers.insert(
                    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
                    revision.to_string(),
                );
            }
            let payload = match write {
                Write::Set(value) => value.clone(),
                Write::SetUntil(value, until) => {
                    lifetime::expiring(&self.effects, key, *until, &mut headers);
                    value.clone()
                }
                Write::Delete => {
                    lifetime::deleting(&self.effects, key, &mut headers);
                    Bytes::new()
                }
            };
            messages.push(BatchMessage {
                subject: names.state(key),
                headers,
                payload,
            });
        }
    }

    /// No `Nats-Msg-Id` (a reused one would be dropped in the target's window) and no TTL (it would travel).
    fn push_outbox(&self, names: &AppNames, messages: &mut Vec<BatchMessage>) {
        for (txn, n, emit) in self.emits() {
            messages.push(BatchMessage {
                subject: names.outbox(&emit.target, txn, n, &emit.subject),
                headers: event_headers(&emit.headers),
                payload: emit.payload.clone(),
            });
        }
        let Some(dead) = &self.dead else { return };
        let txn = &self.origin.txn;
        let mut n = self.effects.emits.len();
        let mut push = |subject: String, headers: HeaderMap, payload: &Bytes| {
            n += 1;
            messages.push(BatchMessage {
                subject: names.outbox(&names.dead_stream(), txn, n, &subject),
                headers,
                payload: payload.clone(),
            });
        };
        for (n, part) in dead.parts.iter().enumerate() {
            push(names.dead_part(txn, n), HeaderMap::new(), part);
        }
        // The letter comes last: who sees it finds its parts.
        let subject = names.dead_subject(&self.origin.function);
        push(subject, header_map(&dead.headers), &dead.payload);
    }
}

/// The condition that the last message of the subject has this sequence.
pub(super) fn expecting(revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
        revision.to_string(),
    );
    headers
}

/// A message whose body means nothing and which goes away by itself.
pub(super) fn scrap(subject: String, mut headers: HeaderMap, ttl: &str) -> BatchMessage {
    headers.insert(header::NATS_MESSAGE_TTL, ttl);
    headers.insert("KV-Operation", "PURGE");
    BatchMessage {
        subject,
        headers,
        payload: Bytes::new(),
    }
}

/// Keeps something under a subject, or nothing any more.
fn aside(
    subject: &str,
    mut headers: HeaderMap,
    message: Option<&(Headers, Bytes)>,
) -> BatchMessage {
    let Some((kept, payload)) = message else {
        return scrap(subject.to_owned(), headers, SCRAP_TTL);
    };
    append(&mut headers, kept);
    BatchMessage {
        subject: subject.to_owned(),
        headers,
        payload: payload.clone(),
    }
}

fn size(headers: &[(impl AsRef<str>, String)]) -> usize {
    let headers = headers.iter();
    headers
        .map(|(name, value)| name.as_ref().len() + value.len() + 4)
        .sum()
}

/// The headers of an event, none of them twice.
fn event_headers(headers: &OutHeaders) -> HeaderMap {
    let named = headers.iter().filter_map(|(name, value)| {
        let name = match name {
            Cow::Borrowed(name) => HeaderName::from_static(name),
            // Names of attributes, which were checked as the event was made.
            Cow::Owned(name) => HeaderName::from_str(name).ok()?,
        };
        Some((name, header_value(value)))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Transaction {
        let mut effects = Effects::default();
        effects.reads.insert("a".into(), 3);
        effects.reads.insert("b".into(), 0);
        effects.writes.insert("b".into(), Write::Set("x".into()));
        effects.writes.insert("c".into(), Write::Delete);
        effects.emits.push(Emit {
            target: "T".into(),
            subject: "t.1".into(),
            headers: vec![],
            payload: Bytes::new(),
        });
        let origin = Origin {
            function: "f".into(),
            stream: "S".into(),
            sequence: 9,
            txn: "t".into(),
        };
        Transaction {
            effects,
            ..Transaction::new(origin, Fence::Marker)
        }
    }

    #[test]
    fn layout_is_marker_checks_writes_outbox() {
        let names = AppNames::new("app");
        let (sample, mut messages) = (sample(), Vec::new());
        sample.lay_out(&names, 0, &mut HashSet::new(), &mut messages);
        assert_eq!(messages.len(), sample.count());
        let subjects: Vec<_> = messages
            .iter()
            .map(|message| message.subject.as_str())
            .collect();
        assert_eq!(
            subjects,
            [
                "$KV.PELTON_app.txn.f.S.9",
                "$KV.PELTON_app.txn.f.check",
                "$KV.app.b",
                "$KV.app.c",
                "$KV.PELTON_app.out.T.t.0.t.1"
            ]
        );
        let expected = |index: usize| {
            messages[index]
                .headers
                .get("Nats-Expected-Last-Subject-Sequence")
                .map(|v| v.as_str())
        };
        assert_eq!(expected(0), Some("0"));
        assert_eq!(expected(1), Some("3"));
        assert_eq!(expected(2), Some("0"));
        assert_eq!(expected(3), None, "a blind write has no condition");
    }
}
