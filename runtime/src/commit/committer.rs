//! The one task per app that gathers transactions into batches: while a batch is under way, the next one fills.
//!
//! A transaction that touches what another one in the open batch or in flight touches waits for that to land, and keeps its place
//! before later ones that touch the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::batch::{self, MAX_MESSAGES};
use super::cache::{Cache, CachedState};
use super::flight::{Landed, Pilot};
use super::group::{Entry, Fit, Group, Mark};
use super::locks::Locks;
use super::position::Partition;
use super::state::NatsState;
use super::transaction::{Fence, Origin, Transaction};
use crate::effects::{Effects, HEADER_RESERVE};
use crate::members::Members;
use crate::names::AppNames;
use crate::nats::Connection;
use crate::telemetry::AppMeter;

/// Batches of one app in flight from this node at most: batches of the same partitions wait for each other anyway.
const SLOTS: usize = 4;
/// What all nodes of an app share. The server takes 50 on one stream and refuses more; the rest is for nodes that have not heard of each
/// other yet, and for batches without a node.
const SHARED_SLOTS: usize = 40;
/// With so many in flight, the next one goes only when it is full: large batches are what makes commits cheap.
const EAGER: usize = 2;
/// A batch costs the server some ten milliseconds however small it is: while attempts are under way that may join, one
/// that is not full waits for half of what the last one took, within these bounds.
const LINGER: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];
/// Transactions that wait for their batch. Whoever has more to commit waits before its place in the queue.
const QUEUE: usize = 4096;
/// Memory of attempts that have ended and are not committed, in units of [`ROOM_UNIT`] bytes: 64 MiB.
const ROOM: usize = 16 << 10;
const ROOM_UNIT: usize = 4 << 10;

/// Why a transaction is not committed now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// It was committed before: nothing is left to do.
    #[error("committed before")]
    Duplicate,
    /// Another node runs its partition now: nothing of it may be run here any more.
    #[error("another node has taken its partition over")]
    Lost,
    /// These keys changed since they were read: run the handler again.
    #[error("changed since they were read: {0:?}")]
    Conflict(Vec<String>),
    /// NATS does not answer or is busy: hand the delivery back.
    #[error("{0}")]
    Unavailable(String),
    /// The server will never take it.
    #[error("{description} ({code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// Its text.
        description: String,
    },
}

impl CommitError {
    /// Whether it was refused for its size, so that sending less may help.
    pub fn is_size(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: batch::TOO_LARGE | batch::HEADERS_TOO_LARGE | batch::TOO_MANY,
                ..
            }
        )
    }
}

/// Whoever waits for a transaction.
pub(super) type Reply = oneshot::Sender<Result<(), CommitError>>;

/// Commits to one app's stream; cheap to clone. Its task ends with the last of them.
#[derive(Clone)]
pub struct Committer {
    nats: Connection,
    names: AppNames,
    queue: mpsc::Sender<Entry<Reply>>,
    room: Arc<Semaphore>,
    expected: Arc<AtomicUsize>,
    locks: Locks,
    state: CachedState,
}

/// An attempt under way, which may have something to commit soon.
#[derive(Debug)]
pub struct Expected<'a>(&'a AtomicUsize);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that a finished attempt holds until it is committed.
#[derive(Debug)]
pub struct Room<'a>(#[allow(dead_code)] Option<SemaphorePermit<'a>>);

impl Committer {
    /// A committer for the app that `names` names; `members` says with how many nodes it shares what the server takes, `meter` is told
    /// what it commits.
    pub(crate) fn start(
        nats: Connection,
        state: NatsState,
        names: AppNames,
        members: watch::Receiver<Members>,
        meter: Arc<AppMeter>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let cache = Cache::default();
        let pilot = Pilot {
            nats: nats.clone(),
            state: state.clone(),
            names: names.clone(),
            cache: cache.clone(),
            meter,
        };
        let expected = Arc::new(AtomicUsize::new(0));
        tokio::spawn(Gatherer::new(pilot, expected.clone(), members).run(waiting));
        Self {
            nats,
            names,
            queue,
            room: Arc::new(Semaphore::new(ROOM)),
            expected,
            locks: Locks::default(),
            state: CachedState::new(state, cache),
        }
    }

    /// The app's state as attempts read it.
    pub fn state(&self) -> &CachedState {
        &self.state
    }

