//! Who runs which partition: records read, claimed, let go.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::lanes::{Key, Place};
use super::owner::PARTITIONS;
use super::{Context, SourceError, park};
use crate::commit::Partition;
use crate::commit::position::{claim, put};
use crate::members::Members;
use crate::records::{FORMAT, PositionRecord};

/// After so long without a word about a partition it is taken from a node that is alive: a claim whose answer was lost, or a
/// letting go that failed, leaves a record that names a node which does not run it. Should that one be at work after all, it
/// loses its commit, and nothing else.
const OVERDUE: Duration = Duration::from_secs(10);

/// How often the park is looked at, and the pause between, until its leader has what was claimed.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Lost deliveries that are looked for in the input at the same time.
const AT_ONCE: usize = 8;

/// The partitions of one input that this node holds.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: BTreeMap<u16, Partition>,
    /// To be let go as soon as nothing of them is under way.
    leaving: BTreeMap<u16, Partition>,
    /// Ours by the hash and another's by their records: at which revision, and since when.
    awaited: BTreeMap<u16, (u64, Instant)>,
}

/// Inputs whose claims this process makes at the same time. Each claims up to 64 partitions at
/// once;
/// hundreds of functions that start together would keep the server from answering any in time.
static CLAIMING: Semaphore = Semaphore::const_new(4);

/// What a round of claims found.
#[derive(Debug, Default)]
pub(super) struct Gained {
    /// Others make their claims now; try again soon.
    pub(super) busy: bool,
    pub(super) partitions: Vec<u16>,
    /// What waits in their parks.
    pub(super) parked: Vec<(Place, u64)>,
}

impl Claims {
    /// The partition, if this node hands out its messages.
    pub(super) fn get(&self, partition: u16) -> Option<&Partition> {
        self.held.get(&partition)
    }

