//! Parked deliveries that were found when a partition was taken over, and whose turn it is only when the input has been read that far.
//!
//! Those of one key go into the park one by one: of three that wait, the first and the third may be there, and the second still in the
//! input. So one is not put into its lane before what comes before it in the input is.

use std::collections::BTreeMap;

use super::lanes::Place;

/// By sequence.
#[derive(Debug, Default)]
pub(super) struct Upcoming(BTreeMap<u64, Vec<Place>>);

impl Upcoming {
    /// This one is in the park.
    pub(super) fn push(&mut self, place: Place, sequence: u64) {
        self.0.entry(sequence).or_default().push(place);
    }

    /// Those up to this sequence, to which the input has been read.
    pub(super) fn up_to(&mut self, sequence: u64) -> Vec<(Place, u64)> {
        let mut due = Vec::new();
        while let Some(first) = self.0.first_entry()
            && *first.key() <= sequence
        {
            let (at, places) = first.remove_entry();
            due.extend(places.into_iter().map(|place| (place, at)));
        }
        due
    }

    /// Forgets a partition.
    pub(super) fn drop_partition(&mut self, partition: u16) {
        self.0.retain(|_, places| {
            places.retain(|(of, _)| *of != partition);
            !places.is_empty()
        });
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::position::lanes::Key;

    #[test]
    fn one_comes_when_the_input_has_been_read_that_far() {
        let place = |partition: u16| (partition, Key::Named("k".into()));
        let mut upcoming = Upcoming::default();
        for (partition, sequence) in [(1, 5), (2, 5), (1, 9), (2, 12)] {
            upcoming.push(place(partition), sequence);
        }
        assert!(upcoming.up_to(4).is_empty());
        assert_eq!(upcoming.up_to(8), [(place(1), 5), (place(2), 5)]);
        upcoming.drop_partition(2);
        assert_eq!(upcoming.up_to(u64::MAX), [(place(1), 9)]);
        assert!(upcoming.is_empty());
    }
}
