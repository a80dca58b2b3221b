//! How far one partition of a function's input is done: offset, duplicate check and fence in one record.
//!
//! A partition is run by one node at a time. Its record is written with every batch that holds deliveries of it, under the
//! condition of its last revision: of two nodes that both believe they own it, only one can commit.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Client;

use super::batch::{self, BatchError, BatchMessage};
use super::state::{Last, NatsState};
use super::transaction::expecting;
use crate::effects::StateError;
use crate::mutation;
use crate::records::{FORMAT, PositionRecord};

/// Deliveries of one partition that may be done or under way beyond the first that is not: what a record holds.
pub const WINDOW: usize = 1024;

/// Deliveries of one partition that wait in the park before no more are handed out: its record names them.
const PARKED: usize = 1024;

/// A partition that this node runs; shared by whoever hands out its deliveries and whoever commits them.
#[derive(Debug, Clone)]
pub struct Partition(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    subject: String,
    owner: String,
    /// Up to here the input was handed out, all partitions together.
    passed: Arc<AtomicU64>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// The record's revision in the commit stream; `None`: another node has taken over.
    revision: Option<u64>,
    /// Up to here everything is done.
    floor: u64,
    /// Done beyond it.
    done: BTreeSet<u64>,
    /// Handed out and not done.
    running: BTreeSet<u64>,
    /// Those of them that are left to the next owner.
    abandoned: BTreeSet<u64>,
    /// In the park.
    parked: BTreeSet<u64>,
    /// Nothing beyond was handed out, whatever is read for others.
    end: Option<u64>,
    /// Latest message known to be done, and when it was stored.
    witness: (u64, i64),
    /// The floor that was written last.
    written: u64,
    /// Whether something is done that the stored record does not say.
    dirty: bool,
    /// Whether it is being brought up to date.
    flushing: bool,
}

/// A record about to be written.
#[derive(Debug, Clone)]
pub(super) struct Advance {
    pub(super) record: PositionRecord,
    /// The revision that it replaces.
    pub(super) revision: u64,
}

impl Partition {
    /// A partition claimed by `owner` at `revision`, whose stored record is `record`.
    pub fn claimed(
        subject: String,
        owner: String,
        record: &PositionRecord,
        revision: u64,
        passed: Arc<AtomicU64>,
    ) -> Self {
        let progress = Progress {
            revision: Some(revision),
            floor: record.sequence,
            done: record.done_sequences().collect(),
            running: BTreeSet::new(),
            abandoned: BTreeSet::new(),
            parked: record.parked_sequences().collect(),
            end: None,
            witness: (record.witness, record.witness_stored),
            written: record.sequence,
            dirty: false,
            flushing: false,
        };
        Self(Arc::new(Shared {
            subject,
            owner,
            passed,
            progress: Mutex::new(progress),
        }))
    }

    /// Subject of the record.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Whether both are the same hold on a partition, not an earlier and a later one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Lets go: writes what is done, under no owner. Only when nothing of it is under way. Whether it is another's to claim now;
    /// if not, it is to be let go again.
    ///
    /// # Errors
    /// NATS did not confirm it. It may be let go all the same.
    pub async fn release(&self, client: &Client, state: &NatsState) -> Result<bool, StateError> {
        let Some(Advance {
            mut record,
            revision,
        }) = self.advance(&[], &[])
        else {
            return Ok(true);
        };
        record.owner.clear();
        if put(client, self.subject(), &record, revision)
            .await?
            .is_none()
        {
            self.learn(state.newest(self.subject()).await?.as_ref());
            return Ok(self.is_lost());
        }
        self.lose();
        Ok(true)
    }

    /// Another owner wrote the record at this revision: the partition is lost if that came after what is known here.
    pub fn overtaken(&self, at: u64) {
        if self.revision().is_some_and(|revision| revision < at) {
            self.lose();
        }
    }

    /// Whether another node has taken over: then nothing of it may be run here any more.
    pub fn is_lost(&self) -> bool {
        self.lock().revision.is_none()
    }

    /// The revision that the record has as far as this node knows; `None`: lost.
    pub fn revision(&self) -> Option<u64> {
        self.lock().revision
    }

