//! Message to event: the CloudEvents 1.0 NATS protocol binding, and plain messages.
//!
//! What producers get wrong in ways that cannot be mistaken is taken as meant (an unencoded value, a header name
//! in capitals); what leaves a doubt about which event this is makes the message malformed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{Event, Headers, Message, structured, timestamp};

/// Prefix of headers that are attributes.
pub(super) const PREFIX: &str = "ce-";

/// [`UNREADABLE_HEADER`](crate::names::UNREADABLE_HEADER) in lower case.
const UNREADABLE: &str = "pelton-unreadable";

/// Headers that decide what a message is and whom it is for, in lower case. A message in which one
/// of them has two values is malformed.
const DECIDING: [&str; 3] = ["content-type", "nats-msg-id", "pelton-only"];

/// A message, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The event.
    pub event: Event,
    /// Headers that are no attributes (no `ce-*`): by name, values of one name in the order of the
    /// message, names in lower case.
    pub headers: Headers,
}

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EventError(pub String);

/// Decodes a message: structured mode, then binary mode, then plain.
///
/// # Errors
/// Malformed CloudEvents; a plain message is always an event.
pub fn decode(message: &Message) -> Result<Decoded, EventError> {
    let (attributes, headers) = split(&message.headers);
    if let Some(why) = header(&headers, UNREADABLE) {
        return Err(EventError(why.to_owned()));
    }
    unambiguous(&headers, &DECIDING)?;
    let event = match content_mode(&headers, &attributes)? {
        Mode::Structured => structured::event(&message.payload, message.stored)?,
        Mode::Binary => binary(message, attributes, &headers)?,
        Mode::Plain => plain(message, &headers),
    };
    let event = with_trace(event, &headers);
    Ok(Decoded { event, headers })
}

/// Refuses two values under one of these (lower-case) names, however each is spelled.
///
/// # Errors
/// Names the header and two of its values.
pub(crate) fn unambiguous(headers: &Headers, names: &[&str]) -> Result<(), EventError> {
    for wanted in names {
        let mut values = headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
            .filter(|value| !value.is_empty());
        let Some(first) = values.next() else { continue };
        if let Some(other) = values.find(|value| *value != first) {
            let (first, other) = (shown(first), shown(other));
            return Err(EventError(format!(
                "header `{wanted}` comes twice: {first} and {other}; send it once"
            )));
        }
    }
    Ok(())
}

enum Mode {
    Structured,
    Binary,
    Plain,
}

/// Attributes without their prefix and still encoded, and the other headers; names in lower case.
fn split(headers: &Headers) -> (Headers, Headers) {
    let mut attributes = Vec::new();
    let mut others = Vec::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix(PREFIX) {
            Some(attribute) => attributes.push((attribute.to_owned(), value.clone())),
            None => others.push((name, value.clone())),
        }
    }
    (attributes, others)
}

fn content_mode(headers: &Headers, attributes: &Headers) -> Result<Mode, EventError> {
    let essence = media_type(content_type(headers).unwrap_or_default());
    match essence.as_str() {
        "application/cloudevents" | "application/cloudevents+json" => return Ok(Mode::Structured),
        // A batch is several events in one message: one of them failing would have no verdict of its own.
        batch if batch.starts_with("application/cloudevents-batch") => {
            return Err(EventError(format!(
                "content type `{batch}`: a message holds one event, not a batch; publish each event as a message"
            )));
        }
        format if format.starts_with("application/cloudevents") => {
            return Err(EventError(format!(
                "content type `{format}` is not supported; use application/cloudevents+json, or binary mode with ce- headers"
            )));
        }
        _ => {}
    }
    if attributes.iter().any(|(name, _)| name == "specversion") {
        return Ok(Mode::Binary);
    }
    Ok(Mode::Plain)
}

fn content_type(headers: &Headers) -> Option<&str> {
    header(headers, "content-type")
}

/// The first header of this (lower-case) name that says something.
fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .filter(|(other, _)| other == name)
        .map(|(_, value)| value.trim())
        .find(|value| !value.is_empty())
}

