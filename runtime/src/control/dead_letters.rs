//! Deliveries that were given up on: listed, shown whole, and put back.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self};
use async_nats::{HeaderMap, HeaderName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

pub use super::replay::{Replayed, replay};
use super::scan::{Scan, scan};
use super::{ControlError, open};
use crate::event::Headers;
use crate::names::AppNames;
use crate::records::AttemptError;

/// Most dead letters that one listing holds.
pub const MAX_LISTED: usize = 10_000;

/// A delivery that was given up on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeadLetter {
    /// Its sequence among the app's dead letters: what `show` and `replay` take.
    pub sequence: u64,
    /// The app's name.
    pub app: String,
    /// The function that gave up.
    pub function: String,
    /// The version that did.
    pub version: u64,
    /// Stable code of the cause.
    pub code: String,
    /// The cause, for a person.
    pub reason: String,
    /// When it was given up on, RFC 3339.
    pub at: String,
    /// Every attempt that failed, oldest first.
    pub attempts: Vec<AttemptError>,
    /// The event's id.
    pub event_id: String,
    /// The subject it came on.
    pub subject: String,
    /// The stream it came from.
    pub stream: String,
    /// Its sequence there.
    pub stream_sequence: u64,
    /// When it was stored there, RFC 3339.
    pub stored_at: String,
    /// Id of the transaction that the delivery would have been.
    pub txn: String,
    /// The original headers.
    pub headers: Headers,
    /// Messages that hold the original headers and body beside the letter; 0: it holds them itself.
    pub parts: u32,
}

impl DeadLetter {
    /// An original header.
    pub(super) fn header(&self, wanted: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        let found = all.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }
}

/// A dead letter with its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WholeDeadLetter {
    /// What is known of it.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// The original body as text; none: it is no UTF-8.
    pub body: Option<String>,
    /// The original body in Base64, when it is no UTF-8.
    pub body_base64: Option<String>,
}

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of one function.
    pub function: Option<String>,
    /// With this code.
    pub code: Option<String>,
}

