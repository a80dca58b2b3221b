//! `pelton:function/clock`: the time of the delivery, the same in every attempt.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::sandbox::host::Host;

pub(super) fn add(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.instance("pelton:function/clock@0.1.0")?.func_wrap(
        "now",
        |mut store: StoreContextMut<'_, Host>, (): ()| {
            let attempt = store.data_mut().attempt();
            // Only code that runs as the component starts can come here without a delivery.
            let attempt = attempt.map_err(|failure| wasmtime::Error::msg(failure.message))?;
            Ok((attempt.now(),))
        },
    )
}
