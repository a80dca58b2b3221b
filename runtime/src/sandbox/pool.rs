//! Instances: how many there may be on this node, and the warm ones of each function.
//!
//! Every instance holds a permit for as long as it lives, idle or not. When none is left, an idle instance
//! of any function gives way; when none is idle, the attempt waits. So no function can keep another out
//! by having been busy once, and the allocator never runs dry.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

use super::SandboxError;
use super::guest::Guest;
use super::host::Host;

/// An instance and its permit. Fields drop in order: the permit is free only when the slot is.
pub(super) struct Instance {
    pub(super) store: Store<Host>,
    pub(super) guest: Guest,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The instances that the node may have.
pub(super) struct Slots {
    count: usize,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    pools: Mutex<Vec<Weak<Pool>>>,
}

/// The idle instances of one function: the last one used is the next, because its memory is in the caches.
pub(super) struct Pool {
    slots: Arc<Slots>,
    idle: Mutex<Vec<Instance>>,
}

/// What an attempt gets.
pub(super) enum Acquired {
    /// An instance that handled an event before.
    Warm(Instance),
    /// Leave to make one.
    Room(OwnedSemaphorePermit),
}

impl Slots {
    /// `count` instances at once.
    pub(super) fn new(count: u32) -> Arc<Self> {
        let count = count.max(1) as usize;
        Arc::new(Self {
            count,
            free: Arc::new(Semaphore::new(count)),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
        })
    }

    /// A place for one function's idle instances.
    pub(super) fn pool(self: &Arc<Self>) -> Arc<Pool> {
        let pool = Arc::new(Pool {
            slots: Arc::clone(self),
            idle: Mutex::default(),
        });
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Instances that there are, and how many there may be.
    pub(super) fn taken(&self) -> (usize, usize) {
        let free = self.free.available_permits();
        (self.count.saturating_sub(free), self.count)
    }

    /// A permit, at the expense of an idle instance if need be.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, SandboxError> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(permit);
        }
        // Announced before looking for an idle one: whoever puts one back after the look sees this, and drops it.
        let _waiting = Waiting::new(&self.waiting);
        drop(self.evict());
        Arc::clone(&self.free)
            .acquire_owned()
            .await
            .map_err(|_| SandboxError("the sandbox is closed".into()))
    }

    /// Takes the longest idle instance of some function.
    fn evict(&self) -> Option<Instance> {
        let pools: Vec<_> = {
            let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.iter().filter_map(Weak::upgrade).collect()
        };
        pools.iter().find_map(|pool| {
            let mut idle = pool.lock();
            (!idle.is_empty()).then(|| idle.remove(0))
        })
    }
}

impl Pool {
    /// A warm instance, or room for a new one.
    pub(super) async fn acquire(&self, fresh: bool) -> Result<Acquired, SandboxError> {
        if !fresh && let Some(instance) = self.lock().pop() {
            return Ok(Acquired::Warm(instance));
        }
        Ok(Acquired::Room(self.slots.permit().await?))
    }

    /// Keeps an instance that returned in good order for the next attempt, unless someone waits for its place.
    pub(super) fn put_back(&self, instance: Instance) {
        if self.slots.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        self.lock().push(instance);
        // Someone may have begun to wait, and not seen it, between the two.
        if self.slots.waiting.load(Ordering::SeqCst) > 0 {
            let surplus = self.lock().pop();
            drop(surplus);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Instance>> {
        // No code that could panic runs under this lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts an attempt that waits, also one that is given up while it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
