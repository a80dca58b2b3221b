//! Pulling messages from a consumer, with a bound on the bytes that are under way.
//!
//! A server closes a connection for which more than `max_pending` (64 MiB unless configured) waits
//! to be sent. So each input of
//! the process asks for its share of [`SHARED`] bytes at most. A message that is larger than that
//! is asked for alone, when
//! it finds room in [`LARGE`], which all inputs have together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{Client, Message, StatusCode, Subscriber};
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use crate::nats::connects;

/// Bytes that all inputs ask for in their ordinary requests, together.
const SHARED: usize = 24 << 20;
/// Bytes of large messages that are asked for one by one, together.
const LARGE: usize = 8 << 20;
/// Least share of an input: fifteen hundred of them fit into [`SHARED`].
const LEAST: usize = 16 << 10;
/// What a message has beside its header and payload: subject, reply and protocol.
const FRAME: usize = 8 << 10;
/// [`LARGE`] is counted in pieces of so many bytes.
const PIECE: usize = 1 << 10;
/// How often the connection is looked at: a new one knows nothing of what was asked for on the
/// last.
const LOOK: Duration = Duration::from_secs(1);
/// A large message is there already when it is asked for.
const LARGE_EXPIRES: Duration = Duration::from_secs(5);

/// The process's inputs; a process reads over one connection.
static FLOW: LazyLock<Flow> = LazyLock::new(|| Flow::new(SHARED, LARGE));

/// What inputs may have under way.
struct Flow {
    shared: usize,
    large: usize,
    inputs: AtomicUsize,
    room: Arc<Semaphore>,
}

impl Flow {
    fn new(shared: usize, large: usize) -> Self {
        Self {
            shared,
            large,
            inputs: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(large / PIECE)),
        }
    }

    /// The same for each input.
    fn share(&self) -> usize {
        let inputs = self.inputs.load(Ordering::Relaxed).max(1);
        (self.shared / inputs).max(LEAST)
    }

    /// Room for one message that may be as large as `max_payload`; the first to ask is the first to
    /// get it.
    async fn room(&self, max_payload: usize) -> Option<OwnedSemaphorePermit> {
        let pieces = (max_payload + FRAME).min(self.large) / PIECE;
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(pieces).await.ok()
    }
}

/// An input that counts; no longer when dropped.
struct Counted;

impl Counted {
    fn new() -> Self {
        FLOW.inputs.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        FLOW.inputs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why no more messages come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PullError(String);

/// How to pull.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// So many messages and half as many again may be asked for and not have come.
    pub(crate) batch: usize,
    /// A request ends after this and is renewed.
    pub(crate) expires: Duration,
    /// A server that has nothing to send says so this often.
    pub(crate) heartbeat: Duration,
}

/// Messages of one consumer, in the order in which the server sends them.
pub(crate) struct Pull {
    js: jetstream::Context,
    /// Where to ask.
    subject: String,
    inbox: String,
    messages: Subscriber,
    settings: Settings,
    ledger: Ledger,
    /// The next message is larger than a request, or will be.
    oversize: bool,
    large: Option<AbortOnDropHandle<Result<Option<Message>, PullError>>>,
    heard: Instant,
    look: Interval,
    connects: u64,
    _counted: Counted,
}

/// What was asked for and has not come.
#[derive(Debug, Default)]
struct Ledger {
    requests: VecDeque<Request>,
    last: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    number: u64,
    messages: usize,
    bytes: usize,
    untouched: bool,
}

/// As the server takes it.
#[derive(Serialize)]
struct Ask {
    batch: usize,
    /// Nanoseconds.
    expires: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_heartbeat: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<usize>,
}

/// What the server said in place of a message.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Heartbeat,
    /// A request has ended.
    Ended,
    /// It has ended because the next message has more bytes than it had left.
    TooLarge,
    Failed(String),
}

impl Settings {
    fn one_request(self) -> usize {
        (self.batch * 3 / 4).max(1)
    }
}

