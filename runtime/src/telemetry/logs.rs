//! What functions log: published as records, each with the delivery that it was logged in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::names::AppNames;
use crate::nats::Connection;
use crate::records::{FORMAT, FunctionRecord};
use crate::sandbox::LogLine;

/// A line that a function logged, as stored in `PELTON_LOGS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogRecord {
    /// Format version.
    pub format: u32,
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// Its version.
    pub version: u64,
    /// The node's id.
    pub node: String,
    /// `trace`, `debug`, `info`, `warn`, `error` or `critical`.
    pub level: String,
    /// What the handler gave as context; `stdout` or `stderr` for those.
    pub context: String,
    /// The text.
    pub message: String,
    /// The event that was being handled.
    pub event_id: String,
    /// Its stream.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// The attempt, from 1.
    pub attempt: u32,
    /// When, RFC 3339.
    pub at: String,
}

/// The delivery that a line was logged in.
pub(crate) struct LogSource {
    pub(crate) event_id: String,
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) attempt: u32,
}

/// Publishes functions' lines; without acks, for a log must never hold up an event.
#[derive(Clone)]
pub(crate) struct LogPublisher {
    nats: Connection,
    node: String,
}

impl LogPublisher {
    pub(crate) fn new(nats: Connection, node: String) -> Self {
        Self { nats, node }
    }

    pub(crate) async fn publish(
        &self,
        function: &FunctionRecord,
        source: &LogSource,
        line: LogLine,
    ) {
        tracing::debug!(target: "pelton::function", level = line.level, context = line.context, "{}", line.message);
        let record = LogRecord {
            format: FORMAT,
            app: function.app.clone(),
            function: function.function.clone(),
            version: function.version,
            node: self.node.clone(),
            level: line.level.to_owned(),
            context: line.context,
            message: line.message,
            event_id: source.event_id.clone(),
            stream: source.stream.clone(),
            sequence: source.sequence,
            attempt: source.attempt,
            at: OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default(),
        };
        let subject = AppNames::new(function.app.as_str()).log(&function.function, line.level);
        let Ok(body) = serde_json::to_vec(&record) else {
            return;
        };
        if let Err(error) = self.nats.client().publish(subject, body.into()).await {
            tracing::debug!(%error, "a log line was lost");
        }
    }
}
