//! Lists in which order and repetition have no meaning, such as subjects: kept sorted and without
//! repetition, so that two of them are equal when they name the same things. A linker, a person or
//! a server may list them in any order.

use serde::{Deserialize, Deserializer};

/// The list in its canonical form.
pub(crate) fn canonical<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}

/// Reads a stored list in its canonical form, whatever order an earlier release wrote it in.
pub(crate) fn read_canonical<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord,
{
    Vec::deserialize(deserializer).map(canonical)
}
