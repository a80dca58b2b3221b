//! Many deliveries in one batch. Pure: which of them may go together, beside which others, and how they are laid out.
//!
//! Of two deliveries in one batch, or in two batches in flight, neither may write what the other reads or writes; in one
//! batch they may rest on the same key at the same revision. So a batch that the server refuses was refused for what
//! somebody else did, and one look at its conditions finds the deliveries to blame.
//!
//! Nor may two holds on one partition, such as those of two versions of a function on one node: its position is written once, under the
//! revision that one of them knows, and would let pass what the other, which has lost the partition, still has under way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_nats::HeaderMap;
use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_64;

use super::batch::{BatchMessage, MAX_MESSAGES};
use super::position::Partition;
use super::timers;
use super::transaction::{Transaction, expecting};
use crate::mutation;
use crate::names::AppNames;

/// Bytes in one batch: the server stages a batch whole before it stores it. One delivery alone may have more.
const MAX_BYTES: usize = 4 << 20;

/// A key, or a subject, by its hash: of two that have the same, one waits for the other needlessly, and that is all.
pub(super) type Mark = u64;

fn mark(name: &str) -> Mark {
    xxh3_64(name.as_bytes())
}

/// A delivery on its way into a batch.
pub(super) struct Entry<R> {
    pub(super) transaction: Arc<Transaction>,
    /// The sequence that its marker must have.
    pub(super) marker: u64,
    /// Its place among those that came.
    pub(super) number: u64,
    footprint: Footprint,
    /// Whoever waits for the outcome.
    pub(super) reply: R,
}

/// What a delivery rests on and what it changes. Its marker is among the latter: two copies of one delivery never go
/// together.
struct Footprint {
    /// Key → revision; not those that it writes too.
    reads: Vec<(Mark, u64)>,
    writes: Vec<Mark>,
    /// Its partition's position: others of that partition go along, in this batch and in no other.
    position: Option<Mark>,
    messages: usize,
    bytes: usize,
}

impl<R> Entry<R> {
    pub(super) fn new(transaction: Arc<Transaction>, names: &AppNames, reply: R) -> Self {
        let effects = &transaction.effects;
        let only_read = effects.reads.iter();
        let only_read = only_read.filter(|(key, _)| !effects.writes.contains_key(*key));
        let marker = transaction.marker(names);
        let footprint = Footprint {
            reads: only_read.map(|(key, at)| (mark(key), *at)).collect(),
            writes: effects
                .writes
                .keys()
                .chain(effects.timers.keys())
                .chain(&marker)
                .map(|name| mark(name))
                .collect(),
            position: transaction
                .partition()
                .map(|partition| mark(partition.subject())),
            messages: transaction.count(),
            bytes: transaction.bytes(),
        };
        Self {
            transaction,
            marker: 0,
            number: 0,
            footprint,
            reply,
        }
    }

    /// Every key that it touches, apart from its position.
    pub(super) fn keys(&self) -> impl Iterator<Item = Mark> {
        let reads = self.footprint.reads.iter().map(|(key, _)| *key);
        reads.chain(self.footprint.writes.iter().copied())
    }

    /// Its partition's position.
    pub(super) fn position(&self) -> Option<Mark> {
        self.footprint.position
    }
}

/// Deliveries that go together.
pub(super) struct Group<R> {
    members: Vec<Entry<R>>,
    /// Key → revision that members rest on, or `None`: one of them writes it.
    locks: FxHashMap<Mark, Option<u64>>,
    /// Position → the hold on its partition that members have.
    positions: FxHashMap<Mark, Partition>,
    messages: usize,
    bytes: usize,
}

/// Whether a delivery can join.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    /// It touches what a member touches.
    Conflict,
    /// There is no room left.
    Full,
}