    /// The partitions whose messages this node hands out.
    pub(super) fn held(&self) -> &BTreeMap<u16, Partition> {
        &self.held
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Partition> {
        self.held.values().chain(self.leaving.values())
    }

    /// The latest message that is known to be done, and when it was stored.
    pub(super) fn witness(&self) -> (u64, i64) {
        self.all().map(Partition::witness).max().unwrap_or_default()
    }

    /// Partitions that another node has taken over.
    pub(super) fn lost(&self) -> Vec<u16> {
        let all = self.held.iter().chain(&self.leaving);
        let lost = all.filter(|(_, partition)| partition.is_lost());
        lost.map(|(number, _)| *number).collect()
    }

    /// Forgets a partition that another node has taken over.
    pub(super) fn lose(&mut self, partition: u16) {
        self.held.remove(&partition);
        self.leaving.remove(&partition);
    }

    /// Partitions that are not this node's any more; they are let go by [`let_go`](Self::let_go).
    pub(super) fn yield_to(
        &mut self,
        context: &Context,
        members: &Members,
    ) -> Vec<(u16, Partition)> {
        let all = std::mem::take(&mut self.held).into_iter();
        let (mine, foreign): (Vec<_>, Vec<_>) =
            all.partition(|(one, _)| context.is_mine(members, *one));
        self.held = mine.into_iter().collect();
        self.leaving.extend(foreign.iter().cloned());
        foreign
    }

    /// None of the partitions is this node's any more; they are let go by [`let_go`](Self::let_go).
    pub(super) fn leave(&mut self) -> BTreeMap<u16, Partition> {
        let all = std::mem::take(&mut self.held);
        self.leaving.extend(all.clone());
        all
    }

    /// Lets go of what is to leave and has come to rest.
    pub(super) async fn let_go(&mut self, context: &Context) {
        let resting = self
            .leaving
            .iter()
            .filter(|(_, partition)| partition.is_idle());
        let resting = resting.map(|(number, partition)| (*number, partition.clone()));
        for number in release(context, resting.collect()).await {
            self.leaving.remove(&number);
        }
    }

    /// Lets go of everything.
    pub(super) async fn let_go_of_all(&mut self, context: &Context) {
        let held = std::mem::take(&mut self.held);
        let all: Vec<_> = held
            .into_iter()
            .chain(std::mem::take(&mut self.leaving))
            .collect();
        release(context, all).await;
    }

    /// Claims what is this node's, was let go or belonged to a node that is gone.
    pub(super) async fn gain(
        &mut self,
        context: &Context,
        members: &Members,
        passed: &Arc<AtomicU64>,
    ) -> Result<Gained, SourceError> {
        let mut gained = Gained::default();
        let wanted: Vec<u16> = (0..PARTITIONS)
            .filter(|one| !self.held.contains_key(one) && !self.leaving.contains_key(one))
            .filter(|one| context.is_mine(members, *one))
            .collect();
        if wanted.is_empty() {
            return Ok(gained);
        }
        let Ok(_turn) = CLAIMING.try_acquire() else {
            gained.busy = true;
            return Ok(gained);
        };
        let subjects = wanted.iter().map(|one| context.position(*one));
        let found = context.state.last(subjects.collect()).await;
        let found = found.map_err(|error| SourceError(error.to_string()))?;
        let claims = wanted.into_iter().map(|partition| {
            let last = found.get(&context.position(partition));
            let last = last.map(|last| (last.sequence, last.payload.as_ref()));
            let revision = last.map_or(0, |(revision, _)| revision);
            let overdue = self.is_overdue(partition, revision);
            self::take(context, members, partition, last, overdue)
        });
        let claims: Vec<_> = claims.collect();
        let claimed: Result<Vec<_>, _> = join_all(claims).await.into_iter().collect();
        let claimed: Vec<Claimed> = claimed?.into_iter().flatten().collect();
        let latest = claimed.iter().max_by_key(|(_, record, _)| record.witness);
        let Some((_, latest, _)) = latest else {
            return Ok(gained);
        };
        let latest = (latest.witness, latest.witness_stored);
        if let Some(misfit) = context.misfit(latest).await? {
            return Err(misfit);
        }
        gained.parked = parked(context, &claimed).await?;
        for (number, record, revision) in claimed {
            // Before the partition is there: its floor must not follow what was passed without it.
            let from = match context.internal {
                // What is left there is little, and may be done and not removed.
                true => 0,
                false => record.sequence,
            };
            passed.fetch_min(from, Ordering::AcqRel);
            gained.partitions.push(number);
            let subject = context.position(number);
            let owner = context.owner.clone();
            self.awaited.remove(&number);
            let partition = Partition::claimed(subject, owner, &record, revision, passed.clone());
            self.held.insert(number, partition);
        }
        Ok(gained)
    }

    /// Whether nobody has written a partition's record for so long that its owner, though alive, seems not to know of it.
    fn is_overdue(&mut self, partition: u16, revision: u64) -> bool {
        let now = Instant::now();
        let awaited = self.awaited.entry(partition).or_insert((revision, now));
        if awaited.0 != revision {
            *awaited = (revision, now);
        }
        awaited.1.elapsed() > OVERDUE
    }
}

/// The partitions that were let go. The others are tried again, or taken over when this node's lease ends.
async fn release(context: &Context, partitions: Vec<(u16, Partition)>) -> Vec<u16> {
    let released = partitions.iter().map(|(number, partition)| async move {
        match partition
            .release(&context.nats.client(), &context.state)
            .await
        {
            Ok(gone) => gone.then_some(*number),
            Err(error) => {
                tracing::debug!(%error, partition = number, "a partition was not let go");
                None
            }
        }
    });
    join_all(released).await.into_iter().flatten().collect()
}

/// A partition, its record and the record's revision.
type Claimed = (u16, PositionRecord, u64);

/// Claims one partition if nobody alive holds it, or who does is overdue.
async fn take(
    context: &Context,
    members: &Members,
    partition: u16,
    last: Option<(u64, &[u8])>,
    overdue: bool,
) -> Result<Option<Claimed>, SourceError> {
    let subject = context.position(partition);
    let stored = match last {
        None => None,
        Some((at, payload)) => {
            let record: PositionRecord = serde_json::from_slice(payload)
                .map_err(|error| SourceError(format!("{subject} holds no position: {error}")))?;
            if record.format != FORMAT {
                let format = record.format;
                return Err(SourceError(format!(
                    "{subject} has format {format}, this node reads {FORMAT}; upgrade the node"
                )));
            }
            Some((at, record))
        }
    };
    if stored.as_ref().is_some_and(|(_, record)| record.closed) {
        return Ok(None);
    }
    if stored.is_none() && context.input.begun {
        return Err(SourceError(format!(
            "{subject} is gone, which says how far the function is: the commit stream was emptied, limited (max_msgs, max_bytes, max_age) or \
             restored, and state may be gone with it. Restore stream {}, or deploy with `start` in pelton.toml, which says where the \
             function begins anew",
            context.names.commit_stream()
        )));
    }
    let held = stored.as_ref().map(|(_, record)| record.owner.as_str());
    let node = held.and_then(|owner| owner.split(':').next());
    let another = node.is_some_and(|node| node != context.node && members.is_alive(node));
    if another && !overdue {
        return Ok(None);
    }
    let record = claim(
        stored.as_ref().map(|(_, record)| record),
        &context.owner,
        context.input.start,
    );
    let at = stored.map_or(0, |(at, _)| at);
    let revision = put(&context.nats.client(), &subject, &record, at).await;
    let revision = revision.map_err(|error| SourceError(error.to_string()))?;
    Ok(revision.map(|revision| (partition, record, revision)))
}

/// What waits in the parks of these partitions. What their records do not name has ended.
async fn parked(context: &Context, claimed: &[Claimed]) -> Result<Vec<(Place, u64)>, SourceError> {
    let only = match claimed {
        [(one, ..)] => Some(*one),
        _ => None,
    };
    let mut waiting: HashSet<(u16, u64)> = claimed
        .iter()
        .flat_map(|(number, record, _)| record.parked_sequences().map(|at| (*number, at)))
        .collect();
    let written = claimed.iter().map(|(.., revision)| *revision).max();
    let mut tries = 0;
    let found = loop {
        let listing = park::list(context, only).await?;
        // A server that has just begun to lead may lag behind what it answered for before.
        if Some(listing.last) >= written {
            break listing.entries;
        }
        tries += 1;
        if tries >= LOOKS {
            let name = context.names.commit_stream();
            return Err(SourceError(format!(
                "the leader of stream {name} lags behind what it has stored"
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    let named = found.into_iter();
    let named = named.filter(|one| waiting.remove(&(one.partition, one.sequence)));
    let mut parked: Vec<(Place, u64)> = named
        .map(|one| ((one.partition, one.key), one.sequence))
        .collect();
    // Those that the park has lost are put back when it is their turn, which needs their key.
    let lost = futures::stream::iter(waiting).map(async |(partition, sequence)| {
        let key = match context.original(sequence).await? {
            Some(message) => context.place(&message).1,
            None => Key::Alone(sequence),
        };
        Ok::<_, SourceError>(((partition, key), sequence))
    });
    let lost: Vec<_> = lost.buffer_unordered(AT_ONCE).try_collect().await?;
    parked.extend(lost);
    parked.sort_by_key(|(_, sequence)| *sequence);
    Ok(parked)
}
