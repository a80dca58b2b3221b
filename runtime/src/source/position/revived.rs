//! Finds calls, ticks and timers of an internal input that have ended and are there again because
//! their server was killed: it brings back a call once the answer that took its place has expired.
//!
//! The position of their partition says that they have ended. No reader passes by them again, so
//! whoever holds the partition looks for them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;

use super::{Context, SourceError, due};
use crate::call;
use crate::commit::Partition;
use crate::event::Message;
use crate::nats::raw::{self, Which};
use crate::records::PositionRecord;

/// Messages that one look reads, a fraction of a second; the next look continues behind them.
const MOST: usize = 1000;
/// Purges at the same time.
const AT_ONCE: usize = 8;

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
        let removed = remove(context, std::mem::take(&mut self.suspects)).await?;
        for _ in 0..MOST {
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

/// Removes those of which the records of their partitions, as the stream's leader has them, say
/// that
/// they have ended. Returns how many.
async fn remove(
    context: &Context,
    suspects: HashMap<String, (u64, u16)>,
) -> Result<usize, SourceError> {
    let mut records: HashMap<u16, Option<PositionRecord>> = HashMap::new();
    let mut ended = Vec::new();
    for (subject, (sequence, partition)) in suspects {
        let record = match records.entry(partition) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(record(context, partition).await?),
        };
        if record.as_ref().is_some_and(|one| one.has_ended(sequence)) {
            ended.push((subject, sequence));
        }
    }
    let removed = ended.len();
    let purges = ended
        .into_iter()
        .map(|(subject, sequence)| async move { due::purge(context, &subject, sequence).await });
    let mut purges = futures::stream::iter(purges).buffer_unordered(AT_ONCE);
    while let Some(purged) = purges.next().await {
        purged.map_err(SourceError)?;
    }
    Ok(removed)
}

async fn record(context: &Context, partition: u16) -> Result<Option<PositionRecord>, SourceError> {
    let newest = context.state.newest(&context.position(partition)).await;
    let newest = newest.map_err(|error| SourceError(error.to_string()))?;
    Ok(newest.and_then(|last| serde_json::from_slice(&last.payload).ok()))
}

/// The first message of the internal input behind a sequence, as the stream's leader has it.
async fn next(context: &Context, behind: u64) -> Result<Option<Message>, SourceError> {
    let (js, filter) = (context.nats.jetstream(), context.filter());
    let found = raw::get(&js, &context.stream, Which::Next(behind + 1, &filter)).await;
    let found = found.map_err(|error| SourceError(error.to_string()))?;
    Ok(found.map(|found| found.into_message(&context.stream)))
}