impl Pull {
    /// Begins to pull.
    pub(crate) async fn open(
        js: &jetstream::Context,
        consumer: &PullConsumer,
        settings: Settings,
    ) -> Result<Self, PullError> {
        let info = consumer.cached_info();
        let client = js.client();
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            subject: format!(
                "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
                info.stream_name, info.name
            ),
            inbox,
            messages: messages.map_err(failed)?,
            settings,
            ledger: Ledger::default(),
            oversize: false,
            large: None,
            heard: Instant::now(),
            look,
            connects: connects(&client),
            js: js.clone(),
            _counted: Counted::new(),
        })
    }

    /// The next message; `None`: the client has ended. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Result<jetstream::Message, PullError>> {
        loop {
            if let Err(error) = self.ask().await {
                return Some(Err(error));
            }
            let silent = self.heard + 2 * self.settings.heartbeat;
            tokio::select! {
                biased;
                Some(large) = taken(&mut self.large) => {
                    self.large = None;
                    self.heard = Instant::now();
                    match large {
                        Ok(Some(message)) => return Some(Ok(self.large_message(message))),
                        Ok(None) => self.oversize = false,
                        Err(error) => return Some(Err(error)),
                    }
                }
                message = self.messages.next() => {
                    self.heard = Instant::now();
                    let message = message?;
                    let Some(said) = said(&message) else {
                        self.ledger.came(message.length);
                        return Some(Ok(self.with_context(message)));
                    };
                    if let Err(error) = self.learn(said, &message) {
                        return Some(Err(error));
                    }
                }
                _ = self.look.tick() => self.look(),
                () = tokio::time::sleep_until(silent), if self.large.is_none() => {
                    return Some(Err(PullError("the server has not sent a heartbeat".into())));
                }
            }
        }
    }

    /// Keeps two requests under way where that many messages are wanted: so a slow link does not
    /// stand still between them.
    async fn ask(&mut self) -> Result<(), PullError> {
        if self.large.is_some() {
            return Ok(());
        }
        if self.oversize {
            if self.ledger.requests.is_empty() {
                self.large = Some(AbortOnDropHandle::new(tokio::spawn(large(
                    self.js.client(),
                    self.subject.clone(),
                ))));
            }
            return Ok(());
        }
        let (batch, bytes) = (self.settings.one_request(), FLOW.share() / 2);
        if !self.ledger.has_room(batch, self.settings.batch) {
            return Ok(());
        }
        let ask = Ask {
            batch,
            expires: self.settings.expires.as_nanos(),
            idle_heartbeat: Some(self.settings.heartbeat.as_nanos()),
            max_bytes: Some(bytes),
        };
        let number = self.ledger.last + 1;
        let reply = format!("{}.{number}", self.inbox);
        publish(&self.js.client(), &self.subject, reply, &ask).await?;
        self.ledger.asked(number, batch, bytes);
        // Nothing was to be heard while nothing was asked for.
        self.heard = Instant::now();
        Ok(())
    }

    /// The next message that has come already; asks for no more.
    pub(crate) fn buffered(&mut self) -> Option<jetstream::Message> {
        loop {
            let message = self.messages.next().now_or_never()??;
            if said(&message).is_none() {
                return Some(self.with_context(message));
            }
        }
    }

    fn learn(&mut self, said: Said, message: &Message) -> Result<(), PullError> {
        let number = message.subject.rsplit('.').next();
        let number = number.and_then(|number| number.parse().ok());
        match said {
            Said::Heartbeat => {}
            Said::Ended => {
                self.ledger.ended(number);
            }
            // What is left of a request that brought something may just be too little.
            Said::TooLarge => self.oversize |= self.ledger.ended(number),
            Said::Failed(why) => return Err(PullError(why)),
        }
        Ok(())
    }

    /// The server forgets what was asked for when a connection breaks.
    fn look(&mut self) {
        let now = connects(&self.js.client());
        if now != self.connects {
            self.connects = now;
            self.ledger.requests.clear();
            (self.large, self.heard) = (None, Instant::now());
        }
    }

    fn large_message(&mut self, message: Message) -> jetstream::Message {
        let large = message.length > FLOW.share() / 2;
        let message = self.with_context(message);
        // Where one is large and more are waiting, the next one is likely to be.
        let more = message.info().is_ok_and(|info| info.pending > 0);
        self.oversize = large && more;
        message
    }

    fn with_context(&self, message: Message) -> jetstream::Message {
        jetstream::Message {
            message,
            context: self.js.clone(),
        }
    }
}

