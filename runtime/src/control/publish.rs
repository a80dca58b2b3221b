//! Publishing events as any NATS client would, with the answer of the stream that stored them.

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::{self};
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::{ControlError, ErrorKind};
use crate::event::{Draft, DraftDefaults, Headers, encode, owned, subject};
use crate::names::ID_HEADER;

/// Longest subject that can be published, bytes: the server takes 4096 on a line, and the subject
/// of the answer stands there, too.
const MAX_LINE: usize = 3900;

/// CloudEvents attributes that a publisher may set; any of them makes the message a CloudEvent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// What happened; none: the subject.
    pub ty: Option<String>,
    /// Unique per source; none: a new one. It is the message's `Nats-Msg-Id`, too, by which the
    /// stream drops a repetition.
    pub id: Option<String>,
    /// The producer; none: `/pelton/publish`.
    pub source: Option<String>,
}

impl Attributes {
    /// Headers of a CloudEvent in binary mode, and its `Nats-Msg-Id`; none when no attribute is
    /// set.
    ///
    /// # Errors
    /// An attribute that is malformed.
    pub fn headers(&self, subject: &str) -> Result<Headers, ControlError> {
        if *self == Self::default() {
            return Ok(Headers::new());
        }
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
        let draft = Draft {
            subject: subject.to_owned(),
            id: self.id.clone(),
            source: self.source.clone(),
            ty: self.ty.clone(),
            time: None,
            datacontenttype: None,
            attributes: Vec::new(),
            data: Bytes::new(),
        };
        let defaults = DraftDefaults {
            id: Uuid::now_v7().to_string(),
            source: "/pelton/publish".into(),
            time: i64::try_from(now).unwrap_or(i64::MAX),
            trace: Vec::new(),
        };
        let outgoing = encode(draft, defaults).map_err(|why| {
            ControlError::refused(why, "give other --type, --id and --source values")
        })?;
        let id = self.id.iter();
        let id = id.map(|id| (ID_HEADER.to_owned(), id.clone()));
        Ok(owned(outgoing.headers).into_iter().chain(id).collect())
    }
}

/// A message that a stream stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Published {
    /// The NATS subject.
    pub subject: String,
    /// The stream that stored it; none when no answer was asked for.
    pub stream: Option<String>,
    /// Its sequence there.
    pub sequence: Option<u64>,
    /// Whether the stream knew its `Nats-Msg-Id` already and dropped it.
    pub duplicate: bool,
}

/// Publishes and waits until a stream has stored the message.
///
/// # Errors
/// A subject that cannot be published to or that no stream covers, a message that is too large, no answer in time.
pub async fn publish(
    js: &jetstream::Context,
    subject: &str,
    headers: &Headers,
    body: Bytes,
) -> Result<Published, ControlError> {
    check_subject(subject)?;
    publish_again(js, subject, headers, body).await
}

/// As [`publish`], to a subject that a stream has taken before: it may be longer than those that a
/// function can emit to.
pub(super) async fn publish_again(
    js: &jetstream::Context,
    subject: &str,
    headers: &Headers,
    body: Bytes,
) -> Result<Published, ControlError> {
    if subject.len() > MAX_LINE {
        return Err(ControlError::refused(
            format!(
                "the event's subject has {} bytes, and {MAX_LINE} can be published with an answer",
                subject.len()
            ),
            "publish the event again from its source",
        ));
    }
    let headers = header_map(headers)?;
    let failed = |error: jetstream::context::PublishError| match error.kind() {
        PublishErrorKind::StreamNotFound => ControlError::not_found(
            format!("no stream covers subject {subject}: nothing was stored"),
            "declare a stream with this subject in pelton.toml and run `pelton deploy`, or send it to \
             whoever listens now with --no-ack",
        ),
        PublishErrorKind::MaxPayloadExceeded => ControlError::refused(
            format!("the message to {subject} is too large: {error}"),
            "store large data elsewhere and publish where it is, or raise the server's max_payload",
        ),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => ControlError::new(
            ErrorKind::Nats,
            format!("no stream confirmed the event on {subject} in time: it may have been stored"),
            "look for it before you publish it again, or publish with -H 'Nats-Msg-Id: ID': the same id is stored once within the \
             stream's duplicate window; wait longer with --timeout",
        ),
        _ => ControlError::nats(format!("publish to {subject}"), error),
    };
    let ack = js
        .publish_with_headers(subject.to_owned(), headers, body)
        .await
        .map_err(failed)?
        .await
        .map_err(failed)?;
    Ok(Published {
        subject: subject.to_owned(),
        stream: Some(ack.stream),
        sequence: Some(ack.sequence),
        duplicate: ack.duplicate,
    })
}

/// Publishes to whoever listens now; whether a stream stores it is not known.
///
/// # Errors
/// A subject that cannot be published to; NATS trouble.
pub async fn publish_unacknowledged(
    client: &Client,
    subject: &str,
    headers: &Headers,
    body: Bytes,
) -> Result<Published, ControlError> {
    check_subject(subject)?;
    client
        .publish_with_headers(subject.to_owned(), header_map(headers)?, body)
        .await
        .map_err(|error| ControlError::nats(format!("publish to {subject}"), error))?;
    Ok(Published {
        subject: subject.to_owned(),
        stream: None,
        sequence: None,
        duplicate: false,
    })
}

fn check_subject(text: &str) -> Result<(), ControlError> {
    if subject::is_subject(text) {
        return Ok(());
    }
    Err(ControlError::refused(
        format!("{text:?} is no subject that can be published to"),
        "name tokens separated by single dots, without blanks and without the wildcards * and >",
    ))
}

/// Headers as the client takes them; order among equal names is kept.
pub(super) fn header_map(headers: &Headers) -> Result<HeaderMap, ControlError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed: Result<(HeaderName, HeaderValue), String> = name
            .parse::<HeaderName>()
            .map_err(|error| error.to_string())
            .and_then(|name| {
                let value = value.parse::<HeaderValue>();
                value
                    .map(|value| (name, value))
                    .map_err(|error| error.to_string())
            });
        let (name, value) = parsed.map_err(|why| {
            ControlError::refused(
                format!("header {name:?} is malformed: {why}"),
                "a header is NAME:VALUE on one line",
            )
        })?;
        map.append(name, value);
    }
    Ok(map)
}
