//! Several deliveries of one key, one after the other, as one transaction: each sees what those before it wrote, and all of it becomes
//! durable together or not at all. Otherwise a key on which many events come would commit once per round trip.
//!
//! Only what goes well is gathered: a delivery that fails after others waits until they are committed, and is tried then as if it had not
//! been, for what it rests on was not durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::commit::Follower;
use crate::delivery::{self, Worker};
use crate::effects::{Attempt, Effects, StateError, StateReader, Versioned};
use crate::settle::{self, Case};
use crate::source::Received;

/// Deliveries in one series, and messages of it, of the thousand of a batch: a key on which many events come commits once per
/// round trip, however many go together.
pub(crate) const MAX_SERIES: usize = 768;
const MAX_MESSAGES: usize = 768;
/// Or to so many bytes.
const MAX_BYTES: usize = 1 << 20;
/// Or when it has taken so long: the first of them waits for the last.
const PATIENCE: Duration = Duration::from_millis(10);
/// The revision of what an earlier one of the series wrote: it has none yet.
const PENDING: u64 = u64::MAX;

/// One delivery and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) case: &'a Case,
    pub(crate) received: &'a Received,
}

/// Deliveries that have been tried, and go together.
pub(crate) struct Series {
    /// The first one's result, with the state of all of them: what they read and what they wrote last.
    pub(crate) attempt: Attempt,
    /// The others.
    pub(crate) followers: Vec<Follower>,
    /// Events of those, and bytes of them.
    emits: usize,
    emit_bytes: usize,
}

impl Series {
    /// One alone.
    pub(crate) fn of(attempt: Attempt) -> Self {
        Self {
            attempt,
            followers: Vec::new(),
            emits: 0,
            emit_bytes: 0,
        }
    }

    fn push(&mut self, work: Work<'_>, txn: Arc<str>, effects: Effects) {
        let all = &mut self.attempt.effects;
        for (key, revision) in effects.reads {
            if revision != PENDING {
                all.reads.entry(key).or_insert(revision);
            }
        }
        for (key, ends) in effects.ends {
            all.ends.entry(key).or_insert(ends);
        }
        all.writes.extend(effects.writes);
        let received = &work.received.message;
        let follower = Follower {
            sequence: received.sequence,
            stored: received.stored,
            txn,
            emits: effects.emits,
        };
        self.emits += follower.emits.len();
        self.emit_bytes += follower.bytes();
        self.followers.push(follower);
    }

    /// Whether nothing was read, written or emitted.
    pub(crate) fn is_empty(&self) -> bool {
        self.attempt.effects.is_empty() && self.emits == 0
    }

    /// Bytes of all effects.
    pub(crate) fn bytes(&self) -> usize {
        self.attempt.effects.bytes() + self.emit_bytes
    }

    /// Whether one more with these effects would be too many.
    fn is_full(&self, with: &Effects) -> bool {
        let messages =
            |effects: &Effects| effects.reads.len() + effects.writes.len() + effects.emits.len();
        let messages = messages(&self.attempt.effects) + self.emits + messages(with);
        messages > MAX_MESSAGES || self.bytes() >= MAX_BYTES
    }
}

