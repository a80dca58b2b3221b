//! Sending until the stream has it: an ack awaited with a timeout, and bounded retries with backoff.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::{self, context::ContextBuilder, publish::PublishAck};
use backon::{ExponentialBuilder, Retryable};

use crate::Event;

/// How long one try waits for the stream's ack.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries after the first one: with these delays some ten seconds, which a server's restart fits into.
const RETRIES: usize = 5;
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Publishes the events of one producer; cheap to clone.
#[derive(Debug, Clone)]
pub struct EventSource {
    jetstream: jetstream::Context,
    name: String,
}

impl EventSource {
    /// A source called `name`, a URI reference such as `/shop/checkout`: the `source` of its events.
    pub fn new(client: async_nats::Client, name: impl Into<String>) -> Self {
        Self {
            jetstream: ContextBuilder::new().ack_timeout(ACK_TIMEOUT).build(client),
            name: name.into(),
        }
    }

    /// Publishes and returns once the stream has stored the event.
    ///
    /// An ack can be lost after the event was stored. The next try carries the same `Nats-Msg-Id`, so that the stream
    /// stores it once, and the same id, so that consumers recognize it even where the stream does not.
    ///
    /// # Errors
    /// No ack after all retries; the event may have been stored or not, and sending it again later is safe.
    pub async fn publish(&self, event: &Event) -> Result<PublishAck> {
        let headers = event.headers(&self.name)?;
        let send = || async {
            let publish = self.jetstream.publish_with_headers(
                event.subject.clone(),
                headers.clone(),
                event.data.clone().into(),
            );
            publish.await?.await
        };
        let backoff = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(RETRIES)
            .with_jitter();
        send.retry(backoff).await.with_context(|| {
            format!(
                "event {} was not acknowledged on {} in {} tries (is there a stream that covers the subject?)",
                event.id,
                event.subject,
                RETRIES + 1
            )
        })
    }
}
