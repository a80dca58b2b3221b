//! Which files a redeploy depends on, and a word when one of them has changed.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify_debouncer_full::notify::{EventKind, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{
    DebounceEventResult, DebouncedEvent, Debouncer, RecommendedCache, new_debouncer,
};
use tokio::sync::mpsc;

/// Editors and version control write many files at once: one word after the last.
const QUIET: Duration = Duration::from_millis(250);

/// Watches for as long as it is kept.
pub(super) struct Watch {
    debouncer: Debouncer<RecommendedWatcher, RecommendedCache>,
    watched: Vec<PathBuf>,
    changes: mpsc::Receiver<PathBuf>,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn new() -> anyhow::Result<Self> {
        // One word is enough however many files change while a build runs.
        let (sender, changes) = mpsc::channel(1);
        let debouncer = new_debouncer(QUIET, None, move |result: DebounceEventResult| {
            let Ok(events) = result else {
                return;
            };
            if let Some(path) = events.iter().find_map(relevant) {
                let _ = sender.try_send(path.to_owned());
            }
        })
        .context("files cannot be watched; --no-watch does without")?;
        Ok(Self {
            debouncer,
            watched: Vec::new(),
            changes,
        })
    }

    /// Watches these folders (whole) and the folders of these files, and no others any more.
    pub(super) fn set(&mut self, folders: &[PathBuf], files: &[PathBuf]) {
        for path in std::mem::take(&mut self.watched) {
            // Gone already: then there is nothing to watch.
            let _ = self.debouncer.unwatch(&path);
        }
        for folder in folders {
            self.add(folder, RecursiveMode::NonRecursive);
            let inner = std::fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in inner.filter(|entry| entry.path().is_dir()) {
                if !is_noise(Path::new(&entry.file_name())) {
                    self.add(&entry.path(), RecursiveMode::Recursive);
                }
            }
        }
        for folder in files.iter().filter_map(|file| file.parent()) {
            if !self.watched.iter().any(|known| known == folder) {
                self.add(folder, RecursiveMode::NonRecursive);
            }
        }
    }

    fn add(&mut self, path: &Path, mode: RecursiveMode) {
        if self.debouncer.watch(path, mode).is_ok() {
            self.watched.push(path.to_owned());
        }
    }

    /// The next change: one of the files that changed.
    pub(super) async fn changed(&mut self) -> PathBuf {
        match self.changes.recv().await {
            Some(path) => path,
            // The sender lives in the debouncer, which lives as long as `self`.
            None => std::future::pending().await,
        }
    }
}

/// A file that was written, made, moved or removed, and may be part of a function.
fn relevant(event: &DebouncedEvent) -> Option<&Path> {
    if matches!(event.kind, EventKind::Access(_) | EventKind::Other) {
        return None;
    }
    let path = event.paths.iter().find(|path| !is_noise(path))?;
    // A folder's own times change with its files.
    (!path.is_dir()).then_some(path)
}

/// What builds, editors and version control leave beside sources; a build writes the lock file itself.
fn is_noise(path: &Path) -> bool {
    let in_noise = path.components().any(|part| match part {
        Component::Normal(name) => matches!(name.to_str(), Some("target" | ".git" | ".pelton")),
        _ => false,
    });
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    in_noise
        || name == "Cargo.lock"
        || name.starts_with(".#")
        || name.ends_with('~')
        || name.ends_with(".swp")
        || name.ends_with(".swx")
        || name.ends_with(".tmp")
        || name == "4913"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise() {
        for (path, expected) in [
            ("/a/functions/orders/src/lib.rs", false),
            ("/a/pelton.toml", false),
            ("/a/Cargo.lock", true),
            ("/a/target/debug/x", true),
            ("/a/src/lib.rs~", true),
            ("/a/src/.lib.rs.swp", true),
        ] {
            assert_eq!(is_noise(Path::new(path)), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn a_change_is_told() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("src")).unwrap();
        let mut watch = Watch::new().unwrap();
        watch.set(std::slice::from_ref(&folder), &[]);
        std::fs::create_dir(folder.join("target")).unwrap();
        std::fs::write(folder.join("target/x"), "1").unwrap();
        std::fs::write(folder.join("src/lib.rs"), "1").unwrap();
        let changed = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await;
        assert_eq!(changed.unwrap(), folder.join("src/lib.rs"));
    }
}
