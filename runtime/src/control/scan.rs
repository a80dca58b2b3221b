//! Reads the current content of a stream in order and stops at its end.
//!
//! [`look`] uses direct gets and makes no consumer. [`scan`] supports several filters and headers
//! without bodies; it makes a consumer and deletes it at the end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream::Stream};
use futures::StreamExt;

use super::{ControlError, ErrorKind};
use crate::event::Message;
use crate::nats::gets::Batch;
use crate::nats::raw::{self, Stored, Which};
use crate::nats::{consumer_refused, gets, is_full};
use crate::source;

/// Longest silence in the middle of a listing before it is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// Messages asked for at once.
const BATCH: usize = 200;
/// A request for messages ends after this and is renewed.
const EXPIRES: Duration = Duration::from_secs(30);
/// Interval of the server's heartbeats; the reader fails after twice as long without one.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The server deletes an unread consumer after this time, should [`Reader::close`] not have done
/// so. A reader always has a request open, so a slow one is not affected.
const FORGOTTEN: Duration = Duration::from_secs(2);
/// Longest wait for the deletion of the consumer.
const CLOSE: Duration = Duration::from_secs(1);
/// Lost readers after which a scan gives up.
pub(super) const LOST: usize = 3;
/// Readers, at most, of which each met an unreadable message.
const MOST_LOST: usize = 64;
/// Messages read one by one after one that the client could not parse.
const ONE_BY_ONE: usize = 64;

/// What to read.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    /// Subjects, not overlapping.
    pub(super) filters: Vec<String>,
    /// Where to begin.
    pub(super) from: DeliverPolicy,
    /// Leave bodies out; `Nats-Msg-Size` says how large they are.
    pub(super) headers_only: bool,
}

/// A consumer without acks that is deleted when the reader is closed or dropped.
pub(super) struct Reader {
    stream: Stream,
    consumer: PullConsumer,
    messages: pull::Stream,
    /// Messages that have come.
    received: u64,
    closed: bool,
}

impl Reader {
    /// Creates the consumer.
    pub(super) async fn open(stream: &Stream, scan: Scan) -> Result<Self, ControlError> {
        let name = &stream.cached_info().config.name;
        let config = pull::Config {
            description: Some("Pelton listing".into()),
            filter_subjects: scan.filters,
            deliver_policy: scan.from,
            headers_only: scan.headers_only,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| refused(name, &error))?;
        let pull = consumer.stream().max_messages_per_batch(BATCH);
        let messages = pull.expires(EXPIRES).heartbeat(HEARTBEAT).messages().await;
        let messages = messages.map_err(|error| unreadable(name, &error))?;
        Ok(Self {
            stream: stream.clone(),
            consumer,
            messages,
            received: 0,
            closed: false,
        })
    }

