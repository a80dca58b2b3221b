//! What happened to the deliveries of one version of a function on this node. Handles are in the version's worker, so that an event costs
//! some relaxed additions and nothing else.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::buckets::{Durations, Histogram};
use crate::rollout::Figures;

/// Counts of one version of a function on one node since it took over there.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    delivered: AtomicU64,
    consumed: AtomicU64,
    owed: AtomicU64,
    committed: AtomicU64,
    emitted: AtomicU64,
    retried: AtomicU64,
    deferred: AtomicU64,
    dead_lettered: AtomicU64,
    attempts: AtomicU64,
    running: AtomicU32,
    failures: AtomicU64,
    durations: Durations,
    latencies: Durations,
}

/// An attempt inside a handler.
pub(crate) struct InHandler<'a>(&'a Counters);

impl Drop for InHandler<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// [`Counters`] at one moment, as the node's heartbeat carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Messages taken.
    pub delivered: u64,
    /// Deliveries committed.
    pub committed: u64,
    /// Events emitted by those.
    pub emitted: u64,
    /// Attempts that failed and are tried again.
    pub retried: u64,
    /// Deferrals.
    pub deferred: u64,
    /// Deliveries given up on.
    pub dead_lettered: u64,
}

/// [`Counters`] of several, added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    pub(crate) consumed: u64,
    pub(crate) committed: u64,
    pub(crate) emitted: u64,
    pub(crate) retried: u64,
    pub(crate) deferred: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) attempts: u64,
    pub(crate) failures: u64,
    pub(crate) durations: Histogram,
    pub(crate) latencies: Histogram,
}

impl Counters {
    /// An attempt goes into its handler, and is there as long as this is kept.
    pub(crate) fn in_handler(&self) -> InHandler<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        InHandler(self)
    }

    /// Attempts inside a handler.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// An attempt ended in its handler.
    pub(crate) fn attempted(&self, took: Duration, failed: bool) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.durations.add(took);
    }

    /// How its attempts fared.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            attempts: read(&self.attempts),
            failures: read(&self.failures),
            durations: self.durations.counts(),
        }
    }

    /// A message was handed out.
    pub(crate) fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// So many deliveries were handed out that no handler had seen.
    pub(crate) fn consumed(&self, count: u64) {
        let mut count = count;
        // Hardly ever: one came back, and is not counted a second time.
        if self.owed.load(Ordering::Relaxed) > 0 {
            let paid = |owed: u64| Some(owed.saturating_sub(count));
            let before = self
                .owed
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid)
                .unwrap_or(0);
            count = count.saturating_sub(before);
        }
        self.consumed.fetch_add(count, Ordering::Relaxed);
    }

    /// A delivery that was counted as consumed came to nothing: it, or another one in its place, is handed out once more, here or elsewhere.
    pub(crate) fn came_back(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, emitted: usize) {
        self.committed.fetch_add(1, Ordering::Relaxed);
        if emitted > 0 {
            self.emitted.fetch_add(emitted as u64, Ordering::Relaxed);
        }
    }

    /// How long a delivery took from when its event was `stored` until `now`, nanoseconds since 1970 both.
    pub(crate) fn took(&self, stored: i64, now: i64) {
        // Clocks of two machines may disagree.
        let took = u64::try_from(now.saturating_sub(stored)).unwrap_or(0);
        self.latencies.add(Duration::from_nanos(took));
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn deferred(&self) {
        self.deferred.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dead_lettered(&self) {
        self.dead_lettered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            delivered: read(&self.delivered),
            committed: read(&self.committed),
            emitted: read(&self.emitted),
            retried: read(&self.retried),
            deferred: read(&self.deferred),
            dead_lettered: read(&self.dead_lettered),
        }
    }

    /// All of it at one moment.
    pub(crate) fn totals(&self) -> Totals {
        let Counts {
            delivered,
            committed,
            emitted,
            retried,
            deferred,
            dead_lettered,
        } = self.counts();
        Totals {
            delivered,
            consumed: read(&self.consumed),
            committed,
            emitted,
            retried,
            deferred,
            dead_lettered,
            attempts: read(&self.attempts),
            failures: read(&self.failures),
            durations: self.durations.read(),
            latencies: self.latencies.read(),
        }
    }
}

impl Totals {
    /// Adds others.
    pub(crate) fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.consumed += other.consumed;
        self.committed += other.committed;
        self.emitted += other.emitted;
        self.retried += other.retried;
        self.deferred += other.deferred;
        self.dead_lettered += other.dead_lettered;
        self.attempts += other.attempts;
        self.failures += other.failures;
        self.durations.merge(&other.durations);
        self.latencies.merge(&other.latencies);
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_counted_once() {
        let counters = Counters::default();
        counters.consumed(1);
        counters.came_back();
        assert_eq!(counters.totals().consumed, 1, "a counter never goes back");
        counters.consumed(1);
        assert_eq!(counters.totals().consumed, 1);
        counters.came_back();
        counters.came_back();
        counters.consumed(5);
        assert_eq!(counters.totals().consumed, 4);
        counters.consumed(2);
        assert_eq!(counters.totals().consumed, 6);
    }

    #[test]
    fn totals_of_two_are_added_up() {
        let (one, other) = (Counters::default(), Counters::default());
        for counters in [&one, &other] {
            counters.attempted(Duration::from_millis(3), false);
            counters.committed(2);
        }
        one.attempted(Duration::from_millis(3), true);
        let mut totals = one.totals();
        totals.add(&other.totals());
        let seen = (totals.attempts, totals.failures, totals.emitted);
        assert_eq!(seen, (3, 1, 4));
        assert_eq!(totals.durations.count(), 3);
    }
}
