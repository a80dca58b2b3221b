//! Reading an input once for all partitions of it: a consumer that acknowledges nothing and lives as long as it is read.
//!
//! Not the client's ordered consumer: that takes a reader for lost only after two heartbeats of fifteen seconds have not come, and
//! goes on trying by itself. Here any doubt ends the reader, and the source opens one where it stands.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures::StreamExt;

use super::Context;
use crate::event::Message;
use crate::mutation;
use crate::source::{SourceError, queue};

/// Messages asked for at once.
const BATCH: usize = 500;
/// A request for messages ends after this and is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// A server that has nothing to say says so this often; a reader that hears nothing for twice as long is lost.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The server forgets a reader that nobody reads after this.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// Reads an input from one sequence on, without a gap.
pub(super) struct Reader {
    messages: pull::Stream,
    /// How many messages the server has sent to this reader.
    sent: u64,
    /// How many it will send, as far as it knows.
    pending: u64,
    /// The first message that the stream's leader held.
    first: u64,
}

impl Reader {
    /// All partitions are read from the least that one of them needs; what is done or under way is passed by. Without a
    /// filter: the server finds the next of several patterns by going through all subjects of a block. An internal input is what
    /// one pattern matches of the commit stream.
    pub(super) async fn open(
        context: &Context,
        consumer: &jetstream::Context,
        start_sequence: u64,
    ) -> Result<Self, SourceError> {
        let name = &context.input.stream;
        let failed = |error: &dyn std::fmt::Display| {
            SourceError(format!("cannot read stream {name}: {error}"))
        };
        let stream = consumer.get_stream(name).await;
        let stream = stream.map_err(|error| queue::stream_error(name, &error))?;
        let first = stream.cached_info().state.first_sequence;
        let function = &context.worker.record.function;
        let config = pull::Config {
            description: Some(format!("Pelton function {function}")),
            filter_subject: context.filter(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            num_replicas: 1,
            memory_storage: true,
            ..Default::default()
        };
        let consumer = stream
            .create_consumer(config)
            .await
            .map_err(|error| failed(&error))?;
        let pending = consumer.cached_info().num_pending;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| failed(&error))?;
        Ok(Self {
            messages,
            sent: 0,
            pending,
            first,
        })
    }

    /// Nothing before this sequence is left to be read.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Whether there is nothing to read, as far as the server knows that reads.
    pub(super) fn is_at_end(&self) -> bool {
        self.pending == 0
    }

    /// The next message.
    ///
    /// # Errors
    /// The reader is lost: what it would say next may not be what follows.
    async fn next(&mut self, stream: &Arc<str>) -> Result<Message, String> {
        let taken = match self.messages.next().await {
            Some(Ok(taken)) => taken,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the server ended it".to_owned()),
        };
        let info = taken.info().map_err(|error| error.to_string())?;
        let sent = info.consumer_sequence;
        // What was on its way as a connection broke is not sent again.
        if sent != self.sent + 1 && !mutation::is("reader-guard") {
            return Err(format!(
                "message {sent} came after {} of those sent",
                self.sent
            ));
        }
        (self.sent, self.pending) = (sent, info.pending);
        Ok(queue::message(&taken, &info, stream))
    }
}

/// The next message; nothing comes where there is no reader.
pub(super) async fn next(
    reader: &mut Option<Reader>,
    stream: &Arc<str>,
) -> Result<Message, String> {
    match reader {
        Some(reader) => reader.next(stream).await,
        None => std::future::pending().await,
    }
}
