//! Revisions that this node gave to keys: a read older than that need not go to the server to be refused.

use std::collections::{BTreeMap, HashMap};

/// Keys remembered in each of the two generations.
const GENERATION: usize = 50_000;

/// The latest revision of keys written lately. It may be wrong: a key may be purged, the stream be made anew. So each is
/// held against a delivery once, and then forgotten: the server decides about the next.
#[derive(Debug, Default)]
pub(super) struct Known {
    young: HashMap<String, u64>,
    old: HashMap<String, u64>,
}

impl Known {
    pub(super) fn learn(&mut self, revisions: Vec<(String, u64)>) {
        for (key, revision) in revisions {
            let at = self.young.entry(key).or_default();
            *at = revision.max(*at);
        }
        if self.young.len() > GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Those of `reads` that have changed since, as far as is known; they are forgotten.
    pub(super) fn changed(&mut self, reads: &BTreeMap<String, u64>) -> Vec<String> {
        let newer = |(key, at): &(&String, &u64)| {
            let known = |generation: &HashMap<String, u64>| generation.get(*key).copied();
            known(&self.young).max(known(&self.old)) > Some(**at)
        };
        let changed = reads.iter().filter(newer);
        let changed: Vec<String> = changed.map(|(key, _)| key.clone()).collect();
        for key in &changed {
            self.young.remove(key);
            self.old.remove(key);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_read_is_stale_and_memory_is_bounded() {
        let mut known = Known::default();
        known.learn(vec![("a".into(), 7)]);
        let changed = |known: &mut Known, at| known.changed(&[("a".to_owned(), at)].into());
        assert!(changed(&mut known, 7).is_empty());
        assert_eq!(changed(&mut known, 6), ["a"]);
        assert!(changed(&mut known, 6).is_empty(), "held against one only");
        known.learn(vec![("a".into(), 7)]);
        for n in 0..3 * GENERATION {
            known.learn(vec![(format!("k{n}"), 8)]);
        }
        assert!(known.young.len() + known.old.len() <= 2 * GENERATION + 2);
        assert!(changed(&mut known, 6).is_empty(), "forgotten");
    }
}
