//! Messages of a queue that the server handed out and no client can read.
//!
//! Such a message breaks the connection, or is taken for a word of the server's, each time that it
//! is delivered: nobody acknowledges it, and it comes again after every ack wait. So after a break,
//! and now and then while messages are redelivered, what was handed out and is not acknowledged is
//! looked at through the JSON API. What is unreadable there is delivered all the same, as what
//! could
//! be read of it, with an ack subject made from the consumer's state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{Info, PullConsumer};
use async_nats::jetstream::message::Acker as JetStreamAcker;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::queue::SourceError;
use super::{Acker, Received};
use crate::nats::Connection;
use crate::nats::raw::{self, Stored, Which};

/// How often redelivered messages are looked at, unless the connection breaks.
const LOOK: Duration = Duration::from_secs(30);
/// Messages looked at in one search; the next one goes on behind them.
const SEARCHED: u32 = 4096;
/// Unreadable messages kept until they are delivered.
const FOUND: usize = 256;
/// Messages pulled one at a time after one was unreadable. Unreadable messages come in company, and
/// what is pulled with one comes again only after its ack wait.
const CAREFUL: u32 = 64;

/// What a queue's source knows of messages that it was sent and could not read.
pub(crate) struct Undelivered {
    /// Breaks of the connection that were followed by a search.
    breaks: u64,
    /// All up to this sequence was looked at, or is acknowledged.
    searched: u64,
    /// Messages still to be pulled one at a time.
    careful: u32,
    /// Found and not delivered yet.
    found: VecDeque<(Stored, Acker)>,
    look: Interval,
}

impl Undelivered {
    /// Nothing was missed on this connection so far.
    pub(crate) fn new(connection: &Connection) -> Self {
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            breaks: connection.breaks(),
            searched: 0,
            careful: 0,
            found: VecDeque::new(),
            look,
        }
    }

    /// Waits until there is reason to search.
    pub(super) async fn suspected(&mut self, connection: &Connection) {
        tokio::select! {
            () = connection.broken(self.breaks) => {}
            _ = self.look.tick() => {}
        }
    }

    /// Messages to ask for at once.
    pub(super) fn batch(&self, usual: usize) -> usize {
        if self.careful > 0 { 1 } else { usual }
    }

    /// A message was read. Returns whether more may be asked for at once again.
    pub(super) fn read_one(&mut self) -> bool {
        let was_careful = self.careful > 0;
        self.careful = self.careful.saturating_sub(1);
        was_careful && self.careful == 0
    }

    /// The next message that was found, as a delivery.
    pub(super) fn take(&mut self, stream: &Arc<str>, life: i64) -> Option<Received> {
        let (stored, acker) = self.found.pop_front()?;
        Some(Received {
            message: stored.into_message(stream),
            life,
            internal: false,
            caller: None,
            key: None,
            delivered: 1,
            acker,
        })
    }

    /// Looks at what was handed out and is not acknowledged; keeps what is unreadable. Returns
    /// whether messages are to be pulled one at a time from now on.
    ///
    /// It may be dropped at any moment: the next search goes on where this one ended.
    ///
    /// # Errors
    /// NATS trouble.
    pub(super) async fn search(
        &mut self,
        connection: &Connection,
        consumer: &mut PullConsumer,
    ) -> Result<bool, SourceError> {
        let breaks = connection.breaks();
        let info = consumer.info().await;
        let info = info.map_err(|error| SourceError(format!("cannot read a consumer: {error}")))?;
        let broke = breaks > self.breaks;
        if !broke && info.num_redelivered == 0 {
            return Ok(false);
        }
        self.searched = self.searched.max(info.ack_floor.stream_sequence);
        let last = info.delivered.stream_sequence;
        let js = connection.jetstream();
        for _ in 0..SEARCHED {
            if self.found.len() >= FOUND {
                break;
            }
            let next = Which::Next(self.searched + 1, ">");
            let stored = raw::get(&js, &info.stream_name, next).await;
            let stored = stored.map_err(|error| SourceError(error.to_string()))?;
            let Some(stored) = stored.filter(|stored| stored.sequence <= last) else {
                self.searched = last;
                break;
            };
            self.searched = stored.sequence;
            if let Some(why) = &stored.unreadable {
                let (stream, sequence) = (&info.stream_name, stored.sequence);
                tracing::warn!(stream, sequence, why, "a message is unreadable");
                self.careful = CAREFUL;
                let acker = acker(&js, info, stored.sequence);
                self.found.push_back((stored, acker));
            }
        }
        if self.searched >= last {
            self.breaks = breaks;
        }
        Ok(self.careful > 0)
    }
}

/// The server finds a pending message by its stream sequence; the other numbers of an ack subject
/// say how it was delivered, which is not known here and changes nothing.
fn acker(js: &jetstream::Context, info: &Info, sequence: u64) -> Acker {
    let (stream, consumer) = (&info.stream_name, &info.name);
    let delivered = info.delivered.consumer_sequence;
    let reply = format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{delivered}.0.0");
    Acker(Some(Box::new(JetStreamAcker::new(
        js.clone(),
        Some(reply.into()),
    ))))
}
