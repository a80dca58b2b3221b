//! The contract's types as wasmtime moves them, one to one with `sdk/wit/pelton.wit`.
//!
//! Written out instead of generated: payloads are `Bytes`, so an event goes in, and a value comes out, with
//! one copy (the one into or out of the guest's memory). wasmtime compares these types with the component's
//! when it is linked, so a difference is an error at load, never a wrong value.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{ComponentType, Lift, Lower};

use crate::effects::{Disposition, Failure};
use crate::event;

/// `types.event`
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Event {
    id: String,
    source: String,
    #[component(name = "type")]
    ty: String,
    time: i64,
    subject: Option<String>,
    datacontenttype: Option<String>,
    dataschema: Option<String>,
    extensions: Vec<(String, String)>,
    data: Bytes,
}

/// `types.position`
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Position {
    #[component(name = "stream")]
    stream: Arc<str>,
    sequence: u64,
}

/// `types.delivery`
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Delivery {
    event: Event,
    subject: String,
    position: Option<Position>,
    key: Option<Arc<str>>,
    headers: Vec<(String, String)>,
    attempt: u32,
    #[component(name = "max-attempts")]
    max_attempts: u32,
    timeout: u64,
    #[component(name = "expects-reply")]
    expects_reply: bool,
}

impl From<event::Delivery> for Delivery {
    fn from(from: event::Delivery) -> Self {
        let event = from.event;
        Self {
            event: Event {
                id: event.id,
                source: event.source,
                ty: event.ty,
                time: event.time,
                subject: event.subject,
                datacontenttype: event.datacontenttype,
                dataschema: event.dataschema,
                extensions: event.extensions.into_iter().collect(),
                data: event.data,
            },
            subject: from.subject,
            position: from.position.map(|position| Position {
                stream: position.stream,
                sequence: position.sequence,
            }),
            key: from.key,
            headers: from.headers,
            attempt: from.attempt,
            max_attempts: from.max_attempts,
            timeout: u64::try_from(from.timeout.as_millis()).unwrap_or(u64::MAX),
            expects_reply: from.expects_reply,
        }
    }
}

/// `types.disposition`
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
pub(super) enum WitDisposition {
    #[component(name = "retry")]
    Retry,
    #[component(name = "retry-after")]
    RetryAfter(u64),
    #[component(name = "defer")]
    Defer,
    #[component(name = "reject")]
    Reject,
}

/// `types.error`
#[derive(ComponentType, Lift, Lower)]
#[component(record)]
pub(super) struct Error {
    disposition: WitDisposition,
    code: String,
    message: String,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            disposition: match failure.disposition {
                Disposition::Retry => WitDisposition::Retry,
                Disposition::RetryAfter(delay) => {
                    WitDisposition::RetryAfter(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
                }
                Disposition::Defer => WitDisposition::Defer,
                Disposition::Reject => WitDisposition::Reject,
            },
            code: failure.code,
            message: failure.message,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let disposition = match error.disposition {
            WitDisposition::Retry => Disposition::Retry,
            WitDisposition::RetryAfter(millis) => {
                Disposition::RetryAfter(std::time::Duration::from_millis(millis))
            }
            WitDisposition::Defer => Disposition::Defer,
            WitDisposition::Reject => Disposition::Reject,
        };
        Self::from_handler(disposition, error.code, error.message)
    }
}

/// `events.draft`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct Draft {
    subject: String,
    id: Option<String>,
    source: Option<String>,
    #[component(name = "type")]
    ty: Option<String>,
    time: Option<i64>,
    datacontenttype: Option<String>,
    attributes: Vec<(String, String)>,
    data: Bytes,
}

impl From<Draft> for event::Draft {
    fn from(from: Draft) -> Self {
        Self {
            subject: from.subject,
            id: from.id,
            source: from.source,
            ty: from.ty,
            time: from.time,
            datacontenttype: from.datacontenttype,
            attributes: from.attributes,
            data: from.data,
        }
    }
}

/// `wasi:logging` level
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "made by lifting a guest's value")]
pub(super) enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl Level {
    /// As in log subjects.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// `wasi:config/store` error; the node's configuration is in memory and never fails.
#[derive(ComponentType, Lower)]
#[component(variant)]
pub(super) enum ConfigError {
    #[component(name = "upstream")]
    #[allow(dead_code, reason = "part of the interface")]
    Upstream(String),
    #[component(name = "io")]
    #[allow(dead_code, reason = "part of the interface")]
    Io(String),
}
