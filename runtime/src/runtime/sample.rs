//! The manifest's sample event: what a version that is tried makes of it, on state that is thrown away. So a version that fails at every
//! event is known before the first one goes to it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::effects::{Disposition, MemoryState};
use crate::event::{self, Decoded, Delivery, Message};
use crate::names::Txn;
use crate::records::FunctionRecord;
use crate::sandbox::{Call, Function, LogLines};

/// Whether the version handles its sample event; why not. A deferral is an answer, too: what it waits for is not there.
pub(super) async fn check(function: &Function, record: &FunctionRecord) -> Result<(), String> {
    let settings = &record.settings;
    let Some(sample) = &settings.sample else {
        return Ok(());
    };
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
    let message = Message {
        subject: sample.subject.clone(),
        headers: Vec::new(),
        payload: sample.data.clone().into(),
        stream: "sample".into(),
        sequence: 1,
        stored: i64::try_from(now).unwrap_or_default(),
    };
    let wrong = |why: &dyn std::fmt::Display| format!("its sample event: {why}");
    let Decoded { event, headers } = event::decode(&message).map_err(|error| wrong(&error))?;
    let key = match &settings.key {
        None => None,
        Some(source) => match event::key(source, &message) {
            Some(key) => Some(key.into()),
            None => return Err(wrong(&"it has no key where `key` says")),
        },
    };
    let call = Call {
        delivery: Delivery {
            event,
            subject: message.subject.clone(),
            position: None,
            key,
            headers,
            stored: message.stored,
            attempt: 1,
            max_attempts: settings.retry.max_attempts,
            timeout: Duration::from_millis(settings.timeout_ms),
            expects_reply: false,
        },
        txn: Txn {
            instance: record.instance,
            stream: message.stream.clone(),
            life: 0,
            sequence: message.sequence,
        },
        state: Arc::new(MemoryState::default()),
        logs: LogLines::default(),
    };
    match function.invoke(Box::new(call)).await.result {
        Err(failure) if failure.disposition != Disposition::Defer => {
            Err(wrong(&format!("{}: {}", failure.code, failure.message)))
        }
        _ => Ok(()),
    }
}
