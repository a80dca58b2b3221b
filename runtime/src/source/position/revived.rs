//! Finds calls, ticks and timers of an internal input that have ended and are there again because
//! their server was killed: it brings back a call once the answer that took its place has expired.
//!
//! The position of their partition says that they have ended. No reader passes by them again, so
//! whoever holds the partition looks for them.

use std::collections::{BTreeMap, HashMap};

use super::{Context, SourceError, due};
use crate::call;
use crate::commit::Partition;
use crate::event::Message;
use crate::nats::raw::{self, Which};
use crate::records::PositionRecord;

/// Messages that one look reads; the next look continues behind them.
const AT_ONCE: usize = 64;

/// What earlier looks at one internal input found.
#[derive(Debug, Default)]
pub(super) struct Revived {
    /// The last message that was read.
    behind: u64,
    /// Ended calls by subject, with sequence and partition. They are removed if the next look finds
    /// them again: by then any batch that was under way has come to its end.
    suspects: HashMap<String, (u64, u16)>,
}

impl Revived {
    /// Looks at some messages, and removes those that two looks found to have ended; the answer is
    /// how many.
    pub(super) async fn look(
        &mut self,
        context: &Context,
        held: &BTreeMap<u16, Partition>,
    ) -> Result<usize, SourceError> {
        let mut removed = 0;
        for (subject, (sequence, partition)) in std::mem::take(&mut self.suspects) {
            if has_ended(context, partition, sequence).await? {
                due::purge(context, &subject, sequence)
                    .await
                    .map_err(SourceError)?;
                removed += 1;
            }
        }
        for _ in 0..AT_ONCE {
            let Some(message) = next(context, self.behind).await? else {
                self.behind = 0;
                break;
            };
            self.behind = message.sequence;
            if call::is_left(&message.headers) {
                continue;
            }
            let (subject, sequence) = (message.subject.clone(), message.sequence);
            let (partition, _) = context.place(&due::open(message));
            let done = |one: &Partition| one.is_done(sequence) && !one.is_parked(sequence);
            if held.get(&partition).is_some_and(done) {
                self.suspects.insert(subject, (sequence, partition));
            }
        }
        Ok(removed)
    }
}

/// Whether the partition's record, as the stream's leader has it, says that a message has ended.
async fn has_ended(context: &Context, partition: u16, sequence: u64) -> Result<bool, SourceError> {
    let newest = context.state.newest(&context.position(partition)).await;
    let newest = newest.map_err(|error| SourceError(error.to_string()))?;
    let record =
        newest.and_then(|last| serde_json::from_slice::<PositionRecord>(&last.payload).ok());
    Ok(record.is_some_and(|record| record.has_ended(sequence)))
}

/// The first message of the internal input behind a sequence, as the stream's leader has it.
async fn next(context: &Context, behind: u64) -> Result<Option<Message>, SourceError> {
    let (js, filter) = (context.nats.jetstream(), context.filter());
    let found = raw::get(&js, &context.stream, Which::Next(behind + 1, &filter)).await;
    let found = found.map_err(|error| SourceError(error.to_string()))?;
    Ok(found.map(|found| found.into_message(&context.stream)))
}
