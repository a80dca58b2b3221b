//! Of which apps this node still ends attempts of versions that gave way: they may commit, and emit, what a newer version may not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Versions on their way out, by app; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving(Arc<Mutex<BTreeMap<String, usize>>>);

/// One version on its way out, until dropped.
#[derive(Debug)]
pub(super) struct Leaves {
    leaving: Leaving,
    app: String,
}

impl Leaving {
    pub(super) fn begin(&self, app: &str) -> Leaves {
        *self.lock().entry(app.to_owned()).or_default() += 1;
        Leaves {
            leaving: self.clone(),
            app: app.to_owned(),
        }
    }

    /// The apps.
    pub(super) fn apps(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut leaving = self.leaving.lock();
        if let Some(count) = leaving.get_mut(&self.app) {
            *count -= 1;
        }
        leaving.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_named_until_the_last_of_its_versions_has_left() {
        let leaving = Leaving::default();
        let (first, second) = (leaving.begin("shop"), leaving.begin("shop"));
        drop(first);
        assert_eq!(leaving.apps(), ["shop"]);
        drop(second);
        assert!(leaving.apps().is_empty());
    }
}
