//! Compiled components on disk, so that a node that starts again, or a second one on the machine, does not compile.
//!
//! Keyed by content and by everything that the machine code depends on; written aside and renamed, so that a
//! reader never sees half a file; read only when its checksum fits, because what is loaded here is run.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
    /// In `folder`, which is made, and closed to everyone but its owner.
    pub(super) fn open(folder: &Path) -> Result<Self, SandboxError> {
        let opened = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
        opened.map_err(|error| {
            SandboxError(format!(
                "the folder of compiled components {} cannot be made private to this user: {error}; \
                 name another one that this user owns",
                folder.display()
            ))
        })?;
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
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(&artifact))?;
        file.write_all(&artifact)?;
        file.persist(path)?;
        self.prune()?;
        Ok(())
    }

    /// Drops the oldest beyond [`MAX_FILES`].
    fn prune(&self) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                files.push((entry.metadata()?.modified()?, path));
            }
        }
        files.sort_unstable();
        let surplus = files.len().saturating_sub(MAX_FILES);
        for (_, path) in files.into_iter().take(surplus) {
            fs::remove_file(path)?;
        }
        Ok(())
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
    // folder that only this user can write (0700, see `open`), under a name that holds the engine's compatibility
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
