//! The node's part in a component: the contract's imports and its one export.
//!
//! Conversions are by hand, because the generated error type is a `std::error::Error`: `?` would take a node's
//! reject for a failure to retry.

use std::cell::Cell;
use std::time::Duration;

use crate::bindings::exports::pelton::function::handler::Guest;
use crate::bindings::pelton::function::{clock, events, state, types};
use crate::bindings::wasi::{config::store, logging::logging};
use crate::context::{Context, Delivery, Level, Position};
use crate::draft::Draft;
use crate::event::{Event, Timestamp};
use crate::payload::Raw;
use crate::{Disposition, Error, Function, Result};

#[derive(Debug)]
pub(crate) struct Host;

impl Host {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(clock::now())
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        state::get(key).map_err(from_node)
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
        state::get_many(keys).map_err(from_node)
    }

    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        state::list(prefix, after, limit).map_err(from_node)
    }

    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) -> Result {
        state::set(key, &value).map_err(from_node)
    }

    pub(crate) fn set_with_ttl(&mut self, key: &str, value: Vec<u8>, ttl: Duration) -> Result {
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        state::set_with_ttl(key, &value, ttl).map_err(from_node)
    }

    pub(crate) fn delete(&mut self, key: &str) -> Result {
        state::delete(key).map_err(from_node)
    }

    pub(crate) fn emit(&mut self, draft: Draft) -> Result {
        events::emit(&to_draft(draft)).map_err(from_node)
    }

    pub(crate) fn emit_at(&mut self, name: &str, time: Timestamp, draft: Draft) -> Result {
        events::emit_at(name, time.0, &to_draft(draft)).map_err(from_node)
    }

    pub(crate) fn cancel(&mut self, name: &str) -> Result {
        events::cancel(name).map_err(from_node)
    }

    pub(crate) fn reply(&mut self, content_type: Option<&str>, data: Vec<u8>) -> Result {
        events::reply(content_type, &data).map_err(from_node)
    }

    pub(crate) fn reply_error(&mut self, code: &str, message: &str) -> Result {
        events::reply_error(code, message).map_err(from_node)
    }

    pub(crate) fn log(&mut self, level: Level, context: &str, message: &str) {
        let level = match level {
            Level::Trace => logging::Level::Trace,
            Level::Debug => logging::Level::Debug,
            Level::Info => logging::Level::Info,
            Level::Warn => logging::Level::Warn,
            Level::Error => logging::Level::Error,
            Level::Critical => logging::Level::Critical,
        };
        logging::log(level, context, message);
    }

    pub(crate) fn config(&self, name: &str) -> Result<Option<String>> {
        store::get(name).map_err(|error| {
            let (store::Error::Upstream(text) | store::Error::Io(text)) = error;
            Error::retry("config-unavailable", text)
        })
    }
}

fn from_node(error: types::Error) -> Error {
    Error {
        disposition: match error.disposition {
            types::Disposition::Retry => Disposition::Retry,
            types::Disposition::RetryAfter(ms) => {
                Disposition::RetryAfter(Duration::from_millis(ms))
            }
            types::Disposition::Defer => Disposition::Defer,
            types::Disposition::Reject => Disposition::Reject,
        },
        code: error.code,
        message: error.message,
    }
}

fn to_node(error: Error) -> types::Error {
    types::Error {
        disposition: match error.disposition {
            Disposition::Retry => types::Disposition::Retry,
            Disposition::RetryAfter(delay) => {
                let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                types::Disposition::RetryAfter(ms)
            }
            Disposition::Defer => types::Disposition::Defer,
            Disposition::Reject => types::Disposition::Reject,
        },
        code: error.code,
        message: error.message,
    }
}

fn to_draft(draft: Draft) -> events::Draft {
    events::Draft {
        subject: draft.subject,
        id: draft.id,
        source: draft.source,
        type_: draft.ty,
        time: draft.time.map(|time| time.0),
        datacontenttype: draft.content_type,
        attributes: draft.attributes,
        data: draft.data,
    }
}

fn to_event(event: types::Event, subject: String) -> Event<Raw> {
    let mut attributes = event.extensions;
    let named = [("subject", event.subject), ("dataschema", event.dataschema)];
    for (name, value) in named {
        attributes.extend(value.map(|value| (name.to_owned(), value)));
    }
    Event {
        id: event.id,
        source: event.source,
        ty: event.type_,
        time: Timestamp(event.time),
        subject,
        content_type: event.datacontenttype,
        attributes,
        data: Raw(event.data),
    }
}

impl<F: Function> Guest for F {
    fn handle(delivery: types::Delivery) -> std::result::Result<(), types::Error> {
        std::panic::set_hook(Box::new(log_panic));
        enter("", "");
        let event = to_event(delivery.event, delivery.subject);
        let mut ctx = Context::new(Delivery {
            position: delivery.position.map(|position| Position {
                stream: position.stream,
                sequence: position.sequence,
            }),
            key: delivery.key,
            headers: delivery.headers,
            attempt: delivery.attempt,
            max_attempts: delivery.max_attempts,
            timeout: Duration::from_millis(delivery.timeout),
            expects_reply: delivery.expects_reply,
        });
        F::handle(event, &mut ctx).map_err(to_node)
    }
}

thread_local! {
    /// The handler that runs, and where it is defined.
    static HANDLER: Cell<(&'static str, &'static str)> = const { Cell::new(("", "")) };
}

/// Notes which handler runs from here on.
pub(crate) fn enter(name: &'static str, place: &'static str) {
    HANDLER.set((name, place));
}

/// Says why, before the trap that says nothing; the node takes this line as the attempt's error message.
fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let said = info.payload_as_str().unwrap_or("panicked");
    let at = info.location();
    let (file, line) = at.map_or(("?", 0), |place| (place.file(), place.line()));
    let line = line.to_string();
    let text = crate::function::panic_text(said, (file, &line), HANDLER.get());
    logging::log(logging::Level::Critical, "panic", &text);
}
