//! What a timer comes to when it is due: its event leaves for its stream, or a tick reaches its handler.
//!
//! The server may put a message where it is due twice, should it be killed as it does so, and a timer may have been moved or
//! cancelled while its message lay there. So only what the timer's record names counts, and the batch that takes the message
//! changes that record, under the condition that it is still the one that was read.

use super::Context;
use super::due::header;
use super::tick;
use crate::commit::stream;
use crate::effects::{Effects, Emit, Failure, TimerChange};
use crate::event::Message;
use crate::names::{DUE_HEADER, DUE_TARGET_HEADER, TIMER_HEADER};
use crate::nats::raw::{self, Which};
use crate::records::TimerRecord;

/// What a message of the internal input is.
pub(super) enum Timed {
    /// No timer's.
    No,
    /// One that was moved, cancelled, or done.
    Stale,
    /// An event that is to leave, with the change of its record.
    Event(Effects),
    /// An event whose stream does not take the app's events any more, with the change of its record.
    Refused(Effects, Failure),
    /// A tick for the handler, and by which record its successor is set.
    Tick(String, TimerChange),
}

/// Looks at the timer's record as the stream's leader knows it: an older one would let go what is due.
pub(super) async fn look(context: &Context, message: &Message) -> Result<Timed, String> {
    let said = |name| header(&message.headers, name);
    let Some(subject) = said(TIMER_HEADER).filter(|_| context.internal) else {
        return Ok(Timed::No);
    };
    let prefix = context.names.due(&context.function, "");
    let id = said(DUE_HEADER).and_then(|due| due.strip_prefix(&prefix));
    let (revision, record) = last(context, subject).await?;
    let Some(record) = record.filter(|record| Some(record.id.as_str()) == id) else {
        return Ok(Timed::Stale);
    };
    if record.ticking.is_some() {
        let change = tick::taken(context, revision, record);
        return Ok(Timed::Tick(subject.to_owned(), change));
    }
    let change = TimerChange {
        revision,
        // Should the server have been killed between putting the message there and removing the schedule.
        before: Some(record.id),
        next: None,
    };
    let mut effects = Effects::default();
    effects.timers.insert(subject.to_owned(), change);
    let Some(emit) = event(message) else {
        return Ok(Timed::Event(effects));
    };
    if let Some(failure) = refused(context, &emit).await? {
        return Ok(Timed::Refused(effects, failure));
    }
    effects.emits.push(emit);
    Ok(Timed::Event(effects))
}

/// What was allowed when the timer was set leaves, unless its stream takes nothing from the outbox any more: there it would wait for ever.
async fn refused(context: &Context, emit: &Emit) -> Result<Option<Failure>, String> {
    let worker = context.worker();
    let record = &worker.record;
    let target = &emit.target;
    let known = record.targets.iter().any(|one| one.stream == *target);
    if known
        || stream::is_target(&context.nats.jetstream(), &context.names, target)
            .await
            .map_err(|error| error.to_string())?
    {
        return Ok(None);
    }
    Ok(Some(Failure::reject(
        "pelton-not-allowed",
        format!(
            "stream {target} takes no events of app {} any more, and the delayed event for {to} is due; if it should leave, add to \
             [functions.{}.allow] emit = [\"{to}\"] in pelton.toml, deploy, and replay it",
            record.app,
            record.function,
            to = emit.subject,
        ),
    )))
}

/// The event as it leaves: without the headers by which Pelton and NATS steered it.
fn event(message: &Message) -> Option<Emit> {
    let target = header(&message.headers, DUE_TARGET_HEADER)?.to_owned();
    let steering = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("pelton-") || name.starts_with("nats-")
    };
    let headers = message.headers.iter().filter(|(name, _)| !steering(name));
    Some(Emit {
        target,
        subject: message.subject.clone(),
        headers: headers
            .map(|(name, value)| (name.clone().into(), value.clone()))
            .collect(),
        payload: message.payload.clone(),
    })
}

/// A timer's record and its revision, as the stream's leader knows them; 0 and none: there is none.
pub(super) async fn last(
    context: &Context,
    subject: &str,
) -> Result<(u64, Option<TimerRecord>), String> {
    let (js, name) = (context.nats.jetstream(), context.names.commit_stream());
    let found = raw::get(&js, &name, Which::Last(subject)).await;
    Ok(match found.map_err(|error| error.to_string())? {
        Some(found) => (found.sequence, TimerRecord::read(&found.payload)),
        None => (0, None),
    })
}
