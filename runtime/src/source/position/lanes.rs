//! Order per key: what of each key waits, runs, or is parked. Pure; the time is passed in.
//!
//! One delivery of a key is under way at a time, in the order of the input. One that failed and is to be tried again keeps its place:
//! what comes behind it waits. One that was deferred lets others pass.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use foldhash::quality::RandomState;

use crate::event::Message;
use crate::source::Return;

/// A key within one partition; without a key, each message is alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Named(Arc<str>),
    Alone(u64),
}

impl Key {
    /// From the token of a park subject; `None`: no key of ours.
    pub(super) fn from_token(token: &str, sequence: u64) -> Option<Self> {
        if token == "-" {
            return Some(Self::Alone(sequence));
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        String::from_utf8(bytes)
            .ok()
            .map(|name| Self::Named(name.into()))
    }

    /// Its text, if it has one.
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Named(name) => Some(name),
            Self::Alone(_) => None,
        }
    }
}

/// A partition and a key in it.
pub(super) type Place = (u16, Key);

/// Where a delivery's message is.
#[derive(Debug)]
pub(super) enum Body {
    /// Here, as it was read.
    Read(Box<Message>),
    /// On its way into the park.
    Parking,
    /// In the park.
    Parked,
}

/// A delivery that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) sequence: u64,
    pub(super) body: Body,
    /// Not before this.
    due: Instant,
    rank: Rank,
}

/// What one that waits is to those of its key behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// It goes first, and if that takes its time they are parked.
    Keeps,
    /// They may pass while it is not due.
    Deferred,
    /// It was deferred, and another of its key has ended since: it goes first, but they need not be parked, for this takes no more
    /// than an attempt.
    Woken,
}

#[derive(Debug, Default)]
struct Lane {
    running: bool,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Place, Lane, RandomState>,
    /// Lanes that may have something to run now, in the order in which they got it.
    ready: VecDeque<Place>,
    /// When which lanes are to be looked at again.
    timers: BTreeMap<Instant, Vec<Place>>,
    /// Messages held in memory.
    held: usize,
}

impl Lanes {
    /// Messages that are held in memory and not under way.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Whether some lane may have something to run.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A message was read.
    pub(super) fn push(&mut self, place: Place, message: Message, now: Instant) {
        self.held += 1;
        let waiting = Waiting {
            sequence: message.sequence,
            body: Body::Read(Box::new(message)),
            due: now,
            rank: Rank::Keeps,
        };
        self.lane(&place).waiting.push_back(waiting);
        self.ready.push_back(place);
    }

    /// A parked one was found when the partition was taken over, and what comes before it is here.
    pub(super) fn push_parked(&mut self, place: Place, sequence: u64, now: Instant) {
        let waiting = Waiting {
            sequence,
            body: Body::Parked,
            due: now,
            rank: Rank::Keeps,
        };
        self.insert(&place, waiting);
        self.ready.push_back(place);
    }

    /// The next delivery to run; its lane is busy until it is [returned](Self::put_back) or [ended](Self::end).
    pub(super) fn take(&mut self, now: Instant) -> Option<(Place, Waiting)> {
        self.wake(now);
        while let Some(place) = self.ready.pop_front() {
            let Some(lane) = self.lanes.get_mut(&place) else {
                continue;
            };
            if lane.running {
                continue;
            }
            let waiting = lane.waiting.iter();
            // Behind one that keeps its place nothing may run.
            let open = waiting.take_while(|one| {
                one.rank == Rank::Deferred || one.due <= now && !matches!(one.body, Body::Parking)
            });
            let found = open.enumerate().find(|(_, one)| one.due <= now);
            let Some(waiting) = found
                .map(|(at, _)| at)
                .and_then(|at| lane.waiting.remove(at))
            else {
                continue;
            };
            lane.running = true;
            self.held -= usize::from(matches!(waiting.body, Body::Read(_)));
            return Some((place, waiting));
        }
        None
    }

    /// Messages that follow the one just taken of this lane and may go along with it; at most `limit`.
    pub(super) fn take_more(&mut self, place: &Place, limit: usize, now: Instant) -> Vec<Message> {
        let Some(lane) = self.lanes.get_mut(place) else {
            return Vec::new();
        };
        let mut messages = Vec::new();
        while messages.len() < limit
            && let Some(next) = lane
                .waiting
                .pop_front_if(|one| matches!(one.body, Body::Read(_)) && one.due <= now)
        {
            if let Body::Read(message) = next.body {
                messages.push(*message);
            }
        }
        self.held -= messages.len();
        messages
    }

