//! Reads the internal inputs of all functions of an app with one consumer per node.
//!
//! Internal inputs lie in the app's commit stream, and a server allows 1000 consumers per stream by
//! default. The shared reader hands each message to its function. A function joins with a start
//! sequence: messages before the shared reader's place are read by direct gets, later ones come
//! from the shared reader. Buffers are bounded. If a function falls behind, it loses its place,
//! reads the missing messages by direct gets and joins again, while other functions are not
//! affected. The shared reader is a [`Reader`], which detects gaps; after a loss it is opened again
//! where it stopped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Context;
use super::reader::Reader;
use crate::event::Message;
use crate::names::AppNames;
use crate::nats::raw::{self, Stored, Which};
use crate::nats::{Connection, gets, is_full};
use crate::source::{SourceError, queue};

/// Buffered messages and bytes per function; a single message may be larger.
const WAITING: usize = 256;
const WAITING_BYTES: usize = 1 << 20;
/// Messages of one direct get.
const BATCH: usize = 256;
/// Unreadable messages that are handed out before a reader is opened behind them.
const STEPS: usize = 64;
/// After reading for this long, a lost reader is opened again without backoff.
const STEADY: Duration = Duration::from_secs(10);
/// A loss is reported only if it lasts longer than this, because connections break.
const GRACE: Duration = Duration::from_secs(5);
/// Longest wait for the first reader of an app.
const FIRST: Duration = Duration::from_secs(5);
/// Longest wait for the deletion of a consumer.
const DELETE: Duration = Duration::from_secs(1);

/// The internal inputs of one app on one node. Dropping it stops the shared reader.
pub(crate) struct InternalInputs {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    connection: Connection,
    names: AppNames,
    /// The commit stream.
    stream: Arc<str>,
    state: Mutex<State>,
    status: watch::Sender<Status>,
}

#[derive(Default)]
struct State {
    /// Everything up to here was handed out; none: no reader was opened yet.
    passed: Option<u64>,
    /// Whether the reader is open and had nothing more to read.
    caught_up: bool,
    places: BTreeMap<String, Vec<Place>>,
    /// Name of the current or latest consumer.
    consumer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Starting,
    Reading,
    /// The stream cannot be read, with the reason.
    Lost(Arc<str>),
}

/// The sending end of one function's buffer.
struct Place {
    sender: mpsc::Sender<Message>,
    bytes: Arc<AtomicUsize>,
}

impl Place {
    /// Buffers a message. Returns false if it does not fit.
    fn offer(&self, message: &Message) -> bool {
        let size = message.payload.len();
        let waiting = self.bytes.fetch_add(size, Ordering::AcqRel);
        let fits = waiting == 0 || waiting + size <= WAITING_BYTES;
        fits && self.sender.try_send(message.clone()).is_ok()
    }
}

impl InternalInputs {
    /// Starts the shared reader.
    pub(crate) fn start(connection: Connection, names: AppNames) -> Self {
        let shared = Arc::new(Shared {
            connection,
            stream: names.commit_stream().into(),
            names,
            state: Mutex::default(),
            status: watch::Sender::new(Status::Starting),
        });
        let stop = CancellationToken::new();
        tokio::spawn(shared.clone().run(stop.clone()));
        Self {
            shared,
            _stop: stop.drop_guard(),
        }
    }

    /// Returns why nothing can be read; the reason was logged.
    pub(crate) fn lost(&self) -> Option<Arc<str>> {
        match &*self.shared.status.borrow() {
            Status::Lost(why) => Some(why.clone()),
            _ => None,
        }
    }
}

