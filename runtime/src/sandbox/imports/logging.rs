//! `wasi:logging/logging`: lines go to the node's log channel; a panic hook logs `critical`.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::sandbox::host::Host;
use crate::sandbox::types::Level;

pub(super) fn add(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker
        .instance("wasi:logging/logging@0.1.0-draft")?
        .func_wrap(
            "log",
            |store: StoreContextMut<'_, Host>,
             (level, context, message): (Level, String, String)| {
                store.data().logs.line(level.name(), context, message);
                Ok(())
            },
        )
}
