//! A function that does what its events say, harm included: the tests' adversary.
//!
//! Whatever ends well leaves a record at `done.<event id>`, so that a test sees which events were handled, by which
//! attempt and under which configuration.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use pelton_sdk::http::Request;
use pelton_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// What an event asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Act {
    /// Nothing: handle it.
    Fine,
    /// Never end.
    Loop,
    /// Take memory until there is none.
    Bomb,
    /// Call itself until the stack is full.
    Recurse,
    /// Panic with this text.
    Panic {
        /// The text.
        text: String,
    },
    /// Emit events.
    Emit {
        /// Their subject.
        subject: String,
        /// How many.
        count: usize,
        /// Length of each one's data.
        bytes: usize,
    },
    /// Emit an event at a time.
    Later {
        /// The timer's name, which is also the event's data.
        name: String,
        /// When, milliseconds since 1970.
        at_ms: i64,
        /// The event's subject.
        subject: String,
    },
    /// Emit an event after a delay, then fail until this attempt (0: always) with the time as
    /// message.
    After {
        /// The timer's name, which is also the event's data.
        name: String,
        /// The delay.
        delay_ms: u64,
        /// The event's subject.
        subject: String,
        /// The first attempt that goes well.
        well_at: u32,
    },
    /// Add one to the largest number.
    Overflow,
    /// Ask the standard library for the time.
    StdClock,
    /// Take a timer back.
    Cancel {
        /// Its name.
        name: String,
    },
    /// Write a value under a key.
    Write {
        /// The id in the table `written`.
        id: String,
        /// Length of the value.
        bytes: usize,
    },
    /// Ask this URL for its answer, and keep that.
    Http {
        /// Where.
        url: String,
    },
    /// Fail until this attempt.
    Fail {
        /// `retry`, `retry-after`, `reject` or `defer`.
        how: String,
        /// The error's code.
        code: String,
        /// The first attempt that goes well; 0: none.
        well_at: u32,
    },
    /// Reject unless the configuration says `mended = yes`.
    NeedsMending,
    /// Panic unless the configuration says `mended = yes`.
    CrashUnlessMended,
    /// Ask this URL and panic then, unless the configuration says `mended = yes`.
    WaitUnlessMended {
        /// Where.
        url: String,
    },
    /// Reject unless the secret `WORD` is `yes`.
    NeedsWord,
    /// Add one to a counter, and reply what it is then.
    Count {
        /// Which one.
        counter: String,
    },
    /// Add one to a counter, and reply with an error.
    CountAndReplyError {
        /// Which one.
        counter: String,
        /// The error's code.
        code: String,
    },
}

/// What is kept of an event that was handled.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    attempt: u32,
    /// The configuration value `tag`.
    tag: String,
    bytes: usize,
}

static DONE: Table<Done> = Table::new("done");
static COUNTERS: Table<u64> = Table::new("counters");
static ANSWERS: Table<String> = Table::new("answers");
static WRITTEN: Table<String> = Table::new("written");

/// Does what the event says.
#[handler("hostile.act.>")]
pub fn act(event: Event<Act>, ctx: &mut Context) -> Result {
    perform(event.data, ctx)?;
    done(&event.id, 0, ctx)
}

/// Takes anything, and counts its bytes.
#[handler("hostile.raw")]
pub fn raw(event: Event<Raw>, ctx: &mut Context) -> Result {
    done(&event.id, event.data.0.len(), ctx)
}

/// Takes anything, and keeps what it was told about it.
#[handler("hostile.look")]
pub fn look(event: Event<Raw>, ctx: &mut Context) -> Result {
    static LOOKS: Table<BTreeMap<String, String>> = Table::new("looks");
    let mut seen: BTreeMap<_, _> = event.attributes.iter().cloned().collect();
    seen.insert("source".into(), event.source.clone());
    seen.insert("type".into(), event.ty.clone());
    seen.insert("time".into(), event.time.0.to_string());
    seen.insert(
        "data".into(),
        String::from_utf8_lossy(&event.data.0).into_owned(),
    );
    LOOKS.set(ctx, &event.id, &seen)
}

/// Counts how often it was told of each second.
#[handler("schedule.tick")]
pub fn tick(event: Event<Raw>, ctx: &mut Context) -> Result {
    static TICKS: Table<u64> = Table::new("ticks");
    let second = (event.time.0 / 1_000_000_000).to_string();
    TICKS.update(ctx, &second, |count| Ok(Some(count.unwrap_or(0) + 1)))
}

handlers![act, raw, look, tick];

fn done(id: &str, bytes: usize, ctx: &mut Context) -> Result {
    let done = Done {
        attempt: ctx.delivery().attempt,
        tag: ctx.config("tag")?.unwrap_or_default(),
        bytes,
    };
    ctx.info(format!("done: {id}"));
    DONE.set(ctx, id, &done)
}