impl Shared {
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.read() => {}
        }
        self.delete_consumer().await;
    }

    /// Never returns: a lost reader is opened again where it stopped.
    async fn read(&self) {
        let (mut pauses, mut lost_since) = (backoff(), Instant::now());
        loop {
            match self.open().await {
                Ok(mut reader) => {
                    let opened = Instant::now();
                    self.is_read();
                    let why = loop {
                        self.state().caught_up = reader.is_at_end();
                        match reader.next(&self.stream).await {
                            Ok(message) => self.hand_out(message),
                            Err(why) => break why,
                        }
                    };
                    self.state().caught_up = false;
                    tracing::debug!(
                        stream = &*self.stream,
                        why,
                        "the reader of internal inputs is lost"
                    );
                    lost_since = Instant::now();
                    if opened.elapsed() > STEADY {
                        pauses = backoff();
                    }
                }
                Err(error) => self.is_lost(&error, lost_since),
            }
            tokio::time::sleep(pauses.next().unwrap_or(STEADY)).await;
        }
    }

    async fn open(&self) -> Result<Reader, SourceError> {
        self.delete_consumer().await;
        let known = self.state().passed;
        let passed = match known {
            Some(passed) => passed,
            None => {
                let stream = self.connection.jetstream().get_stream(&*self.stream).await;
                let stream = stream.map_err(|error| queue::stream_error(&self.stream, &error))?;
                let last = stream.cached_info().state.last_sequence;
                *self.state().passed.insert(last)
            }
        };
        let (filter, mut passed) = (self.names.due_filter("*"), passed);
        for _ in 0..STEPS {
            let next = stored(&self.connection, &self.stream, &filter, passed).await?;
            let Some(next) = next.filter(|next| next.unreadable.is_some()) else {
                break;
            };
            passed = next.sequence;
            self.hand_out(next.into_message(&self.stream));
        }
        let what = format!("Pelton internal inputs of app {}", self.names.app());
        let js = self.connection.jetstream();
        let reader = Reader::open_on(&js, &self.stream, filter, what, passed + 1).await?;
        self.state().consumer = Some(reader.name().to_owned());
        Ok(reader)
    }

    /// Deletes the consumer of the former reader.
    async fn delete_consumer(&self) {
        let Some(name) = self.state().consumer.take() else {
            return;
        };
        let deleted = async {
            let js = self.connection.jetstream();
            let stream = js.get_stream_no_info(&*self.stream).await.ok()?;
            stream.delete_consumer(&name).await.ok()
        };
        // Otherwise the server deletes it when it expires.
        let _ = tokio::time::timeout(DELETE, deleted).await;
    }

    fn hand_out(&self, message: Message) {
        let mut state = self.state();
        state.passed = Some(message.sequence);
        let Some((function, _)) = self.names.due_for(&message.subject) else {
            return;
        };
        if let Some(places) = state.places.get_mut(function) {
            places.retain(|place| place.offer(&message));
            if places.is_empty() {
                state.places.remove(function);
            }
        }
    }

    /// Adds a place for a function. Returns it with the sequence up to which the function must read
    /// by itself, or none if no reader was opened yet.
    fn join(&self, function: &str) -> Option<(Live, u64)> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let bytes = Arc::new(AtomicUsize::new(0));
        let place = Place {
            sender,
            bytes: bytes.clone(),
        };
        let mut state = self.state();
        let passed = state.passed?;
        let places = state.places.entry(function.to_owned()).or_default();
        places.retain(|place| !place.sender.is_closed());
        places.push(place);
        Some((Live { receiver, bytes }, passed))
    }

    fn is_read(&self) {
        let before = self.status.send_replace(Status::Reading);
        if matches!(before, Status::Lost(_)) {
            tracing::info!(stream = &*self.stream, "internal inputs are read again");
        }
    }

    /// Records a failure and logs it once; without delay if it will not pass by itself.
    fn is_lost(&self, error: &SourceError, since: Instant) {
        let why = error.to_string();
        if since.elapsed() < GRACE && !is_full(&why) {
            return;
        }
        let lost = Status::Lost(why.as_str().into());
        if !matches!(self.status.send_replace(lost), Status::Lost(_)) {
            let app = self.names.app();
            tracing::warn!(
                app,
                error = why,
                "no function gets its calls and timers on this node"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving end of one function's buffer.
struct Live {
    receiver: mpsc::Receiver<Message>,
    bytes: Arc<AtomicUsize>,
}

impl Live {
    /// The next message; none: the buffer overflowed.
    async fn next(&mut self) -> Option<Message> {
        let message = self.receiver.recv().await?;
        let size = message.payload.len();
        self.bytes.fetch_sub(size, Ordering::AcqRel);
        Some(message)
    }
}

/// The internal input of one function, from one sequence on, without a gap.
pub(super) struct Feed {
    shared: Arc<Shared>,
    function: Arc<str>,
    filter: String,
    /// Reads the messages before the shared reader's place; none: they have been read.
    behind: Option<BoxStream<'static, Result<Message, SourceError>>>,
    live: Live,
    /// The shared reader's place at the time of joining.
    joined: u64,
    /// Everything up to here was handed over.
    passed: u64,
    status: watch::Receiver<Status>,
}

impl Feed {
    pub(super) async fn open(
        inputs: &InternalInputs,
        function: &Arc<str>,
        start_sequence: u64,
    ) -> Result<Self, SourceError> {
        let shared = inputs.shared.clone();
        let mut status = shared.status.subscribe();
        let first = status.wait_for(|status| *status != Status::Starting);
        // After the timeout, `join` reports that there is no place yet.
        let _ = tokio::time::timeout(FIRST, first).await;
        if let Some(why) = inputs.lost() {
            return Err(SourceError(why.to_string()));
        }
        let stream = shared.stream.clone();
        let unread = || SourceError(format!("stream {stream} is not read yet"));
        let (live, joined) = shared.join(function).ok_or_else(unread)?;
        let mut feed = Self {
            filter: shared.names.due_filter(function),
            function: function.clone(),
            behind: None,
            live,
            joined,
            passed: start_sequence.saturating_sub(1),
            status,
            shared,
        };
        feed.read_behind();
        Ok(feed)
    }

    fn read_behind(&mut self) {
        self.behind = (self.passed < self.joined).then(|| {
            let behind = Behind {
                connection: self.shared.connection.clone(),
                stream: self.shared.stream.clone(),
                filter: self.filter.clone(),
                passed: self.passed,
                up_to: self.joined,
                read: VecDeque::new(),
                single: 0,
                done: false,
            };
            stream::try_unfold(behind, Behind::next).boxed()
        });
    }

    /// Nothing before this sequence is left to be read.
    pub(super) fn first(&self) -> u64 {
        match self.behind {
            Some(_) => 0,
            None => self.joined + 1,
        }
    }

    /// Whether there is nothing to read now.
    pub(super) fn is_at_end(&self) -> bool {
        let caught_up = self.shared.state().caught_up;
        caught_up && self.behind.is_none() && self.live.receiver.is_empty()
    }

    /// Returns the next message. Cancelling loses nothing.
    ///
    /// # Errors
    /// The input cannot be read.
    pub(super) async fn next(&mut self) -> Result<Message, String> {
        loop {
            if let Some(behind) = &mut self.behind {
                match behind.next().await {
                    Some(Ok(message)) => {
                        self.passed = message.sequence;
                        return Ok(message);
                    }
                    Some(Err(error)) => return Err(error.to_string()),
                    None => {
                        self.behind = None;
                        self.passed = self.passed.max(self.joined);
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                taken = self.live.next() => match taken {
                    Some(message) if message.sequence > self.passed => {
                        self.passed = message.sequence;
                        return Ok(message);
                    }
                    // Already read by a direct get.
                    Some(_) => {}
                    None => {
                        let joined = self.shared.join(&self.function);
                        (self.live, self.joined) = joined.ok_or("its stream is not read")?;
                        self.read_behind();
                    }
                },
                why = lost(&mut self.status) => return Err(why),
            }
        }
    }
}

/// Waits until the shared reader fails and returns the reason.
async fn lost(status: &mut watch::Receiver<Status>) -> String {
    let lost = status.wait_for(|status| matches!(status, Status::Lost(_)));
    match lost.await.as_deref() {
        Ok(Status::Lost(why)) => why.to_string(),
        _ => "the shared reader has ended".to_owned(),
    }
}

/// Reads the next message under a filter behind a sequence, and logs it if it is unreadable.
async fn stored(
    connection: &Connection,
    stream: &str,
    filter: &str,
    passed: u64,
) -> Result<Option<Stored>, SourceError> {
    let js = connection.jetstream();
    let next = raw::get(&js, stream, Which::Next(passed + 1, filter)).await;
    let next = next.map_err(|error| SourceError(error.to_string()))?;
    if let Some(Stored {
        sequence,
        unreadable: Some(why),
        ..
    }) = &next
    {
        tracing::warn!(stream, sequence, why, "a message is unreadable");
    }
    Ok(next)
}

/// Reads the messages of one function up to a sequence by direct gets.
struct Behind {
    connection: Connection,
    stream: Arc<str>,
    filter: String,
    /// Everything up to here was read.
    passed: u64,
    up_to: u64,
    read: VecDeque<Message>,
    /// Messages to read one by one, after an answer that could not be read.
    single: usize,
    done: bool,
}

impl Behind {
    async fn next(mut self) -> Result<Option<(Message, Self)>, SourceError> {
        loop {
            if let Some(message) = self.read.pop_front() {
                return Ok(Some((message, self)));
            }
            if self.done {
                return Ok(None);
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<(), SourceError> {
        if self.passed >= self.up_to {
            self.done = true;
            return Ok(());
        }
        if self.single == 0 {
            let (client, from) = (self.connection.client(), self.passed + 1);
            match gets::next(&client, &self.stream, &self.filter, from, BATCH).await {
                Ok(batch) if !batch.messages.is_empty() => {
                    self.read = batch.messages.into();
                    self.passed = self.read.back().map_or(self.passed, |last| last.sequence);
                    return Ok(());
                }
                Ok(_) => {}
                // Headers that the client cannot parse break the connection; read them as JSON.
                Err(error) => {
                    tracing::debug!(%error, "read one by one");
                    self.single = BATCH;
                }
            }
        }
        self.single = self.single.saturating_sub(1);
        self.ask_leader().await
    }

    /// Requests the next message from the leader: the answer to a direct get may lag behind.
    async fn ask_leader(&mut self) -> Result<(), SourceError> {
        let stream = self.connection.jetstream().get_stream(&*self.stream).await;
        let stream = stream.map_err(|error| queue::stream_error(&self.stream, &error))?;
        if stream.cached_info().state.last_sequence < self.up_to {
            let (name, up_to) = (&self.stream, self.up_to);
            return Err(SourceError(format!(
                "cannot read stream {name}: its leader does not have message {up_to} yet"
            )));
        }
        let next = stored(&self.connection, &self.stream, &self.filter, self.passed).await?;
        match next.filter(|next| next.sequence <= self.up_to) {
            Some(next) => {
                self.passed = next.sequence;
                self.read.push_back(next.into_message(&self.stream));
            }
            None => self.done = true,
        }
        Ok(())
    }
}

/// What a source reads: an input stream, or its function's part of the commit stream.
pub(super) enum Incoming {
    Input(Box<Reader>),
    Internal(Feed),
}

impl Incoming {
    /// Reads the input of a source from one sequence on.
    pub(super) async fn open(context: &Context, start_sequence: u64) -> Result<Self, SourceError> {
        Ok(match &context.internal_inputs {
            Some(inputs) => {
                Self::Internal(Feed::open(inputs, &context.function, start_sequence).await?)
            }
            None => Self::Input(Box::new(Reader::open(context, start_sequence).await?)),
        })
    }

    /// Nothing before this sequence is left to be read.
    pub(super) fn first(&self) -> u64 {
        match self {
            Self::Input(reader) => reader.first(),
            Self::Internal(feed) => feed.first(),
        }
    }

    /// Whether there is nothing to read, as far as the server knows that reads.
    pub(super) fn is_at_end(&self) -> bool {
        match self {
            Self::Input(reader) => reader.is_at_end(),
            Self::Internal(feed) => feed.is_at_end(),
        }
    }
}

/// The next message; nothing comes where there is no reader.
///
/// # Errors
/// The reader is lost: what it would say next may not be what follows.
pub(super) async fn next(
    incoming: &mut Option<Incoming>,
    stream: &Arc<str>,
) -> Result<Message, String> {
    match incoming {
        Some(Incoming::Input(reader)) => reader.next(stream).await,
        Some(Incoming::Internal(feed)) => feed.next().await,
        None => std::future::pending().await,
    }
}

/// Endless, 0.1 s to 5 s.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests;
