//! Events at a time: what an attempt sets, moves and takes back. A timer's record says what is the latest under its name; it
//! is read when the attempt touches the name, and checked at commit as any key is.

use super::{Collector, check_key, now, unavailable};
use crate::effects::{Effects, Emit, Failure, Timer, TimerChange};
use crate::event::{self, Draft};
use crate::names::{AppNames, DUE_SUBJECT_HEADER, DUE_TARGET_HEADER, TIMER_HEADER};
use crate::records::TimerRecord;

/// Names that one attempt may set or cancel: each is up to two messages of its commit.
const MAX_TIMERS: usize = 64;
/// How far ahead a timer may be set, nanoseconds: a year, and a leap day.
const MAX_AHEAD: i64 = 366 * 24 * 3600 * 1_000_000_000;

/// What becomes of one name.
pub(super) struct Pending {
    revision: u64,
    before: Option<String>,
    next: Option<Set>,
}

struct Set {
    at: i64,
    /// The draft's number in this attempt.
    n: usize,
    emit: Emit,
}

impl Collector {
    /// The contract's `events.emit-at`, `time` in nanoseconds since 1970.
    ///
    /// # Errors
    /// As [`emit`](Self::emit); `pelton-key-invalid`: the name; `pelton-limit`: too far ahead, or too many in one attempt;
    /// `pelton-unavailable`.
    pub async fn emit_at(&mut self, name: String, time: i64, draft: Draft) -> Result<(), Failure> {
        check_key(&name)?;
        if time.saturating_sub(now()) > MAX_AHEAD {
            return Err(limit(format!(
                "timer {name:?} is set more than a year ahead; set one that sets the next"
            )));
        }
        self.look_up(&name).await?;
        let (n, emit) = self.prepare(draft, time.max(now()))?;
        let at = time;
        if let Some(pending) = self.timers.get_mut(&name) {
            pending.next = Some(Set { at, n, emit });
        }
        Ok(())
    }

    /// The contract's `events.cancel`.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`, `pelton-unavailable`.
    pub async fn cancel(&mut self, name: String) -> Result<(), Failure> {
        check_key(&name)?;
        self.look_up(&name).await?;
        if let Some(pending) = self.timers.get_mut(&name) {
            pending.next = None;
        }
        Ok(())
    }

    /// Reads what the name holds, the first time.
    async fn look_up(&mut self, name: &str) -> Result<(), Failure> {
        if self.timers.contains_key(name) {
            return Ok(());
        }
        if self.timers.len() >= MAX_TIMERS {
            return Err(limit(format!(
                "an attempt may set or cancel {MAX_TIMERS} timers; set fewer, or emit events that lead to the others"
            )));
        }
        let subject = AppNames::new(self.rules.app.as_str()).timer(name);
        let found = self.state.record(&subject).await.map_err(unavailable)?;
        let held = found.value.as_deref().and_then(TimerRecord::read);
        let pending = Pending {
            revision: found.revision,
            before: held.map(|record| record.id),
            next: None,
        };
        self.timers.insert(name.to_owned(), pending);
        Ok(())
    }

    /// Puts what is to happen into the effects: what is past leaves at once.
    pub(super) fn finish_timers(&mut self, effects: &mut Effects) {
        let names = AppNames::new(self.rules.app.as_str());
        let now = now();
        for (name, pending) in std::mem::take(&mut self.timers) {
            let subject = names.timer(&name);
            let next = match pending.next {
                Some(set) if set.at <= now => {
                    effects.emits.push(set.emit);
                    None
                }
                Some(set) => Some(self.timer(&subject, set)),
                None => None,
            };
            let change = TimerChange {
                revision: pending.revision,
                before: pending.before,
                next,
            };
            effects.timers.insert(subject, change);
        }
    }

    fn timer(&self, record: &str, set: Set) -> Timer {
        let Emit {
            target,
            subject,
            headers,
            payload,
        } = set.emit;
        let mut headers = event::owned(headers);
        let said = [
            (TIMER_HEADER, record),
            (DUE_SUBJECT_HEADER, subject.as_str()),
            (DUE_TARGET_HEADER, target.as_str()),
        ];
        headers.extend(said.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Timer {
            id: format!("{}-{}", self.txn.id(), set.n),
            at: set.at,
            headers,
            payload,
            ticking: None,
        }
    }
}

fn limit(why: String) -> Failure {
    Failure::reject("pelton-limit", why)
}
