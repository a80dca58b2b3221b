//! Reads state before the handlers ask for it. What a function reads for one key tells what it will read for the next: a state key
//! around the delivery's key. Those of deliveries that wait are read together, so that a handler finds them and need not wait for
//! an answer of its own.
//!
//! It may be wrong, or stale when the handler comes to it. Then the handler reads what it wants as ever, or the commit finds out.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::commit::CachedState;
use crate::effects::{Effects, StateReader, is_key};

/// Habits of one function that are looked at.
const MAX_HABITS: usize = 4;
/// So often must one have been seen, net of the times that it was not, before it is relied on.
const SURE: u32 = 8;
const SUREST: u32 = 64;
/// Keys of one read: half of what the server answers at once.
const AT_ONCE: usize = 512;
/// Reads at once: an answer takes as long as the batch that it waits behind, and handlers would catch up with one.
const READS: usize = 2;
/// Keys that wait to be read: more are left to the handlers.
const WAITING: usize = 2048;
/// After a read that failed, or would have been too large, none is made for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// What a function has been seen to read: shared by all its deliveries.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    habits: Mutex<Vec<Habit>>,
    /// Whether there are any.
    any: AtomicBool,
}

/// A state key, as what stands before and behind the delivery's key in it.
#[derive(Debug)]
struct Habit {
    before: String,
    behind: String,
    seen: u32,
}

impl Habit {
    fn is(&self, key: &str, read: &str) -> bool {
        let rest = read.strip_prefix(self.before.as_str());
        rest.and_then(|rest| rest.strip_prefix(key)) == Some(self.behind.as_str())
    }
}

impl Habits {
    /// An attempt at a delivery with this key did this.
    pub(crate) fn learn(&self, key: &str, effects: &Effects) {
        if effects.reads.is_empty() && !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut habits = self.lock();
        for habit in habits.iter_mut() {
            habit.seen = match effects.reads.keys().any(|read| habit.is(key, read)) {
                true => (habit.seen + 1).min(SUREST),
                false => habit.seen.saturating_sub(2),
            };
        }
        habits.retain(|habit| habit.seen > 0);
        for read in effects.reads.keys() {
            if habits.len() < MAX_HABITS
                && !habits.iter().any(|habit| habit.is(key, read))
                && let Some((before, behind)) = read.split_once(key)
            {
                habits.push(Habit {
                    before: before.to_owned(),
                    behind: behind.to_owned(),
                    seen: 1,
                });
            }
        }
        self.any.store(!habits.is_empty(), Ordering::Relaxed);
    }

    /// What will likely be read for this key.
    fn expected(&self, key: &str) -> Vec<String> {
        if !self.any.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let habits = self.lock();
        let sure = habits.iter().filter(|habit| habit.seen >= SURE);
        sure.map(|Habit { before, behind, .. }| format!("{before}{key}{behind}"))
            .filter(|read| is_key(read))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Habit>> {
        self.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of one input is to be read.
#[derive(Default)]
pub(super) struct Ahead {
    waiting: VecDeque<String>,
    known: HashSet<String>,
    /// Reads under way.
    reading: usize,
    paused: Option<Instant>,
}

impl Ahead {
    /// A delivery with this key waits for its handler.
    pub(super) fn note(&mut self, habits: &Habits, state: &CachedState, key: &str) {
        for read in habits.expected(key) {
            if self.waiting.len() < WAITING
                && !state.knows(&read)
                && self.known.insert(read.clone())
            {
                self.waiting.push_back(read);
            }
        }
    }

    /// What to read now; to be followed by [`end`](Self::end).
    pub(super) fn start(&mut self, state: &CachedState) -> Option<Vec<String>> {
        let paused = self.paused.is_some_and(|since| since.elapsed() < PAUSE);
        if self.waiting.is_empty() || self.reading >= READS || paused {
            return None;
        }
        let count = self.waiting.len().min(AT_ONCE);
        let mut keys: Vec<String> = self.waiting.drain(..count).collect();
        for key in &keys {
            self.known.remove(key);
        }
        // Their handlers were faster.
        keys.retain(|key| !state.knows(key));
        if keys.is_empty() {
            return None;
        }
        self.reading += 1;
        Some(keys)
    }

    /// What was being read is there, or could not be read.
    pub(super) fn end(&mut self, read: bool) {
        self.reading = self.reading.saturating_sub(1);
        self.paused = (!read).then(Instant::now);
    }
}

/// Reads these into what the node knows; whether it could.
pub(super) async fn read(state: &CachedState, keys: &[String]) -> bool {
    let found = state.get_many(keys).await;
    found
        .inspect_err(|error| tracing::debug!(%error, keys = keys.len(), "not read ahead"))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(keys: &[&str]) -> Effects {
        let mut effects = Effects::default();
        for key in keys {
            effects.reads.insert((*key).to_owned(), 1);
        }
        effects
    }

    #[test]
    fn what_was_read_for_others_is_expected_until_it_is_not_read() {
        let habits = Habits::default();
        for n in 0..SURE {
            assert!(habits.expected("x").is_empty(), "not sure after {n}");
            let (key, read) = (format!("k{n}"), format!("orders.k{n}.total"));
            habits.learn(&key, &reads(&[&read, "settings"]));
        }
        assert_eq!(habits.expected("x"), ["orders.x.total"]);
        assert!(habits.expected("a b").is_empty(), "no key");
        for _ in 0..SURE {
            habits.learn("y", &reads(&["settings"]));
        }
        assert!(habits.expected("x").is_empty());
    }

    #[test]
    fn habits_are_few() {
        let habits = Habits::default();
        for n in 0..100 {
            habits.learn("k", &reads(&[&format!("p{n}.k")]));
        }
        assert!(habits.lock().len() <= MAX_HABITS);
    }
}
