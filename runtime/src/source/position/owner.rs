//! Which node runs which partition: rendezvous hashing, so that a node that comes or goes moves only its own share.

use xxhash_rust::xxh3::xxh3_64;

/// Partitions of a function's input.
pub(crate) const PARTITIONS: u16 = 64;

/// The partition of a key.
pub(super) fn partition_of(key: &str) -> u16 {
    // Below PARTITIONS, which is a u16.
    (xxh3_64(key.as_bytes()) % u64::from(PARTITIONS)) as u16
}

/// The partition of a message without a key.
pub(super) fn partition_at(sequence: u64) -> u16 {
    (sequence % u64::from(PARTITIONS)) as u16
}

/// Of these nodes, the one that is to run a partition; `what` names function and input.
pub(super) fn owner<'a>(
    nodes: impl Iterator<Item = &'a str>,
    what: &str,
    partition: u16,
) -> Option<&'a str> {
    nodes.max_by_key(|node| xxh3_64(format!("{node}/{what}/{partition}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(nodes: &[&'static str]) -> Vec<&'static str> {
        let all = 0..PARTITIONS;
        all.map(|partition| owner(nodes.iter().copied(), "f/IN", partition).unwrap())
            .collect()
    }

    #[test]
    fn only_the_share_of_who_left_moves() {
        let (three, two) = (owners(&["a", "b", "c"]), owners(&["a", "b"]));
        for (before, after) in three.iter().zip(&two) {
            assert!(before == after || *before == "c");
        }
        for node in ["a", "b", "c"] {
            let share = three.iter().filter(|owner| **owner == node).count();
            assert!((8..40).contains(&share), "{node} has {share} of 64");
        }
    }

    /// Stored positions rest on it.
    #[test]
    fn the_hash_of_a_key_never_changes() {
        assert_eq!(
            [partition_of("o-1"), partition_of(""), partition_at(130)],
            [PARTITION_O1, PARTITION_EMPTY, 2]
        );
    }

    const PARTITION_O1: u16 = 34;
    const PARTITION_EMPTY: u16 = 2;
}
