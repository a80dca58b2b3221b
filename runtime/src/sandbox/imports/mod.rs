//! What a guest can import, a file for each interface of the contract, and the linkers that hold them.

mod clock;
mod config;
mod events;
mod logging;
mod state;

use wasmtime::Engine;
use wasmtime::component::Linker;

use super::host::Host;

/// One linker for functions that may make HTTP calls, one for those that may not.
pub(super) struct Linkers {
    closed: Linker<Host>,
    http: Linker<Host>,
}

impl Linkers {
    /// Defines every import.
    pub(super) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let mut closed = Linker::new(engine);
        state::add(&mut closed)?;
        events::add(&mut closed)?;
        clock::add(&mut closed)?;
        logging::add(&mut closed)?;
        config::add(&mut closed)?;
        wasmtime_wasi::p2::add_to_linker_async(&mut closed)?;
        let mut http = closed.clone();
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut http)?;
        Ok(Self { closed, http })
    }

    /// The one for a function.
    pub(super) fn choose(&self, http: bool) -> &Linker<Host> {
        if http { &self.http } else { &self.closed }
    }
}
