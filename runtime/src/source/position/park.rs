//! What lies in the park of an input, and what of it is left over.
//!
//! A partition's record names what waits there. What it does not name has ended, and is there again because its server was killed: a
//! message that another one replaced comes back when that one has gone by itself (see the invariants in `ARCHITECTURE.md`). It may come
//! back at any time, with or without a new claim, so that whoever holds the partition looks now and then, and purges it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::InfoWithSubjects;
use futures::StreamExt;

use super::job::Ended;
use super::lanes::{Key, Place};
use super::revived::Revived;
use super::{Context, SourceError};
use crate::commit::{CommitError, Fence, Origin, Parking, Partition, Transaction};
use crate::names::Txn;
use crate::records::{AttemptsRecord, FORMAT, PositionRecord};
use crate::settle::{LOOK_AGAIN, park as parked};
use crate::source::Settlement;

/// Between two looks: each is one request, and nobody should have to ask what that is that lies there.
const PAUSE: Duration = Duration::from_secs(5);
/// Purges in one look, each a request: the rest is for the next look.
const AT_MOST: usize = 256;
/// Purges on their way at the same time.
const AT_ONCE: usize = 8;

/// A delivery that lies in the park.
#[derive(Debug)]
pub(super) struct InPark {
    pub(super) subject: String,
    pub(super) partition: u16,
    pub(super) key: Key,
    pub(super) sequence: u64,
}

/// What lies in the park, as the stream's leader knows it.
pub(super) struct Listing {
    pub(super) entries: Vec<InPark>,
    /// No message of them is later than this one of the commit stream.
    pub(super) last: u64,
}

/// Whether the park lacks a delivery that the partition's record named at this revision. Only a leader that has that record can tell:
/// one that has just begun to lead may lag behind what it answered for before.
pub(super) async fn is_lost(
    context: &Context,
    partition: u16,
    sequence: u64,
    revision: u64,
) -> Result<bool, SourceError> {
    let listing = list(context, Some(partition)).await?;
    let there = listing.entries.iter().any(|one| one.sequence == sequence);
    Ok(listing.last >= revision && !there)
}

/// Puts a delivery back that a position names and the park has lost, which nobody but an outsider does: as its input has it, with its
/// attempts forgotten. Of one that the input has lost, too, its sequence goes there, and the next attempt finds that out. `upon` is the
/// revision of what is in its place.
pub(super) async fn restore(
    context: &Context,
    partition: &Partition,
    (number, key): &Place,
    sequence: u64,
    upon: u64,
) -> Result<Settlement, SourceError> {
    let original = context.original(sequence).await?;
    let worker = context.worker();
    let (function, input) = (&worker.name, &context.stream);
    let txn = Txn {
        instance: worker.record.instance,
        stream: input.clone(),
        life: context.input.life(context.stream_created),
        sequence,
    }
    .id();
    let record = AttemptsRecord {
        format: FORMAT,
        txn: txn.to_string(),
        ..Default::default()
    };
    let message = match &original {
        Some(message) => parked::write(&record, message, worker.max_payload),
        // With room for nothing it points to its input.
        None => parked::write(&record, &parked::lost(input, sequence).message, 0),
    };
    let named = key.name().map(Arc::as_ref);
    let origin = Origin {
        function: function.clone(),
        stream: input.clone(),
        sequence,
        txn,
    };
    let fence = Fence::Position {
        partition: partition.clone(),
        stored: None,
    };
    let transaction = Transaction {
        parking: Some(Parking {
            subject: context
                .names
                .parked(function, input, *number, named, sequence),
            revision: upon,
            message: Some(message),
        }),
        ..Transaction::new(origin, fence)
    };
    match worker.committer.commit(Arc::new(transaction)).await {
        Ok(()) => {
            tracing::warn!(
                app = context.names.app(),
                function = &**function,
                stream = %input,
                sequence,
                in_input = original.is_some(),
                "an event that waited for another attempt is gone from the commit stream, which somebody altered; it is handled as if for \
                 the first time if its input has it, and is a dead letter if not"
            );
            Ok(Settlement::Again(Duration::ZERO))
        }
        Err(CommitError::Lost) => Ok(Settlement::Lost),
        // It has ended, or somebody wrote there: looked for again.
        Err(CommitError::Duplicate) => Ok(Settlement::Again(LOOK_AGAIN)),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether anything of the input is parked.
pub(super) async fn any(context: &Context) -> Result<bool, SourceError> {
    let mut subjects = subjects(context, None).await?;
    let first = subjects.next().await.transpose();
    Ok(first.map_err(unreadable)?.is_some())
}

/// Everything in the park of one partition, or of all.
pub(super) async fn list(
    context: &Context,
    partition: Option<u16>,
) -> Result<Listing, SourceError> {
    let mut subjects = subjects(context, partition).await?;
    let last = subjects.info.state.last_sequence;
    let mut entries = Vec::new();
    while let Some(entry) = subjects.next().await {
        let (subject, _) = entry.map_err(unreadable)?;
        entries.extend(read(subject));
    }
    Ok(Listing { entries, last })
}

async fn subjects(
    context: &Context,
    partition: Option<u16>,
) -> Result<InfoWithSubjects, SourceError> {
    let (function, input) = (&context.function, &context.input.stream);
    let filter = context.names.parked_filter(function, input, partition);
    let name = context.names.commit_stream();
    let stream = context.nats.jetstream().get_stream_no_info(name).await;
    let stream = stream.map_err(unreadable)?;
    let subjects = stream.info_with_subjects(filter).await;
    subjects.map_err(unreadable)
}

fn read(subject: String) -> Option<InPark> {
    let mut tokens = subject.rsplit('.');
    let sequence = tokens.next()?.parse().ok()?;
    let key = Key::from_token(tokens.next()?, sequence)?;
    let partition = tokens.next()?.parse().ok()?;
    Some(InPark {
        subject,
        partition,
        key,
        sequence,
    })
}

fn unreadable(error: impl std::fmt::Display) -> SourceError {
    SourceError(format!("the park cannot be read: {error}"))
}

/// Looks now and then.
pub(super) struct Sweeper {
    /// `None`: a look is under way.
    leftovers: Option<Leftovers>,
    /// When the last one began.
    at: Instant,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self {
            leftovers: Some(Leftovers::default()),
            at: Instant::now(),
        }
    }
}

impl Sweeper {
    /// The next look at the parks of these partitions, if it is time for one; to be followed by [`end`](Self::end).
    pub(super) fn start(
        &mut self,
        context: &Arc<Context>,
        held: &BTreeMap<u16, Partition>,
    ) -> Option<impl Future<Output = Ended> + use<>> {
        if held.is_empty() || self.at.elapsed() < PAUSE {
            return None;
        }
        let leftovers = self.leftovers.take()?;
        self.at = Instant::now();
        Some(leftovers.sweep(context.clone(), held.clone()))
    }

    /// The look is over.
    pub(super) fn end(&mut self, leftovers: Leftovers) {
        self.leftovers = Some(leftovers);
    }
}

/// What a look found that no record names. It is purged by the next look if that finds the same: between the two any batch that was
/// on its way has come to its end, and any new leader has caught up.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    suspects: HashSet<String>,
    /// They were stored up to here; what came later under such a subject is another message.
    last: u64,
    /// The same for what lies in an internal input itself.
    revived: Revived,
}

