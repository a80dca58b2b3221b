//! Whether positions say that everything is done: the place of a message is computed anew here, as the protocol defines it.

use xxhash_rust::xxh3::xxh3_64;

use crate::world::{APP, Commits, Delivery, Input};

/// Partitions of an input.
const PARTITIONS: u64 = 64;

/// The partition of a key.
pub(crate) fn partition(key: &str) -> u64 {
    xxh3_64(key.as_bytes()) % PARTITIONS
}

/// Deliveries that no position says to be done, and their keys.
pub(crate) fn missing(inputs: &[Input], commits: &Commits) -> Vec<(Delivery, String)> {
    let deliveries = inputs
        .iter()
        .flat_map(|input| input.functions().iter().map(move |to| (input, *to)));
    let missing = deliveries.filter(|(input, to)| {
        let partition = partition(&input.key);
        let subject = format!("$KV.PELTON_{APP}.pos.{to}.{}.{partition}", input.stream);
        let position = commits.positions.get(&subject);
        !position.is_some_and(|position| position.covers(input.sequence))
    });
    missing
        .map(|(input, to)| (input.to(to), input.key.clone()))
        .collect()
}