#[expect(clippy::panic, reason = "what is asked for")]
fn perform(act: Act, ctx: &mut Context) -> Result {
    match act {
        Act::Fine => Ok(()),
        Act::Loop => loop {
            black_box(());
        },
        Act::Bomb => bomb(),
        Act::Recurse => {
            black_box(recurse(1));
            Ok(())
        }
        Act::Panic { text } => panic!("{text}"),
        Act::Emit {
            subject,
            count,
            bytes,
        } => emit(&subject, count, bytes, ctx),
        Act::Later {
            name,
            at_ms,
            subject,
        } => ctx.emit_at(
            &name,
            pelton_sdk::Timestamp(at_ms * 1_000_000),
            Draft::new(&subject, &name),
        ),
        Act::After {
            name,
            delay_ms,
            subject,
            well_at,
        } => after(&name, delay_ms, &subject, well_at, ctx),
        Act::Overflow => overflow(),
        Act::StdClock => {
            black_box(std::time::SystemTime::now());
            Ok(())
        }
        Act::Cancel { name } => ctx.cancel(&name),
        Act::Write { id, bytes } => WRITTEN.set(ctx, &id, &"x".repeat(bytes)),
        Act::Http { url } => ask(&url, ctx),
        Act::Fail { how, code, well_at } => fail(&how, &code, well_at, ctx),
        Act::NeedsMending => match ctx.config("mended")?.as_deref() {
            Some("yes") => Ok(()),
            _ => reject!("not-mended", "the configuration does not say mended = yes"),
        },
        Act::CrashUnlessMended => match ctx.config("mended")?.as_deref() {
            Some("yes") => Ok(()),
            _ => panic!("the configuration does not say mended = yes"),
        },
        Act::WaitUnlessMended { url } => match ctx.config("mended")?.as_deref() {
            Some("yes") => Ok(()),
            _ => {
                ask(&url, ctx)?;
                panic!("the configuration does not say mended = yes")
            }
        },
        Act::NeedsWord => match ctx.config("WORD")?.as_deref() {
            Some("yes") => Ok(()),
            _ => reject!("no-word", "the secret WORD is not yes"),
        },
        Act::Count { counter } => {
            let now = count(&counter, ctx)?;
            ctx.reply(&now)
        }
        Act::CountAndReplyError { counter, code } => {
            let now = count(&counter, ctx)?;
            ctx.reply_error(&code, format_args!("counted to {now}"))
        }
    }
}

fn overflow() -> Result {
    black_box(black_box(u32::MAX) + 1);
    Ok(())
}

/// Sets a timer and replies what the time is; fails before the attempt `well_at`, always if that
/// is 0.
fn after(name: &str, delay_ms: u64, subject: &str, well_at: u32, ctx: &mut Context) -> Result {
    let draft = Draft::new(subject, &name);
    ctx.emit_after(name, Duration::from_millis(delay_ms), draft)?;
    ctx.reply(&ctx.now().0)?;
    let now = ctx.now().0.to_string();
    match well_at != 0 && ctx.delivery().attempt >= well_at {
        true => Ok(()),
        false => Err(Error::retry("not-yet", now)),
    }
}

fn count(counter: &str, ctx: &mut Context) -> Result<u64> {
    let mut now = 0;
    COUNTERS.update(ctx, counter, |count| {
        now = count.unwrap_or(0) + 1;
        Ok(Some(now))
    })?;
    Ok(now)
}

fn bomb() -> Result {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![7; 1 << 20]);
        black_box(&held);
    }
}

#[expect(unconditional_recursion, reason = "what is asked for")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let below = recurse(depth + 1);
    below + black_box(frame).iter().sum::<u64>()
}

fn emit(subject: &str, count: usize, bytes: usize, ctx: &mut Context) -> Result {
    for _ in 0..count {
        ctx.emit(Draft::bytes(
            subject,
            "application/octet-stream",
            vec![b'x'; bytes],
        ))?;
    }
    Ok(())
}

fn fail(how: &str, code: &str, well_at: u32, ctx: &mut Context) -> Result {
    let attempt = ctx.delivery().attempt;
    if well_at != 0 && attempt >= well_at {
        return Ok(());
    }
    let message = format!("attempt {attempt} failed as it was told to");
    Err(match how {
        "retry" => Error::retry(code, message),
        "retry-after" => Error::retry_after(Duration::from_millis(300), code, message),
        "defer" => Error::defer(code, message),
        _ => Error::reject(code, message),
    })
}

fn ask(url: &str, ctx: &mut Context) -> Result {
    let answer = Request::get(url).send(ctx)?.success()?.text()?;
    ANSWERS.set(ctx, "last", &answer)
}