    /// Holds the record as the stream's leader has it against what is known: one that this hold wrote without getting the answer is
    /// caught up with, any other means that the partition is another node's.
    pub(super) fn learn(&self, last: Option<&Last>) {
        let record = last.and_then(|last| {
            let record = serde_json::from_slice::<PositionRecord>(&last.payload).ok()?;
            (record.owner == self.0.owner).then_some((last.sequence, record))
        });
        let Some((at, record)) = record else {
            return self.lose();
        };
        let mut progress = self.lock();
        for sequence in record.done_sequences() {
            progress.running.remove(&sequence);
            progress.done.insert(sequence);
        }
        progress.running = progress.running.split_off(&(record.sequence + 1));
        progress.parked = record.parked_sequences().collect();
        progress.floor = progress.floor.max(record.sequence);
        progress.witness = progress
            .witness
            .max((record.witness, record.witness_stored));
        progress.revision = progress.revision.map(|_| at);
        progress.settle(self.passed());
    }

    /// The latest message that is known to be done, and when it was stored, nanoseconds since 1970.
    pub fn witness(&self) -> (u64, i64) {
        self.lock().witness
    }

    /// Whether a message is done, or in the park.
    pub fn is_done(&self, sequence: u64) -> bool {
        let progress = self.lock();
        sequence <= progress.floor || progress.done.contains(&sequence)
    }

    /// Whether a message waits in the park.
    pub fn is_parked(&self, sequence: u64) -> bool {
        self.lock().parked.contains(&sequence)
    }

    /// Whether a message is still to be handled, and has not been handed out.
    pub fn wants(&self, sequence: u64) -> bool {
        let progress = self.lock();
        let known = progress.done.contains(&sequence) || progress.running.contains(&sequence);
        (sequence > progress.floor || mutation::is("reader-guard")) && !known
    }

    /// Whether one more may be handed out.
    pub fn has_room(&self) -> bool {
        let progress = self.lock();
        progress.done.len() + progress.running.len() < WINDOW && progress.parked.len() < PARKED
    }

    /// A message is handed out.
    pub fn begin(&self, sequence: u64) {
        self.lock().running.insert(sequence);
    }

    /// Nothing more is handed out, and these, which were, will not be handled here. They stay undone: the position does not move
    /// past them, nor past what is read from here on.
    pub fn abandon(&self, sequences: &[u64]) {
        let passed = self.passed();
        let mut progress = self.lock();
        progress.end.get_or_insert(passed);
        progress.abandoned.extend(sequences);
    }

    /// A message is done that left nothing to commit. One that was committed is done already.
    pub fn finish(&self, sequence: u64, stored: i64) {
        let mut progress = self.lock();
        if !progress.running.remove(&sequence) {
            return;
        }
        progress.done.insert(sequence);
        progress.witness = progress.witness.max((sequence, stored));
        progress.dirty = true;
        progress.settle(self.passed());
    }

    /// Whether nothing of it is under way.
    pub fn is_idle(&self) -> bool {
        let progress = self.lock();
        progress.running.is_subset(&progress.abandoned) && !progress.flushing
    }

    /// Whether it may be brought up to date now; to be followed by [`end_flush`](Self::end_flush).
    pub fn start_flush(&self) -> bool {
        !std::mem::replace(&mut self.lock().flushing, true)
    }

    /// The record was written, or not.
    pub fn end_flush(&self) {
        self.lock().flushing = false;
    }

    /// Whether its record is behind what is done.
    pub fn is_dirty(&self) -> bool {
        let progress = self.lock();
        progress.dirty && progress.revision.is_some()
    }

    /// Whether the input was passed on without it: nothing is lost by that, but whoever takes over, or asks how far the
    /// function is, reads all of it again.
    pub fn is_behind(&self) -> bool {
        let passed = self.passed();
        let progress = self.lock();
        progress.revision.is_some() && progress.reach(passed) > progress.written
    }

    /// The record when these are done too, and those are in the park or not any more; `None`: the partition is lost.
    pub(super) fn advance(
        &self,
        sequences: &[(u64, i64)],
        parks: &[(u64, bool)],
    ) -> Option<Advance> {
        // Before the lock: whatever was handed out up to here is among those that run, or done.
        let passed = self.passed();
        let mut progress = self.lock();
        progress.dirty = false;
        let mut next = progress.clone_for(sequences);
        next.park(parks);
        drop(progress);
        next.settle(passed);
        let revision = next.revision?;
        self.lock().written = next.floor;
        Some(Advance {
            record: PositionRecord::new(
                &self.0.owner,
                next.floor,
                next.done.iter().copied(),
                next.witness,
            )
            .with_parked(next.parked.iter().copied()),
            revision,
        })
    }