impl Ledger {
    /// Whether another request for so many messages may be made, of which one and a half times
    /// `batch` are asked for at most.
    fn has_room(&self, messages: usize, batch: usize) -> bool {
        let left: usize = self.requests.iter().map(|one| one.messages).sum();
        match self.requests.len() {
            0 => true,
            1 => left + messages <= batch + batch / 2,
            _ => false,
        }
    }

    fn asked(&mut self, number: u64, messages: usize, bytes: usize) {
        self.last = number;
        self.requests.push_back(Request {
            number,
            messages,
            bytes,
            untouched: true,
        });
    }

    /// A message of so many bytes came, for the request that was made first.
    fn came(&mut self, bytes: usize) {
        let Some(first) = self.requests.front_mut() else {
            return;
        };
        first.untouched = false;
        first.messages = first.messages.saturating_sub(1);
        first.bytes = first.bytes.saturating_sub(bytes);
        if first.messages == 0 || first.bytes == 0 {
            self.requests.pop_front();
        }
    }

    /// A request has ended; whether it brought nothing.
    fn ended(&mut self, number: Option<u64>) -> bool {
        let at = self
            .requests
            .iter()
            .position(|one| Some(one.number) == number);
        let ended = at.and_then(|at| self.requests.remove(at));
        ended.is_some_and(|one| one.untouched)
    }
}

/// One message, whatever its size; `None`: there was none.
async fn large(client: Client, subject: String) -> Result<Option<Message>, PullError> {
    let _room = FLOW.room(client.server_info().max_payload).await;
    let inbox = client.new_inbox();
    let mut messages = client.subscribe(inbox.clone()).await.map_err(failed)?;
    let ask = Ask {
        batch: 1,
        expires: LARGE_EXPIRES.as_nanos(),
        idle_heartbeat: None,
        max_bytes: None,
    };
    publish(&client, &subject, inbox, &ask).await?;
    // Its end is told within its time; what takes longer is on its way.
    let message = tokio::time::timeout(12 * LARGE_EXPIRES, messages.next()).await;
    let Ok(Some(message)) = message else {
        return Err(PullError("a large message did not come".into()));
    };
    match said(&message) {
        None => Ok(Some(message)),
        Some(Said::Failed(why)) => Err(PullError(why)),
        Some(_) => Ok(None),
    }
}

async fn taken<T>(
    task: &mut Option<AbortOnDropHandle<Result<T, PullError>>>,
) -> Option<Result<T, PullError>> {
    match task {
        Some(task) => Some(task.await.unwrap_or_else(|error| Err(failed(error)))),
        None => None,
    }
}

async fn publish(
    client: &Client,
    subject: &str,
    reply: String,
    ask: &Ask,
) -> Result<(), PullError> {
    let body = serde_json::to_vec(ask).map_err(failed)?;
    client
        .publish_with_reply(subject.to_owned(), reply, body.into())
        .await
        .map_err(failed)
}

/// `None`: it is a message of the stream. Those have a reply subject, and may bear a status that
/// their publisher gave them.
fn said(message: &Message) -> Option<Said> {
    if message.reply.is_some() {
        return None;
    }
    let status = message.status.filter(|status| *status != StatusCode::OK)?;
    let text = message.description.as_deref().unwrap_or_default();
    Some(read(status, text))
}

