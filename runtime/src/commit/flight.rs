//! One batch on its way: sent, and, when it is refused, sent again without those whose fault that was.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use rustc_hash::FxHashSet;

use super::batch::{self, BatchError, BatchMessage};
use super::cache::Cache;
use super::committer::{CommitError, Reply};
use super::group::{Entry, Layout, Mark, layout};
use super::lifetime::Lifetime;
use super::position::Partition;
use super::state::{Last, NatsState};
use crate::effects::{StateError, Versioned};
use crate::event::timestamp;
use crate::mutation;
use crate::names::AppNames;
use crate::nats::Connection;
use crate::telemetry::AppMeter;

/// Sends of one batch before its deliveries are handed back; with the backoff below and the
/// client's timeout some forty-five
/// seconds when NATS is silent. A batch that shrank because somebody was to blame begins anew.
const TRIES: usize = 8;
/// Longest pause between two of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Subjects looked at in one request when a batch was refused.
const LOOK: usize = 256;

/// Sends batches of one app.
pub(super) struct Pilot {
    pub(super) nats: Connection,
    pub(super) state: NatsState,
    pub(super) names: AppNames,
    pub(super) cache: Cache,
    pub(super) meter: Arc<AppMeter>,
}

/// What a batch leaves behind.
pub(super) struct Landed {
    /// Every key that it touched.
    pub(super) keys: FxHashSet<Mark>,
    /// From its first send to its last answer.
    pub(super) took: Duration,
}

/// By target stream: where in the batch the last of its events is, and how many there are.
type Emitted = BTreeMap<String, (u64, u64)>;

/// What became of one member of a refused batch.
enum Blame {
    None,
    Duplicate,
    /// The marker of a stream of the same name is in the way; it is there at this sequence, or gone (0).
    Marker(u64),
    /// Its copy in the park is not what it was: a batch without an answer has ended it, or put it off.
    Park,
    Keys(Vec<String>),
}

impl Pilot {
    /// Takes a batch to its end: every member gets its answer.
    pub(super) async fn fly(&self, members: Vec<Entry<Reply>>, keys: FxHashSet<Mark>) -> Landed {
        let began = Instant::now();
        let mut left = vec![members];
        while let Some(members) = left.pop() {
            let refused = self.send(members).await;
            // Somebody's message was refused for good: alone, each gets the answer that is meant for it.
            left.extend(refused.into_iter().map(|one| vec![one]));
        }
        let took = began.elapsed();
        Landed { keys, took }
    }

