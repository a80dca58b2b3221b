//! `wasi:config/store`: the function's configuration and secrets, by name.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::sandbox::host::Host;
use crate::sandbox::types::ConfigError;

type Answer<T> = wasmtime::Result<(Result<T, ConfigError>,)>;

pub(super) fn add(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut config = linker.instance("wasi:config/store@0.2.0-rc.1")?;
    config.func_wrap(
        "get",
        |store: StoreContextMut<'_, Host>, (key,): (String,)| -> Answer<Option<String>> {
            Ok((Ok(store.data().spec.config.get(&key).cloned()),))
        },
    )?;
    config.func_wrap(
        "get-all",
        |store: StoreContextMut<'_, Host>, (): ()| -> Answer<Vec<(String, String)>> {
            let all = &store.data().spec.config;
            Ok((Ok(all
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()),))
        },
    )
}
