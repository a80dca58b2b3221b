//! What operators do from outside the data path: deploy, look, publish, call, replay. Everything goes over NATS, so it
//! works from any machine that reaches the server, whether or not a node runs.
//!
//! No module here prints or reads arguments: the results are values that the CLI (or another program) shows.

mod handlers;

pub mod deploy;

pub mod functions;
pub mod hold;
pub mod lag;
pub mod nodes;
pub mod remove;
pub mod reset;
pub mod rollout;
pub mod versions;

pub mod call;
pub mod publish;

pub mod logs;

pub mod state;

pub mod dead_letters;
mod replay;

mod progress;
mod scan;

use async_nats::jetstream;

pub use handlers::{Mismatch, handlers_match};

/// What kind of trouble a [`ControlError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for does not exist.
    NotFound,
    /// The request is not valid, or something stands in its way.
    Refused,
    /// Somebody else changed the same thing at the same time.
    Conflict,
    /// NATS failed or did not answer in time.
    Nats,
}

/// Why an operation failed and how to fix it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}\n  fix: {fix}")]
pub struct ControlError {
    /// What kind it is.
    pub kind: ErrorKind,
    /// What is wrong and why, in one line.
    pub what: String,
    /// How to fix it.
    pub fix: String,
}

impl ControlError {
    fn new(kind: ErrorKind, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            fix: fix.into(),
        }
    }

    fn not_found(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, what, fix)
    }

    fn refused(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, what, fix)
    }

    /// NATS failed while `doing` something ("read stream ORDERS").
    fn nats(doing: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        let why = why.to_string();
        let fix = if why.contains("timed out") {
            "it may have been done all the same: look before you try again; wait longer with --timeout"
        } else if why.contains("max payload") {
            "raise the server's max_payload"
        } else {
            "see that the server is up, has JetStream and lets this user do it, then try again"
        };
        Self::new(ErrorKind::Nats, format!("cannot {doing}: {why}"), fix)
    }
}

/// Opens a stream, `None` when it does not exist.
async fn open(
    js: &jetstream::Context,
    name: &str,
) -> Result<Option<jetstream::stream::Stream>, ControlError> {
    use jetstream::context::GetStreamErrorKind;
    match js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(inner)
                if inner.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(ControlError::nats(format!("read stream {name}"), error)),
        },
    }
}