impl Leftovers {
    /// Looks at the parks of these partitions.
    async fn sweep(mut self, context: Arc<Context>, held: BTreeMap<u16, Partition>) -> Ended {
        if let Err(error) = self.look(&context, &held).await {
            tracing::debug!(%error, "what is left over in the park was not removed");
        }
        if context.internal {
            match self.revived.look(&context, &held).await {
                Ok(0) => {}
                Ok(calls) => tracing::info!(
                    calls,
                    function = &*context.function,
                    "calls and timers that a killed server brought back are removed"
                ),
                Err(error) => tracing::debug!(%error, "ended calls were not looked for"),
            }
        }
        Ended::Swept(self)
    }

    async fn look(
        &mut self,
        context: &Context,
        held: &BTreeMap<u16, Partition>,
    ) -> Result<(), SourceError> {
        let Listing { mut entries, last } = list(context, None).await?;
        entries.retain(|one| {
            let partition = held.get(&one.partition);
            partition.is_some_and(|partition| !partition.is_parked(one.sequence))
        });
        let subjects = entries.iter().map(|one| one.subject.clone()).collect();
        let suspects = std::mem::replace(&mut self.suspects, subjects);
        let until = std::mem::replace(&mut self.last, last);
        entries.retain(|one| suspects.contains(&one.subject));
        entries.truncate(AT_MOST);
        let named = named(context, held, &entries).await?;
        entries.retain(|one| {
            let named = named.get(&one.partition);
            named.is_some_and(|named| !named.contains(&one.sequence))
        });
        if entries.is_empty() {
            return Ok(());
        }
        tracing::info!(
            app = context.names.app(),
            function = &*context.function,
            entries = entries.len(),
            stream = context.input.stream,
            "what a killed server brought back of the park is removed"
        );
        let purges = entries.into_iter().map(|one| purge(context, one, until));
        let mut purges = futures::stream::iter(purges).buffer_unordered(AT_ONCE);
        while let Some(purged) = purges.next().await {
            purged?;
        }
        Ok(())
    }
}

/// What the records of these partitions name, as the stream's leader has them; only of those that this hold on the input wrote last. One that
/// another node took over, and let go, without anything under way here that would have told, is lost.
async fn named(
    context: &Context,
    held: &BTreeMap<u16, Partition>,
    entries: &[InPark],
) -> Result<HashMap<u16, HashSet<u64>>, SourceError> {
    let partitions: HashSet<u16> = entries.iter().map(|one| one.partition).collect();
    let mut named = HashMap::new();
    for number in partitions {
        let newest = context.state.newest(&context.position(number)).await;
        let Some(newest) = newest.map_err(|error| SourceError(error.to_string()))? else {
            continue;
        };
        match serde_json::from_slice::<PositionRecord>(&newest.payload) {
            Ok(record) if record.owner == context.owner => {
                named.insert(number, record.parked_sequences().collect());
            }
            _ => {
                if let Some(partition) = held.get(&number) {
                    partition.overtaken(newest.sequence);
                }
            }
        }
    }
    Ok(named)
}

async fn purge(context: &Context, entry: InPark, until: u64) -> Result<(), SourceError> {
    let name = context.names.commit_stream();
    let stream = context.nats.jetstream().get_stream_no_info(name).await;
    let stream = stream.map_err(unreadable)?;
    let purge = stream.purge().filter(entry.subject).sequence(until + 1);
    purge.await.map(drop).map_err(unreadable)
}
