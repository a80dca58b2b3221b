//! State in memory: what handlers, the sandbox's tests and programs that embed it read where there is no NATS.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};

use super::{StateError, StateReader, Versioned, Write};
use crate::event::timestamp;

/// Keys and values with revisions, as a KV bucket has them.
#[derive(Debug, Default)]
pub struct MemoryState {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    keys: BTreeMap<String, Versioned>,
    reads: u64,
}

impl MemoryState {
    /// Stores or deletes, as a commit would; returns the new revision.
    pub fn write(&self, key: &str, write: Write) -> u64 {
        let mut inner = self.lock();
        inner.revision += 1;
        let until = match write {
            Write::SetUntil(_, until) => Some(until),
            Write::Set(_) | Write::Delete => None,
        };
        let versioned = Versioned {
            until,
            ends: until,
            ..Versioned::new(write.value().cloned(), inner.revision)
        };
        inner.keys.insert(key.to_owned(), versioned);
        inner.revision
    }

    /// Stores a value; returns its revision.
    pub fn set(&self, key: &str, value: impl Into<Bytes>) -> u64 {
        self.write(key, Write::Set(value.into()))
    }

    /// Round trips so far.
    pub fn round_trips(&self) -> u64 {
        self.lock().reads
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that could panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateReader for MemoryState {
    fn get_many<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Versioned>, StateError>> {
        let mut inner = self.lock();
        inner.reads += 1;
        let now = timestamp::now();
        let found = keys
            .iter()
            .map(|key| inner.keys.get(key).cloned().unwrap_or_default().as_of(now))
            .collect();
        drop(inner);
        futures::future::ready(Ok(found)).boxed()
    }

    fn record<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Versioned, StateError>> {
        let found = self.lock().keys.get(subject).cloned();
        futures::future::ready(Ok(found.unwrap_or_default())).boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<String>, StateError>> {
        let below = |key: &str| {
            prefix.is_empty()
                || key
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with('.'))
        };
        let now = timestamp::now();
        let found = self
            .lock()
            .keys
            .iter()
            .filter(|(key, versioned)| {
                versioned.value.is_some()
                    && !versioned.is_expired(now)
                    && below(key)
                    && after.is_none_or(|after| key.as_str() > after)
            })
            .map(|(key, _)| key.clone())
            .take(limit as usize)
            .collect();
        futures::future::ready(Ok(found)).boxed()
    }
}
