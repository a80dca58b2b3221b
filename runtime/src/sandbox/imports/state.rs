//! `pelton:function/state`: reads wait for NATS, writes are only noted.

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::effects::Failure;
use crate::sandbox::host::Host;
use crate::sandbox::types::Error;

type Answer<T> = wasmtime::Result<(Result<T, Error>,)>;

pub(super) fn add(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut state = linker.instance("pelton:function/state@0.1.0")?;
    state.func_wrap_async(
        "get",
        |mut store: StoreContextMut<'_, Host>, (key,): (String,)| {
            Box::new(async move { answer(get(store.data_mut(), key).await) })
        },
    )?;
    state.func_wrap_async(
        "get-many",
        |mut store: StoreContextMut<'_, Host>, (keys,): (Vec<String>,)| {
            Box::new(async move { answer(get_many(store.data_mut(), keys).await) })
        },
    )?;
    state.func_wrap_async(
        "list",
        |mut store: StoreContextMut<'_, Host>,
         (prefix, after, limit): (String, Option<String>, u32)| {
            Box::new(async move { answer(list(store.data_mut(), prefix, after, limit).await) })
        },
    )?;
    state.func_wrap(
        "set",
        |mut store: StoreContextMut<'_, Host>, (key, value): (String, Bytes)| {
            let attempt = store.data_mut().attempt();
            answer(attempt.and_then(|attempt| attempt.set(key, value)))
        },
    )?;
    state.func_wrap_async(
        "set-with-ttl",
        |mut store: StoreContextMut<'_, Host>, (key, value, ttl): (String, Bytes, u64)| {
            Box::new(async move { answer(set_with_ttl(store.data_mut(), key, value, ttl).await) })
        },
    )?;
    state.func_wrap(
        "delete",
        |mut store: StoreContextMut<'_, Host>, (key,): (String,)| {
            let attempt = store.data_mut().attempt();
            answer(attempt.and_then(|attempt| attempt.delete(key)))
        },
    )?;
    Ok(())
}

async fn get(host: &mut Host, key: String) -> Result<Option<Bytes>, Failure> {
    host.attempt()?.get(key).await
}

async fn get_many(host: &mut Host, keys: Vec<String>) -> Result<Vec<Option<Bytes>>, Failure> {
    host.attempt()?.get_many(keys).await
}

async fn list(
    host: &mut Host,
    prefix: String,
    after: Option<String>,
    limit: u32,
) -> Result<Vec<String>, Failure> {
    host.attempt()?.list(&prefix, after.as_deref(), limit).await
}

async fn set_with_ttl(host: &mut Host, key: String, value: Bytes, ttl: u64) -> Result<(), Failure> {
    host.attempt()?.set_with_ttl(key, value, ttl).await
}

/// A refusal goes to the guest, which decides what it means; it is no trap.
fn answer<T>(result: Result<T, Failure>) -> Answer<T> {
    Ok((result.map_err(Error::from),))
}
