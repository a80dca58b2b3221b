//! Reads what a stream holds at the moment, in order, and stops at its end: the one way in which listings read.

use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, stream::Stream};
use futures::StreamExt;

use super::{ControlError, ErrorKind};

/// Longest silence in the middle of a listing before it is given up.
const SILENCE: Duration = Duration::from_secs(5);

/// What to read.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    /// Subjects, not overlapping.
    pub(super) filters: Vec<String>,
    /// Where to begin.
    pub(super) from: DeliverPolicy,
    /// Leave bodies out; `Nats-Msg-Size` says how large they are.
    pub(super) headers_only: bool,
}

/// A consumer that reads in order and needs no acks; it vanishes by itself.
pub(super) async fn ordered(
    stream: &Stream,
    scan: Scan,
) -> Result<jetstream::consumer::Consumer<pull::OrderedConfig>, ControlError> {
    stream
        .create_consumer(pull::OrderedConfig {
            description: Some("Pelton listing".into()),
            filter_subjects: scan.filters,
            deliver_policy: scan.from,
            headers_only: scan.headers_only,
            ..Default::default()
        })
        .await
        .map_err(|error| {
            ControlError::nats(
                format!("read stream {}", stream.cached_info().config.name),
                error,
            )
        })
}

/// Hands every message that is stored now to `each`, until that breaks.
pub(super) async fn scan(
    stream: &Stream,
    scan: Scan,
    mut each: impl FnMut(&jetstream::Message) -> Result<ControlFlow<()>, ControlError>,
) -> Result<(), ControlError> {
    let name = stream.cached_info().config.name.clone();
    let failed = |why: String| ControlError::nats(format!("read stream {name}"), why);
    let consumer = ordered(stream, scan).await?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(());
    }
    let mut messages = consumer
        .messages()
        .await
        .map_err(|error| failed(error.to_string()))?;
    loop {
        let message = tokio::time::timeout(SILENCE, messages.next())
            .await
            .map_err(|_| silence(&name))?
            .ok_or_else(|| failed("the subscription ended".into()))?
            .map_err(|error| failed(error.to_string()))?;
        let pending = message
            .info()
            .map_err(|error| failed(error.to_string()))?
            .pending;
        if each(&message)?.is_break() || pending == 0 {
            return Ok(());
        }
    }
}

fn silence(stream: &str) -> ControlError {
    ControlError::new(
        ErrorKind::Nats,
        format!(
            "read stream {stream}: no message for {} s, though there are more",
            SILENCE.as_secs()
        ),
        "try again; if it stays so, a message lies there whose headers no client can read (bytes that are not UTF-8, a name with a space), \
         which breaks every connection that it is sent to: a node that meets it logs its sequence; delete it with `nats stream rmm`",
    )
}