fn read(status: StatusCode, text: &str) -> Said {
    // Asking again for the same would have the same end.
    const FINAL: [&str; 3] = ["Consumer Deleted", "Consumer is push based", "Exceeded "];
    match status {
        StatusCode::IDLE_HEARTBEAT => Said::Heartbeat,
        StatusCode::TIMEOUT | StatusCode::NOT_FOUND => Said::Ended,
        StatusCode::REQUEST_TERMINATED if text == "Message Size Exceeds MaxBytes" => Said::TooLarge,
        StatusCode::REQUEST_TERMINATED if !FINAL.iter().any(|one| text.starts_with(one)) => {
            Said::Ended
        }
        _ => Said::Failed(format!("the server answered {status}: {text}")),
    }
}

fn failed(error: impl std::fmt::Display) -> PullError {
    PullError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_fair_and_bounded_together() {
        let flow = Flow::new(SHARED, LARGE);
        for inputs in [1, 4, 300, 1000] {
            flow.inputs.store(inputs, Ordering::Relaxed);
            let together = flow.share() * inputs;
            assert!(together <= SHARED, "{inputs} inputs: {together}");
        }
    }

    #[tokio::test]
    async fn large_messages_wait_for_room() {
        let flow = Flow::new(SHARED, LARGE);
        let mut held = Vec::new();
        while let Some(Some(room)) = flow.room(1 << 20).now_or_never() {
            held.push(room);
            assert!(held.len() <= 8);
        }
        assert_eq!(held.len(), 7);
        held.clear();
        // A message that is larger than all of it takes all of it.
        let all = flow.room(64 << 20).await;
        assert!(all.is_some() && flow.room.available_permits() == 0);
    }

    #[test]
    fn two_requests_are_under_way_and_no_more_messages_than_wanted() {
        for (batch, expect) in [(1, 1), (2, 2), (4, 6), (500, 750)] {
            let settings = Settings {
                batch,
                expires: LOOK,
                heartbeat: LOOK,
            };
            let (one, mut ledger) = (settings.one_request(), Ledger::default());
            for number in 1..10 {
                if ledger.has_room(one, batch) {
                    ledger.asked(number, one, 1000);
                }
            }
            let asked: usize = ledger.requests.iter().map(|one| one.messages).sum();
            assert_eq!(asked, expect);
        }
    }

    #[test]
    fn messages_count_for_the_request_that_was_made_first() {
        let mut ledger = Ledger::default();
        ledger.asked(1, 3, 1000);
        ledger.asked(2, 3, 1000);
        ledger.came(10);
        ledger.came(990);
        assert_eq!(ledger.requests.len(), 1, "its bytes are used up");
        assert!(ledger.ended(Some(2)), "it brought nothing");
        assert!(!ledger.ended(Some(2)), "it had ended");
        ledger.asked(3, 2, 1000);
        ledger.came(10);
        assert!(!ledger.ended(Some(3)), "it brought something");
        ledger.asked(4, 1, 1000);
        ledger.came(10);
        assert!(ledger.requests.is_empty(), "its messages have come");
    }

    #[test]
    fn what_ends_a_request_and_what_ends_all() {
        let ended = |text| read(StatusCode::REQUEST_TERMINATED, text);
        assert_eq!(ended("Leadership Change"), Said::Ended);
        assert_eq!(ended("Message Size Exceeds MaxBytes"), Said::TooLarge);
        for last in ["Consumer Deleted", "Exceeded MaxWaiting"] {
            assert!(matches!(ended(last), Said::Failed(_)), "{last}");
        }
        assert_eq!(read(StatusCode::TIMEOUT, "Request Timeout"), Said::Ended);
        assert_eq!(read(StatusCode::IDLE_HEARTBEAT, ""), Said::Heartbeat);
        assert!(matches!(
            read(StatusCode::NO_RESPONDERS, ""),
            Said::Failed(_)
        ));
    }
}