    /// Turns at keys that many want to change.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// Says that an attempt begins; to be dropped when it has ended.
    pub fn expect(&self) -> Expected<'_> {
        self.expected.fetch_add(1, Ordering::Relaxed);
        Expected(&self.expected)
    }

    /// Waits until `bytes` more may be held by attempts that have ended.
    pub async fn room(&self, bytes: usize) -> Room<'_> {
        let units = (1 + bytes / ROOM_UNIT).min(ROOM);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // It is never closed.
        Room(self.room.acquire_many(units).await.ok())
    }

    /// Makes a transaction durable, or says why not. Sending it again after `Unavailable` is safe: the marker
    /// refuses a second one.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, transaction: Arc<Transaction>) -> Result<(), CommitError> {
        self.check_size(&transaction)?;
        let gone = || CommitError::Unavailable("the node is stopping".into());
        let (reply, outcome) = oneshot::channel();
        let entry = Entry::new(transaction.clone(), &self.names, reply);
        self.queue.send(entry).await.map_err(|_| gone())?;
        let outcome = outcome.await.map_err(|_| gone())?;
        // What a conflict is about has been read anew. After anything else nobody knows what is stored, or by whom.
        if !matches!(outcome, Ok(()) | Err(CommitError::Conflict(_))) {
            self.forget(&transaction.effects);
        }
        outcome
    }

    /// Has what an attempt read or wrote read from the server next time: its outcome rests on nothing that a commit would check.
    pub fn forget(&self, effects: &Effects) {
        self.state.cache().forget_all(effects);
    }

    /// Brings a position's record up to date with what is done and left nothing to commit.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn advance(&self, partition: Partition) -> Result<(), CommitError> {
        let origin = Origin {
            function: "".into(),
            stream: "".into(),
            sequence: 0,
            txn: "".into(),
        };
        let fence = Fence::Position {
            partition,
            stored: None,
        };
        let transaction = Transaction::new(origin, fence);
        self.commit(Arc::new(transaction)).await
    }

    /// What is too large for the server never gets near a batch with others.
    fn check_size(&self, transaction: &Transaction) -> Result<(), CommitError> {
        let refused = |code, description| Err(CommitError::Refused { code, description });
        let count = transaction.count();
        if count > MAX_MESSAGES {
            let description = format!("{count} messages in one commit, {MAX_MESSAGES} fit");
            return refused(batch::TOO_MANY, description);
        }
        let (largest, limit) = (transaction.largest(), self.nats.max_payload());
        if largest + HEADER_RESERVE / 2 > limit {
            let description =
                format!("a message of {largest} bytes, the server takes {limit} with headers");
            return refused(batch::TOO_LARGE, description);
        }
        Ok(())
    }
}

/// The task's state.
struct Gatherer {
    pilot: Arc<Pilot>,
    /// Those that cannot go before a batch has landed, in the order they came.
    blocked: VecDeque<Entry<Reply>>,
    /// What those touch: who comes later must not overtake them.
    reserved: FxHashSet<Mark>,
    /// Those that came after them and have not been looked at since a batch landed.
    waiting: VecDeque<Entry<Reply>>,
    /// The batch that fills.
    open: Group<Reply>,
    full: bool,
    /// When the open batch goes although others may join.
    patience: Instant,
    linger: Duration,
    expected: Arc<AtomicUsize>,
    members: watch::Receiver<Members>,
    /// What batches in flight touch.
    busy: FxHashSet<Mark>,
    flights: JoinSet<Landed>,
    /// Transactions that have come so far.
    came: u64,
}

