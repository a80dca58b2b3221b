//! `pelton:function/events`: what leaves when the attempt commits.

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
    events.func_wrap(
        "emit-at",
        |_: StoreContextMut<'_, Host>, _: (String, i64, Draft)| -> Answer {
            Ok((Err(unsupported("emit-at").into()),))
        },
    )?;
    events.func_wrap(
        "cancel",
        |_: StoreContextMut<'_, Host>, _: (String,)| -> Answer {
            Ok((Err(unsupported("cancel").into()),))
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
    Ok(())
}

fn unsupported(what: &str) -> Failure {
    Failure::reject(
        "pelton-not-supported",
        format!(
            "this node does not offer {what} yet: delayed events come with a later release of Pelton"
        ),
    )
}
