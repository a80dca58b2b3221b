//! The file itself: TOML to checked values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::FunctionSettings;

/// A whole `pelton.toml`, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The app's name.
    pub app: String,
    /// Folder of the file: relative paths start here.
    pub root: PathBuf,
    /// By stream name.
    pub streams: BTreeMap<String, StreamManifest>,
    /// By function name.
    pub functions: BTreeMap<String, FunctionManifest>,
}

/// `[streams.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamManifest {
    /// Subjects that it covers.
    pub subjects: Vec<String>,
    /// Copies in the cluster; none: the server's default.
    pub replicas: Option<u32>,
    /// Age at which messages go, milliseconds.
    pub max_age_ms: Option<u64>,
    /// Bytes at which the oldest go.
    pub max_bytes: Option<u64>,
    /// Window in which a repeated `Nats-Msg-Id` is dropped, milliseconds.
    pub duplicate_window_ms: Option<u64>,
    /// Let Pelton add its source to a stream that it did not create.
    pub adopt: bool,
}

/// `[functions.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionManifest {
    /// A crate's folder or a `.wasm` file, relative to [`Manifest::root`].
    pub component: PathBuf,
    /// Subjects given in the file; none: what the handlers announce.
    pub subjects: Option<Vec<String>>,
    /// Limits and policies.
    pub settings: FunctionSettings,
}

/// One thing wrong in one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {what}\n  fix: {fix}", file = file.display())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong and why.
    pub what: String,
    /// How to mend it.
    pub fix: String,
}

impl Manifest {
    /// Reads and checks a file, with `[env.<env>]` laid over it when `env` is given.
    ///
    /// # Errors
    /// Every error found, in the order of the file.
    pub fn load(_path: &Path, _env: Option<&str>) -> Result<Self, Vec<ConfigError>> {
        Err(Vec::new())
    }
}
