//! The function that the verifier runs: each delivery does what its event says and emits a receipt in the same transaction,
//! which says what was read, written and emitted.
//!
//! Receipts are what makes a check possible from outside: in the order of their commits they must be the story of one handler
//! at a time, with no delivery missing and none told twice.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use pelton_sdk::Timestamp;
use pelton_sdk::prelude::*;
use serde::{Deserialize, Serialize};

static VALUES: Table<i64> = Table::new("v");

/// An event's data.
#[derive(Debug, Deserialize)]
pub struct Order {
    /// What is to be done.
    act: Act,
    /// A failure to be had first.
    fail: Option<Fail>,
    /// How long to compute, thousands of rounds.
    work: Option<u32>,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Act {
    /// Add one.
    Count {
        /// To this value.
        id: String,
    },
    /// Add one, after a look at a value that everybody looks at.
    Hot {
        /// To this value.
        id: String,
        /// The other one.
        hot: String,
    },
    /// Move an amount.
    Transfer {
        /// From this value.
        from: String,
        /// To this one.
        to: String,
        /// So much.
        amount: i64,
    },
    /// Take from a value as long as it and another are not below zero together.
    Withdraw {
        /// This one.
        id: String,
        /// The other one, which is read only.
        other: String,
        /// So much; below zero it is a deposit.
        amount: i64,
    },
    /// Write without a look.
    Put {
        /// This value.
        id: String,
        /// So.
        value: i64,
    },
    /// Write without a look and without a receipt.
    Hush {
        /// This value.
        id: String,
        /// So.
        value: i64,
    },
    /// Delete it if it is there, else make it.
    Toggle {
        /// This value.
        id: String,
    },
    /// Look, and say nothing.
    Look {
        /// At this value.
        id: String,
    },
    /// Look, and reject because of what was seen.
    Judge {
        /// At this value.
        id: String,
    },
    /// Wait until it exists.
    Await {
        /// This value.
        id: String,
    },
    /// Emit only.
    Tell {
        /// Subject of what is told.
        to: String,
        /// How often.
        times: u32,
        /// Bytes to make it longer by.
        #[serde(default)]
        bytes: usize,
    },
    /// Emit at a time.
    Later {
        /// The timer's name: what it held is replaced.
        name: String,
        /// Subject of what is told.
        to: String,
        /// Milliseconds after this event was stored.
        after: i64,
    },
    /// Take back what is to be emitted.
    Cancel {
        /// The timer's name.
        name: String,
    },
    /// Add one, and hand on to the next.
    Chain {
        /// To this value.
        id: String,
        /// Subject of the next, without its last token.
        to: String,
        /// How many are to follow.
        hops: u32,
    },
}

/// A failure.
#[derive(Debug, Deserialize)]
pub struct Fail {
    /// `retry`, `retry-after`, `panic` or `reject`.
    how: String,
    /// The first attempt that goes well; 0: none.
    until: u32,
}

/// What a delivery did.
#[derive(Debug, Default, Serialize)]
struct Receipt {
    stream: String,
    sequence: u64,
    attempt: u32,
    reads: BTreeMap<String, Option<i64>>,
    writes: BTreeMap<String, Option<i64>>,
    told: u32,
    /// Timers set, with the milliseconds since 1970 when they are due; none: cancelled.
    timers: BTreeMap<String, Option<i64>>,
}

/// What an emitted event tells of whom it comes from.
#[derive(Debug, Serialize)]
struct Told<'a> {
    stream: &'a str,
    sequence: u64,
    n: u32,
    act: Option<Act>,
    /// The timer that it was set by, and when it is due.
    timer: Option<(&'a str, i64)>,
    /// Makes it long.
    padding: &'a str,
}

/// Does what an event says, whoever it comes from.
#[handler("*.*.*")]
pub fn perform(event: Event<Order>, ctx: &mut Context) -> Result {
    let Order { act, fail, work } = event.data;
    let position = ctx.delivery().position.clone();
    let position = position.or_reject("not-from-a-stream")?;
    let mut log = Receipt {
        stream: position.stream,
        sequence: position.sequence,
        attempt: ctx.delivery().attempt,
        ..Default::default()
    };
    for round in 0..u64::from(work.unwrap_or(0)) * 1000 {
        black_box(round);
    }
    let silent = matches!(act, Act::Hush { .. } | Act::Look { .. });
    log.act(act, event.time.0, ctx)?;
    // After everything else: what a failed attempt did must leave no trace.
    if let Some(fail) = fail {
        fail.strike(log.attempt)?;
    }
    if silent {
        return Ok(());
    }
    let key = event.subject.split('.').nth(1).unwrap_or_default();
    ctx.emit(Draft::new(["audit.", key].concat(), &log))
}

handlers![perform];

impl Receipt {
    fn get(&mut self, id: &str, ctx: &Context) -> Result<Option<i64>> {
        let value = VALUES.get(ctx, id)?;
        if !self.writes.contains_key(id) {
            self.reads.insert(id.to_owned(), value);
        }
        Ok(value)
    }

