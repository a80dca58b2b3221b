//! State as this node last saw it, so that most reads need no round trip: what it wrote itself, and what it read.
//!
//! It may be stale, for other nodes and clients write, too. That costs a second run and nothing else: a commit rests on the
//! revision of everything that was read, and what a commit was refused for is forgotten here. So is what an attempt read that is
//! put off, for nothing checks that, and it would be put off for ever.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use quick_cache::Weighter;
use quick_cache::sync;

use super::state::NatsState;
use crate::effects::{Effects, StateError, StateReader, Versioned};
use crate::event::timestamp;

/// Bytes that the values of one app may take on a node, with what it costs to keep each.
const MAX_BYTES: u64 = 64 << 20;
/// What a key costs beside its own bytes and its value's.
const ENTRY_BYTES: usize = 128;

/// Values of one app's state by key; cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<sync::Cache<String, Versioned, ByBytes>>);

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<String, Versioned> for ByBytes {
    fn weight(&self, key: &String, versioned: &Versioned) -> u64 {
        let value = versioned.value.as_ref().map_or(0, Bytes::len);
        (key.len() + value + ENTRY_BYTES) as u64
    }
}

impl Default for Cache {
    fn default() -> Self {
        let expected = MAX_BYTES as usize / (4 * ENTRY_BYTES);
        Self(Arc::new(sync::Cache::with_weighter(
            expected, MAX_BYTES, ByBytes,
        )))
    }
}

impl Cache {
    /// Remembers a value, unless a later one is known.
    pub(super) fn learn(&self, key: &str, versioned: &Versioned) {
        if self
            .0
            .peek(key)
            .is_some_and(|known| known.revision >= versioned.revision)
        {
            return;
        }
        // A copy: what was received shares its memory with the other messages of that moment.
        let value = versioned.value.as_deref().map(Bytes::copy_from_slice);
        let copy = Versioned {
            value,
            ..versioned.clone()
        };
        self.0.insert(key.to_owned(), copy);
    }

    /// What is known of a key, unless it has expired: the server may have removed it.
    fn get(&self, key: &str) -> Option<Versioned> {
        let known = self.0.get(key)?;
        if known.until.is_some() && known.is_expired(timestamp::now()) {
            self.0.remove(key);
            return None;
        }
        Some(known)
    }

    /// These keys are not what they were thought to be.
    pub(super) fn forget<'a>(&self, keys: impl IntoIterator<Item = &'a String>) {
        for key in keys {
            self.0.remove(key);
        }
    }

    /// Nothing is known for sure of what an attempt read or wrote.
    pub(super) fn forget_all(&self, effects: &Effects) {
        self.forget(effects.reads.keys().chain(effects.writes.keys()));
    }

    /// Those of `reads` that have changed since, as far as is known. They are forgotten: what is known may be wrong, should the stream
    /// have been made anew, and then the server decides.
    pub(super) fn changed(&self, reads: &BTreeMap<String, u64>) -> Vec<String> {
        let newer = |(key, at): &(&String, &u64)| {
            self.0.peek(*key).is_some_and(|known| known.revision > **at)
        };
        let changed: Vec<String> = reads
            .iter()
            .filter(newer)
            .map(|(key, _)| key.clone())
            .collect();
        self.forget(&changed);
        changed
    }
}

/// An app's state read through its cache.
#[derive(Clone)]
pub struct CachedState {
    state: NatsState,
    cache: Cache,
}

impl CachedState {
    /// Reads `state` where `cache` does not have it.
    pub fn new(state: NatsState, cache: Cache) -> Self {
        Self { state, cache }
    }

    /// Whether a read of this key needs no round trip.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.cache.0.peek(key).is_some()
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }
}

impl StateReader for CachedState {
    fn get_many<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Versioned>, StateError>> {
        let known: Option<Vec<Versioned>> = keys.iter().map(|key| self.cache.get(key)).collect();
        async move {
            if let Some(known) = known {
                return Ok(known);
            }
            // All of them, so that what one call gives belongs together.
            let found = self.state.get_many(keys).await?;
            for (key, versioned) in keys.iter().zip(&found) {
                self.cache.learn(key, versioned);
            }
            Ok(found)
        }
        .boxed()
    }

    fn record<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Versioned, StateError>> {
        self.state.record(subject)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<String>, StateError>> {
        self.state.list(prefix, after, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64, value: &'static str) -> Versioned {
        Versioned::new(Some(Bytes::from_static(value.as_bytes())), revision)
    }

    #[test]
    fn a_later_value_stays_and_a_stale_read_is_told_once() {
        let cache = Cache::default();
        cache.learn("a", &at(7, "new"));
        cache.learn("a", &at(6, "old"));
        assert_eq!(cache.0.get("a"), Some(at(7, "new")));
        let changed = |revision| cache.changed(&[("a".to_owned(), revision)].into());
        assert!(changed(7).is_empty());
        assert_eq!(changed(6), ["a"]);
        assert!(changed(6).is_empty(), "held against one only");
    }

    #[test]
    fn an_expired_value_is_not_known_any_more() {
        let cache = Cache::default();
        let expiring = |key: &str, from_now: i64| {
            let until = Some(timestamp::now() + from_now);
            let value = Versioned {
                until,
                ..at(7, "x")
            };
            cache.learn(key, &value);
            cache.get(key).is_some()
        };
        assert!(expiring("later", 3_600_000_000_000));
        assert!(!expiring("past", -1));
    }

    #[test]
    fn memory_is_bounded() {
        let cache = Cache::default();
        let value = Versioned::new(Some(vec![0; 1 << 20].into()), 1);
        for n in 0..200 {
            cache.learn(&format!("k{n}"), &value);
        }
        assert!(cache.0.weight() <= MAX_BYTES, "{} bytes", cache.0.weight());
        assert!(!cache.0.is_empty());
    }
}
