//! The sandbox: a component, called once per attempt, and nothing but its effects comes out.
//!
//! The only place that knows wasmtime; it knows nothing of NATS.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::effects::{Attempt, StateReader};
use crate::event::Delivery;
use crate::records::Target;

/// How a node runs components.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Folder of compiled artifacts, keyed by content and engine.
    pub cache_dir: PathBuf,
    /// Instances at once, over all functions.
    pub max_instances: u32,
    /// Largest memory any function may ask for, bytes.
    pub max_memory: u64,
}

/// What a function may do and use.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// The app's name.
    pub app: String,
    /// The function's name.
    pub function: String,
    /// Linear memory of one instance, bytes.
    pub memory: u64,
    /// Wall-clock time of one attempt.
    pub timeout: Duration,
    /// A new instance for every attempt instead of warm ones.
    pub fresh: bool,
    /// What `wasi:config` hands out, secrets included: never logged.
    pub config: BTreeMap<String, String>,
    /// Hosts that `wasi:http` may call; empty: none.
    pub http: Vec<String>,
    /// Patterns of subjects that may be emitted to.
    pub emit: Vec<String>,
    /// Streams that cover them.
    pub targets: Vec<Target>,
    /// Largest message the server takes, bytes.
    pub max_payload: usize,
}

/// One line that a guest logged.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// `trace`, `debug`, `info`, `warn`, `error` or `critical`.
    pub level: &'static str,
    /// The guest's context string; `stdout` or `stderr` for those.
    pub context: String,
    /// The text, cut at 4 KiB.
    pub message: String,
}

/// One attempt.
pub struct Call {
    /// What to hand over.
    pub delivery: Delivery,
    /// The transaction's id: drafts without an id get `<txn>.<n>`.
    pub txn: String,
    /// Where reads go.
    pub state: Arc<dyn StateReader>,
    /// Where log lines go; a full channel drops lines, never blocks the guest.
    pub logs: mpsc::Sender<LogLine>,
}

/// The engine and its artifact cache; cheap to clone.
#[derive(Clone)]
pub struct Sandbox {}

/// A function ready to be called; cheap to clone.
#[derive(Clone)]
pub struct Function {}

/// Why a component cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SandboxError(pub String);

impl Sandbox {
    /// Starts the engine and its epoch clock.
    pub fn new(_config: SandboxConfig) -> Result<Self, SandboxError> {
        Err(SandboxError("not built yet".into()))
    }

    /// Compiles (or finds in the cache) and pre-instantiates a component.
    pub async fn load(
        &self,
        _component: &[u8],
        _spec: FunctionSpec,
    ) -> Result<Function, SandboxError> {
        Err(SandboxError("not built yet".into()))
    }
}

impl Function {
    /// Runs one attempt to its end, its timeout or its trap.
    pub async fn invoke(&self, _call: Call) -> Attempt {
        Attempt {
            result: Ok(()),
            effects: Default::default(),
        }
    }
}