    fn set(&mut self, id: &str, value: Option<i64>, ctx: &mut Context) -> Result {
        self.writes.insert(id.to_owned(), value);
        match value {
            Some(value) => VALUES.set(ctx, id, &value),
            None => VALUES.delete(ctx, id),
        }
    }

    fn add(&mut self, id: &str, amount: i64, ctx: &mut Context) -> Result {
        let value = self.get(id, ctx)?.unwrap_or(0);
        self.set(id, Some(value + amount), ctx)
    }

    fn tell(&mut self, to: &str, act: Option<Act>, bytes: usize, ctx: &mut Context) -> Result {
        let padding = "x".repeat(bytes);
        let told = Told {
            stream: &self.stream,
            sequence: self.sequence,
            n: self.told,
            act,
            timer: None,
            padding: &padding,
        };
        ctx.emit(Draft::new(to, &told))?;
        self.told += 1;
        Ok(())
    }

    fn later(&mut self, name: String, to: &str, at: i64, ctx: &mut Context) -> Result {
        let told = Told {
            stream: &self.stream,
            sequence: self.sequence,
            n: 0,
            act: None,
            timer: Some((&name, at)),
            padding: "",
        };
        ctx.emit_at(&name, Timestamp(at * 1_000_000), Draft::new(to, &told))?;
        self.timers.insert(name, Some(at));
        Ok(())
    }

    /// `stored`: when the event was, nanoseconds since 1970.
    fn act(&mut self, act: Act, stored: i64, ctx: &mut Context) -> Result {
        match act {
            Act::Count { id } => self.add(&id, 1, ctx),
            Act::Hot { id, hot } => {
                self.get(&hot, ctx)?;
                self.add(&id, 1, ctx)
            }
            Act::Transfer { from, to, amount } => {
                self.add(&from, -amount, ctx)?;
                self.add(&to, amount, ctx)
            }
            Act::Withdraw { id, other, amount } => {
                let both = self.get(&id, ctx)?.unwrap_or(0) + self.get(&other, ctx)?.unwrap_or(0);
                if both < amount {
                    return Ok(());
                }
                self.add(&id, -amount, ctx)
            }
            Act::Put { id, value } | Act::Hush { id, value } => self.set(&id, Some(value), ctx),
            Act::Toggle { id } => {
                let there = self.get(&id, ctx)?.is_some();
                self.set(&id, (!there).then_some(1), ctx)
            }
            Act::Look { id } => self.get(&id, ctx).map(|_| ()),
            Act::Judge { id } => {
                let seen = serde_json::to_string(&[(&id, self.get(&id, ctx)?)]);
                reject!("judged", "{}", seen.unwrap_or_default())
            }
            Act::Await { id } => match self.get(&id, ctx)? {
                Some(_) => Ok(()),
                None => defer!("not-there", "`{id}` is not there yet"),
            },
            Act::Tell { to, times, bytes } => {
                (0..times).try_for_each(|_| self.tell(&to, None, bytes, ctx))
            }
            Act::Later { name, to, after } => {
                self.later(name, &to, stored / 1_000_000 + after, ctx)
            }
            Act::Cancel { name } => {
                ctx.cancel(&name)?;
                self.timers.insert(name, None);
                Ok(())
            }
            Act::Chain { id, to, hops } => {
                self.add(&id, 1, ctx)?;
                let Some(hops) = hops.checked_sub(1) else {
                    return Ok(());
                };
                let subject = [to.as_str(), ".", &hops.to_string()].concat();
                self.tell(&subject, Some(Act::Chain { id, to, hops }), 0, ctx)
            }
        }
    }
}

impl Fail {
    #[expect(clippy::panic, reason = "what is asked for")]
    fn strike(&self, attempt: u32) -> Result {
        if self.until != 0 && attempt >= self.until {
            return Ok(());
        }
        let message = format!("attempt {attempt} fails as it was told to");
        Err(match self.how.as_str() {
            "retry" => Error::retry("told", message),
            "retry-after" => Error::retry_after(Duration::from_millis(300), "told", message),
            "panic" => panic!("{message}"),
            _ => Error::reject("told", message),
        })
    }
}
