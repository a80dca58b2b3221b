//! The queue engine's source: one durable pull consumer per function and input stream, shared by all nodes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::message::Info;
use async_nats::jetstream::stream::Stream;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pull::{Pull, PullError, Settings};
use super::undelivered::Undelivered;
use super::{Acker, Received, Settlement};
use crate::config::Start;
use crate::event::Message;
use crate::names::{AppNames, META_VERSION};
use crate::nats::{Connection, consumer_refused, headers, is_full, raw};
use crate::records::{FunctionRecord, Input};

/// A message not settled within this comes again; attempts that last longer report progress.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);
/// Handed out and not settled, whole cluster, waiting retries and deferrals included. Bounds what the server tracks.
const MAX_ACK_PENDING: i64 = 50_000;
/// A pull request ends after this and is renewed; meanwhile the server says every heartbeat that it is alive.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Why nothing can be taken now.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SourceError(pub(crate) String);

/// One open input.
pub(crate) struct QueueSource<'a> {
    connection: Connection,
    consumer: PullConsumer,
    messages: Pull,
    /// Messages asked for at once, `concurrency`.
    batch: usize,
    /// Whether another number of messages is to be asked for.
    is_to_pull_anew: bool,
    /// Read already, and not handed over yet.
    ready: VecDeque<Received>,
    undelivered: &'a mut Undelivered,
    stream: Arc<str>,
    /// See [`Input::life`].
    life: i64,
}

impl<'a> QueueSource<'a> {
    /// Brings the consumer up to date and begins to pull. The client asks for more when half of a batch is left, so
    /// that up to one and a half times `concurrency` are handed out to this node beyond what it runs.
    pub(crate) async fn open(
        inputs: &Connection,
        record: &FunctionRecord,
        input: &Input,
        undelivered: &'a mut Undelivered,
    ) -> Result<Self, SourceError> {
        let stream = inputs
            .jetstream()
            .get_stream(&input.stream)
            .await
            .map_err(|error| stream_error(&input.stream, &error))?;
        let stream_created = stream.cached_info().created.unix_timestamp_nanos();
        let consumer = current_consumer(&stream, record, input).await?;
        let batch = record.settings.concurrency.max(1) as usize;
        let js = inputs.jetstream();
        let messages = pull_from(&js, &consumer, undelivered.batch(batch), &input.stream).await?;
        let stream_created = i64::try_from(stream_created).unwrap_or_default();
        Ok(Self {
            connection: inputs.clone(),
            consumer,
            messages,
            batch,
            is_to_pull_anew: false,
            ready: VecDeque::new(),
            undelivered,
            stream: input.stream.as_str().into(),
            life: input.life(stream_created),
        })
    }

    /// The next message; an error means that the source must be opened anew.
    pub(crate) async fn next(&mut self) -> Result<Received, SourceError> {
        loop {
            if let Some(received) = self.ready.pop_front() {
                return Ok(received);
            }
            if let Some(received) = self.undelivered.take(&self.stream, self.life) {
                return Ok(received);
            }
            if self.is_to_pull_anew {
                self.pull_anew().await?;
            }
            tokio::select! {
                biased;
                taken = self.messages.next() => return self.read(taken),
                () = self.undelivered.suspected(&self.connection) => {}
            }
            let searched = self
                .undelivered
                .search(&self.connection, &mut self.consumer);
            self.is_to_pull_anew |= searched.await?;
        }
    }

