//! Compiled components on disk, so that a node that starts again, or a second one on the machine, does not compile.
//!
//! Keyed by content and by everything that the machine code depends on; written aside and renamed, so that a
//! reader never sees half a file; read only when its checksum fits, because what is loaded here is run.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;
use xxhash_rust::xxh3::Xxh3;

use super::SandboxError;

/// Files kept; the ones unused for longest go first.
const MAX_FILES: usize = 256;
/// First bytes of a file: what it is and its format's version.
const MAGIC: &[u8; 8] = b"PELTONC1";
const SUM: usize = 32;
const SUFFIX: &str = "cwasm";
/// How files begin that are still being written.
const UNFINISHED: &str = ".tmp";
/// A file that is being written for longer than this was left behind by a process that died.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);
/// Bits of a folder's mode that let others write into it.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A folder of artifacts.
pub(super) struct Cache {
    folder: PathBuf,
}

/// Where a component came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Found in the cache.
    Cached,
    /// Compiled now.
    Compiled,
}

impl Cache {
    /// In `folder`, which is made, closed to everyone else, where it is missing. One that exists must be this user's and
    /// nobody else's to write: what lies in it is run.
    pub(super) fn open(folder: &Path) -> Result<Self, SandboxError> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        let refused = match made.and_then(|()| distrust(folder)) {
            Ok(refused) => refused,
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = refused {
            return Err(SandboxError(format!(
                "the folder of compiled components {} cannot be used, because machine code is run from it: {why}; \
                 name another one (`--cache DIR`), or delete this one",
                folder.display()
            )));
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Loads or compiles. Slow: not for a thread that serves others.
    pub(super) fn load(
        &self,
        engine: &Engine,
        bytes: &[u8],
    ) -> Result<(Component, Origin), SandboxError> {
        let path = self.folder.join(file_name(engine, bytes));
        if let Some(component) = read(engine, &path) {
            // Being used makes it young; failing to say so only makes it go earlier.
            let _ = fs::File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            return Ok((component, Origin::Cached));
        }
        let component = Component::new(engine, bytes)
            .map_err(|error| SandboxError(format!("the component does not compile: {error:#}")))?;
        if let Err(error) = self.write(&component, &path) {
            // The component runs all the same; the next start compiles again.
            tracing::warn!(path = %path.display(), error = %error, "compiled component was not cached");
        }
        Ok((component, Origin::Compiled))
    }

    fn write(&self, component: &Component, path: &Path) -> anyhow::Result<()> {
        let artifact = component.serialize()?;
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)?;
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(&artifact))?;
        file.write_all(&artifact)?;
        file.persist(path)?;
        self.prune()?;
        Ok(())
    }

    /// Drops the oldest beyond [`MAX_FILES`], and what a process that died left unfinished. Another process may do the
    /// same at the same time.
    fn prune(&self) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let path = entry.path();
            let finished = path.extension().is_some_and(|suffix| suffix == SUFFIX);
            let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
            if !finished && !unfinished {
                continue;
            }
            let modified = match entry.metadata() {
                Ok(metadata) => metadata.modified()?,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if finished {
                files.push((modified, path));
            } else if modified.elapsed().is_ok_and(|age| age > LEFT_BEHIND) {
                remove(&path)?;
            }
        }
        files.sort_unstable();
        let surplus = files.len().saturating_sub(MAX_FILES);
        for (_, path) in files.into_iter().take(surplus) {
            remove(&path)?;
        }
        Ok(())
    }
}

/// Why others might have put something into this folder, if they might.
fn distrust(folder: &Path) -> std::io::Result<Option<String>> {
    // Not `metadata`: whoever owns a link can point it elsewhere later.
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Ok(Some("it is no folder, or a link to one".into()));
    }
    // What this process makes belongs to its effective user.
    let ours = tempfile::tempfile()?.metadata()?.uid();
    if found.uid() != ours {
        return Ok(Some(format!(
            "it belongs to user {}, and this process runs as user {ours}",
            found.uid()
        )));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Ok(Some(format!(
            "its mode {:o} lets other users write into it",
            found.mode() & 0o7777
        )));
    }
    Ok(None)
}

/// Deletes a file that may be gone already.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn file_name(engine: &Engine, bytes: &[u8]) -> String {
    let mut hasher = Xxh3::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let content = hex::encode(Sha256::digest(bytes));
    format!("{content}-{:016x}.{SUFFIX}", hasher.finish())
}

/// None when there is no file, or when it is not what was written: then it is compiled and written again.
fn read(engine: &Engine, path: &Path) -> Option<Component> {
    let bytes = fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (sum, artifact) = rest.split_at_checked(SUM)?;
    if sum != Sha256::digest(artifact).as_slice() {
        tracing::warn!(path = %path.display(), "compiled component is damaged: compiling again");
        return None;
    }
    // SAFETY: the bytes must be what `Component::serialize` made, because they hold machine code. They lie in a
    // folder that only this user can write (see `open`), under a name that holds the engine's compatibility
    // hash, and are complete and unchanged by their checksum; wasmtime itself refuses those of another version
    // or configuration.
    match unsafe { Component::deserialize(engine, artifact) } {
        Ok(component) => Some(component),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %error, "compiled component is foreign: compiling again");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_could_fill_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let refusal = |folder: &Path| match Cache::open(folder) {
            Ok(_) => None,
            Err(error) => Some(error.0),
        };

        let own = home.path().join("deep/own");
        assert_eq!(refusal(&own), None);
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        assert_eq!(refusal(&own), None, "and again");

        let open = home.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(&open).unwrap().contains("777"));
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o777, "left");

        let link = home.path().join("link");
        symlink(&own, &link).unwrap();
        assert!(refusal(&link).unwrap().contains("link"));
    }

    #[test]
    fn what_a_dead_process_left_goes() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        let file = |name: &str, age: Duration| {
            let path = home.path().join(name);
            let file = fs::File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            path
        };
        let old = file(".tmpold", LEFT_BEHIND * 2);
        let young = file(".tmpnew", Duration::ZERO);
        let other = file("other", LEFT_BEHIND * 2);
        cache.prune().unwrap();
        assert!(!old.exists() && young.exists() && other.exists());
    }
}
