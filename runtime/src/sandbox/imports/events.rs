//! `pelton:function/events`: what leaves when the attempt commits, or at a time.

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::effects::Failure;
use crate::sandbox::host::Host;
use crate::sandbox::types::{Draft, Error};

type Answer = wasmtime::Result<(Result<(), Error>,)>;

pub(super) fn add(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut events = linker.instance("pelton:function/events@0.1.0")?;
    events.func_wrap(
        "emit",
        |mut store: StoreContextMut<'_, Host>, (draft,): (Draft,)| -> Answer {
            let attempt = store.data_mut().attempt();
            let result = attempt.and_then(|attempt| attempt.emit(draft.into()));
            Ok((result.map_err(Error::from),))
        },
    )?;
    events.func_wrap_async(
        "emit-at",
        |mut store: StoreContextMut<'_, Host>, (name, time, draft): (String, i64, Draft)| {
            Box::new(async move {
                let result = emit_at(store.data_mut(), name, time, draft).await;
                Ok((result.map_err(Error::from),))
            })
        },
    )?;
    events.func_wrap_async(
        "cancel",
        |mut store: StoreContextMut<'_, Host>, (name,): (String,)| {
            Box::new(async move {
                let result = cancel(store.data_mut(), name).await;
                Ok((result.map_err(Error::from),))
            })
        },
    )?;
    events.func_wrap(
        "reply",
        |mut store: StoreContextMut<'_, Host>,
         (content_type, data): (Option<String>, Bytes)|
         -> Answer {
            let attempt = store.data_mut().attempt();
            let result = attempt.and_then(|attempt| attempt.reply(content_type, data));
            Ok((result.map_err(Error::from),))
        },
    )?;
    events.func_wrap(
        "reply-error",
        |mut store: StoreContextMut<'_, Host>, (code, message): (String, String)| -> Answer {
            let attempt = store.data_mut().attempt();
            let result = attempt.map(|attempt| attempt.reply_error(code, message));
            Ok((result.map_err(Error::from),))
        },
    )?;
    Ok(())
}

async fn emit_at(host: &mut Host, name: String, time: i64, draft: Draft) -> Result<(), Failure> {
    host.attempt()?.emit_at(name, time, draft.into()).await
}

async fn cancel(host: &mut Host, name: String) -> Result<(), Failure> {
    host.attempt()?.cancel(name).await
}
