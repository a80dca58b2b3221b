//! Turns at keys that many deliveries of this node want to change: without them, all would run again each time one of them
//! has committed, and most would lose again.
//!
//! A delivery that lost takes its turn before it runs again, and keeps it until it has committed. Who never lost needs none,
//! but does not overtake those who wait. Turns are a courtesy within one node: what may be committed, the revisions decide.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::effects::Effects;

type Lock = Arc<RwLock<()>>;

/// The keys that somebody holds or waits for; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Locks(Arc<Mutex<HashMap<String, Lock>>>);

/// Keys and whether they are to be written.
pub type Wanted = BTreeMap<String, bool>;

/// A turn at some keys; ends when dropped.
#[derive(Debug)]
pub struct Turn {
    locks: Locks,
    wanted: Wanted,
    guards: Vec<Guard>,
}

#[derive(Debug)]
enum Guard {
    Read(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
    Write(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
}

/// What an attempt touched.
pub fn touched(effects: &Effects) -> Wanted {
    let reads = effects.reads.keys().map(|key| (key.clone(), false));
    let writes = effects.writes.keys().map(|key| (key.clone(), true));
    let timers = effects.timers.keys().map(|record| (record.clone(), true));
    reads.chain(writes).chain(timers).collect()
}

impl Locks {
    /// Waits for a turn at all of these, first come, first served. In the order of the keys, so that two never wait for each other.
    pub async fn turn(&self, wanted: Wanted) -> Turn {
        let mut turn = Turn {
            locks: self.clone(),
            wanted: Wanted::new(),
            guards: Vec::with_capacity(wanted.len()),
        };
        for (key, writes) in wanted {
            let lock = self.lock().entry(key.clone()).or_default().clone();
            turn.wanted.insert(key, writes);
            turn.guards.push(match writes {
                true => Guard::Write(lock.write_owned().await),
                false => Guard::Read(lock.read_owned().await),
            });
        }
        turn
    }

    /// Which of these somebody else holds or waits for.
    pub fn taken(&self, wanted: &Wanted, turn: Option<&Turn>) -> Vec<String> {
        // Most deliveries without effects touch nothing.
        if wanted.is_empty() {
            return Vec::new();
        }
        let locks = self.lock();
        let held = |key: &String, writes: bool| {
            let held = turn.and_then(|turn| turn.wanted.get(key));
            held.is_some_and(|for_writing| *for_writing || !writes)
        };
        let taken = wanted.iter().filter(|(key, writes)| {
            let Some(lock) = locks.get(*key).filter(|_| !held(key, **writes)) else {
                return false;
            };
            match writes {
                true => lock.try_write().is_err(),
                false => lock.try_read().is_err(),
            }
        });
        taken.map(|(key, _)| key.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// What it is a turn at.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guards.clear();
        let mut locks = self.locks.lock();
        for key in self.wanted.keys() {
            // Nobody else holds it or waits for it.
            if locks
                .get(key)
                .is_some_and(|lock| Arc::strong_count(lock) == 1)
            {
                locks.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(keys: &[(&str, bool)]) -> Wanted {
        keys.iter()
            .map(|(key, writes)| ((*key).to_owned(), *writes))
            .collect()
    }

    #[tokio::test]
    async fn turns_at_keys() {
        let locks = Locks::default();
        let (write, read) = (wanted(&[("k", true)]), wanted(&[("k", false)]));
        assert!(locks.taken(&write, None).is_empty());
        let first = locks.turn(read.clone()).await;
        let second = locks.turn(read.clone()).await;
        assert!(locks.taken(&read, None).is_empty(), "readers go together");
        assert_eq!(locks.taken(&write, None), ["k"]);
        assert_eq!(
            locks.taken(&write, Some(&first)),
            ["k"],
            "a turn at reading is none at writing"
        );
        let waiting = tokio::spawn({
            let (locks, write) = (locks.clone(), write.clone());
            async move { locks.turn(write).await }
        });
        while locks.taken(&read, None).is_empty() {
            tokio::task::yield_now().await;
        }
        drop((first, second));
        let third = waiting.await.unwrap();
        assert_eq!(locks.taken(&read, None), ["k"]);
        assert!(locks.taken(&write, Some(&third)).is_empty());
        drop(third);
        assert!(locks.lock().is_empty(), "nothing is left behind");
    }
}
