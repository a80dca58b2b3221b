//! Which version gets an event. Asked anew for each delivery: a source is open from version to version, and who deploys waits for no
//! reader and no claim.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::delivery::Worker;
use crate::records::SHARES;

/// Partitions are told apart by the lower bits of a key's hash: a share is to cut through all of them.
const LOWER_BITS: u32 = 16;

/// The versions that take a function's events on this node.
#[derive(Clone)]
pub(crate) struct Lineup {
    pub(crate) active: Arc<Worker>,
    /// One that is tried, and its share of the keys, of [`SHARES`].
    pub(crate) trial: Option<(Arc<Worker>, u32)>,
}

impl Lineup {
    fn versions(&self) -> Versions {
        let trial = self.trial.as_ref();
        (
            self.active.record.version,
            trial.map(|(trial, _)| trial.record.version),
        )
    }

    /// The version for a key: the same on every node, and for as long as the share is the same.
    fn pick(&self, key: &str) -> &Arc<Worker> {
        match &self.trial {
            Some((trial, share)) if is_among(key, *share) => trial,
            _ => &self.active,
        }
    }
}

/// Whether a key is among this share of all. Whoever is among a smaller one is among a larger one, too.
fn is_among(key: &str, share: u32) -> bool {
    (xxh3_64(key.as_bytes()) >> LOWER_BITS) % u64::from(SHARES) < u64::from(share)
}

/// The active version, and the one that is tried.
type Versions = (u64, Option<u64>);

/// The versions that take a function's events on this node now; cheap to clone.
#[derive(Clone)]
pub(crate) struct Route {
    lineup: watch::Receiver<Arc<Lineup>>,
    /// As they were when [`turned`](Self::turned) was asked before.
    known: Versions,
}

impl Route {
    /// A route and its switch.
    pub(crate) fn new(lineup: Lineup) -> (Switch, Self) {
        let known = lineup.versions();
        let (sender, lineup) = watch::channel(Arc::new(lineup));
        (Switch(sender), Self { lineup, known })
    }

    /// The active version: for what is not about one event.
    pub(crate) fn worker(&self) -> Arc<Worker> {
        self.lineup.borrow().active.clone()
    }

    /// The version for a key. Whoever begins a delivery with it ends it with it.
    pub(crate) fn pick(&self, key: &str) -> Arc<Worker> {
        self.lineup.borrow().pick(key).clone()
    }

    /// Whether all events go to the active version.
    pub(crate) fn is_plain(&self) -> bool {
        self.lineup.borrow().trial.is_none()
    }

    /// Waits until another version is active than when this was asked before, or one is not tried any more: what failed with the one may do
    /// better with the other. A larger share, or more attempts at once, is no reason to try anything again.
    pub(crate) async fn turned(&mut self) {
        loop {
            if self.lineup.changed().await.is_err() {
                // Nobody turns it any more.
                std::future::pending::<()>().await;
            }
            let now = self.lineup.borrow_and_update().versions();
            let before = std::mem::replace(&mut self.known, now);
            if now.0 != before.0 || before.1.is_some() && now.1 != before.1 {
                return;
            }
        }
    }
}

/// Sets a route to other versions.
pub(crate) struct Switch(watch::Sender<Arc<Lineup>>);

impl Switch {
    /// From now on deliveries begin with these.
    pub(crate) fn turn(&self, lineup: Lineup) {
        self.0.send_replace(Arc::new(lineup));
    }

    /// The versions that take the events.
    pub(crate) fn lineup(&self) -> Lineup {
        self.0.borrow().as_ref().clone()
    }
}

/// Tells when the last delivery with a version has ended: it goes with the [`Worker`].
pub(crate) struct End(CancellationToken);

impl End {
    pub(crate) fn new() -> Self {
        Self(CancellationToken::new())
    }

    /// Cancelled at the end.
    pub(crate) fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_one_of_keys_and_grows_without_anybody_leaving_it() {
        let keys: Vec<String> = (0..20_000).map(|n| format!("order-{n}")).collect();
        let among = |share: u32| keys.iter().filter(|key| is_among(key, share)).count();
        assert_eq!((among(0), among(SHARES)), (0, keys.len()));
        for share in [100, 1000, 2000, 5000] {
            let expected = keys.len() * share as usize / SHARES as usize;
            let found = among(share);
            assert!(
                found.abs_diff(expected) < keys.len() / 50,
                "{found} for {share}"
            );
        }
        let grows = |key: &&String| is_among(key, 1000) && !is_among(key, 2000);
        assert_eq!(keys.iter().filter(grows).count(), 0);
        // Of one partition, too, which has keys by the same hash.
        let one: Vec<_> = keys
            .iter()
            .filter(|key| xxh3_64(key.as_bytes()) % 64 == 7)
            .collect();
        let found = one.iter().filter(|key| is_among(key, 2000)).count();
        assert!(
            found.abs_diff(one.len() / 5) < one.len() / 10,
            "{found} of {}",
            one.len()
        );
    }
}