/// Tries these, in their order, as far as they go together; the first of them in any case. `None`: there are none.
pub(crate) async fn gather(worker: &Worker, work: &[Work<'_>]) -> Option<Box<Series>> {
    let (first, rest) = work.split_first()?;
    if rest.is_empty() {
        let attempt = delivery::attempt(worker, *first, worker.state.clone()).await;
        return Some(Box::new(Series::of(attempt)));
    }
    let began = Instant::now();
    let overlay = Arc::new(Overlay::new(worker.state.clone()));
    let attempt = delivery::attempt(worker, *first, overlay.clone()).await;
    // Timers are the first one's, or wait for their own turn.
    let alone = attempt.result.is_err() || !attempt.effects.timers.is_empty();
    overlay.absorb(&attempt.effects);
    let mut series = Series::of(attempt);
    for next in rest {
        if alone || began.elapsed() > PATIENCE {
            break;
        }
        let attempt = delivery::attempt(worker, *next, overlay.clone()).await;
        let Attempt {
            result,
            mut effects,
        } = attempt;
        let apart = result.is_err() || !effects.timers.is_empty() || overlay.fell_short();
        // What is left of a series that is full is tried again as the next one.
        if apart || series.is_full(&effects) {
            break;
        }
        overlay.absorb(&effects);
        let txn = effects.txn.take();
        let txn = txn.unwrap_or_else(|| settle::txn(worker, next.received).id());
        series.push(*next, txn, effects);
    }
    Some(Box::new(series))
}

/// State as it will be when those before have committed.
struct Overlay {
    state: Arc<dyn StateReader>,
    seen: Mutex<BTreeMap<String, Versioned>>,
    /// Something was asked that only the stored state can answer.
    short: AtomicBool,
}

impl Overlay {
    fn new(state: Arc<dyn StateReader>) -> Self {
        Self {
            state,
            seen: Mutex::default(),
            short: AtomicBool::new(false),
        }
    }

    /// Lays what a delivery wrote over what was there.
    fn absorb(&self, effects: &Effects) {
        let mut seen = self.seen();
        for (key, write) in &effects.writes {
            let stored = seen.get(key);
            let pending = Versioned {
                // What it replaces once all of them are stored is what is stored now.
                ends: stored.and_then(|stored| stored.ends),
                ..Versioned::new(write.value().cloned(), PENDING)
            };
            seen.insert(key.clone(), pending);
        }
    }

    fn fell_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<String, Versioned>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateReader for Overlay {
    fn get_many<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Versioned>, StateError>> {
        async move {
            let known: Vec<Option<Versioned>> = {
                let seen = self.seen();
                keys.iter().map(|key| seen.get(key).cloned()).collect()
            };
            let missing = keys.iter().zip(&known).filter(|(_, known)| known.is_none());
            let missing: Vec<String> = missing.map(|(key, _)| key.clone()).collect();
            if missing.is_empty() {
                return Ok(known.into_iter().flatten().collect());
            }
            let mut found = self.state.get_many(&missing).await?;
            // The same key reads the same throughout the series.
            self.seen()
                .extend(missing.into_iter().zip(found.iter().cloned()));
            let mut found = found.drain(..);
            Ok(known
                .into_iter()
                .filter_map(|known| known.or_else(|| found.next()))
                .collect())
        }
        .boxed()
    }

    fn record<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Versioned, StateError>> {
        self.state.record(subject)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<String>, StateError>> {
        let pending = self.seen().values().any(|one| one.revision == PENDING);
        if pending {
            self.short.store(true, Ordering::Relaxed);
        }
        self.state.list(prefix, after, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::{MemoryState, Write};

    #[tokio::test]
    async fn a_later_one_sees_what_earlier_ones_wrote() {
        let state = MemoryState::default();
        state.set("a", "stored");
        let overlay = Overlay::new(Arc::new(state));
        let read = async |key: &str| {
            let found = overlay.get_many(&[key.to_owned(), "a".to_owned()]).await;
            found.unwrap().remove(0)
        };
        let stored = read("a").await;
        assert_eq!(stored.value.as_deref(), Some(&b"stored"[..]));
        assert!(stored.revision != PENDING && !overlay.fell_short());
        let mut effects = Effects::default();
        effects.writes.insert("a".into(), Write::Delete);
        effects.writes.insert("b".into(), Write::Set("new".into()));
        overlay.absorb(&effects);
        assert_eq!((read("a").await.value, read("c").await.value), (None, None));
        let written = read("b").await;
        assert_eq!(written.value.as_deref(), Some(&b"new"[..]));
        assert_eq!(written.revision, PENDING);
        overlay.list("", None, 10).await.unwrap();
        assert!(overlay.fell_short(), "a listing does not know of it");
    }
}
