//! What becomes of a delivery, decided purely: outcome + attempts so far + policy → verdict.

use std::time::Duration;

use crate::config::RetryPolicy;
use crate::effects::{Disposition, Failure};

/// Longest wait that a handler may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Code of a dead letter whose event waited too long for another one.
const DEFER_EXPIRED: &str = "pelton-defer-expired";

/// The end of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its effects become durable and the delivery is done.
    Commit,
    /// Another attempt, no sooner than this from now.
    Retry(Duration),
    /// Not yet; tried again after this, and it was no attempt.
    Defer(Duration),
    /// Given up on.
    DeadLetter {
        /// Stable code.
        code: String,
        /// For a person.
        reason: String,
    },
}

/// What came before this attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// This attempt's number, from 1.
    pub attempt: u32,
    /// Deferrals before it.
    pub deferrals: u32,
    /// Time since the first deferral.
    pub deferred_for: Duration,
}

/// Decides. `jitter` in 0..1 spreads retries over the whole delay (full jitter); passed in so that the decision is pure.
pub fn decide(
    result: &Result<(), Failure>,
    history: History,
    policy: &RetryPolicy,
    jitter: f64,
) -> Verdict {
    let Err(failure) = result else {
        return Verdict::Commit;
    };
    let exhausted = policy.max_attempts != 0 && history.attempt >= policy.max_attempts;
    let given_up = || Verdict::DeadLetter {
        code: failure.code.clone(),
        reason: failure.message.clone(),
    };
    match failure.disposition {
        Disposition::Reject => given_up(),
        Disposition::Defer
            if history.deferred_for >= Duration::from_millis(policy.max_defer_ms) =>
        {
            Verdict::DeadLetter {
                code: DEFER_EXPIRED.into(),
                reason: format!(
                    "waited longer than max-defer ({:?}): {}: {}",
                    Duration::from_millis(policy.max_defer_ms),
                    failure.code,
                    failure.message
                ),
            }
        }
        // Not below half of it: an event that waits for another gains nothing from being tried at once.
        Disposition::Defer => {
            Verdict::Defer(delay(policy, history.deferrals + 1).mul_f64(0.5 + jitter / 2.0))
        }
        Disposition::Retry | Disposition::RetryAfter(_) if exhausted => given_up(),
        Disposition::Retry => Verdict::Retry(delay(policy, history.attempt).mul_f64(jitter)),
        Disposition::RetryAfter(after) => Verdict::Retry(after.min(MAX_RETRY_AFTER)),
    }
}

/// The upper bound of the delay after the `nth` failure: exponential, capped.
fn delay(policy: &RetryPolicy, nth: u32) -> Duration {
    let exponent = i32::try_from(nth.saturating_sub(1)).unwrap_or(i32::MAX);
    let millis = policy.initial_delay_ms as f64 * policy.multiplier.powi(exponent);
    Duration::from_millis(millis.min(policy.max_delay_ms as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(disposition: Disposition) -> Result<(), Failure> {
        Err(Failure {
            disposition,
            code: "c".into(),
            message: "m".into(),
        })
    }

    fn at(attempt: u32) -> History {
        History {
            attempt,
            ..Default::default()
        }
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn verdicts() {
        let policy = RetryPolicy::default();
        let dead = Verdict::DeadLetter {
            code: "c".into(),
            reason: "m".into(),
        };
        for (result, history, expected) in [
            (Ok(()), at(1), Verdict::Commit),
            (failed(Disposition::Reject), at(1), dead.clone()),
            (failed(Disposition::Retry), at(1), Verdict::Retry(MS(100))),
            (failed(Disposition::Retry), at(2), Verdict::Retry(MS(200))),
            (failed(Disposition::Retry), at(5), dead.clone()),
            (
                failed(Disposition::RetryAfter(MS(7_000))),
                at(4),
                Verdict::Retry(MS(7_000)),
            ),
            (failed(Disposition::RetryAfter(MS(7_000))), at(5), dead),
            (
                failed(Disposition::RetryAfter(MS(u64::MAX))),
                at(1),
                Verdict::Retry(MAX_RETRY_AFTER),
            ),
            (failed(Disposition::Defer), at(1), Verdict::Defer(MS(150))),
            (failed(Disposition::Defer), at(5), Verdict::Defer(MS(150))),
        ] {
            assert_eq!(
                decide(&result, history, &policy, 0.5),
                expected,
                "{result:?} {history:?}"
            );
        }
    }

    #[test]
    fn the_delay_is_capped_and_attempts_may_be_unlimited() {
        let policy = RetryPolicy {
            max_attempts: 0,
            ..Default::default()
        };
        assert_eq!(
            decide(&failed(Disposition::Retry), at(u32::MAX), &policy, 1.0),
            Verdict::Retry(MS(30_000))
        );
    }

    #[test]
    fn a_deferral_ends() {
        let policy = RetryPolicy::default();
        let history = History {
            attempt: 1,
            deferrals: 9,
            deferred_for: Duration::from_secs(3600),
        };
        let Verdict::DeadLetter { code, .. } =
            decide(&failed(Disposition::Defer), history, &policy, 0.5)
        else {
            panic!("it should be given up on");
        };
        assert_eq!(code, DEFER_EXPIRED);
    }
}
