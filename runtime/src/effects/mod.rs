//! Effects as data: what an attempt read, wrote and emitted. Collected in the sandbox, made durable by `commit`.

mod collector;
mod failure;
mod key;
mod memory;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::event::{Headers, OutHeaders};
use crate::records::Ticking;

pub use collector::Collector;
pub(crate) use failure::cut;
pub use failure::{Disposition, Failure, MAX_ERROR_BYTES};
pub use key::{is_key, is_prefix};
pub use memory::MemoryState;
pub use rules::Rules;

/// Keys read or written in one attempt, at most: a commit is one batch of at most 1000 messages.
pub const MAX_KEYS: usize = 512;
/// Bytes of keys and values read or written in one attempt.
pub const MAX_STATE_BYTES: usize = 8 << 20;
/// Events emitted in one attempt.
pub const MAX_EMITS: usize = 256;
/// Bytes emitted in one attempt.
pub const MAX_EMIT_BYTES: usize = 8 << 20;
/// Room that a stored message keeps free for the headers that a commit adds.
pub const HEADER_RESERVE: usize = 1 << 10;

/// A state write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Set(Bytes),
    /// Create or replace with a value that expires at this time, nanoseconds since 1970.
    SetUntil(Bytes, i64),
    /// Delete.
    Delete,
}

impl Write {
    /// The new value; `None`: there is none.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Set(value) | Self::SetUntil(value, _) => Some(value),
            Self::Delete => None,
        }
    }

    /// Bytes of the new value.
    pub fn size(&self) -> usize {
        self.value().map_or(0, Bytes::len)
    }
}

/// An emitted event, ready for its target stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emit {
    /// Stream that covers `subject`.
    pub target: String,
    /// The NATS subject.
    pub subject: String,
    /// CloudEvents binary-mode headers.
    pub headers: OutHeaders,
    /// The data.
    pub payload: Bytes,
}

/// What a caller is to be told when the attempt commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// What the handler found.
    Data {
        /// Media type of `data`.
        content_type: String,
        /// The data.
        data: Bytes,
    },
    /// Why it found nothing; the delivery is handled all the same.
    Error(Failure),
}

impl Reply {
    fn bytes(&self) -> usize {
        match self {
            Self::Data { data, .. } => data.len(),
            Self::Error(failure) => failure.code.len() + failure.message.len(),
        }
    }
}

/// What is to happen at a time: a message to the function's internal input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Names it among all of the app; one subject token.
    pub id: String,
    /// When, nanoseconds since 1970.
    pub at: i64,
    /// What the message says of itself, and the headers of the event.
    pub headers: Headers,
    /// The data.
    pub payload: Bytes,
    /// What it is a tick of.
    pub ticking: Option<Ticking>,
}

/// A change of the record that says which timer of its name is the latest: only that one counts when it is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerChange {
    /// The record's revision that the change rests on; 0: there is none.
    pub revision: u64,
    /// The timer that it held, which is taken away.
    pub before: Option<String>,
    /// The one that it holds from now on; `None`: none.
    pub next: Option<Timer>,
}

/// Everything one attempt wants to change, and the reads it rests on.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    /// Key → revision seen (a deleted key: its tombstone's; 0: never existed). Checked at commit.
    pub reads: BTreeMap<String, u64>,
    /// Of the keys read, those of which every stored version ends by itself, and when the last of
    /// them does ([`Versioned::ends`]).
    pub ends: BTreeMap<String, i64>,
    /// Key → last write.
    pub writes: BTreeMap<String, Write>,
    /// In the order emitted.
    pub emits: Vec<Emit>,
    /// Timers set and taken back, by the subject of their record.
    pub timers: BTreeMap<String, TimerChange>,
    /// The last one counts; none: the caller gets an empty reply. Always none when nobody waits for one.
    pub reply: Option<Reply>,
    /// The transaction's id, if an event was named by it.
    pub txn: Option<Arc<str>>,
}

impl Effects {
    /// Whether nothing was read, written or emitted.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
            && self.writes.is_empty()
            && self.emits.is_empty()
            && self.timers.is_empty()
    }

    /// Timers that are set.
    pub fn set_timers(&self) -> impl Iterator<Item = &Timer> {
        self.timers
            .values()
            .filter_map(|change| change.next.as_ref())
    }

    /// Bytes of all values and events, and of the reply.
    pub fn bytes(&self) -> usize {
        let writes = self.writes.iter();
        let writes = writes.map(|(key, write)| key.len() + write.size());
        fn size(headers: &[(impl AsRef<str>, String)]) -> usize {
            let headers = headers.iter();
            headers
                .map(|(n, value)| n.as_ref().len() + value.len())
                .sum()
        }
        let emits = self.emits.iter();
        let emits = emits.map(|emit| emit.payload.len() + size(&emit.headers));
        let timers = self.set_timers();
        let timers = timers.map(|timer| timer.payload.len() + size(&timer.headers));
        let reply = self.reply.iter().map(Reply::bytes);
        writes.chain(emits).chain(timers).chain(reply).sum()
    }

    /// The same reads with nothing to change: what a failed attempt's verdict rests on.
    pub fn reads_only(&self) -> Self {
        Self {
            reads: self.reads.clone(),
            ..Self::default()
        }
    }
}

/// What one attempt came to. `effects` of a failed attempt count only for their reads.
#[derive(Debug)]
pub struct Attempt {
    /// The handler's answer, a trap or a timeout.
    pub result: Result<(), Failure>,
    /// What it read and wants to change.
    pub effects: Effects,
}

/// A value and the revision it was read at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versioned {
    /// None when the key does not exist or was deleted.
    pub value: Option<Bytes>,
    /// Revision of the value or of the tombstone; 0 when the key never existed.
    pub revision: u64,
    /// When the value expires, nanoseconds since 1970.
    pub until: Option<i64>,
    /// When the server has removed this version and every earlier one of the key, nanoseconds since
    /// 1970. `None`: not all of them end by themselves, so a server that is killed may bring an
    /// earlier one back once the latest is gone.
    pub ends: Option<i64>,
}

impl Versioned {
    /// A value that does not expire.
    pub fn new(value: Option<Bytes>, revision: u64) -> Self {
        Self {
            value,
            revision,
            until: None,
            ends: None,
        }
    }

    /// Whether the value has expired at `now`, nanoseconds since 1970. The server may still have
    /// it.
    pub fn is_expired(&self, now: i64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// What a reader sees at `now`: an expired value is absent.
    pub fn as_of(mut self, now: i64) -> Self {
        if self.is_expired(now) {
            self.value = None;
        }
        self
    }
}

/// How a guest's reads reach state: NATS in a node, memory in tests.
pub trait StateReader: Send + Sync + 'static {
    /// In the order asked, consistent in itself, in one round trip.
    fn get_many<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Versioned>, StateError>>;

    /// A record of Pelton's own in the commit stream, by its subject.
    fn record<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Versioned, StateError>>;

    /// Live keys below `prefix` (whole tokens; empty: all), in byte order, from behind `after`, at most `limit`.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<String>, StateError>>;
}

/// State could not be read in time; the attempt may retry.
#[derive(Debug, Clone, thiserror::Error)]
#[error("state of app is not readable: {0}")]
pub struct StateError(pub String);
