//! Whether a version that is tried out on a share of the events is worse than the one that takes the others. Pure: figures in, verdict out.

mod steps;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::records::SHARES;

pub use self::steps::{Both, at_once, decided, promoted, stepped, tried, withdrawn};

/// Buckets of durations: the n-th counts those below `2^(n/2)` times 100 µs; the last, whatever is longer (about 100 s).
pub const BUCKETS: usize = 40;

/// How attempts of one version fared, since some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// Attempts that ended.
    pub attempts: u64,
    /// Those of them that failed: retried, or given up on; deferrals are none.
    pub failures: u64,
    /// How long attempts took, by bucket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub durations: Vec<u64>,
}

/// [`Figures`] for a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Attempts that ended.
    pub attempts: u64,
    /// Share of them that failed, 0 to 1.
    pub failure_rate: f64,
    /// What 99 of 100 stayed below, milliseconds.
    pub p99_ms: f64,
}

impl From<&Figures> for Summary {
    fn from(figures: &Figures) -> Self {
        Self {
            attempts: figures.attempts,
            failure_rate: figures.failure_rate(),
            p99_ms: figures.p99_ms(),
        }
    }
}

/// By how much the new version may be worse, and when that can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bounds {
    /// Its failure rate may exceed that of the old one by so much, 0 to 1.
    pub failures: f64,
    /// Its p99 duration may be so many times that of the old one.
    pub p99: f64,
    /// Attempts of it before anything is concluded.
    pub least: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            failures: 0.05,
            p99: 2.0,
            least: 50,
        }
    }
}

/// What follows from the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Too few attempts to tell.
    Unknown,
    /// Within the bounds.
    Fine,
    /// More of its attempts fail.
    Fails,
    /// Its attempts take longer.
    Slow,
    /// Its attempts, which have not ended, leave the active version too few.
    Holds,
}

/// Attempts inside handlers at one moment, over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AtOnce {
    /// Of the new version.
    pub new: u32,
    /// Of both.
    pub all: u32,
    /// How many there may be.
    pub most: u32,
}

impl AtOnce {
    /// Whether the new version, with this share of the keys, holds more than half of what there may be, and so many that each must take more
    /// than `factor` times as long as one of the old version. Attempts that hang are in no figures before they end.
    fn is_held(&self, share: u32, factor: f64) -> bool {
        let share = f64::from(share) / f64::from(SHARES);
        let (new, old) = (
            f64::from(self.new),
            f64::from(self.all.saturating_sub(self.new)),
        );
        self.new * 2 > self.most && new * (1.0 - share) > factor * old * share
    }
}

/// A difference in p99 below this is noise, milliseconds.
const NOISE_MS: f64 = 5.0;
/// So many attempts have to be slow: one may be an instance's first, or one pause of the machine.
const SLOW: u64 = 3;

impl Figures {
    /// Those of both.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.failures += other.failures;
        if self.durations.len() < other.durations.len() {
            self.durations.resize(other.durations.len(), 0);
        }
        for (mine, theirs) in self.durations.iter_mut().zip(&other.durations) {
            *mine += theirs;
        }
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let zero = 0;
        let durations = self.durations.iter().enumerate();
        Self {
            attempts: self.attempts.saturating_sub(before.attempts),
            failures: self.failures.saturating_sub(before.failures),
            durations: durations
                .map(|(n, count)| count.saturating_sub(*before.durations.get(n).unwrap_or(&zero)))
                .collect(),
        }
    }

    /// Share of attempts that failed, 0 to 1.
    pub fn failure_rate(&self) -> f64 {
        match self.attempts {
            0 => 0.0,
            attempts => self.failures as f64 / attempts as f64,
        }
    }

    /// Attempts that took at least so long, milliseconds, as buckets tell.
    fn longer_than(&self, ms: f64) -> u64 {
        let durations = self.durations.iter().enumerate();
        let longer = durations.filter(|(n, _)| *n > 0 && bound_ms(n - 1) >= ms);
        longer.map(|(_, count)| count).sum()
    }

    /// What 99 of 100 attempts stayed below, milliseconds, to the next bucket's bound.
    pub fn p99_ms(&self) -> f64 {
        let all: u64 = self.durations.iter().sum();
        let mut left = all.saturating_sub(all / 100);
        for (n, count) in self.durations.iter().enumerate() {
            if left <= *count && all > 0 {
                return bound_ms(n);
            }
            left -= (*count).min(left);
        }
        0.0
    }
}