impl Gatherer {
    fn new(pilot: Pilot, expected: Arc<AtomicUsize>, members: watch::Receiver<Members>) -> Self {
        Self {
            pilot: Arc::new(pilot),
            blocked: VecDeque::new(),
            reserved: FxHashSet::default(),
            waiting: VecDeque::new(),
            open: Group::new(),
            full: false,
            patience: Instant::now(),
            linger: LINGER[0],
            expected,
            members,
            busy: FxHashSet::default(),
            flights: JoinSet::new(),
            came: 0,
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Entry<Reply>>) {
        let mut more = true;
        while more || self.held() > 0 || !self.flights.is_empty() {
            tokio::select! {
                entry = queue.recv(), if more && self.held() < QUEUE => match entry {
                    Some(entry) => {
                        self.take(entry);
                        // Whoever else is ready goes along.
                        while self.held() < QUEUE && let Ok(entry) = queue.try_recv() {
                            self.take(entry);
                        }
                    }
                    None => more = false,
                },
                Some(landed) = self.flights.join_next() => self.land(landed),
                () = tokio::time::sleep_until(self.patience), if !self.open.is_empty() && self.flights.len() < self.eager() => {}
            }
            self.gather();
        }
    }

    fn take(&mut self, mut entry: Entry<Reply>) {
        self.came += 1;
        entry.number = self.came;
        self.waiting.push_back(entry);
    }

    fn land(&mut self, landed: Result<Landed, tokio::task::JoinError>) {
        let meter = &self.pilot.meter;
        meter.in_flight(self.flights.len());
        match landed {
            Ok(landed) => {
                meter.landed(landed.took);
                for key in &landed.keys {
                    self.busy.remove(key);
                }
                self.linger = (landed.took / 2).clamp(LINGER[0], LINGER[1]);
            }
            Err(error) => {
                // What it touched is not known any more; nobody waits for it any more either.
                tracing::error!(%error, app = self.pilot.names.app(), "a commit ended unexpectedly");
                if self.flights.is_empty() {
                    self.busy.clear();
                }
            }
        }
        self.reserved.clear();
        self.blocked.append(&mut self.waiting);
        std::mem::swap(&mut self.blocked, &mut self.waiting);
    }

    /// Transactions that wait and are in no batch.
    fn held(&self) -> usize {
        self.blocked.len() + self.waiting.len()
    }

    /// Fills the open batch, and sends it when it is its turn.
    fn gather(&mut self) {
        loop {
            let began = self.open.is_empty();
            if began {
                self.line_up();
            }
            self.fill();
            if began {
                self.patience = Instant::now() + self.linger;
            }
            let slots = match self.full {
                true => self.slots(),
                false => self.eager(),
            };
            if self.open.is_empty()
                || self.flights.len() >= slots
                || !self.full && self.others_may_join()
            {
                return;
            }
            self.full = false;
            let (members, keys) = std::mem::replace(&mut self.open, Group::new()).into_parts();
            self.busy.extend(keys.iter().cloned());
            let pilot = self.pilot.clone();
            self.flights
                .spawn(async move { pilot.fly(members, keys).await });
            self.pilot.meter.in_flight(self.flights.len());
        }
    }

    /// Batches in flight as things are.
    fn slots(&self) -> usize {
        slots(self.members.borrow().of_app(self.pilot.names.app()))
    }

    /// Batches in flight beside which one goes that is not full. Where others are blocked, many of what comes next are, too: they
    /// make one large batch when those have landed, rather than the few that are not a small one beside them.
    fn eager(&self) -> usize {
        match self.blocked.is_empty() {
            true => self.slots().min(EAGER),
            false => 1,
        }
    }

    fn others_may_join(&self) -> bool {
        self.expected.load(Ordering::Relaxed) > 0 && Instant::now() < self.patience
    }

    /// Puts those of one partition behind each other, and the partition first that has waited longest: a batch keeps the partitions
    /// that it moves from all others, so it had better take few of them, and all that waits of each.
    fn line_up(&mut self) {
        let mut oldest: FxHashMap<Mark, u64> = FxHashMap::default();
        for entry in &self.waiting {
            if let Some(position) = entry.position() {
                let number = oldest.entry(position).or_insert(entry.number);
                *number = entry.number.min(*number);
            }
        }
        let since = |entry: &Entry<Reply>| {
            let oldest = entry.position().and_then(|one| oldest.get(&one));
            oldest.copied().unwrap_or(entry.number)
        };
        self.waiting.make_contiguous().sort_by_key(since);
    }

    fn fill(&mut self) {
        while !self.full
            && let Some(entry) = self.waiting.pop_front()
        {
            // The delivery was handed back meanwhile.
            if entry.reply.is_closed() {
                continue;
            }
            let taken = |key: Mark| self.busy.contains(&key) || self.reserved.contains(&key);
            let moving = |position: Mark| self.busy.contains(&position);
            let fit = match entry.position().is_some_and(moving) || entry.keys().any(taken) {
                true => Fit::Conflict,
                false => self.open.fit(&entry),
            };
            match fit {
                Fit::Yes => {
                    let stale = self.pilot.cache.changed(&entry.transaction.effects.reads);
                    match stale.is_empty() {
                        true => self.open.push(entry),
                        false => {
                            self.pilot.meter.conflicts(1);
                            let _ = entry.reply.send(Err(CommitError::Conflict(stale)));
                        }
                    }
                }
                Fit::Conflict => {
                    self.reserved.extend(entry.keys());
                    self.blocked.push_back(entry);
                }
                Fit::Full => {
                    self.full = true;
                    self.waiting.push_front(entry);
                }
            }
        }
    }
}

/// This node's part of what `nodes` share. Of more than the server takes, each still has one: refused ones are sent again.
fn slots(nodes: usize) -> usize {
    (SHARED_SLOTS / nodes.max(1)).clamp(1, SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_what_the_server_takes() {
        let cases = [
            (0, 4),
            (1, 4),
            (10, 4),
            (11, 3),
            (13, 3),
            (14, 2),
            (20, 2),
            (21, 1),
            (40, 1),
            (50, 1),
            (1000, 1),
        ];
        for (nodes, want) in cases {
            assert_eq!(slots(nodes), want, "{nodes} nodes");
        }
        for nodes in 1..=50 {
            assert!(nodes * slots(nodes) <= 50, "{nodes} nodes");
        }
    }
}
