//! Emitted events on their way to one target: counted when they are committed, and once more when the target has stored them.

use std::collections::VecDeque;

/// Batches that are remembered one by one; of more, the latest are taken together.
const REMEMBERED: usize = 1024;

/// Events that this node has committed for one target.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// Of each batch, where the last of its events for the target lies in the commit stream, and how many there are.
    batches: VecDeque<(u64, u64)>,
    arrived: u64,
}

impl Outstanding {
    /// `count` events were committed, the last of them at `sequence` of the commit stream.
    pub(crate) fn push(&mut self, sequence: u64, count: u64) {
        if self.batches.len() >= REMEMBERED
            && let Some((last, held)) = self.batches.back_mut()
        {
            *last = sequence.max(*last);
            *held += count;
            return;
        }
        self.batches.push_back((sequence, count));
    }

    /// The target has stored everything up to `sequence` of the commit stream.
    pub(crate) fn reached(&mut self, sequence: u64) {
        // Batches may land out of order: one behind a later one has arrived when that has.
        while let Some((last, count)) = self.batches.front().copied()
            && last <= sequence
        {
            self.arrived += count;
            self.batches.pop_front();
        }
    }

    /// The latest event that is on its way.
    pub(crate) fn last(&self) -> Option<u64> {
        self.batches.iter().map(|(last, _)| *last).max()
    }

    /// How many have arrived.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_batch_by_batch() {
        let mut events = Outstanding::default();
        for (sequence, count) in [(10, 3), (30, 2), (20, 4)] {
            events.push(sequence, count);
        }
        assert_eq!(events.last(), Some(30));
        for (sequence, arrived) in [(9, 0), (10, 3), (25, 3), (30, 9)] {
            events.reached(sequence);
            assert_eq!(events.arrived(), arrived, "up to {sequence}");
        }
        assert_eq!(events.last(), None);
    }

    #[test]
    fn many_batches_take_no_more_room_and_lose_nothing() {
        let mut events = Outstanding::default();
        let many = 3 * REMEMBERED as u64;
        for sequence in 1..=many {
            events.push(sequence, 1);
        }
        assert_eq!(events.batches.len(), REMEMBERED);
        events.reached(REMEMBERED as u64 - 1);
        assert_eq!(events.arrived(), REMEMBERED as u64 - 1);
        events.reached(many - 1);
        assert_eq!(
            events.arrived(),
            REMEMBERED as u64 - 1,
            "the rest goes together"
        );
        events.reached(many);
        assert_eq!(events.arrived(), many);
    }
}
