//! Reading an input once for all partitions of it: a consumer that acknowledges nothing and lives as long as it is read.
//!
//! Not the client's ordered consumer: that takes a reader for lost only after two heartbeats of fifteen seconds have not come, and
//! goes on trying by itself. Here any doubt ends the reader, and the source opens one where it stands.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::{Client, jetstream};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Context;
use crate::event::Message;
use crate::mutation;
use crate::nats::{connects, consumer_refused};
use crate::source::pull::{Pull, Settings};
use crate::source::{SourceError, queue};

/// Messages asked for at once.
const BATCH: usize = 500;
/// A request for messages ends after this and is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// A server that has nothing to say says so this often; a reader that hears nothing for twice as long is lost.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The server forgets a reader that nobody reads after this.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// A reader that has nothing to read looks so often whether its connection is still the one that it began with.
const LOOK: Duration = Duration::from_secs(1);
/// Every so many looks it asks the server what that has sent: between servers, too, a connection may break with messages on it.
const ASK: u32 = 5;

/// Reads an input from one sequence on, without a gap.
pub(super) struct Reader {
    messages: Pull,
    watch: Watch,
    /// How many messages the server has sent to this reader.
    sent: u64,
    /// How many it will send, as far as it knows.
    pending: u64,
    /// The first message that the stream's leader held.
    first: u64,
}

impl Reader {
    /// Reads all partitions from the lowest sequence that one of them needs. Inputs are read
    /// without a filter: with several, the server goes through all subjects of a block to find the
    /// next message.
    pub(super) async fn open(context: &Context, start_sequence: u64) -> Result<Self, SourceError> {
        let (stream, function) = (&context.input.stream, &context.function);
        let what = format!("Pelton function {function}");
        let js = context.inputs.jetstream();
        Self::open_on(&js, stream, context.filter(), what, start_sequence).await
    }

    /// Reads the messages of a stream that match a filter; an empty filter matches all.
    pub(super) async fn open_on(
        consumer: &jetstream::Context,
        name: &str,
        filter_subject: String,
        description: String,
        start_sequence: u64,
    ) -> Result<Self, SourceError> {
        let client = consumer.client();
        let failed = |error: &dyn std::fmt::Display| {
            SourceError(format!("cannot read stream {name}: {error}"))
        };
        let stream = consumer.get_stream(name).await;
        let stream = stream.map_err(|error| queue::stream_error(name, &error))?;
        let first = stream.cached_info().state.first_sequence;
        let config = pull::Config {
            description: Some(description),
            filter_subject,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            num_replicas: 1,
            memory_storage: true,
            ..Default::default()
        };
        let js = consumer;
        let consumer = stream
            .create_consumer(config)
            .await
            .map_err(|error| SourceError(consumer_refused(name, &error)))?;
        let pending = consumer.cached_info().num_pending;
        let watch = Watch::new(client, consumer.clone());
        let settings = Settings {
            batch: BATCH,
            expires: EXPIRES,
            heartbeat: HEARTBEAT,
        };
        let messages = Pull::open(js, &consumer, settings)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Self {
            messages,
            watch,
            sent: 0,
            pending,
            first,
        })
    }

    /// The consumer's name.
    pub(super) fn name(&self) -> &str {
        &self.watch.consumer.cached_info().name
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
    pub(super) async fn next(&mut self, stream: &Arc<str>) -> Result<Message, String> {
        let taken = loop {
            tokio::select! {
                // What came before anything broke is good, and taken first.
                biased;
                taken = self.messages.next() => break taken,
                seen = &mut self.watch.look => self.watch.judge(seen, self.sent)?,
            }
        };
        let taken = match taken {
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

/// Finds out whether messages were lost behind which none follows: those that do follow show it themselves.
struct Watch {
    client: Client,
    consumer: PullConsumer,
    /// Connections that the client had made when the reader began.
    connects: u64,
    /// The look that is under way.
    look: BoxFuture<'static, Seen>,
    looks: u32,
    /// What the server said earlier that it had sent, and had not come by then.
    missing: Option<u64>,
}

/// What a look saw.
struct Seen {
    connects: u64,
    /// How many messages the server has sent to the reader, if it was asked and answered.
    sent: Option<u64>,
}

impl Watch {
    fn new(client: Client, consumer: PullConsumer) -> Self {
        let mut watch = Self {
            connects: connects(&client),
            client,
            consumer,
            look: std::future::pending().boxed(),
            looks: 0,
            missing: None,
        };
        watch.look_again();
        watch
    }

    fn look_again(&mut self) {
        self.looks += 1;
        let asked = self
            .looks
            .is_multiple_of(ASK)
            .then(|| self.consumer.clone());
        let client = self.client.clone();
        self.look = Box::pin(async move {
            tokio::time::sleep(LOOK).await;
            let info = match asked {
                Some(consumer) => consumer.get_info().await.ok(),
                None => None,
            };
            Seen {
                connects: connects(&client),
                sent: info.map(|info| info.delivered.consumer_sequence),
            }
        });
    }

    /// What follows from a look, when `received` messages have come.
    fn judge(&mut self, seen: Seen, received: u64) -> Result<(), String> {
        self.look_again();
        if mutation::is("reader-guard") {
            return Ok(());
        }
        if seen.connects != self.connects {
            return Err("the connection broke; what was on it is not sent again".to_owned());
        }
        let Some(sent) = seen.sent else {
            return Ok(());
        };
        if let Some(missing) = self.missing.filter(|missing| received < *missing) {
            return Err(format!("{missing} messages were sent, and {received} came"));
        }
        // They may be on their way just now.
        self.missing = Some(sent).filter(|sent| *sent > received);
        Ok(())
    }
}