/// `Type/Sub; charset=x` → `type/sub`.
pub(super) fn media_type(text: &str) -> String {
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

fn binary(message: &Message, attributes: Headers, headers: &Headers) -> Result<Event, EventError> {
    let mut found = Attributes::default();
    for (name, value) in attributes {
        let value = decode_value(&value).ok_or_else(|| {
            EventError(format!(
                "header `ce-{name}` is not UTF-8 after percent-decoding"
            ))
        })?;
        found.insert(name, value)?;
    }
    let mut event = found.into_event(message.stored)?;
    if event.datacontenttype.is_none() {
        event.datacontenttype = content_type(headers).map(str::to_owned);
    }
    event.data = message.payload.clone();
    Ok(event)
}

fn plain(message: &Message, headers: &Headers) -> Event {
    Event {
        id: header(headers, "nats-msg-id").map_or_else(
            || format!("{}:{}", message.stream, message.sequence),
            str::to_owned,
        ),
        source: message.stream.to_string(),
        ty: message.subject.clone(),
        time: message.stored,
        subject: None,
        datacontenttype: content_type(headers).map(str::to_owned),
        dataschema: None,
        extensions: BTreeMap::new(),
        data: message.payload.clone(),
    }
}

/// A trace that the event itself does not carry is taken from the W3C headers.
fn with_trace(mut event: Event, headers: &Headers) -> Event {
    if event.extensions.contains_key("traceparent") {
        return event;
    }
    // Two parents are as good as none: W3C Trace Context has the trace begin anew then.
    let only = |name| {
        unambiguous(headers, &[name])
            .ok()
            .and_then(|()| header(headers, name))
    };
    if let Some(parent) = only("traceparent") {
        event
            .extensions
            .insert("traceparent".into(), parent.to_owned());
        // The two belong together: a state of another trace would mislead.
        match only("tracestate") {
            Some(state) => event.extensions.insert("tracestate".into(), state.into()),
            None => event.extensions.remove("tracestate"),
        };
    }
    event
}

/// Undoes quoting, then one round of percent-encoding. What is no escape stays as it is: other SDKs often send
/// values as they are. None: not UTF-8.
fn decode_value(raw: &str) -> Option<String> {
    let text = unquote(raw.trim());
    percent_decode_str(&text)
        .decode_utf8()
        .ok()
        .map(Cow::into_owned)
}

/// `"a \"b\""` → `a "b"`; what is not wholly within quotes stays.
fn unquote(text: &str) -> Cow<'_, str> {
    let inner = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let Some(inner) = inner else {
        return Cow::Borrowed(text);
    };
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped) => plain.push(escaped),
                // `"a\"`: the closing quote was an escaped one, so this is no quoted string.
                None => return Cow::Borrowed(text),
            },
            // `"a" and "b"`: two strings, not one.
            '"' => return Cow::Borrowed(text),
            c => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Attributes by name, decoded; the same for both modes.
#[derive(Debug, Default)]
pub(super) struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// Takes an attribute; one that comes twice with two values is a doubt about which event this is.
    pub(super) fn insert(&mut self, name: String, value: String) -> Result<(), EventError> {
        if name.is_empty() || name == "data" {
            return Err(EventError(format!(
                "`ce-{name}` is no CloudEvents attribute"
            )));
        }
        match self.0.get(&name) {
            Some(before) if *before != value => Err(EventError(format!(
                "attribute `{name}` comes twice: {} and {}",
                shown(before),
                shown(&value)
            ))),
            Some(_) => Ok(()),
            None => {
                self.0.insert(name, value);
                Ok(())
            }
        }
    }

    /// The event without its data; `stored` is its time if it has none.
    pub(super) fn into_event(mut self, stored: i64) -> Result<Event, EventError> {
        let version = self.required("specversion")?;
        if version != "1.0" {
            return Err(EventError(format!(
                "CloudEvents specversion {} is not supported, only 1.0",
                shown(&version)
            )));
        }
        Ok(Event {
            id: self.required("id")?,
            source: self.required("source")?,
            ty: self.required("type")?,
            time: match self.0.remove("time") {
                None => stored,
                Some(text) => timestamp::parse(&text).ok_or_else(|| {
                    EventError(format!(
                        "attribute `time` is {}, not an RFC 3339 time between 1677 and 2262",
                        shown(&text)
                    ))
                })?,
            },
            subject: self.optional("subject"),
            datacontenttype: self.optional("datacontenttype"),
            dataschema: self.optional("dataschema"),
            extensions: self.0,
            data: Bytes::new(),
        })
    }

    fn required(&mut self, name: &str) -> Result<String, EventError> {
        match self.0.remove(name) {
            Some(value) if !value.is_empty() => Ok(value),
            Some(_) => Err(EventError(format!("attribute `{name}` is empty"))),
            None => Err(EventError(format!("attribute `{name}` is missing"))),
        }
    }

    fn optional(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }
}

/// A value for an error message: quoted, and not longer than a line.
pub(super) fn shown(value: &str) -> String {
    let mut cut: String = value.chars().take(80).collect();
    if cut.len() < value.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
