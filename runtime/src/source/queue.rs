//! The queue engine's source: one durable pull consumer per function and input stream, shared by all nodes.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, context::GetStreamErrorKind};
use futures::{FutureExt, StreamExt};

use super::{Acker, Received, Settlement};
use crate::config::Start;
use crate::event::{Headers, Message};
use crate::names::AppNames;
use crate::records::{FunctionRecord, Input};

/// A message not settled within this comes again; attempts that last longer report progress.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);
/// Handed out and not settled, whole cluster, waiting retries and deferrals included. Bounds what the server tracks.
const MAX_ACK_PENDING: i64 = 50_000;
/// A pull request ends after this and is renewed; the server says every half of a sixth of it that it is alive.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Why nothing can be taken now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SourceError(pub(crate) String);

/// One open input.
pub(crate) struct QueueSource {
    messages: pull::Stream,
    stream: String,
    stream_created: i64,
}

impl QueueSource {
    /// Creates or updates the consumer and begins to pull, at most `concurrency` messages ahead.
    pub(crate) async fn open(
        js: &jetstream::Context,
        record: &FunctionRecord,
        input: &Input,
    ) -> Result<Self, SourceError> {
        let stream = js
            .get_stream(&input.stream)
            .await
            .map_err(|error| match error.kind() {
                GetStreamErrorKind::JetStream(inner)
                    if inner.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
                {
                    SourceError(format!(
                        "input stream {} does not exist; deploy again to create it",
                        input.stream
                    ))
                }
                _ => SourceError(format!("cannot read stream {}: {error}", input.stream)),
            })?;
        let stream_created = stream.cached_info().created.unix_timestamp_nanos();
        let consumer = ensure_consumer(&stream, record, input).await?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(record.settings.concurrency.max(1) as usize)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| {
                SourceError(format!("cannot pull from stream {}: {error}", input.stream))
            })?;
        let stream_created = i64::try_from(stream_created).unwrap_or_default();
        Ok(Self {
            messages,
            stream: input.stream.clone(),
            stream_created,
        })
    }

    /// The next message; an error means that the source must be opened anew.
    pub(crate) async fn next(&mut self) -> Result<Received, SourceError> {
        match self.messages.next().await {
            Some(Ok(message)) => self.received(message),
            Some(Err(error)) => Err(SourceError(format!(
                "pulling from stream {} failed: {error}",
                self.stream
            ))),
            None => Err(SourceError(format!(
                "the pull from stream {} ended",
                self.stream
            ))),
        }
    }

    /// Hands back what was pulled and not begun, so that other nodes need not wait for its ack wait.
    pub(crate) async fn hand_back(mut self) {
        while let Some(Some(Ok(message))) = self.messages.next().now_or_never() {
            if let Ok(received) = self.received(message) {
                received
                    .acker
                    .settle(Settlement::Again(Duration::ZERO))
                    .await;
            }
        }
    }

    fn received(&self, message: jetstream::Message) -> Result<Received, SourceError> {
        let info = message
            .info()
            .map_err(|error| SourceError(format!("a message without its place: {error}")))?;
        let (sequence, delivered) = (
            info.stream_sequence,
            u64::try_from(info.delivered).unwrap_or(1),
        );
        let stored = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default();
        let (message, acker) = message.split();
        let headers: Headers = message
            .headers
            .iter()
            .flat_map(|headers| headers.iter())
            .flat_map(|(name, values)| {
                values
                    .iter()
                    .map(move |value| (name.to_string(), value.as_str().to_owned()))
            })
            .collect();
        let message = Message {
            subject: message.subject.to_string(),
            headers,
            payload: message.payload,
            stream: self.stream.clone(),
            sequence,
            stored,
        };
        Ok(Received {
            message,
            stream_created: self.stream_created,
            delivered,
            acker: Acker(acker),
        })
    }
}

/// Creates or updates a function's consumer on one input.
pub(crate) async fn ensure_consumer(
    stream: &jetstream::stream::Stream,
    record: &FunctionRecord,
    input: &Input,
) -> Result<PullConsumer, SourceError> {
    let name = AppNames::new(record.app.as_str()).consumer(&record.function);
    let failed = |error: &dyn std::fmt::Display| {
        SourceError(format!(
            "cannot make consumer {name} on stream {}: {error}",
            input.stream
        ))
    };
    // Where to begin is said once: the server refuses to change it later.
    let existing = stream.consumer_info(&name).await.ok();
    let deliver_policy = match &existing {
        Some(info) => info.config.deliver_policy,
        None => deliver_policy(record.settings.start.as_ref()).map_err(|error| failed(&error))?,
    };
    let config = pull::Config {
        durable_name: Some(name.clone()),
        description: Some(format!(
            "Pelton function {} of app {}",
            record.function, record.app
        )),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        filter_subjects: input.subjects.clone(),
        max_ack_pending: record
            .settings
            .max_in_flight
            .map_or(MAX_ACK_PENDING, i64::from),
        ..Default::default()
    };
    stream
        .create_consumer(config)
        .await
        .map_err(|error| failed(&error))
}

fn deliver_policy(start: Option<&Start>) -> Result<DeliverPolicy, SourceError> {
    Ok(match start {
        None | Some(Start::All) => DeliverPolicy::All,
        Some(Start::New) => DeliverPolicy::New,
        Some(Start::Time(text)) => {
            let format = &time::format_description::well_known::Rfc3339;
            let start_time = time::OffsetDateTime::parse(text, format).map_err(|error| {
                SourceError(format!("start = {text:?} is no RFC 3339 time: {error}"))
            })?;
            DeliverPolicy::ByStartTime { start_time }
        }
    })
}