/// The bucket of a duration.
pub fn bucket(duration: std::time::Duration) -> usize {
    let units = duration.as_secs_f64() / 100e-6;
    if units < 1.0 {
        return 0;
    }
    ((units.log2() * 2.0).floor() as usize + 1).min(BUCKETS - 1)
}

/// Upper bound of a bucket, milliseconds.
pub(crate) fn bound_ms(bucket: usize) -> f64 {
    0.1 * 2f64.powf(bucket as f64 / 2.0)
}

/// Compares the new version's figures with those of the old one in the same time.
pub fn judge(
    old: &Figures,
    new: &Figures,
    at_once: AtOnce,
    share: u32,
    bounds: &Bounds,
) -> Judgement {
    if at_once.is_held(share, bounds.p99) {
        return Judgement::Holds;
    }
    if new.attempts < bounds.least {
        return Judgement::Unknown;
    }
    if new.failure_rate() > old.failure_rate() + bounds.failures {
        return Judgement::Fails;
    }
    let before = old.p99_ms();
    // Nothing to compare with: the old one had too little to do.
    let comparable = old.attempts >= bounds.least;
    let slow = new.longer_than((before * bounds.p99).max(before + NOISE_MS));
    // More than one of a hundred: its p99 is beyond that, too.
    if comparable && slow >= SLOW && slow * 100 > new.attempts {
        return Judgement::Slow;
    }
    Judgement::Fine
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn figures(attempts: u64, failures: u64, ms: u64) -> Figures {
        let mut durations = vec![0; BUCKETS];
        durations[bucket(Duration::from_millis(ms))] = attempts;
        Figures {
            attempts,
            failures,
            durations,
        }
    }

    #[test]
    fn who_is_worse() {
        let old = figures(1000, 10, 2);
        let bounds = Bounds::default();
        let told =
            |old: &Figures, new: &Figures| judge(old, new, AtOnce::default(), SHARES / 10, &bounds);
        for (new, expected, why) in [
            (figures(49, 49, 2), Judgement::Unknown, "too few"),
            (figures(50, 3, 2), Judgement::Fine, "1 % against 6 %"),
            (figures(50, 4, 2), Judgement::Fails, "1 % against 8 %"),
            (
                figures(50, 0, 4),
                Judgement::Fine,
                "twice as long is allowed, and noise besides",
            ),
            (figures(50, 0, 40), Judgement::Slow, "twenty times as long"),
        ] {
            assert_eq!(told(&old, &new), expected, "{why}");
        }
        let idle = Figures::default();
        assert_eq!(told(&idle, &figures(50, 0, 900)), Judgement::Fine);
        assert_eq!(told(&idle, &figures(50, 25, 1)), Judgement::Fails);
        let mut few = figures(50, 0, 2);
        few.add(&figures(2, 0, 400));
        assert_eq!(told(&old, &few), Judgement::Fine, "two may be chance");
        few.add(&figures(1, 0, 400));
        assert_eq!(told(&old, &few), Judgement::Slow);
    }

    #[test]
    fn who_holds_what_the_other_needs() {
        let fifth = SHARES / 5;
        let held = |new, all| {
            let at_once = AtOnce { new, all, most: 64 };
            at_once.is_held(fifth, 2.0)
        };
        assert!(!held(20, 20), "there is room");
        assert!(!held(13, 64), "its share of a busy node");
        assert!(held(33, 64), "four times as long as the others");
        assert!(held(64, 64));
        let at_once = AtOnce {
            new: 58,
            all: 64,
            most: 64,
        };
        assert!(!at_once.is_held(9000, 2.0), "nearly all keys are its");
    }

    #[test]
    fn durations_fall_into_buckets_and_come_back_as_bounds() {
        for micros in [1, 99, 100, 1_000, 5_000, 250_000, 60_000_000] {
            let duration = Duration::from_micros(micros);
            let n = bucket(duration);
            let ms = micros as f64 / 1000.0;
            assert!(ms <= bound_ms(n), "{micros} µs below {} ms", bound_ms(n));
            assert!(n == 0 || ms >= bound_ms(n - 1), "{micros} µs");
        }
        assert_eq!(bucket(Duration::from_secs(3600)), BUCKETS - 1);
        let mut both = figures(990, 0, 2);
        both.add(&figures(10, 0, 500));
        assert!(both.p99_ms() < 4.0, "{}", both.p99_ms());
        both.add(&figures(10, 0, 500));
        assert!(both.p99_ms() > 400.0, "{}", both.p99_ms());
        assert_eq!(both.since(&figures(990, 0, 2)).attempts, 20);
    }
}
