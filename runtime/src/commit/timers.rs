//! Timers on the wire: a scheduled message for each, and the record of its name.

use std::collections::BTreeMap;

use async_nats::Client;

use super::batch::{self, BatchError, BatchMessage};
use super::transaction::{expecting, scrap};
use crate::effects::{StateError, Timer, TimerChange};
use crate::event::timestamp;
use crate::mutation;
use crate::names::{AppNames, DUE_SUBJECT_HEADER, DUE_TARGET_HEADER, SCHEDULE_TARGET_HEADER};
use crate::nats::header_map;
use crate::records::{FORMAT, TimerRecord};

/// How long a name says that it holds no timer. While it does, a server that is killed cannot bring back the record that was
/// replaced; so it is longer than a message that is due waits for its look at that record, even through a takeover and an
/// outage of some minutes.
const GONE_TTL: &str = "10m";

/// What each timer's name holds from now on. The same message takes away what it held: a message of its own in that place
/// could expire, and a server that is killed would bring the timer back.
pub(super) fn push_records(
    timers: &BTreeMap<String, TimerChange>,
    names: &AppNames,
    messages: &mut Vec<BatchMessage>,
) {
    for (subject, change) in timers {
        let mut headers = expecting(change.revision);
        if let Some(before) = &change.before {
            headers.insert("Nats-Scheduler", names.at(before));
            headers.insert("Nats-Schedule-Next", "purge");
        }
        let Some(timer) = &change.next else {
            messages.push(scrap(subject.clone(), headers, GONE_TTL));
            continue;
        };
        let record = TimerRecord {
            format: FORMAT,
            id: timer.id.clone(),
            at: timestamp::format(timer.at),
            ticking: timer.ticking.clone(),
        };
        messages.push(BatchMessage {
            subject: subject.clone(),
            headers,
            payload: serde_json::to_vec(&record).unwrap_or_default().into(),
        });
    }
}

/// The timers themselves, which stand at a batch's end.
pub(super) fn push_schedules<'a>(
    timers: impl Iterator<Item = &'a Timer>,
    names: &AppNames,
    function: &str,
    messages: &mut Vec<BatchMessage>,
) {
    for timer in timers {
        let mut headers = header_map(&timer.headers);
        headers.insert(
            "Nats-Schedule",
            format!("@at {}", timestamp::format(timer.at)),
        );
        headers.insert(SCHEDULE_TARGET_HEADER, target(timer, names, function));
        messages.push(BatchMessage {
            subject: names.at(&timer.id),
            headers,
            payload: timer.payload.clone(),
        });
    }
}

/// Where a timer's message goes when it is due: to where it is handled as a delivery, for the server may put it there twice.
fn target(timer: &Timer, names: &AppNames, function: &str) -> String {
    let said = |wanted| {
        let mut headers = timer.headers.iter();
        headers.find_map(|(name, value)| (name == wanted).then_some(value))
    };
    if mutation::is("schedule-to-outbox")
        && let (Some(stream), Some(subject)) = (said(DUE_TARGET_HEADER), said(DUE_SUBJECT_HEADER))
    {
        return names.outbox(stream, &timer.id, 0, subject);
    }
    names.due(function, &timer.id)
}

/// Changes a timer's record by itself, with no delivery. `false`: somebody else changed it first.
///
/// # Errors
/// NATS did not confirm it. It may be stored all the same.
pub async fn set_timer(
    client: &Client,
    names: &AppNames,
    function: &str,
    subject: String,
    change: TimerChange,
) -> Result<bool, StateError> {
    let (timers, mut messages) = (BTreeMap::from([(subject, change)]), Vec::new());
    push_records(&timers, names, &mut messages);
    let set = timers.values().filter_map(|change| change.next.as_ref());
    push_schedules(set, names, function, &mut messages);
    match batch::publish(client, messages).await {
        Ok(_) => Ok(true),
        Err(BatchError::Condition) => Ok(false),
        Err(error) => Err(StateError(error.to_string())),
    }
}
