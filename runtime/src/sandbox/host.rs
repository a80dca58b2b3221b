//! What stands behind one instance's imports: the effects of the attempt that runs, its log, its limits.

use std::sync::Arc;

use tokio::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::FunctionSpec;
use super::http::Http;
use super::limits::Limiter;
use super::logs::Logs;
use super::stdio::Stdio;
use crate::effects::{Collector, Failure};

/// WASI resources that a guest may hold open at once.
const MAX_RESOURCES: usize = 10_000;

/// The data of one instance's store.
pub(super) struct Host {
    pub(super) spec: Arc<FunctionSpec>,
    /// None while no event is being handled.
    pub(super) attempt: Option<Collector>,
    pub(super) logs: Arc<Logs>,
    pub(super) limiter: Limiter,
    /// When the attempt that runs is over its time.
    pub(super) deadline: Instant,
    table: ResourceTable,
    /// Made at its first use: most handlers never ask for it, and it would be a good part of a fresh instance's price.
    wasi: Option<WasiCtx>,
    http: WasiHttpCtx,
    hooks: Http,
}

impl Host {
    /// For a new instance of the function.
    pub(super) fn new(spec: Arc<FunctionSpec>) -> Self {
        let logs = Arc::new(Logs::default());
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Self {
            limiter: Limiter::new(spec.memory),
            hooks: Http::new(Arc::clone(&spec), Arc::clone(&logs)),
            spec,
            attempt: None,
            logs,
            deadline: Instant::now(),
            table,
            wasi: None,
            http: WasiHttpCtx::new(),
        }
    }

    /// An attempt, or its instance's start, begins.
    pub(super) fn begin(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.hooks.deadline = deadline;
        self.limiter.reset();
    }

    /// The effects of the attempt that runs.
    pub(super) fn attempt(&mut self) -> Result<&mut Collector, Failure> {
        self.attempt.as_mut().ok_or_else(|| {
            Failure::retry(
                "pelton-unavailable",
                "state, events and clock can only be used while an event is being handled",
            )
        })
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let logs = &self.logs;
        let ctx = self.wasi.get_or_insert_with(|| inert(logs));
        WasiCtxView {
            ctx,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// Clocks, randomness, output as log lines; no folder, no environment, and sockets that connect to nothing.
fn inert(logs: &Arc<Logs>) -> WasiCtx {
    WasiCtx::builder()
        .stdout(Stdio::stdout(Arc::clone(logs)))
        .stderr(Stdio::stderr(Arc::clone(logs)))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}