/// The latest `limit` dead letters that match, oldest first.
///
/// # Errors
/// NATS trouble. An app without a stream of dead letters has none.
pub async fn list(
    js: &jetstream::Context,
    app: &str,
    filter: &Filter,
    limit: usize,
) -> Result<Vec<DeadLetter>, ControlError> {
    let names = AppNames::new(app);
    let Some(stream) = open(js, &names.dead_stream()).await? else {
        return Ok(Vec::new());
    };
    let subject = filter.function.as_deref().map_or_else(
        || names.dead_subject("*"),
        |function| names.dead_subject(function),
    );
    let letters = Scan {
        filters: vec![subject],
        from: DeliverPolicy::All,
        headers_only: true,
    };
    let limit = limit.clamp(1, MAX_LISTED);
    let mut latest = VecDeque::new();
    scan(js, &stream, letters, |message| {
        let sequence = message.info().map(|info| info.stream_sequence).unwrap_or(0);
        let empty = HeaderMap::new();
        let letter = parse(sequence, message.headers.as_ref().unwrap_or(&empty));
        if filter.code.as_ref().is_none_or(|code| *code == letter.code) {
            if latest.len() == limit {
                latest.pop_front();
            }
            latest.push_back(letter);
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(latest.into())
}

/// One dead letter with its body.
///
/// # Errors
/// There is none at that sequence; NATS trouble.
pub async fn show(
    js: &jetstream::Context,
    app: &str,
    sequence: u64,
) -> Result<WholeDeadLetter, ControlError> {
    let stream = stream(js, app).await?;
    let (letter, body) = read(&stream, sequence).await?;
    let text = std::str::from_utf8(&body).ok();
    Ok(WholeDeadLetter {
        body: text.map(str::to_owned),
        body_base64: text.is_none().then(|| STANDARD.encode(&body)),
        letter,
    })
}

/// A dead letter that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Removed {
    /// Its sequence.
    pub sequence: u64,
    /// The function that gave the event up.
    pub function: String,
    /// The event's subject.
    pub subject: String,
    /// Stable code of the cause.
    pub code: String,
}

/// Removes a dead letter for good; its event stays in the stream it came from as long as that keeps
/// it.
///
/// # Errors
/// There is none at that sequence; NATS trouble.
pub async fn remove(js: &jetstream::Context, letter: &DeadLetter) -> Result<Removed, ControlError> {
    let letters = stream(js, &letter.app).await?;
    delete(&letters, letter).await?;
    Ok(Removed {
        sequence: letter.sequence,
        function: letter.function.clone(),
        subject: letter.subject.clone(),
        code: letter.code.clone(),
    })
}

/// Deletes a letter, then the parts of an event that did not fit into it: a letter without its
/// parts could not be read.
pub(super) async fn delete(letters: &Stream, letter: &DeadLetter) -> Result<(), ControlError> {
    let sequence = letter.sequence;
    letters
        .delete_message(sequence)
        .await
        .map_err(|error| ControlError::nats(format!("delete dead letter {sequence}"), error))?;
    if letter.parts > 0 {
        let parts = AppNames::new(letter.app.as_str()).dead_parts(&letter.txn);
        letters.purge().filter(parts).await.map_err(|error| {
            ControlError::nats(format!("delete the parts of dead letter {sequence}"), error)
        })?;
    }
    Ok(())
}

/// One dead letter without its body; `None`: it does not match.
///
/// # Errors
/// There is none at that sequence; NATS trouble.
pub async fn find(
    js: &jetstream::Context,
    app: &str,
    filter: &Filter,
    sequence: u64,
) -> Result<Option<DeadLetter>, ControlError> {
    let stream = stream(js, app).await?;
    let message = raw(&stream, sequence).await?;
    let letter = parse(sequence, &message.headers);
    let names = AppNames::new(app);
    let is_letter = message.subject.as_str() == names.dead_subject(&letter.function);
    let function = filter.function.as_ref();
    let matches = is_letter
        && function.is_none_or(|function| *function == letter.function)
        && filter.code.as_ref().is_none_or(|code| *code == letter.code);
    Ok(matches.then_some(letter))
}

/// The app's stream of dead letters.
pub(super) async fn stream(js: &jetstream::Context, app: &str) -> Result<Stream, ControlError> {
    let name = AppNames::new(app).dead_stream();
    open(js, &name).await?.ok_or_else(|| {
        ControlError::not_found(
            format!("app {app} has no dead letters: there is no stream {name}"),
            "run `pelton deploy` first, or give the right app with --app NAME",
        )
    })
}

async fn raw(stream: &Stream, sequence: u64) -> Result<StreamMessage, ControlError> {
    stream.get_raw_message(sequence).await.map_err(|error| {
        ControlError::not_found(
            format!("there is no dead letter {sequence}: {error}"),
            "see what there is with `pelton dead-letter ls`",
        )
    })
}

/// A dead letter and its body.
pub(super) async fn read(
    stream: &Stream,
    sequence: u64,
) -> Result<(DeadLetter, Bytes), ControlError> {
    let message = raw(stream, sequence).await?;
    let mut letter = parse(sequence, &message.headers);
    if letter.parts == 0 {
        return Ok((letter, message.payload));
    }
    let names = AppNames::new(letter.app.as_str());
    let mut original = Vec::new();
    for n in 0..letter.parts as usize {
        let subject = names.dead_part(&letter.txn, n);
        let part = stream
            .get_last_raw_message_by_subject(&subject)
            .await
            .map_err(|error| {
                ControlError::not_found(
                    format!(
                        "part {n} of dead letter {sequence} ({subject}) cannot be read: {error}"
                    ),
                    "if it was deleted, publish the event again from its source",
                )
            })?;
        original.extend_from_slice(&part.payload);
    }
    let length = text(&message.headers, "Pelton-Headers-Length");
    let body = original.split_off(length.parse().unwrap_or(0).min(original.len()));
    letter.headers = serde_json::from_slice(&original).unwrap_or_default();
    Ok((letter, body.into()))
}

/// A header's value; empty: it is missing.
fn text(headers: &HeaderMap, name: &str) -> String {
    let name = name.parse::<HeaderName>().ok();
    let value = name.and_then(|name| headers.get(name));
    value
        .map(|value| value.as_str().to_owned())
        .unwrap_or_default()
}

/// Reads the headers; what is missing is empty, since a letter that cannot be read whole must still be seen.
fn parse(sequence: u64, headers: &HeaderMap) -> DeadLetter {
    let text = |name: &str| text(headers, name);
    DeadLetter {
        sequence,
        app: text("Pelton-App"),
        function: text("Pelton-Function"),
        version: text("Pelton-Version").parse().unwrap_or(0),
        code: text("Pelton-Code"),
        reason: text("Pelton-Reason"),
        at: text("Pelton-Time"),
        attempts: serde_json::from_str(&text("Pelton-Attempts")).unwrap_or_default(),
        event_id: text("Pelton-Event-Id"),
        subject: text("Pelton-Subject"),
        stream: text("Pelton-Stream"),
        stream_sequence: text("Pelton-Sequence").parse().unwrap_or(0),
        stored_at: text("Pelton-Stored"),
        txn: text("Pelton-Txn"),
        headers: serde_json::from_str(&text("Pelton-Headers")).unwrap_or_default(),
        parts: text("Pelton-Parts").parse().unwrap_or(0),
    }
}