    /// That record is stored.
    pub(super) fn landed(&self, sequences: &[(u64, i64)], parks: &[(u64, bool)], revision: u64) {
        let mut progress = self.lock();
        progress.park(parks);
        for (sequence, stored) in sequences {
            progress.running.remove(sequence);
            progress.done.insert(*sequence);
            progress.witness = progress.witness.max((*sequence, *stored));
        }
        progress.revision = progress.revision.map(|_| revision);
        progress.settle(self.passed());
    }

    /// That record was not stored.
    pub(super) fn failed(&self) {
        self.lock().dirty = true;
    }

    /// Another node has written the record.
    pub(super) fn lose(&self) {
        self.lock().revision = None;
    }

    fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn clone_for(&self, sequences: &[(u64, i64)]) -> Self {
        let mut next = Self {
            revision: self.revision,
            floor: self.floor,
            done: self.done.clone(),
            running: self.running.clone(),
            abandoned: BTreeSet::new(),
            parked: self.parked.clone(),
            end: self.end,
            witness: self.witness,
            written: self.written,
            dirty: false,
            flushing: false,
        };
        for (sequence, stored) in sequences {
            next.running.remove(sequence);
            next.done.insert(*sequence);
            next.witness = next.witness.max((*sequence, *stored));
        }
        next
    }

    fn park(&mut self, parks: &[(u64, bool)]) {
        for (sequence, waits) in parks {
            match waits {
                true => self.parked.insert(*sequence),
                false => self.parked.remove(sequence),
            };
        }
    }

    /// Moves the floor up to the first that is under way, or to the end of what was handed out: what lies between belongs to
    /// other partitions or is done. Never beyond that: a record that is taken over may know of later ones that are done.
    fn settle(&mut self, passed: u64) {
        self.floor = self.floor.max(self.reach(passed));
        while self.done.first().is_some_and(|first| *first <= self.floor) {
            self.done.pop_first();
        }
    }

    /// Up to here everything is done, or belongs to others.
    fn reach(&self, passed: u64) -> u64 {
        match self.running.first() {
            Some(first) => first.saturating_sub(1),
            None => passed.min(self.end.unwrap_or(u64::MAX)),
        }
    }
}

/// Writes a record by itself, in place of the one at `revision` (0: there is none): a claim, or letting go. The new
/// revision; `None`: somebody else wrote it first.
///
/// # Errors
/// NATS did not confirm it. It may be stored all the same.
pub async fn put(
    client: &Client,
    subject: &str,
    record: &PositionRecord,
    revision: u64,
) -> Result<Option<u64>, StateError> {
    put_all(client, [(subject, record, revision)]).await
}

/// Writes several records, each in place of the one at its revision, or none of them, 1000 at most. The revision of the first; `None`: somebody
/// else wrote one of them first.
///
/// # Errors
/// As for [`put`].
pub async fn put_all<'a>(
    client: &Client,
    records: impl IntoIterator<Item = (&'a str, &'a PositionRecord, u64)>,
) -> Result<Option<u64>, StateError> {
    let messages = records.into_iter().map(|(subject, record, revision)| {
        let payload = serde_json::to_vec(record).map_err(|error| StateError(error.to_string()))?;
        Ok(BatchMessage {
            subject: subject.to_owned(),
            headers: expecting(revision),
            payload: payload.into(),
        })
    });
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    match batch::publish(client, messages).await {
        Ok(sequence) => Ok(Some(sequence)),
        Err(BatchError::Condition) => Ok(None),
        Err(error) => Err(StateError(error.to_string())),
    }
}

