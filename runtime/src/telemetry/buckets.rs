//! Histograms that many tasks add to without waiting for each other: a relaxed addition for the bucket and one for the sum.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::rollout::{self, BUCKETS};

/// Sizes are told apart by powers of two, 1 to 1024, and whatever is larger.
const SIZES: usize = 12;

/// How long something took, by the buckets of [`rollout::bucket`].
#[derive(Debug)]
pub(crate) struct Durations {
    counts: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

/// How many there were of something at a time.
#[derive(Debug)]
pub(crate) struct Sizes {
    counts: [AtomicU64; SIZES],
    sum: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// Of all values, in the metric's unit.
    pub(crate) sum: f64,
    /// Upper bound and how many values it has beyond the bound before; the last bound is `f64::MAX`.
    pub(crate) buckets: Vec<(f64, u64)>,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::default()),
            micros: AtomicU64::default(),
        }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            counts: array::from_fn(|_| AtomicU64::default()),
            sum: AtomicU64::default(),
        }
    }
}

impl Durations {
    pub(crate) fn add(&self, took: Duration) {
        if let Some(count) = self.counts.get(rollout::bucket(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// By bucket.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(read).collect()
    }

    /// In seconds; of the buckets, two make one: each bound is twice the one before.
    pub(crate) fn read(&self) -> Histogram {
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        let mut held = 0;
        for (n, count) in self.counts().into_iter().enumerate() {
            held += count;
            let last = n + 1 == BUCKETS;
            if n % 2 == 0 || last {
                let bound = if last {
                    f64::MAX
                } else {
                    rollout::bound_ms(n) / 1000.0
                };
                buckets.push((bound, std::mem::take(&mut held)));
            }
        }
        Histogram {
            sum: read(&self.micros) as f64 / 1e6,
            buckets,
        }
    }
}

impl Sizes {
    pub(crate) fn add(&self, size: u64) {
        // 0 and 1 are in the first, 2 in the second, 3 and 4 in the third.
        let bucket = size.max(1).next_power_of_two().trailing_zeros() as usize;
        if let Some(count) = self.counts.get(bucket.min(SIZES - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(size, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        let bounds = (0..SIZES).map(|n| match n + 1 {
            SIZES => f64::MAX,
            _ => 2f64.powi(i32::try_from(n).unwrap_or(i32::MAX)),
        });
        Histogram {
            sum: read(&self.sum) as f64,
            buckets: bounds.zip(self.counts.iter().map(read)).collect(),
        }
    }
}

impl Histogram {
    /// Adds another one of the same kind.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        for ((_, mine), (_, theirs)) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound that a value is counted below.
    fn bound(histogram: &Histogram) -> f64 {
        let found = histogram.buckets.iter().find(|(_, count)| *count > 0);
        found.map_or(0.0, |(bound, _)| *bound)
    }

    #[test]
    fn durations_are_counted_below_the_next_bound() {
        for (micros, expected) in [
            (0, 0.0001),
            (99, 0.0001),
            (150, 0.0002),
            (1_500, 0.0016),
            (40_000_000, 52.4288),
            (4_000_000_000, f64::MAX),
        ] {
            let durations = Durations::default();
            durations.add(Duration::from_micros(micros));
            let read = durations.read();
            assert!(
                (bound(&read) / expected - 1.0).abs() < 1e-9,
                "{micros}: {read:?}"
            );
            assert_eq!(read.count(), 1);
            assert!((read.sum - micros as f64 / 1e6).abs() < 1e-9);
        }
    }

    #[test]
    fn sizes_are_counted_up_to_the_next_power_of_two() {
        for (size, expected) in [
            (0, 1.0),
            (1, 1.0),
            (2, 2.0),
            (3, 4.0),
            (1024, 1024.0),
            (1025, f64::MAX),
            (1 << 40, f64::MAX),
        ] {
            let sizes = Sizes::default();
            sizes.add(size);
            assert_eq!(bound(&sizes.read()), expected, "{size}");
        }
    }
}
