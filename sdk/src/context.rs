//! What a handler may do beside computing: state, events, log and configuration, all within one transaction.

use std::fmt;
use std::time::Duration;

use crate::draft::Draft;
use crate::event::Timestamp;
use crate::host::Host;
use crate::{Error, Result};

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Each step of a computation.
    Trace,
    /// What a developer looks for.
    Debug,
    /// What normally happens.
    Info,
    /// Unusual, and coped with.
    Warn,
    /// A failure.
    Error,
    /// A failure that ends the attempt.
    Critical,
}

/// Where an event is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream's name.
    pub stream: String,
    /// Its sequence there, from 1.
    pub sequence: u64,
}

/// The event's journey to this handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// None for a call, which no stream holds.
    pub position: Option<Position>,
    /// The ordering key; none when the function has no `key`.
    pub key: Option<String>,
    /// The message's headers without `ce-*`: by name, values of one name in the order of the
    /// message; lower-case names, which may repeat.
    pub headers: Vec<(String, String)>,
    /// This attempt, from 1.
    pub attempt: u32,
    /// What the retry policy grants; 0: no limit.
    pub max_attempts: u32,
    /// Wall-clock time that this attempt may take.
    pub timeout: Duration,
    /// Whether a caller waits for a reply.
    pub expects_reply: bool,
}

impl Delivery {
    /// Whether no attempt follows this one.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt == self.max_attempts
    }
}

/// What a handler may do. Writes, events and the reply become durable together once the handler has returned ok, and
/// never when it fails.
///
/// State is behind [`Table`](crate::Table). In tests [`Context::test`] makes one that keeps everything in memory, and dereferences to
/// [`TestHost`](crate::TestHost) to look at it.
#[derive(Debug)]
pub struct Context {
    delivery: Delivery,
    pub(crate) host: Host,
}

impl Context {
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn new(delivery: Delivery) -> Self {
        let host = Host;
        Self { delivery, host }
    }

    /// For tests: empty state and configuration, first of five attempts. `ctx.now` sets what
    /// [`now`](Self::now) answers; until then it is the time of
    /// [`Event::test`](crate::Event::test).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn test() -> Self {
        Self {
            delivery: Delivery {
                position: Some(Position {
                    stream: "TEST".to_owned(),
                    sequence: 1,
                }),
                key: None,
                headers: Vec::new(),
                attempt: 1,
                max_attempts: 5,
                timeout: Duration::from_secs(5),
                expects_reply: false,
            },
            host: Host::default(),
        }
    }

    /// The event's journey: attempt, position, headers.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// For tests: what [`delivery`](Self::delivery) answers.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn delivery_mut(&mut self) -> &mut Delivery {
        &mut self.delivery
    }

    /// When the event was stored in its stream, by the NATS server's clock: the same in every
    /// attempt. For a call: when it was taken in; for a timer or a tick: when it fired. A producer
    /// can set [`Event::time`](crate::Event) to anything, but not this.
    ///
    /// A component has no other clock: `SystemTime::now()` and `Instant::now()` panic there.
    pub fn now(&self) -> Timestamp {
        self.host.now()
    }

    /// Emits an event when the attempt commits; order is kept among events of one attempt to one stream.
    ///
    /// # Errors
    /// `pelton-event-invalid`, `pelton-not-allowed` (the manifest's `allow.emit`) or `pelton-limit`, all rejects.
    pub fn emit(&mut self, draft: Draft) -> Result {
        self.host.emit(draft.checked()?)
    }

    /// Emits at a time (at once if it is past; at most a year ahead). `name` has the form of a key and is unique in
    /// the app; the same name again replaces what it held, so a timer can be moved. Set with the attempt's commit; the event
    /// says this time unless the draft says another.
    ///
    /// # Errors
    /// As [`emit`](Self::emit), and `pelton-key-invalid`; `pelton-unavailable`, a retry.
    pub fn emit_at(&mut self, name: &str, time: Timestamp, draft: Draft) -> Result {
        self.host.emit_at(name, time, draft.checked()?)
    }

    /// Emits after a delay, counted from [`now`](Self::now): so every attempt sets the same time.
    /// If the event waited longer than `delay` before it was handled, that time is past and the
    /// event leaves with the commit.
    ///
    /// # Errors
    /// As [`emit_at`](Self::emit_at).
    pub fn emit_after(&mut self, name: &str, delay: Duration, draft: Draft) -> Result {
        self.emit_at(name, self.now() + delay, draft)
    }

    /// Takes an [`emit_at`](Self::emit_at) back; no error when there is none, or none any more.
    ///
    /// # Errors
    /// As [`emit_at`](Self::emit_at).
    pub fn cancel(&mut self, name: &str) -> Result {
        self.host.cancel(name)
    }

    /// Answers the caller with JSON after the commit; the last one counts. Ignored when nobody waits.
    ///
    /// # Errors
    /// As [`emit`](Self::emit), and `data-invalid` when `data` does not serialize.
    pub fn reply(&mut self, data: &(impl serde::Serialize + ?Sized)) -> Result {
        let draft = Draft::new("", data).checked()?;
        self.host.reply(None, draft.data)
    }

    /// Answers the caller with data of any media type.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn reply_bytes(&mut self, content_type: &str, data: impl Into<Vec<u8>>) -> Result {
        self.host.reply(Some(content_type), data.into())
    }

    /// Answers the caller with an error after the commit, in place of a reply: what the handler did
    /// counts, and there is no dead letter, as there is when a handler rejects. Ignored when nobody
    /// waits.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn reply_error(&mut self, code: &str, message: impl fmt::Display) -> Result {
        self.host.reply_error(code, &message.to_string())
    }

    /// A value of the manifest's `config`, or one of its `secrets`.
    ///
    /// # Errors
    /// A retry with code `config-unavailable` when the node cannot tell.
    pub fn config(&self, name: &str) -> Result<Option<String>> {
        self.host.config(name)
    }

    /// A configuration value that must be there.
    ///
    /// # Errors
    /// As [`config`](Self::config), and a retry with code `config-missing`, since a deploy can add it.
    pub fn require_config(&self, name: &str) -> Result<String> {
        self.host.config(name)?.ok_or_else(|| {
            let text = [
                "config value `",
                name,
                "` is missing: add it to the function's [config] in pelton.toml",
            ];
            Error::retry("config-missing", text.concat())
        })
    }

    /// Logs a line; it leaves at once, whatever becomes of the attempt.
    pub fn log(&mut self, level: Level, message: impl fmt::Display) {
        self.host.log(level, "handler", &message.to_string());
    }

    /// Logs what a developer looks for.
    pub fn debug(&mut self, message: impl fmt::Display) {
        self.log(Level::Debug, message);
    }

    /// Logs what normally happens.
    pub fn info(&mut self, message: impl fmt::Display) {
        self.log(Level::Info, message);
    }

    /// Logs something unusual that was coped with.
    pub fn warn(&mut self, message: impl fmt::Display) {
        self.log(Level::Warn, message);
    }

    /// Logs a failure.
    pub fn error(&mut self, message: impl fmt::Display) {
        self.log(Level::Error, message);
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl std::ops::Deref for Context {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl std::ops::DerefMut for Context {
    fn deref_mut(&mut self) -> &mut Host {
        &mut self.host
    }
}