    /// Number of messages to read when the consumer was created.
    pub(super) fn pending(&self) -> u64 {
        self.consumer.cached_info().num_pending
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The connection broke, possibly losing messages, or the next message cannot be read.
    pub(super) async fn next(&mut self) -> Result<jetstream::Message, ControlError> {
        let name = &self.stream.cached_info().config.name;
        let message = self.messages.next().await;
        let message = message.ok_or_else(|| unreadable(name, &"the server ended it"))?;
        let message = message.map_err(|error| unreadable(name, &error))?;
        let sent = message.info().map_err(|error| unreadable(name, &error))?;
        self.received += 1;
        // The server does not resend messages that were lost in transit.
        if sent.consumer_sequence != self.received {
            return Err(unreadable(name, &"the connection broke"));
        }
        Ok(message)
    }

    /// Deletes the consumer.
    pub(super) async fn close(mut self) {
        self.closed = true;
        let name = &self.consumer.cached_info().name;
        let deleted = tokio::time::timeout(CLOSE, self.stream.delete_consumer(name)).await;
        if !matches!(deleted, Ok(Ok(_))) {
            tracing::debug!(
                consumer = name,
                "not deleted; the server does so when it expires"
            );
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let (false, Ok(runtime)) = (self.closed, tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (stream, name) = (
            self.stream.clone(),
            self.consumer.cached_info().name.clone(),
        );
        runtime.spawn(async move { stream.delete_consumer(&name).await });
    }
}

/// Hands every message that is stored now to `each`, until that breaks.
pub(super) async fn scan(
    js: &jetstream::Context,
    stream: &Stream,
    mut scan: Scan,
    mut each: impl FnMut(&jetstream::Message) -> Result<ControlFlow<()>, ControlError>,
) -> Result<(), ControlError> {
    for lost in 1..=MOST_LOST {
        let mut reader = Reader::open(stream, scan.clone()).await?;
        let mut last = None;
        let read = read(&mut reader, &mut last, &mut each).await;
        reader.close().await;
        let error = match read {
            Ok(()) => return Ok(()),
            Err(Ended::Each(error)) => return Err(error),
            Err(Ended::Lost(error)) => error,
        };
        // Scans for the last message per subject read streams that keep only that one.
        let from = match (last, &scan.from) {
            (Some(last), _) => last + 1,
            (None, DeliverPolicy::ByStartSequence { start_sequence }) => *start_sequence,
            (None, _) => 1,
        };
        let name = &stream.cached_info().config.name;
        let start_sequence = readable_from(js, name, &scan.filters, from).await?;
        if lost >= LOST && start_sequence == from {
            return Err(error);
        }
        scan.from = DeliverPolicy::ByStartSequence { start_sequence };
    }
    let name = &stream.cached_info().config.name;
    Err(unreadable(name, &"too many of its messages are unreadable"))
}

/// Why a reader stopped before the end.
enum Ended {
    /// `each` failed.
    Each(ControlError),
    /// The connection broke, or the server sent nothing although messages are pending.
    Lost(ControlError),
}

async fn read(
    reader: &mut Reader,
    last: &mut Option<u64>,
    each: &mut impl FnMut(&jetstream::Message) -> Result<ControlFlow<()>, ControlError>,
) -> Result<(), Ended> {
    let mut pending = reader.pending();
    while pending > 0 {
        let name = &reader.stream.cached_info().config.name;
        let silent = silence(name);
        let message = tokio::time::timeout(SILENCE, reader.next()).await;
        let message = message.map_err(|_| Ended::Lost(silent))?;
        let message = message.map_err(Ended::Lost)?;
        if let Ok(info) = message.info() {
            (pending, *last) = (info.pending, Some(info.stream_sequence));
        }
        if each(&message).map_err(Ended::Each)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Calls `each` with every message under `filter` from sequence `from` on and the number of
/// messages behind it, until `each` breaks. Bodies are included, so `each` must bound what it
/// reads. The answers may lag behind the leader, so the newest messages may be missing.
pub(super) async fn look(
    client: &Client,
    stream: &Stream,
    filter: &str,
    from: u64,
    mut each: impl FnMut(&Message, u64) -> Result<ControlFlow<()>, ControlError>,
) -> Result<(), ControlError> {
    let config = &stream.cached_info().config;
    let name: Arc<str> = config.name.as_str().into();
    if !config.allow_direct {
        let by_consumer = Scan {
            filters: vec![filter.to_owned()],
            from: DeliverPolicy::ByStartSequence {
                start_sequence: from.max(1),
            },
            headers_only: false,
        };
        let js = jetstream::new(client.clone());
        return scan(&js, stream, by_consumer, |taken| {
            let info = taken.info().map_err(|error| unreadable(&name, &error))?;
            each(&source::message(taken, &info, &name), info.pending)
        })
        .await;
    }
    let mut from = from;
    loop {
        let batch = match gets::next(client, &name, filter, from, gets::BATCH).await {
            Ok(batch) => batch,
            // A message that the client cannot parse breaks its connection.
            Err(error) => {
                tracing::debug!(%error, "reading one by one");
                one_by_one(client, &name, filter, &mut from).await?
            }
        };
        let count = batch.messages.len() as u64;
        for (message, at) in batch.messages.iter().zip(1..) {
            from = message.sequence + 1;
            if each(message, batch.pending + count - at)?.is_break() {
                return Ok(());
            }
        }
        if batch.pending == 0 {
            return Ok(());
        }
    }
}

/// Reads some messages through the JSON API, which returns any bytes, and leaves out unreadable
/// ones. Moves `from` behind all that it looked at.
async fn one_by_one(
    client: &Client,
    name: &Arc<str>,
    filter: &str,
    from: &mut u64,
) -> Result<Batch, ControlError> {
    let js = jetstream::new(client.clone());
    let mut batch = Batch::default();
    for _ in 0..ONE_BY_ONE {
        let found = raw::get(&js, name, Which::Next(*from, filter)).await;
        let Some(found) = found.map_err(|error| unreadable(name, &error))? else {
            return Ok(batch);
        };
        *from = found.sequence + 1;
        if found.unreadable.is_none() {
            batch.messages.push(found.into_message(name));
        }
    }
    // There may be more, and how many is not known here.
    batch.pending = 1;
    Ok(batch)
}

/// The first sequence from `from` on whose message, under one of the filters, is readable.
pub(super) async fn readable_from(
    js: &jetstream::Context,
    name: &str,
    filters: &[String],
    mut from: u64,
) -> Result<u64, ControlError> {
    for _ in 0..ONE_BY_ONE {
        let mut first: Option<Stored> = None;
        for filter in filters {
            let found = raw::get(js, name, Which::Next(from, filter)).await;
            let found = found.map_err(|error| unreadable(name, &error))?;
            let known = first.as_ref().map_or(u64::MAX, |first| first.sequence);
            first = found.filter(|one| one.sequence < known).or(first);
        }
        match first.filter(|first| first.unreadable.is_some()) {
            Some(unreadable) => from = unreadable.sequence + 1,
            None => break,
        }
    }
    Ok(from)
}

fn unreadable(stream: &str, why: &dyn std::fmt::Display) -> ControlError {
    ControlError::nats(format!("read stream {stream}"), why)
}

/// The error for a consumer that the server refused.
fn refused(stream: &str, error: &dyn std::fmt::Display) -> ControlError {
    let why = consumer_refused(stream, error);
    match why.split_once("; ").filter(|_| is_full(&why)) {
        Some((what, fix)) => ControlError::new(ErrorKind::Refused, what, fix),
        None => unreadable(stream, error),
    }
}

fn silence(stream: &str) -> ControlError {
    ControlError::new(
        ErrorKind::Nats,
        format!(
            "read stream {stream}: no message for {} s, though there are more",
            SILENCE.as_secs()
        ),
        "try again; if it stays so, look at the server's log",
    )
}
