//! What a node says of itself: counters by function, and what functions log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::names::AppNames;
use crate::records::{FORMAT, FunctionRecord};
use crate::rollout::{self, BUCKETS, Figures};
use crate::sandbox::LogLine;

/// Counts of one function on one node since it started there.
#[derive(Debug)]
pub(crate) struct Counters {
    delivered: AtomicU64,
    committed: AtomicU64,
    emitted: AtomicU64,
    retried: AtomicU64,
    deferred: AtomicU64,
    dead_lettered: AtomicU64,
    attempts: AtomicU64,
    failures: AtomicU64,
    durations: [AtomicU64; BUCKETS],
}

/// [`Counters`] at one moment, as the node's heartbeat carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Messages taken.
    pub delivered: u64,
    /// Deliveries committed.
    pub committed: u64,
    /// Events emitted by those.
    pub emitted: u64,
    /// Attempts that failed and are tried again.
    pub retried: u64,
    /// Deferrals.
    pub deferred: u64,
    /// Deliveries given up on.
    pub dead_lettered: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            delivered: AtomicU64::default(),
            committed: AtomicU64::default(),
            emitted: AtomicU64::default(),
            retried: AtomicU64::default(),
            deferred: AtomicU64::default(),
            dead_lettered: AtomicU64::default(),
            attempts: AtomicU64::default(),
            failures: AtomicU64::default(),
            durations: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Counters {
    /// An attempt ended in its handler.
    pub(crate) fn attempted(&self, took: Duration, failed: bool) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.failures
            .fetch_add(u64::from(failed), Ordering::Relaxed);
        if let Some(count) = self.durations.get(rollout::bucket(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How its attempts fared.
    pub(crate) fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            attempts: read(&self.attempts),
            failures: read(&self.failures),
            durations: self.durations.iter().map(read).collect(),
        }
    }

    pub(crate) fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, emitted: usize) {
        self.committed.fetch_add(1, Ordering::Relaxed);
        self.emitted.fetch_add(emitted as u64, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn deferred(&self) {
        self.deferred.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dead_lettered(&self) {
        self.dead_lettered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            delivered: read(&self.delivered),
            committed: read(&self.committed),
            emitted: read(&self.emitted),
            retried: read(&self.retried),
            deferred: read(&self.deferred),
            dead_lettered: read(&self.dead_lettered),
        }
    }
}

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
    client: Client,
    node: String,
}

impl LogPublisher {
    pub(crate) fn new(client: Client, node: String) -> Self {
        Self { client, node }
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
        if let Err(error) = self.client.publish(subject, body.into()).await {
            tracing::debug!(%error, "a log line was lost");
        }
    }
}
