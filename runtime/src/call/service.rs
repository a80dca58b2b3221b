//! What makes a function a NATS micro service (ADR-32): it is found, described and counted by any client that knows the
//! protocol.
//!
//! The client library's own service has one version for its life, and a version that stops drops what was sent to it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use async_nats::service::{Info, PingResponse, endpoint, error};
use async_nats::{Message, SubscribeError, Subscriber};
use futures::stream::{SelectAll, select_all};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::names::AppNames;
use crate::nats::Connection;
use crate::records::FunctionRecord;
use crate::runtime::Connections;

/// The protocol's own: nodes share the requests of a function.
const QUEUE_GROUP: &str = "q";
/// The only endpoint's name.
const ENDPOINT: &str = "call";

/// One function's service on this node.
pub(super) struct Service {
    requests: Connection,
    replies: Connection,
    id: String,
    name: String,
    subject: String,
    started: OffsetDateTime,
    counts: Mutex<endpoint::Stats>,
}

/// The subscriptions of a service.
pub(super) struct Asked {
    /// Calls.
    pub(super) requests: Subscriber,
    /// Questions about the service: `$SRV.PING`, `INFO`, `STATS`.
    pub(super) questions: SelectAll<Subscriber>,
}

/// Answer to `$SRV.STATS`; the library's cannot be made by others.
#[derive(Serialize)]
struct Stats<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
    id: &'a str,
    version: String,
    metadata: HashMap<String, String>,
    #[serde(with = "time::serde::rfc3339")]
    started: OffsetDateTime,
    endpoints: [endpoint::Stats; 1],
}

impl Service {
    /// Of `record`'s function.
    pub(super) fn new(connections: &Connections, record: &FunctionRecord) -> Self {
        let names = AppNames::new(record.app.as_str());
        let name = names.service(&record.function);
        let id = Uuid::new_v4().simple().to_string();
        let subject = names.call(&record.function);
        let counts = endpoint::Stats {
            name: ENDPOINT.to_owned(),
            subject: subject.clone(),
            queue_group: QUEUE_GROUP.to_owned(),
            ..Default::default()
        };
        Self {
            requests: connections.requests.clone(),
            replies: connections.commits.clone(),
            id,
            name,
            subject,
            started: OffsetDateTime::now_utc(),
            counts: Mutex::new(counts),
        }
    }

    /// Subscribes to its requests and to questions about it.
    ///
    /// # Errors
    /// The connection's client has ended and is not replaced yet.
    pub(super) async fn subscribe(&self) -> Result<Asked, SubscribeError> {
        let client = self.requests.client();
        let (name, id) = (&self.name, &self.id);
        let mut questions = Vec::new();
        for whom in [String::new(), format!(".{name}"), format!(".{name}.{id}")] {
            questions.push(client.subscribe(format!("$SRV.*{whom}")).await?);
        }
        let (subject, group) = (self.subject.clone(), QUEUE_GROUP.to_owned());
        Ok(Asked {
            requests: client.queue_subscribe(subject, group).await?,
            questions: select_all(questions),
        })
    }

    /// Counts a request that was taken at `since`, and its error if it had one.
    pub(super) fn count(&self, since: Instant, failed: Option<error::Error>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.requests += 1;
        counts.processing_time += since.elapsed();
        let requests = u32::try_from(counts.requests).unwrap_or(u32::MAX);
        counts.average_processing_time = counts.processing_time / requests;
        if failed.is_some() {
            counts.errors += 1;
            counts.last_error = failed;
        }
    }

    /// Says what is asked of it while it serves `record`.
    pub(super) async fn say(&self, asked: Message, record: &FunctionRecord) {
        let Some(reply) = asked.reply else { return };
        let said = match asked.subject.split('.').nth(1) {
            Some("PING") => self.pong(record),
            Some("INFO") => self.info(record),
            Some("STATS") => self.stats(record),
            _ => return,
        };
        let Ok(said) = said else { return };
        if let Err(error) = self.replies.client().publish(reply, said.into()).await {
            tracing::debug!(%error, "a question about the service could not be answered");
        }
    }

    fn pong(&self, record: &FunctionRecord) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&PingResponse {
            kind: "io.nats.micro.v1.ping_response".to_owned(),
            name: self.name.clone(),
            id: self.id.clone(),
            version: version(record),
            metadata: metadata(record),
        })
    }

    fn info(&self, record: &FunctionRecord) -> serde_json::Result<Vec<u8>> {
        let FunctionRecord { app, function, .. } = record;
        serde_json::to_vec(&Info {
            kind: "io.nats.micro.v1.info_response".to_owned(),
            name: self.name.clone(),
            id: self.id.clone(),
            description: format!("Pelton function {function} of app {app}"),
            version: version(record),
            metadata: metadata(record),
            endpoints: vec![endpoint::Info {
                name: ENDPOINT.to_owned(),
                subject: self.subject.clone(),
                queue_group: QUEUE_GROUP.to_owned(),
                metadata: HashMap::new(),
            }],
        })
    }

    fn stats(&self, record: &FunctionRecord) -> serde_json::Result<Vec<u8>> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_vec(&Stats {
            kind: "io.nats.micro.v1.stats_response",
            name: &self.name,
            id: &self.id,
            version: version(record),
            metadata: metadata(record),
            started: self.started,
            endpoints: [counts.clone()],
        })
    }
}

/// The protocol wants a semantic version.
fn version(record: &FunctionRecord) -> String {
    format!("{}.0.0", record.version)
}

fn metadata(record: &FunctionRecord) -> HashMap<String, String> {
    let subjects: Vec<&str> = record.handlers.iter().map(|h| h.subject.as_str()).collect();
    HashMap::from([
        ("pelton-app".to_owned(), record.app.clone()),
        ("pelton-function".to_owned(), record.function.clone()),
        ("pelton-subjects".to_owned(), subjects.join(" ")),
    ])
}
