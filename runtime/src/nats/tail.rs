//! Follows what is stored under a filter of a stream, whatever its messages hold.
//!
//! What is there already is read message by message through the JSON API, and then a consumer is
//! read. When that fails, or the connection broke, the JSON API reads on: a message that no client
//! can read is found there, named in the log, and stepped over.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures::StreamExt;

use super::headers::headers;
use super::raw::{self, RawError, Stored, Which};
use super::{Connection, consumer_refused, is_full};

/// A request for messages ends after this and is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server says this often that it is there; twice as long without a word, and the consumer is
/// lost.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server forgets a consumer that nobody reads after this.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// A reader of one stream; see the module.
pub(crate) struct Tail {
    connection: Connection,
    stream: Arc<str>,
    filter: String,
    /// The sequence to read next.
    next: u64,
    consumer: Option<Consumer>,
}

struct Consumer {
    messages: pull::Stream,
    /// Messages that have come.
    received: u64,
    /// Breaks of the connection before it was made.
    breaks: u64,
}

impl Tail {
    /// Begins with the first message that `filter` matches.
    pub(crate) fn new(connection: Connection, stream: &str, filter: String) -> Self {
        Self {
            connection,
            stream: stream.into(),
            filter,
            next: 1,
            consumer: None,
        }
    }

    /// Waits for the next message. It may be dropped at any moment and loses nothing.
    ///
    /// # Errors
    /// NATS trouble; the next call goes on where this one failed.
    pub(crate) async fn next(&mut self) -> Result<Stored, RawError> {
        loop {
            let stored = match &mut self.consumer {
                Some(consumer) => match consumer.next(&self.connection).await {
                    Some(stored) => stored,
                    None => {
                        self.consumer = None;
                        continue;
                    }
                },
                None => match self.read_one().await? {
                    Some(stored) => stored,
                    None => {
                        self.consumer = Some(self.consume().await?);
                        continue;
                    }
                },
            };
            self.next = stored.sequence + 1;
            match &stored.unreadable {
                None => return Ok(stored),
                Some(why) => {
                    let (stream, sequence) = (&*self.stream, stored.sequence);
                    tracing::warn!(
                        stream,
                        sequence,
                        why,
                        "a message is unreadable; it is skipped"
                    );
                }
            }
        }
    }

    /// Whether new messages are waited for: all older ones were read.
    pub(crate) fn is_open(&self) -> bool {
        self.consumer.is_some()
    }

    async fn read_one(&self) -> Result<Option<Stored>, RawError> {
        let js = self.connection.jetstream();
        raw::get(&js, &self.stream, Which::Next(self.next, &self.filter)).await
    }

    async fn consume(&self) -> Result<Consumer, RawError> {
        let failed = |why: &dyn std::fmt::Display| RawError::new(&self.stream, why);
        let breaks = self.connection.breaks();
        let js = self.connection.jetstream();
        let stream = js.get_stream_no_info(&*self.stream).await;
        let stream = stream.map_err(|error| failed(&error))?;
        let config = pull::Config {
            filter_subject: self.filter.clone(),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.next,
            },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            num_replicas: 1,
            memory_storage: true,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| match is_full(&error.to_string()) {
            true => failed(&consumer_refused(&self.stream, &error)),
            false => failed(&error),
        })?;
        let messages = consumer
            .stream()
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages();
        Ok(Consumer {
            messages: messages.await.map_err(|error| failed(&error))?,
            received: 0,
            breaks,
        })
    }
}

impl Consumer {
    /// The next message; `None`: what it would say next may not be what follows.
    async fn next(&mut self, connection: &Connection) -> Option<Stored> {
        let taken = tokio::select! {
            // What came before the connection broke is good.
            biased;
            taken = self.messages.next() => taken?.ok()?,
            () = connection.broken(self.breaks) => return None,
        };
        let info = taken.info().ok()?;
        self.received += 1;
        if info.consumer_sequence != self.received {
            return None;
        }
        Some(Stored {
            subject: taken.subject.to_string(),
            headers: headers(taken.headers.as_ref()),
            payload: taken.payload.clone(),
            sequence: info.stream_sequence,
            stored: i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default(),
            unreadable: raw::unreadable_subject(&taken.subject),
        })
    }
}