    /// Answers all members; if the server refused the batch for good, and there are several, gives them back instead.
    async fn send(&self, mut members: Vec<Entry<Reply>>) -> Vec<Entry<Reply>> {
        let mut last = String::new();
        // Whether a batch without an answer may be stored: then a marker that is there is ours.
        let mut doubt = false;
        let mut pauses = backoff();
        let mut tries = 0;
        while tries < TRIES && !members.is_empty() {
            tries += 1;
            without_settled(&mut members);
            if members.is_empty() {
                break;
            }
            let Some(Layout {
                messages,
                moves_at,
                moves,
            }) = layout(&members, &self.names)
            else {
                continue;
            };
            let (size, sent) = (messages.len(), Instant::now());
            let (written, emitted) = (self.written(&messages), self.emitted(&messages));
            let refusal = match batch::publish(&self.nats.client(), messages).await {
                Ok(first) => {
                    tracing::debug!(deliveries = members.len(), messages = size, took = ?sent.elapsed(), "batch stored");
                    // Before anybody goes on: the next batch rests on these.
                    for (revision, one) in (first + moves_at..).zip(moves) {
                        one.partition.landed(&one.past, &one.parks, revision);
                    }
                    for (key, mut versioned) in written {
                        versioned.revision += first;
                        self.cache.learn(&key, &versioned);
                    }
                    self.count(&members, emitted, first);
                    for member in members {
                        let _ = member.reply.send(Ok(()));
                    }
                    return Vec::new();
                }
                Err(refusal) => refusal,
            };
            moves.iter().for_each(|one| one.partition.failed());
            match refusal {
                BatchError::Refused { .. } if members.len() > 1 => return members,
                BatchError::Refused { code, description } => {
                    answer(members, &CommitError::Refused { code, description });
                    return Vec::new();
                }
                BatchError::Condition => {
                    let before = members.len();
                    match self.without_culprits(&mut members, doubt).await {
                        Ok(true) => {
                            if members.len() < before {
                                (tries, pauses) = (0, backoff());
                            }
                            continue;
                        }
                        // It failed against a batch in flight that was then dropped.
                        Ok(false) => last = "a condition failed against a batch in flight".into(),
                        Err(error) => last = error.to_string(),
                    }
                }
                BatchError::Unknown(why) => (doubt, last) = (true, why),
                BatchError::Busy(why) => {
                    tries -= usize::from(mutation::is("busy-forever"));
                    last = why;
                }
            }
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
        answer(members, &CommitError::Unavailable(last));
        Vec::new()
    }

    /// State keys that a batch writes, with their values; as revision, each has its place in the batch.
    fn written(&self, messages: &[BatchMessage]) -> Vec<(String, Versioned)> {
        let prefix = self.names.state_prefix();
        let keyed = (0u64..).zip(messages).filter_map(|(revision, message)| {
            let key = message.subject.strip_prefix(&prefix)?;
            let header = |name: &str| Some(message.headers.get(name)?.as_str());
            let deleted = header("KV-Operation").is_some();
            let Lifetime { until, ends } = Lifetime::of(header, || Some(timestamp::now()));
            let value = (!deleted).then(|| message.payload.clone());
            let versioned = Versioned {
                until,
                ends,
                ..Versioned::new(value, revision)
            };
            Some((key.to_owned(), versioned))
        });
        keyed.collect()
    }

    /// Counts a batch that was stored at `first`.
    fn count(&self, members: &[Entry<Reply>], emitted: Emitted, first: u64) {
        for (target, (last, count)) in emitted {
            self.meter.emitted(&target, first + last, count);
        }
        let deliveries = members.iter().map(|one| one.transaction.deliveries());
        self.meter.stored(deliveries.sum());
    }

    /// What a batch emits, without dead letters.
    fn emitted(&self, messages: &[BatchMessage]) -> Emitted {
        let mut emitted = Emitted::new();
        for (at, message) in (0u64..).zip(messages) {
            let Some(target) = self.names.outbox_target(&message.subject) else {
                continue;
            };
            match emitted.get_mut(target) {
                Some((last, count)) => (*last, *count) = (at, *count + 1),
                None => {
                    emitted.insert(target.to_owned(), (at, 1));
                }
            }
        }
        emitted.remove(&self.names.dead_stream());
        emitted
    }

    /// Answers those who are to blame for a failed condition and takes them out; says whether anything was found.
    async fn without_culprits(
        &self,
        members: &mut Vec<Entry<Reply>>,
        doubt: bool,
    ) -> Result<bool, StateError> {
        let found = self.look(members).await?;
        let mut any = self.positions(members, &found).await?;
        for mut member in std::mem::take(members) {
            match self.blame(&member, &found) {
                Blame::None => {
                    members.push(member);
                    continue;
                }
                Blame::Marker(sequence) => {
                    member.marker = sequence;
                    members.push(member);
                }
                Blame::Park => {
                    let _ = member.reply.send(Err(CommitError::Duplicate));
                }
                Blame::Duplicate => {
                    // A batch without an answer wrote what is known otherwise here.
                    self.cache.forget_all(&member.transaction.effects);
                    let outcome = if doubt {
                        Ok(())
                    } else {
                        Err(CommitError::Duplicate)
                    };
                    let _ = member.reply.send(outcome);
                }
                Blame::Keys(keys) => {
                    self.meter.conflicts(1);
                    self.learn(&keys, &found).await;
                    let _ = member.reply.send(Err(CommitError::Conflict(keys)));
                }
            }
            any = true;
        }
        Ok(any)
    }

    /// Whoever else read these before another node wrote them need not go to the server to learn it.
    async fn learn(&self, keys: &[String], found: &HashMap<String, Last>) {
        self.cache.forget(keys);
        // A killed server may have brought back what is there.
        let Ok(floor) = self.state.floor().await else {
            return;
        };
        for key in keys {
            let last = found.get(&self.names.state(key));
            if let Some(last) = last.filter(|last| !floor.is_dead(last.sequence)) {
                self.cache.learn(key, &last.versioned());
            }
        }
    }

    /// Finds positions that are not what they were: another node has written them, or a batch of ours without an answer
    /// was stored after all. The leader is asked before anything follows from it: another server may lag behind.
    async fn positions(
        &self,
        members: &[Entry<Reply>],
        found: &HashMap<String, Last>,
    ) -> Result<bool, StateError> {
        let mut moved: BTreeMap<&str, &Partition> = BTreeMap::new();
        for member in members.iter() {
            if let Some(partition) = member.transaction.partition() {
                let at = found
                    .get(partition.subject())
                    .map_or(0, |last| last.sequence);
                if partition.revision() != Some(at) {
                    moved.insert(partition.subject(), partition);
                }
            }
        }
        let mut any = false;
        for (subject, partition) in moved {
            let before = partition.revision();
            let newest = self.state.newest(subject).await?;
            if before != newest.as_ref().map(|last| last.sequence) {
                partition.learn(newest.as_ref());
                any = true;
            }
        }
        Ok(any)
    }

    /// What the conditions of these members rest on, as it is now: no older than the claims, and than what they have seen.
    async fn look(&self, members: &[Entry<Reply>]) -> Result<HashMap<String, Last>, StateError> {
        let mut subjects = HashSet::new();
        let mut seen = 0;
        for member in members {
            let transaction = &member.transaction;
            subjects.extend(transaction.rests_on(&self.names));
            subjects.extend(transaction.marker(&self.names));
            let partition = transaction.partition();
            subjects.extend(partition.map(|one| one.subject().to_owned()));
            seen = seen.max(transaction.seen()).max(member.marker);
        }
        let subjects: Vec<String> = subjects.into_iter().collect();
        let mut found = HashMap::new();
        for some in subjects.chunks(LOOK) {
            found.extend(self.state.last_since(some, seen).await?);
        }
        Ok(found)
    }

    fn blame(&self, member: &Entry<Reply>, found: &HashMap<String, Last>) -> Blame {
        let transaction = &member.transaction;
        let marker = transaction.marker(&self.names);
        match marker.and_then(|marker| found.get(&marker)) {
            Some(stored) if stored.payload == transaction.origin.txn.as_bytes() => {
                return Blame::Duplicate;
            }
            Some(stored) if stored.sequence != member.marker => {
                return Blame::Marker(stored.sequence);
            }
            // The stale marker expired meanwhile.
            None if member.marker != 0 => return Blame::Marker(0),
            _ => {}
        }
        let now = |subject: &str| found.get(subject).map_or(0, |last| last.sequence);
        let mut parking = transaction.parking.iter();
        if parking.any(|one| now(&one.subject) != one.revision) {
            return Blame::Park;
        }
        let reads = transaction.effects.reads.iter();
        let changed = reads.filter(|(key, at)| now(&self.names.state(key)) != **at);
        let timers = transaction.effects.timers.iter();
        let moved = timers.filter(|(record, change)| now(record) != change.revision);
        let changed = changed
            .map(|(key, _)| key)
            .chain(moved.map(|(record, _)| record));
        let keys: Vec<String> = changed.cloned().collect();
        if keys.is_empty() {
            Blame::None
        } else {
            Blame::Keys(keys)
        }
    }
}

/// Takes out those whose partition another node runs now, and those that a batch without an answer has ended or parked.
fn without_settled(members: &mut Vec<Entry<Reply>>) {
    for member in std::mem::take(members) {
        let transaction = &member.transaction;
        let outcome = match transaction.partition() {
            Some(partition) if partition.is_lost() => CommitError::Lost,
            Some(partition) if transaction.is_settled(partition) => CommitError::Duplicate,
            _ => {
                members.push(member);
                continue;
            }
        };
        let _ = member.reply.send(Err(outcome));
    }
}

fn answer(members: Vec<Entry<Reply>>, error: &CommitError) {
    for member in members {
        let _ = member.reply.send(Err(error.clone()));
    }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(LONGEST_PAUSE)
        .with_max_times(TRIES)
        .build()
}