/// The record of a claim: the same progress under another owner.
pub fn claim(record: Option<&PositionRecord>, owner: &str, start: u64) -> PositionRecord {
    match record {
        Some(record) => PositionRecord {
            format: FORMAT,
            owner: owner.to_owned(),
            ..record.clone()
        },
        None => PositionRecord::new(owner, start, std::iter::empty(), (0, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(record: &PositionRecord) -> (Partition, Arc<AtomicU64>) {
        let passed = Arc::new(AtomicU64::new(record.sequence));
        let owner = "node".to_owned();
        let one = Partition::claimed("pos".into(), owner, record, 5, passed.clone());
        (one, passed)
    }

    fn hand_out(partition: &Partition, passed: &AtomicU64, sequence: u64) {
        partition.begin(sequence);
        passed.store(sequence, Ordering::Release);
    }

    fn state(advance: Option<Advance>) -> (u64, Vec<u64>) {
        let record = advance.unwrap().record;
        (record.sequence, record.done_sequences().collect())
    }

    #[test]
    fn the_floor_follows_the_first_that_runs() {
        let (partition, passed) = partition(&claim(None, "node", 0));
        for sequence in [2, 5, 9] {
            hand_out(&partition, &passed, sequence);
        }
        // 1, 3 and 4 belong to other partitions.
        assert_eq!(state(partition.advance(&[(5, 50)], &[])), (1, vec![5]));
        assert_eq!(state(partition.advance(&[(2, 20)], &[])), (4, vec![]));
        partition.landed(&[(5, 50)], &[], 6);
        partition.finish(2, 20);
        assert_eq!(state(partition.advance(&[], &[])), (8, vec![]));
        assert_eq!(state(partition.advance(&[(9, 90)], &[])), (9, vec![]));
        assert!(!partition.wants(2) && !partition.wants(9) && partition.wants(10));
    }

    #[test]
    fn what_a_dead_node_left_unfinished_is_wanted() {
        let left = PositionRecord::new("dead", 10, [12, 15].into_iter(), (15, 150));
        let (partition, passed) = partition(&claim(Some(&left), "node", 0));
        let wanted: Vec<u64> = (9..=16).filter(|at| partition.wants(*at)).collect();
        assert_eq!(wanted, [11, 13, 14, 16]);
        // Nothing runs yet, and nothing was passed: the floor stays.
        assert_eq!(state(partition.advance(&[], &[])), (10, vec![12, 15]));
        hand_out(&partition, &passed, 11);
        assert_eq!(
            state(partition.advance(&[(11, 110)], &[])),
            (11, vec![12, 15])
        );
    }

    #[test]
    fn what_is_finished_while_a_record_is_on_its_way_is_not_forgotten() {
        let (partition, passed) = partition(&claim(None, "node", 0));
        hand_out(&partition, &passed, 1);
        hand_out(&partition, &passed, 2);
        let on_its_way = partition.advance(&[(1, 10)], &[]);
        partition.finish(2, 20);
        partition.landed(&[(1, 10)], &[], 6);
        assert_eq!(state(on_its_way), (1, vec![]));
        assert!(partition.is_dirty());
        assert_eq!(state(partition.advance(&[], &[])), (2, vec![]));
        assert!(!partition.is_dirty());
        partition.failed();
        assert!(partition.is_dirty());
    }

    #[test]
    fn what_is_read_while_it_is_let_go_is_left_to_the_next_owner() {
        let (partition, passed) = partition(&claim(None, "node", 0));
        for sequence in [1, 2] {
            hand_out(&partition, &passed, sequence);
        }
        partition.abandon(&[]);
        // 3 is one of its own, read while 2 was still under way.
        passed.store(5, Ordering::Release);
        partition.landed(&[(1, 10), (2, 20)], &[], 6);
        assert!(partition.is_idle());
        assert_eq!(state(partition.advance(&[], &[])), (2, vec![]));
    }

    #[test]
    fn a_record_names_what_is_parked() {
        let (partition, passed) = partition(&claim(None, "node", 0));
        for sequence in [3, 8] {
            hand_out(&partition, &passed, sequence);
        }
        let parked = |advance: Option<Advance>| -> Vec<u64> {
            advance.unwrap().record.parked_sequences().collect()
        };
        let both = [(3, true), (8, true)];
        assert_eq!(
            parked(partition.advance(&[(3, 30), (8, 80)], &both)),
            [3, 8]
        );
        assert!(
            parked(partition.advance(&[], &[])).is_empty(),
            "it did not land"
        );
        partition.landed(&[(3, 30), (8, 80)], &both, 6);
        assert_eq!(parked(partition.advance(&[], &[(3, false)])), [8]);
    }

    #[test]
    fn a_lost_partition_writes_nothing() {
        let (partition, _) = partition(&claim(None, "node", 0));
        partition.lose();
        partition.landed(&[(1, 10)], &[], 7);
        assert!(partition.is_lost() && partition.advance(&[], &[]).is_none());
    }
}
