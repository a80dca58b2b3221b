//! Where deliveries come from, and how each is let go.
//!
//! `queue` is the queue engine (`delivery = "at-least-once"`): a durable pull consumer that all nodes share, explicit
//! acks. The position engine (`exactly-once`) stands beside it under the same [`Received`] → [`Settlement`].

mod position;
mod pull;
mod queue;
mod undelivered;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use position::{
    Habits, InternalInputs, OpenContext, PARTITIONS, PositionSource, partition, partition_of_due,
};
pub(crate) use queue::{QueueSource, SourceError, ensure_consumer, ensure_consumer_from, message};

pub(crate) use undelivered::Undelivered;

use crate::call::Caller;
use crate::event::Message;

/// One message taken from a stream.
pub(crate) struct Received {
    /// The message.
    pub(crate) message: Message,
    /// Which life of its input it is of (`Input::life`): a stream that was made anew is a new input.
    pub(crate) life: i64,
    /// Whether it comes from the function's internal input, not from a stream of events.
    pub(crate) internal: bool,
    /// Who waits for a reply, if it is a call.
    pub(crate) caller: Option<Caller>,
    /// Its ordering key.
    pub(crate) key: Option<Arc<str>>,
    /// How often it was handed out, from 1, to any node.
    pub(crate) delivered: u64,
    /// Lets it go or keeps it.
    pub(crate) acker: Acker,
}

impl Received {
    /// Whether it was handed out for the first time.
    pub(crate) fn is_new(&self) -> bool {
        self.delivered <= 1
    }
}

/// How a delivery ends for its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Its successor is stored: the message is done with.
    Done,
    /// To be handed out again, to any node, no sooner than this.
    Again(Duration),
    /// Parked by the position engine, to be tried again no sooner than this.
    Parked(Duration, Return),
    /// Its partition is another node's now.
    Lost,
}

/// Whether what is parked keeps its place before later ones of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    /// It failed: it does.
    Retry,
    /// It waits for another one: later ones may pass.
    Deferred,
}

/// The source's end of a message; the position engine's has none.
pub(crate) struct Acker(Option<Box<async_nats::jetstream::message::Acker>>);

impl Acker {
    /// Settles the message. A lost ack makes a second delivery, which the marker suppresses.
    ///
    /// # Errors
    /// The connection's task has ended; the message comes again when its ack wait is over.
    pub(crate) async fn settle(&self, settlement: Settlement) -> Result<(), async_nats::Error> {
        use async_nats::jetstream::AckKind;
        let Some(acker) = &self.0 else { return Ok(()) };
        let kind = match settlement {
            Settlement::Done => AckKind::Ack,
            Settlement::Again(delay) | Settlement::Parked(delay, _) => AckKind::Nak(Some(delay)),
            Settlement::Lost => AckKind::Nak(None),
        };
        acker.ack_with(kind).await
    }

    /// Says that the message is still being worked on.
    pub(crate) async fn progress(&self) {
        let Some(acker) = &self.0 else { return };
        if let Err(error) = acker
            .ack_with(async_nats::jetstream::AckKind::Progress)
            .await
        {
            tracing::debug!(%error, "progress could not be reported");
        }
    }
}