    fn read(&mut self, taken: Option<Taken>) -> Result<Received, SourceError> {
        match taken {
            Some(Ok(message)) => {
                self.is_to_pull_anew |= self.undelivered.read_one();
                self.received(message)
            }
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

    /// Asks for as many messages at once as is right now; what has come already is kept.
    async fn pull_anew(&mut self) -> Result<(), SourceError> {
        let batch = self.undelivered.batch(self.batch);
        let js = self.connection.jetstream();
        let next = pull_from(&js, &self.consumer, batch, &self.stream).await?;
        let mut former = std::mem::replace(&mut self.messages, next);
        self.is_to_pull_anew = false;
        while let Some(message) = former.buffered() {
            let received = self.received(message)?;
            self.ready.push_back(received);
        }
        Ok(())
    }

    /// Hands back what was pulled and not begun, so that other nodes need not wait for its ack wait. How much of it was handed out
    /// for the first time.
    pub(crate) async fn hand_back(mut self) -> u64 {
        let mut new = 0;
        while let Some(message) = self.messages.buffered() {
            if let Ok(received) = self.received(message) {
                self.ready.push_back(received);
            }
        }
        for received in self.ready {
            new += u64::from(received.is_new());
            // What cannot be handed back comes again when its ack wait is over.
            let _ = received
                .acker
                .settle(Settlement::Again(Duration::ZERO))
                .await;
        }
        new
    }

    fn received(&self, taken: jetstream::Message) -> Result<Received, SourceError> {
        let info = taken.info().map_err(|error| misplaced(&error))?;
        let (delivered, message) = (info.delivered, message(&taken, &info, &self.stream));
        let (_, acker) = taken.split();
        Ok(Received {
            message,
            life: self.life,
            internal: false,
            caller: None,
            key: None,
            delivered: u64::try_from(delivered).unwrap_or(1),
            acker: Acker(Some(Box::new(acker))),
        })
    }
}

type Taken = Result<jetstream::Message, PullError>;

async fn pull_from(
    js: &jetstream::Context,
    consumer: &PullConsumer,
    batch: usize,
    stream: &str,
) -> Result<Pull, SourceError> {
    let settings = Settings {
        batch,
        expires: PULL_EXPIRES,
        heartbeat: HEARTBEAT,
    };
    Pull::open(js, consumer, settings)
        .await
        .map_err(|error| SourceError(format!("cannot pull from stream {stream}: {error}")))
}

fn misplaced(error: &dyn std::fmt::Display) -> SourceError {
    SourceError(format!("a message without its place: {error}"))
}

/// Why a stream cannot be opened.
pub(super) fn stream_error(stream: &str, error: &GetStreamError) -> SourceError {
    match error.kind() {
        GetStreamErrorKind::JetStream(inner)
            if inner.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
        {
            SourceError(format!(
                "input stream {stream} does not exist; deploy again to create it"
            ))
        }
        _ => SourceError(format!("cannot read stream {stream}: {error}")),
    }
}

/// A message as it came from a consumer.
pub(crate) fn message(taken: &jetstream::Message, info: &Info<'_>, stream: &Arc<str>) -> Message {
    let message = Message {
        subject: taken.subject.to_string(),
        headers: headers(taken.headers.as_ref()),
        payload: taken.payload.clone(),
        stream: stream.clone(),
        sequence: info.stream_sequence,
        stored: i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default(),
    };
    let unreadable = raw::unreadable_subject(&taken.subject);
    raw::marked(message, unreadable)
}

/// Makes the consumer, or brings it up to date: what a deploy does. Where to begin is said once: the server refuses
/// to change it later.
pub(crate) async fn ensure_consumer(
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
) -> Result<PullConsumer, SourceError> {
    let begin = match find(stream, record).await? {
        Some(info) => info.config.deliver_policy,
        None => deliver_policy(record.settings.start.as_ref())?,
    };
    put(stream, record, input, begin).await
}

/// Makes the consumer, which does not exist, to begin with this sequence.
pub(crate) async fn ensure_consumer_from(
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
    start_sequence: u64,
) -> Result<(), SourceError> {
    let begin = DeliverPolicy::ByStartSequence { start_sequence };
    put(stream, record, input, begin).await.map(|_| ())
}

/// Brings the consumer up to date: what a node does. It makes none: where that would begin, in a stream that holds
/// what was handled long ago, is for a deploy to say. Only a stream that was made anew since then is new altogether.
async fn current_consumer(
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
) -> Result<PullConsumer, SourceError> {
    let Some(info) = find(stream, record).await? else {
        let deployed = OffsetDateTime::parse(record.activated_at(), &Rfc3339);
        if deployed.is_ok_and(|deployed| stream.cached_info().created > deployed) {
            return put(stream, record, input, DeliverPolicy::All).await;
        }
        return Err(SourceError(format!(
            "consumer {} of stream {} is gone; deploy the function again, which makes one and says where it begins",
            name(record),
            input.stream
        )));
    };
    // A node that could not load the newest version must not turn its consumer back.
    let newest = info
        .config
        .metadata
        .get(META_VERSION)
        .and_then(|version| version.parse().ok());
    if newest.is_some_and(|newest: u64| newest > record.generation()) {
        return stream.get_consumer(&name(record)).await.map_err(|error| {
            SourceError(format!("cannot read consumer {}: {error}", name(record)))
        });
    }
    put(stream, record, input, info.config.deliver_policy).await
}

fn name(record: &FunctionRecord) -> String {
    AppNames::new(record.app.as_str()).consumer(&record.function, record.instance)
}

async fn find(
    stream: &Stream,
    record: &FunctionRecord,
) -> Result<Option<consumer::Info>, SourceError> {
    match stream.consumer_info(name(record)).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(SourceError(format!(
            "cannot read consumer {}: {error}",
            name(record)
        ))),
    }
}

async fn put(
    stream: &Stream,
    record: &FunctionRecord,
    input: &Input,
    deliver_policy: DeliverPolicy,
) -> Result<PullConsumer, SourceError> {
    let config = pull::Config {
        durable_name: Some(name(record)),
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
        metadata: [(META_VERSION.to_owned(), record.generation().to_string())].into(),
        ..Default::default()
    };
    stream.create_consumer(config).await.map_err(|error| {
        let why = consumer_refused(&input.stream, &error);
        SourceError(match is_full(&why) {
            true => why,
            false => format!(
                "cannot make consumer {} on stream {}: {error}",
                name(record),
                input.stream
            ),
        })
    })
}

fn deliver_policy(start: Option<&Start>) -> Result<DeliverPolicy, SourceError> {
    Ok(match start {
        None | Some(Start::All) => DeliverPolicy::All,
        Some(Start::New) => DeliverPolicy::New,
        Some(Start::Time(text)) => {
            let format = &Rfc3339;
            let start_time = OffsetDateTime::parse(text, format).map_err(|error| {
                SourceError(format!("start = {text:?} is no RFC 3339 time: {error}"))
            })?;
            DeliverPolicy::ByStartTime { start_time }
        }
    })
}