    /// Those of [`take_more`](Self::take_more) that were not begun wait again.
    pub(super) fn give_back(&mut self, place: &Place, messages: Vec<Message>, now: Instant) {
        self.held += messages.len();
        for message in messages {
            let waiting = Waiting {
                sequence: message.sequence,
                body: Body::Read(Box::new(message)),
                due: now,
                rank: Rank::Keeps,
            };
            self.insert(place, waiting);
        }
    }

    /// Messages behind one that keeps its place, which are to be parked so that the position can go on; at most `limit`.
    pub(super) fn blocked(&mut self, place: &Place, limit: usize) -> Vec<Message> {
        let Some(lane) = self.lanes.get_mut(place) else {
            return Vec::new();
        };
        let waiting = lane.waiting.iter_mut();
        let mut behind = waiting.skip_while(|one| one.rank != Rank::Keeps);
        // The first is the one that keeps its place, unless it is not parked itself.
        if !behind
            .next()
            .is_some_and(|first| !matches!(first.body, Body::Read(_)))
        {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for one in behind {
            if messages.len() == limit {
                break;
            }
            if let Body::Read(_) = one.body
                && let Body::Read(message) = std::mem::replace(&mut one.body, Body::Parking)
            {
                messages.push(*message);
            }
        }
        self.held -= messages.len();
        messages
    }

    /// One of [`blocked`](Self::blocked) is in the park; or not, and its message is here again.
    pub(super) fn parked(&mut self, place: &Place, sequence: u64, body: Body) {
        let Some(lane) = self.lanes.get_mut(place) else {
            return;
        };
        if let Some(one) = lane.waiting.iter_mut().find(|one| one.sequence == sequence) {
            self.held += usize::from(matches!(body, Body::Read(_)));
            one.body = body;
        }
        self.ready.push_back(place.clone());
    }

    /// A delivery that was taken waits in the park until `due`.
    pub(super) fn put_back(&mut self, place: Place, sequence: u64, how: Return, due: Instant) {
        let waiting = Waiting {
            sequence,
            body: Body::Parked,
            due,
            rank: match how {
                Return::Retry => Rank::Keeps,
                Return::Deferred => Rank::Deferred,
            },
        };
        self.insert(&place, waiting);
        self.free(&place, false);
    }

    /// A delivery could not be taken to any end, and its message is still here: again at `due`.
    pub(super) fn again(&mut self, place: Place, sequence: u64, body: Body, due: Instant) {
        self.held += usize::from(matches!(body, Body::Read(_)));
        let waiting = Waiting {
            sequence,
            body,
            due,
            rank: Rank::Keeps,
        };
        self.insert(&place, waiting);
        self.free(&place, false);
    }

    /// What waits for another attempt is to have it now: another version will make it.
    pub(super) fn hurry(&mut self, now: Instant) {
        // What is due already is woken as ever; of its lane nothing is early.
        self.wake(now);
        self.timers.clear();
        for (place, lane) in &mut self.lanes {
            let early = lane.waiting.iter_mut().filter(|one| one.due > now);
            let early = early.map(|one| one.due = now).count();
            if early > 0 {
                self.ready.push_back(place.clone());
            }
        }
    }

    /// A delivery has ended. What waited for others of its key may go now.
    pub(super) fn end(&mut self, place: &Place) {
        self.free(place, true);
    }

    /// Forgets a partition. Gives what was read of it and not begun.
    pub(super) fn drop_partition(&mut self, partition: u16) -> Vec<u64> {
        let mut dropped = Vec::new();
        self.lanes.retain(|(of, _), lane| {
            let keep = *of != partition;
            if !keep {
                let read = lane
                    .waiting
                    .iter()
                    .filter(|one| matches!(one.body, Body::Read(_)));
                dropped.extend(read.map(|one| one.sequence));
            }
            keep
        });
        let left = self.lanes.values().flat_map(|lane| &lane.waiting);
        self.held = left.filter(|one| matches!(one.body, Body::Read(_))).count();
        dropped
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.keys().next().copied()
    }

    fn lane(&mut self, place: &Place) -> &mut Lane {
        self.lanes.entry(place.clone()).or_default()
    }

    /// In the order of the input.
    fn insert(&mut self, place: &Place, waiting: Waiting) {
        if waiting.due > Instant::now() {
            self.timers
                .entry(waiting.due)
                .or_default()
                .push(place.clone());
        }
        let lane = self.lane(place);
        let at = lane
            .waiting
            .partition_point(|one| one.sequence < waiting.sequence);
        lane.waiting.insert(at, waiting);
    }

    fn free(&mut self, place: &Place, committed: bool) {
        let Some(lane) = self.lanes.get_mut(place) else {
            return;
        };
        lane.running = false;
        if lane.waiting.is_empty() {
            self.lanes.remove(place);
            return;
        }
        if committed {
            let waiting = lane.waiting.iter_mut();
            for one in waiting.filter(|one| one.rank == Rank::Deferred) {
                (one.due, one.rank) = (Instant::now(), Rank::Woken);
            }
        }
        self.ready.push_back(place.clone());
    }

    fn wake(&mut self, now: Instant) {
        while let Some(first) = self.timers.first_entry()
            && *first.key() <= now
        {
            self.ready.extend(first.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn message(sequence: u64) -> Message {
        Message {
            subject: "s".into(),
            headers: Vec::new(),
            payload: Default::default(),
            stream: "IN".into(),
            sequence,
            stored: 0,
        }
    }

    fn place(key: &str) -> Place {
        (0, Key::Named(key.into()))
    }

    fn lanes(keys: &str) -> Lanes {
        let mut lanes = Lanes::default();
        for (sequence, key) in (1..).zip(keys.chars()) {
            lanes.push(place(&key.to_string()), message(sequence), Instant::now());
        }
        lanes
    }

    fn taken(lanes: &mut Lanes, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| lanes.take(now).map(|(_, one)| one.sequence)).collect()
    }

    #[test]
    fn one_of_each_key_at_a_time_in_order() {
        let mut lanes = lanes("aabab");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1, 3]);
        lanes.end(&place("a"));
        assert_eq!(taken(&mut lanes, now), [2]);
        lanes.end(&place("b"));
        lanes.end(&place("a"));
        assert_eq!(taken(&mut lanes, now), [5, 4]);
        lanes.end(&place("a"));
        lanes.end(&place("b"));
        assert_eq!(
            (lanes.held(), lanes.lanes.len()),
            (0, 0),
            "nothing is left behind"
        );
    }

    #[test]
    fn a_retry_keeps_its_place() {
        let mut lanes = lanes("aaab");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1, 4]);
        lanes.put_back(place("a"), 1, Return::Retry, now + SOON);
        assert!(taken(&mut lanes, now).is_empty());
        let parked: Vec<u64> = lanes
            .blocked(&place("a"), 10)
            .iter()
            .map(|m| m.sequence)
            .collect();
        assert_eq!(parked, [2, 3]);
        for sequence in parked {
            lanes.parked(&place("a"), sequence, Body::Parked);
        }
        assert_eq!(taken(&mut lanes, now + SOON), [1]);
        lanes.end(&place("a"));
        assert_eq!(taken(&mut lanes, now + SOON), [2]);
    }

    #[test]
    fn another_version_tries_at_once_and_in_order() {
        let mut lanes = lanes("aab");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1, 3]);
        lanes.put_back(place("a"), 1, Return::Retry, now + SOON);
        lanes.put_back(place("b"), 3, Return::Deferred, now + SOON);
        assert!(taken(&mut lanes, now).is_empty());
        lanes.hurry(now);
        let mut both = taken(&mut lanes, now);
        both.sort_unstable();
        assert_eq!((both, lanes.next_due()), (vec![1, 3], None));
        lanes.end(&place("a"));
        assert_eq!(taken(&mut lanes, now), [2]);
    }

    #[test]
    fn what_waits_for_another_attempt_has_it_at_once_when_it_is_hurried() {
        let mut lanes = lanes("ab");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1, 2]);
        lanes.put_back(place("a"), 1, Return::Retry, now + SOON);
        lanes.put_back(place("b"), 2, Return::Retry, now + SOON + SOON);
        // The first is due by then, and nobody has looked.
        lanes.hurry(now + SOON);
        assert_eq!(taken(&mut lanes, now + SOON), [1, 2]);
    }

    #[test]
    fn a_deferral_lets_others_pass_and_is_tried_after_each() {
        let mut lanes = lanes("aa");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1]);
        lanes.put_back(place("a"), 1, Return::Deferred, now + SOON);
        assert!(lanes.blocked(&place("a"), 10).is_empty());
        assert_eq!(taken(&mut lanes, now), [2]);
        lanes.end(&place("a"));
        assert_eq!(taken(&mut lanes, Instant::now()), [1]);
    }

    #[test]
    fn what_is_behind_deferred_ones_is_not_parked_while_they_are_tried_again() {
        let mut lanes = lanes("aaaaa");
        let now = Instant::now();
        for sequence in [1, 2] {
            assert_eq!(taken(&mut lanes, now), [sequence]);
            lanes.put_back(place("a"), sequence, Return::Deferred, now + SOON);
        }
        assert_eq!(taken(&mut lanes, now), [3]);
        lanes.end(&place("a"));
        assert!(lanes.blocked(&place("a"), 10).is_empty());
        assert_eq!(taken(&mut lanes, Instant::now()), [1]);
        assert!(lanes.blocked(&place("a"), 10).is_empty());
        lanes.put_back(place("a"), 1, Return::Deferred, now + SOON);
        assert_eq!(taken(&mut lanes, Instant::now()), [2]);
        // One that fails keeps its place from now on.
        lanes.put_back(place("a"), 2, Return::Retry, now + SOON);
        let parked = lanes.blocked(&place("a"), 10);
        let parked: Vec<u64> = parked.iter().map(|message| message.sequence).collect();
        assert_eq!(parked, [4, 5]);
    }

    #[test]
    fn those_that_follow_go_along_and_no_other() {
        let mut lanes = lanes("aabaaa");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1, 3]);
        let more = |lanes: &mut Lanes, limit| -> Vec<u64> {
            let more = lanes.take_more(&place("a"), limit, now);
            more.iter().map(|message| message.sequence).collect()
        };
        assert_eq!((more(&mut lanes, 2), lanes.held()), (vec![2, 4], 2));
        assert_eq!((more(&mut lanes, 9), lanes.held()), (vec![5, 6], 0));
        assert!(more(&mut lanes, 9).is_empty());
        assert!(lanes.take_more(&place("c"), 9, now).is_empty());
        // All of them have ended.
        lanes.end(&place("a"));
        lanes.end(&place("b"));
        assert_eq!((lanes.held(), lanes.lanes.len()), (0, 0));
    }

    #[test]
    fn what_is_parked_or_not_due_does_not_go_along_and_lets_nothing_pass() {
        let mut lanes = Lanes::default();
        let now = Instant::now();
        for sequence in [1, 2, 5] {
            lanes.push(place("a"), message(sequence), now);
        }
        lanes.push_parked(place("a"), 3, now);
        lanes.again(place("a"), 4, Body::Read(Box::new(message(4))), now + SOON);
        assert_eq!(lanes.take(now).map(|(_, one)| one.sequence), Some(1));
        let more = lanes.take_more(&place("a"), 9, now);
        assert_eq!((more.len(), lanes.held()), (1, 2), "{more:?}");
        lanes.end(&place("a"));
        assert_eq!(lanes.take(now).map(|(_, one)| one.sequence), Some(3));
        assert!(lanes.take_more(&place("a"), 9, now).is_empty());
    }

    #[test]
    fn those_that_were_not_begun_wait_again_in_their_order() {
        let mut lanes = lanes("aaaa");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1]);
        let mut more = lanes.take_more(&place("a"), 9, now);
        lanes.push(place("a"), message(5), now);
        // The first ended with 2; the others did not go along.
        more.remove(0);
        lanes.give_back(&place("a"), more, now);
        assert_eq!(lanes.held(), 3);
        assert!(taken(&mut lanes, now).is_empty(), "one at a time");
        lanes.end(&place("a"));
        for sequence in [3, 4, 5] {
            assert_eq!(taken(&mut lanes, Instant::now()), [sequence]);
            lanes.end(&place("a"));
        }
        assert_eq!((lanes.held(), lanes.lanes.len()), (0, 0));
    }

    #[test]
    fn those_that_would_have_gone_along_stay_behind_a_first_that_did_not_end() {
        let mut lanes = lanes("aaa");
        let now = Instant::now();
        assert_eq!(taken(&mut lanes, now), [1]);
        let more = lanes.take_more(&place("a"), 9, now);
        lanes.give_back(&place("a"), more, now);
        lanes.again(place("a"), 1, Body::Read(Box::new(message(1))), now + SOON);
        assert!(taken(&mut lanes, now).is_empty(), "nothing passes it");
        let later = now + SOON;
        assert_eq!(taken(&mut lanes, later), [1]);
        let more = lanes.take_more(&place("a"), 9, later);
        let more: Vec<u64> = more.iter().map(|message| message.sequence).collect();
        assert_eq!((more, lanes.held()), (vec![2, 3], 0));
    }

    #[test]
    fn a_lost_partition_leaves_nothing() {
        let mut lanes = lanes("ab");
        lanes.push((1, Key::Alone(9)), message(9), Instant::now());
        lanes.drop_partition(0);
        lanes.end(&place("a"));
        assert_eq!(lanes.held(), 1);
        assert_eq!(taken(&mut lanes, Instant::now()), [9]);
    }
}
