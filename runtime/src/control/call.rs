//! Calling a function and waiting for its reply, as any NATS client may.

use std::time::{Duration, Instant};

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use async_nats::{Client, HeaderMap, Message, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::publish::header_map;
use super::{ControlError, functions};
use crate::event::Headers;
use crate::names::{
    AppNames, CODE_HEADER, DEADLINE_HEADER, DUE_SUBJECT_HEADER, ID_HEADER, TIMEOUT_HEADER,
};
use crate::nats;

/// By so much clocks may differ.
const CLOCKS: Duration = Duration::from_secs(1);
/// How long a reply that left in time may be on its way.
const GRACE: Duration = Duration::from_millis(250);
/// A call whose node died, or left with it on the way, is asked again after this, then after twice this, and so on.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// How a function is called.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// Which of its handlers; none: the only one, if it has no wildcard.
    pub subject: Option<String>,
    /// What makes the same call twice one call; none: a new one.
    pub id: Option<String>,
    /// Further headers; CloudEvents attributes among them.
    pub headers: Headers,
    /// How long to wait for the reply; a call that has not begun by then is not done.
    pub timeout: Duration,
}

/// What a function replied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Called {
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// The call's id: with it, the same call again gets the same reply.
    pub id: String,
    /// Media type of the reply; none when it is empty.
    pub content_type: Option<String>,
    /// The reply, when it is JSON or other UTF-8 text.
    pub reply: Option<serde_json::Value>,
    /// The reply in Base64, when it is not.
    pub reply_base64: Option<String>,
    /// The reply byte for byte.
    #[serde(skip)]
    pub data: Bytes,
}

/// Calls a function and waits for its reply, which leaves when the call has committed.
///
/// # Errors
/// No node serves the function; the call was refused or given up on, with the function's code; no reply in time; NATS
/// trouble.
pub async fn call(
    client: &Client,
    app: &str,
    function: &str,
    mut options: CallOptions,
    body: Bytes,
) -> Result<Called, ControlError> {
    let timeout = options.timeout;
    let id = options
        .id
        .get_or_insert_with(|| Uuid::now_v7().to_string())
        .clone();
    let subject = AppNames::new(app).call(function);
    let answer = match ask(client, &subject, options, body).await? {
        Ok(answer) => answer,
        Err(error) => {
            return Err(match error.kind() {
                RequestErrorKind::NoResponders => nobody(client, app, function).await,
                RequestErrorKind::TimedOut => ControlError::new(
                    super::ErrorKind::Nats,
                    format!(
                        "function {function} did not reply within {timeout:?}; the call may have been handled, or may still be"
                    ),
                    format!(
                        "call again with --id {id}, which does it once and gets its reply; wait longer with --timeout"
                    ),
                ),
                RequestErrorKind::MaxPayloadExceeded => ControlError::refused(
                    format!("the call is too large: {error}"),
                    "put large data into the object store and call with a reference",
                ),
                _ => ControlError::nats(format!("call {subject}"), error),
            });
        }
    };
    if let Some(error) = refusal(function, &id, &answer) {
        return Err(error);
    }
    let header = |name: &str| {
        let value = answer.headers.as_ref()?.get(name)?;
        Some(value.as_str().to_owned())
    };
    let content_type = header("Content-Type");
    let data = answer.payload;
    let reply = serde_json::from_slice(&data).ok();
    let reply = reply.or_else(|| Some(std::str::from_utf8(&data).ok()?.into()));
    let reply_base64 = reply.is_none().then(|| STANDARD.encode(&data));
    Ok(Called {
        app: app.to_owned(),
        function: function.to_owned(),
        id,
        content_type,
        reply,
        reply_base64,
        data,
    })
}

/// Asks until there is an answer or the time is over; by its id it is one call.
async fn ask(
    client: &Client,
    subject: &str,
    mut options: CallOptions,
    body: Bytes,
) -> Result<Result<Message, RequestError>, ControlError> {
    let end = Instant::now() + options.timeout;
    let mut pause = ASK_AGAIN;
    loop {
        let last = options.timeout <= pause;
        let wait = match last {
            true => options.timeout + GRACE,
            false => pause,
        };
        let request = Request::new()
            .headers(headers(options.clone())?)
            .payload(body.clone())
            .timeout(Some(wait));
        match client.send_request(subject.to_owned(), request).await {
            Err(error) if error.kind() == RequestErrorKind::TimedOut && !last => {}
            answer => return Ok(answer),
        }
        pause *= 2;
        let left = end.saturating_duration_since(Instant::now());
        options.timeout = left.max(Duration::from_millis(1));
    }
}

fn headers(options: CallOptions) -> Result<HeaderMap, ControlError> {
    let timeout = humantime::format_duration(options.timeout).to_string();
    // What lies before a node that sleeps is not begun when it wakes up.
    let until = time::OffsetDateTime::now_utc() + options.timeout + CLOCKS;
    let until = until.unix_timestamp_nanos() / 1_000_000;
    let own = [
        (DEADLINE_HEADER, Some(until.to_string())),
        (DUE_SUBJECT_HEADER, options.subject),
        (ID_HEADER, options.id),
        (TIMEOUT_HEADER, Some(timeout)),
    ];
    let own = own
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    header_map(&own.chain(options.headers).collect())
}

/// What a reply says that is an error by the micro service protocol.
fn refusal(function: &str, id: &str, answer: &Message) -> Option<ControlError> {
    let headers = answer.headers.as_ref()?;
    let text = |name: &str| headers.get(name).map(|value| value.as_str());
    let message = text(NATS_SERVICE_ERROR)?;
    let status = text(NATS_SERVICE_ERROR_CODE).unwrap_or_default();
    let code = text(CODE_HEADER).unwrap_or(status);
    let what = format!("function {function}: {code}: {message}");
    Some(match status {
        "400" | "413" => ControlError::refused(what, "call it as the message says"),
        "422" => ControlError::refused(
            what,
            "the handler says why; if it rejected the call, nothing was changed and `pelton dead-letter ls` has it",
        ),
        "500" => ControlError::refused(
            what,
            "nothing was changed; look at the attempts with `pelton dead-letter show` and at `pelton logs`",
        ),
        _ => ControlError::new(
            super::ErrorKind::Nats,
            what,
            format!("try again with --id {id}: so it is done once"),
        ),
    })
}

/// Why nobody answers to the function's subject.
async fn nobody(client: &Client, app: &str, function: &str) -> ControlError {
    let js = nats::jetstream(client);
    match functions::info(&js, app, function).await {
        Err(error) => error,
        Ok(info) => ControlError::not_found(
            format!(
                "no node answers for function {function} of app {app} (status: {})",
                info.status.summary()
            ),
            match info.record.controls.paused {
                Some(_) => format!("`pelton function resume {function}` has it take calls again"),
                None => "start one with `pelton run`, or see with `pelton function info` why it does not serve the function".to_owned(),
            },
        ),
    }
}