impl<R> Group<R> {
    pub(super) fn new() -> Self {
        Self {
            members: Vec::new(),
            locks: FxHashMap::default(),
            positions: FxHashMap::default(),
            messages: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn fit(&self, entry: &Entry<R>) -> Fit {
        let Footprint {
            reads,
            writes,
            position,
            messages,
            bytes,
        } = &entry.footprint;
        let same =
            |(key, at): &(Mark, u64)| self.locks.get(key).is_none_or(|lock| *lock == Some(*at));
        if !reads.iter().all(same) || writes.iter().any(|key| self.locks.contains_key(key)) {
            return Fit::Conflict;
        }
        let held = position.and_then(|one| self.positions.get(&one));
        let hold = entry.transaction.partition();
        if held.zip(hold).is_some_and(|(held, hold)| !held.is(hold)) {
            return Fit::Conflict;
        }
        let messages = messages + usize::from(position.is_some() && held.is_none());
        let room = self.messages + messages <= MAX_MESSAGES && self.bytes + bytes <= MAX_BYTES;
        if room || self.members.is_empty() {
            Fit::Yes
        } else {
            Fit::Full
        }
    }

    pub(super) fn push(&mut self, entry: Entry<R>) {
        let Footprint {
            reads,
            writes,
            position,
            messages,
            bytes,
        } = &entry.footprint;
        if let Some((position, hold)) = position.zip(entry.transaction.partition())
            && self.positions.insert(position, hold.clone()).is_none()
        {
            self.messages += 1;
        }
        self.messages += messages;
        self.bytes += bytes;
        let reads = reads.iter().map(|(key, at)| (*key, Some(*at)));
        let writes = writes.iter().map(|key| (*key, None));
        self.locks.extend(reads.chain(writes));
        self.members.push(entry);
    }

    /// The members and every key that they touch.
    pub(super) fn into_parts(self) -> (Vec<Entry<R>>, FxHashSet<Mark>) {
        let keys = self.locks.into_keys().chain(self.positions.into_keys());
        (self.members, keys.collect())
    }
}

/// A batch laid out.
pub(super) struct Layout {
    pub(super) messages: Vec<BatchMessage>,
    /// Where the positions begin.
    pub(super) moves_at: u64,
    /// The positions, in that order.
    pub(super) moves: Vec<Move>,
}

/// A partition and the messages that its position moves past.
pub(super) struct Move {
    pub(super) partition: Partition,
    pub(super) past: Vec<(u64, i64)>,
    /// Those of its deliveries that go into the park, or out of it.
    pub(super) parks: Vec<(u64, bool)>,
}

/// Delivery by delivery, each with its marker, what it rests on, its writes and its outbox; then each position once; then what
/// is set for later.
/// What several rest on is checked once. `None`: a partition was lost meanwhile.
pub(super) fn layout<R>(members: &[Entry<R>], names: &AppNames) -> Option<Layout> {
    let mut messages = Vec::new();
    let mut checked = HashSet::new();
    let mut moves: BTreeMap<&str, Move> = BTreeMap::new();
    for member in members {
        let transaction = &member.transaction;
        transaction.lay_out(names, member.marker, &mut checked, &mut messages);
        if let Some(partition) = transaction.partition() {
            let one = moves.entry(partition.subject()).or_insert_with(|| Move {
                partition: partition.clone(),
                past: Vec::new(),
                parks: Vec::new(),
            });
            one.past.extend(transaction.past());
            one.parks.extend(transaction.parks());
        }
    }
    if mutation::is("validations-first") {
        messages.sort_by_key(|one| !one.subject.ends_with(".check"));
    }
    let moves: Vec<Move> = moves.into_values().collect();
    let moves_at = messages.len() as u64;
    for Move {
        partition,
        past,
        parks,
    } in &moves
    {
        let advance = partition.advance(past, parks)?;
        messages.push(BatchMessage {
            subject: partition.subject().to_owned(),
            headers: match mutation::is("position-condition") {
                true => HeaderMap::new(),
                false => expecting(advance.revision),
            },
            payload: serde_json::to_vec(&advance.record).ok()?.into(),
        });
    }
    for member in members {
        let Transaction {
            origin, effects, ..
        } = member.transaction.as_ref();
        timers::push_schedules(effects.set_timers(), names, &origin.function, &mut messages);
    }
    Some(Layout {
        messages,
        moves_at,
        moves,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::commit::position::claim;
    use crate::commit::{Fence, Origin};
    use crate::effects::{Effects, Write};

    /// `reads` are `key@revision`, `writes` keys.
    fn entry(sequence: u64, reads: &[(&str, u64)], writes: &[&str]) -> Entry<()> {
        fenced(Fence::Marker, sequence, reads, writes)
    }

    fn fenced(fence: Fence, sequence: u64, reads: &[(&str, u64)], writes: &[&str]) -> Entry<()> {
        let mut effects = Effects::default();
        for (key, revision) in reads {
            effects.reads.insert((*key).to_owned(), *revision);
        }
        for key in writes {
            let write = Write::Set(Bytes::from_static(b"x"));
            effects.writes.insert((*key).to_owned(), write);
        }
        let origin = Origin {
            function: "f".into(),
            stream: "S".into(),
            sequence,
            txn: format!("t{sequence}").into(),
        };
        let transaction = Transaction {
            effects,
            ..Transaction::new(origin, fence)
        };
        Entry::new(Arc::new(transaction), &AppNames::new("app"), ())
    }

    #[test]
    fn who_goes_together() {
        let first = || entry(1, &[("a", 3), ("r", 7)], &["a"]);
        for (second, expected, why) in [
            (entry(2, &[("b", 1)], &["b"]), Fit::Yes, "other keys"),
            (entry(2, &[("r", 7)], &["b"]), Fit::Yes, "the same read"),
            (
                entry(2, &[("r", 8)], &["b"]),
                Fit::Conflict,
                "one of the two is stale",
            ),
            (
                entry(2, &[("a", 3)], &[]),
                Fit::Conflict,
                "reads what is written",
            ),
            (
                entry(2, &[], &["a"]),
                Fit::Conflict,
                "writes what is written",
            ),
            (entry(2, &[], &["r"]), Fit::Conflict, "writes what is read"),
            (
                entry(1, &[], &["z"]),
                Fit::Conflict,
                "the same delivery again",
            ),
        ] {
            let mut group = Group::new();
            group.push(first());
            assert_eq!(group.fit(&second), expected, "{why}");
        }
    }

    #[test]
    fn two_holds_on_a_partition_do_not_go_together() {
        let hold = |owner: &str| {
            let record = claim(None, owner, 0);
            Partition::claimed(
                "pos".into(),
                owner.into(),
                &record,
                5,
                Arc::<AtomicU64>::default(),
            )
        };
        let (old, new) = (hold("node:1"), hold("node:2"));
        let of = |partition: &Partition, sequence, key: &str| {
            let fence = Fence::Position {
                partition: partition.clone(),
                stored: Some(0),
            };
            fenced(fence, sequence, &[], &[key])
        };
        let mut group = Group::new();
        group.push(of(&new, 1, "a"));
        assert_eq!(group.fit(&of(&new, 2, "b")), Fit::Yes);
        // Its own position would refuse it; that of the new one must not let it pass.
        assert_eq!(group.fit(&of(&old, 2, "b")), Fit::Conflict);
    }

    #[test]
    fn a_group_has_an_end_and_one_delivery_always_fits() {
        let keys: Vec<String> = (0..400).map(|n| format!("k{n}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let large = |sequence: u64, from: usize| {
            let own: Vec<String> = keys.iter().map(|key| format!("{key}.{from}")).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            entry(sequence, &[], &own)
        };
        let mut group = Group::new();
        for n in 0..2 {
            let one = large(n, n as usize);
            assert_eq!(group.fit(&one), Fit::Yes);
            group.push(one);
        }
        assert_eq!(group.fit(&large(3, 3)), Fit::Full);
        assert_eq!(
            group.fit(&entry(4, &[], &["a"])),
            Fit::Yes,
            "a small one still does"
        );
    }

    #[test]
    fn what_several_rest_on_is_checked_once() {
        let names = AppNames::new("app");
        let members = [
            entry(1, &[("r", 7)], &["a"]),
            entry(2, &[("r", 7), ("b", 2)], &["b"]),
        ];
        let messages = layout(&members, &names).unwrap().messages;
        let subjects: Vec<_> = messages.iter().map(|one| one.subject.as_str()).collect();
        assert_eq!(
            subjects,
            [
                "$KV.PELTON_app.txn.f.S.1",
                "$KV.PELTON_app.txn.f.check",
                "$KV.app.a",
                "$KV.PELTON_app.txn.f.S.2",
                "$KV.app.b"
            ]
        );
    }
}
