//! Ticks of a function's schedule: each is a timer that sets the next one in the batch that takes it.
//!
//! So there is one at a time, and no node need be there when it is due: it waits. A node that opens the function's internal input
//! sets the first, or takes away what a schedule of an earlier version left.

use super::timer::last;
use super::{Context, SourceError};
use crate::commit::bygone::is_nowhere;
use crate::commit::set_timer;
use crate::config::Schedule;
use crate::effects::{Timer, TimerChange};
use crate::event::timestamp;
use crate::names::{DUE_SUBJECT_HEADER, TICK_SUBJECT, TIMER_HEADER};
use crate::records::{Ticking, TimerRecord};

/// Ticks that nobody handled in their time are made up for, if they are no older than this when the one before them is done,
/// nanoseconds. Of those before, only the one that was due first comes late.
const CATCH_UP: i64 = 60 * 1_000_000_000;

/// Brings what is set for the function in line with its schedule.
pub(super) async fn arm(context: &Context) -> Result<(), SourceError> {
    let worker = context.worker();
    let record = &worker.record;
    let subject = context.names.tick(&record.function);
    let unreadable =
        |why: String| SourceError(format!("the function's schedule cannot be set: {why}"));
    let (revision, mut held) = last(context, &subject).await.map_err(unreadable)?;
    // A killed server may bring back what an earlier schedule, or an earlier function of that name, set: nothing would ever tick.
    if let Some(record) = &held
        && is_nowhere(&context.nats.jetstream(), &context.names, record)
            .await
            .map_err(|error| unreadable(error.to_string()))?
    {
        held = None;
    }
    let ticking = held.as_ref().and_then(|held| held.ticking.as_ref());
    let wanted = record.settings.schedule.as_ref();
    let newer = ticking.is_some_and(|ticking| ticking.version > record.generation());
    if newer || ticking.map(|ticking| &ticking.schedule) == wanted {
        return Ok(());
    }
    let change = TimerChange {
        revision,
        before: held.map(|held| held.id),
        next: wanted.and_then(|schedule| next(context, schedule, timestamp::now())),
    };
    tracing::info!(app = record.app, function = record.function, schedule = ?wanted, "schedule set");
    let function = &record.function;
    // Should another node have been faster, that is as well.
    let set = set_timer(
        &context.nats.client(),
        &context.names,
        function,
        subject,
        change,
    )
    .await;
    set.map(|_| ()).map_err(|error| unreadable(error.0))
}

/// The change of the function's record once a tick is taken: its successor is set.
pub(super) fn taken(context: &Context, revision: u64, tick: TimerRecord) -> TimerChange {
    let nominal = timestamp::parse(&tick.at).unwrap_or_default();
    let after = nominal.max(timestamp::now().saturating_sub(CATCH_UP));
    let next = tick
        .ticking
        .and_then(|ticking| next(context, &ticking.schedule, after));
    TimerChange {
        revision,
        before: Some(tick.id),
        next,
    }
}

fn next(context: &Context, schedule: &Schedule, after: i64) -> Option<Timer> {
    let worker = context.worker();
    let record = &worker.record;
    let (app, function) = (&record.app, &record.function);
    let at = schedule.next(after)?;
    let time = timestamp::format(at);
    let said = [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", format!("{function}/{time}")),
        ("ce-source", format!("/{app}/{function}")),
        ("ce-type", "pelton.schedule.tick".to_owned()),
        ("ce-time", time.clone()),
        ("Content-Type", "application/json".to_owned()),
        (TIMER_HEADER, context.names.tick(function)),
        (DUE_SUBJECT_HEADER, TICK_SUBJECT.to_owned()),
    ];
    Some(Timer {
        id: format!("tick-{function}-{}", at / 1_000_000_000),
        at,
        headers: said.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        payload: serde_json::json!({ "time": time }).to_string().into(),
        ticking: Some(Ticking {
            schedule: schedule.clone(),
            version: record.generation(),
        }),
    })
}
