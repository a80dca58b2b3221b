//! The sandbox: a component, called once per attempt, and nothing but its effects comes out.
//!
//! The only place that knows wasmtime; it knows nothing of NATS.

mod cache;
mod engine;
mod guest;
mod host;
mod http;
mod imports;
mod invoke;
mod limits;
mod logs;
mod pool;
mod stdio;
mod types;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};

use self::cache::Cache;
use self::engine::Clock;
use self::guest::Export;
use self::host::Host;
use self::imports::Linkers;
pub use self::logs::LogLines;
use self::pool::{Pool, Slots};
use crate::component::{HANDLER_EXPORT, check_imports, is_http};
use crate::effects::{Rules, StateReader};
use crate::event::Delivery;
use crate::names::Txn;
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
#[derive(Clone)]
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

/// Keys of the configuration only: its values hold secrets.
impl fmt::Debug for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionSpec")
            .field("app", &self.app)
            .field("function", &self.function)
            .field("memory", &self.memory)
            .field("timeout", &self.timeout)
            .field("fresh", &self.fresh)
            .field("config", &self.config.keys())
            .field("http", &self.http)
            .field("emit", &self.emit)
            .field("targets", &self.targets)
            .field("max_payload", &self.max_payload)
            .finish()
    }
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
    pub txn: Txn,
    /// Where reads go.
    pub state: Arc<dyn StateReader>,
    /// Where log lines go.
    pub logs: LogLines,
}

/// The engine and its artifact cache; cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Node>,
}

/// What all functions of a node share.
struct Node {
    engine: Engine,
    linkers: Linkers,
    cache: Cache,
    slots: Arc<Slots>,
    max_memory: u64,
    _clock: Clock,
}

/// A function ready to be called; cheap to clone.
#[derive(Clone)]
pub struct Function {
    inner: Arc<Ready>,
}

struct Ready {
    pre: InstancePre<Host>,
    export: Export,
    spec: Arc<FunctionSpec>,
    rules: Arc<Rules>,
    pool: Arc<Pool>,
    /// Keeps the clock ticking for as long as there is something to interrupt.
    _node: Arc<Node>,
}

/// Why a component cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SandboxError(pub String);

impl Sandbox {
    /// Starts the engine and its epoch clock.
    ///
    /// # Errors
    /// Address space for that many instances is not to be had; the cache folder cannot be made private.
    pub fn new(config: SandboxConfig) -> Result<Self, SandboxError> {
        let engine = engine::engine(&config)?;
        let linkers = Linkers::new(&engine)
            .map_err(|error| SandboxError(format!("the imports do not link: {error:#}")))?;
        Ok(Self {
            inner: Arc::new(Node {
                _clock: Clock::start(&engine)?,
                cache: Cache::open(&config.cache_dir)?,
                slots: Slots::new(config.max_instances),
                max_memory: config.max_memory,
                engine,
                linkers,
            }),
        })
    }

    /// Compiles (or finds in the cache) and pre-instantiates a component, and starts one instance of it, so
    /// that what cannot run is known before the first event.
    ///
    /// # Errors
    /// Imports that no node links, or that the manifest does not allow; a component that does not start.
    pub async fn load(
        &self,
        component: &[u8],
        spec: FunctionSpec,
    ) -> Result<Function, SandboxError> {
        self.check(&spec)?;
        let node = Arc::clone(&self.inner);
        let bytes = component.to_vec();
        let loaded = tokio::task::spawn_blocking(move || node.cache.load(&node.engine, &bytes));
        let (component, origin) = loaded
            .await
            .map_err(|error| SandboxError(format!("compiling was cut off: {error}")))??;
        tracing::debug!(app = %spec.app, function = %spec.function, ?origin, "component loaded");
        let function = self.prepare(&component, spec)?;
        let permit = self.inner.slots.permit().await?;
        let instance = function.warm_up(permit).await.map_err(|failure| {
            SandboxError(format!("the component does not start: {}", failure.message))
        })?;
        if !function.inner.spec.fresh {
            function.inner.pool.put_back(instance);
        }
        Ok(function)
    }

    /// Instances that there are, idle ones included, and how many there may be.
    pub fn instances(&self) -> (usize, usize) {
        self.inner.slots.taken()
    }

    fn check(&self, spec: &FunctionSpec) -> Result<(), SandboxError> {
        if spec.memory <= self.inner.max_memory {
            return Ok(());
        }
        Err(SandboxError(format!(
            "memory = {} bytes of function {} is more than this node grants ({} bytes): lower it in pelton.toml, \
             or start the node with `pelton run --max-memory {}MiB` or more",
            spec.memory,
            spec.function,
            self.inner.max_memory,
            spec.memory.div_ceil(1 << 20)
        )))
    }

    fn prepare(&self, component: &Component, spec: FunctionSpec) -> Result<Function, SandboxError> {
        let http = !spec.http.is_empty();
        let ty = component.component_type();
        let imports: Vec<String> = ty
            .imports(&self.inner.engine)
            .map(|(name, _)| name.to_owned())
            .collect();
        check_imports(&imports).map_err(|error| SandboxError(error.0))?;
        if !http && let Some(name) = imports.iter().find(|name| is_http(name)) {
            return Err(SandboxError(format!(
                "the component imports {name}, but function {function} may call no host: add to \
                 [functions.{function}.allow] http = [\"host\"] in pelton.toml, or build without HTTP",
                function = spec.function
            )));
        }
        let export = Export::find(component).ok_or_else(|| {
            SandboxError(format!("the component exports no {HANDLER_EXPORT}0.1.0"))
        })?;
        let linker = self.inner.linkers.choose(http);
        let pre = linker.instantiate_pre(component).map_err(|error| {
            SandboxError(format!(
                "the component does not fit this node's imports: {error:#}"
            ))
        })?;
        let rules = Arc::new(Rules {
            app: spec.app.clone(),
            function: spec.function.clone(),
            emit: spec.emit.clone(),
            targets: spec.targets.clone(),
            max_payload: spec.max_payload,
        });
        Ok(Function {
            inner: Arc::new(Ready {
                pre,
                export,
                rules,
                spec: Arc::new(spec),
                pool: self.inner.slots.pool(),
                _node: Arc::clone(&self.inner),
            }),
        })
    }
}

#[cfg(test)]
pub(crate) use tests::guest as guests;

#[cfg(test)]
mod tests;
