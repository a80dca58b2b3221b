//! wasmtime's engine as this node runs it, and the clock that lets it interrupt guests.

use std::sync::mpsc;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

use super::limits::{MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use super::{SandboxConfig, SandboxError};

/// How often guests are looked after: a running one yields to others, and one that is over its time ends.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// Stack of wasm code; deeper recursion traps.
const WASM_STACK: usize = 1 << 20;
/// Stack that wasm code and host calls share.
const ASYNC_STACK: usize = 2 << 20;
/// Metadata of one instance.
const INSTANCE_SIZE: usize = 4 << 20;

/// The engine, sized for `config`.
pub(super) fn engine(config: &SandboxConfig) -> Result<Engine, SandboxError> {
    let mut wasm = Config::new();
    wasm.wasm_component_model(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(ASYNC_STACK)
        .cranelift_opt_level(OptLevel::Speed)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(config)?));
    Engine::new(&wasm).map_err(|error| {
        SandboxError(format!(
            "the WebAssembly engine does not start with {} instances of up to {} bytes: {error:#}; \
             lower the node's instances or memory, or lift its limit of address space (ulimit -v)",
            config.max_instances, config.max_memory
        ))
    })
}

fn pool(config: &SandboxConfig) -> Result<PoolingAllocationConfig, SandboxError> {
    let max_memory = usize::try_from(config.max_memory).map_err(|_| {
        SandboxError(format!(
            "{} bytes of memory cannot be addressed",
            config.max_memory
        ))
    })?;
    let instances = config.max_instances.max(1);
    let mut pool = PoolingAllocationConfig::new();
    // The totals follow from the number of instances: waiting for one (see `pool`) is the only wait there is.
    pool.total_component_instances(instances)
        .total_stacks(instances)
        .total_core_instances(instances.saturating_mul(MAX_CORE_INSTANCES))
        .total_memories(instances.saturating_mul(MAX_MEMORIES))
        .total_tables(instances.saturating_mul(MAX_TABLES))
        .max_component_instance_size(INSTANCE_SIZE)
        .max_core_instance_size(INSTANCE_SIZE)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .max_tables_per_module(MAX_TABLES)
        .max_memories_per_module(MAX_MEMORIES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(max_memory)
        .max_unused_warm_slots(instances);
    keep_resident(&mut pool);
    Ok(pool)
}

/// Resets a slot by writing over what was touched instead of giving the pages back: unmapping makes every core
/// flush its address translations, which triples the price of a fresh instance.
fn keep_resident(pool: &mut PoolingAllocationConfig) {
    // Where the kernel lists the pages that were touched, only those are written, so a lot may stay.
    // Elsewhere everything up to the limit is written over, so little.
    let memory = if has_pagemap_scan() {
        8 << 20
    } else {
        128 << 10
    };
    pool.pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(memory)
        .table_keep_resident(16 << 10)
        .async_stack_keep_resident(16 << 10);
}

/// Linux 6.7 and later.
fn has_pagemap_scan() -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version >= (6, 7)
}

/// Advances the engine's epoch for as long as it lives.
///
/// A thread of its own: on a runtime whose workers are all inside guests, no task could tick.
pub(super) struct Clock {
    _alive: mpsc::Sender<()>,
}

impl Clock {
    /// Starts ticking.
    pub(super) fn start(engine: &Engine) -> Result<Self, SandboxError> {
        let (alive, dropped) = mpsc::channel::<()>();
        let engine = engine.weak();
        std::thread::Builder::new()
            .name("pelton-epoch".into())
            .spawn(move || {
                // Ends at once when the other half is dropped.
                while dropped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let Some(engine) = engine.upgrade() else {
                        return;
                    };
                    engine.increment_epoch();
                }
            })
            .map_err(|error| SandboxError(format!("the epoch clock does not start: {error}")))?;
        Ok(Self { _alive: alive })
    }
}
