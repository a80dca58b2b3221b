//! Structured mode: the event as one JSON object (the CloudEvents JSON event format).
//!
//! `data` is handed on byte for byte. Parsing it into a tree and writing it again would lose digits of long
//! numbers, so only the extents of the top-level members are looked for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::decode::{Attributes, media_type, shown};
use super::{Event, EventError};

/// Reads an event; `stored` is its time if it has none.
pub(super) fn event(payload: &Bytes, stored: i64) -> Result<Event, EventError> {
    let mut attributes = Attributes::default();
    let mut data = None;
    let mut base64 = None;
    for (name, value) in members(payload)? {
        match name.as_str() {
            "data" => once(&mut data, &name, value)?,
            "data_base64" => once(&mut base64, &name, value)?,
            _ => {
                if let Some(value) = attribute(&name, &value)? {
                    attributes.insert(name, value)?;
                }
            }
        }
    }
    let mut event = attributes.into_event(stored)?;
    event.data = match (data, base64) {
        (Some(_), Some(_)) => return Err(error("has both `data` and `data_base64`")),
        (Some(json), None) => json_data(json, event.datacontenttype.as_deref())?,
        (None, Some(text)) => base64_data(&text)?,
        (None, None) => Bytes::new(),
    };
    Ok(event)
}

fn error(what: impl std::fmt::Display) -> EventError {
    EventError(format!("structured event {what}"))
}

fn once(slot: &mut Option<Bytes>, name: &str, value: Bytes) -> Result<(), EventError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(error(format_args!("has `{name}` twice"))),
    }
}

/// Top-level members with the extent of each value.
fn members(payload: &Bytes) -> Result<Vec<(String, Bytes)>, EventError> {
    // One pass over the whole first: from here on the text is known to be one JSON value.
    let text = std::str::from_utf8(payload).map_err(|_| error("is not UTF-8"))?;
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|why| error(format_args!("is not JSON: {why}")))?;
    let not_object = || error("is not a JSON object");

    let mut at = skip(payload, 0, b'{').ok_or_else(not_object)?;
    let mut found = Vec::new();
    if skip(payload, at, b'}').is_some() {
        return Ok(found);
    }
    loop {
        let (name, end) = value_at::<String>(payload, at).ok_or_else(not_object)?;
        let start = skip(payload, end, b':').ok_or_else(not_object)?;
        let (_, end) = value_at::<IgnoredAny>(payload, start).ok_or_else(not_object)?;
        found.push((name, payload.slice(start..end)));
        match skip(payload, end, b',') {
            Some(next) => at = next,
            None => return Ok(found),
        }
    }
}

/// Behind `wanted`, if that is the next byte but white space.
fn skip(json: &[u8], at: usize, wanted: u8) -> Option<usize> {
    let rest = json.get(at..)?;
    let blank = rest.iter().take_while(|b| b" \t\r\n".contains(b)).count();
    (rest.get(blank) == Some(&wanted)).then_some(at + blank + 1)
}

/// The value that begins here and where it ends.
fn value_at<T: DeserializeOwned>(json: &[u8], at: usize) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(json.get(at..)?).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, at + values.byte_offset()))
}

/// An attribute's canonical string; none for null, which means unset.
fn attribute(name: &str, json: &[u8]) -> Result<Option<String>, EventError> {
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(error(format_args!(
            "has the attribute {}; names are lower case",
            shown(name)
        )));
    }
    let core = matches!(
        name,
        "specversion"
            | "id"
            | "source"
            | "type"
            | "time"
            | "subject"
            | "datacontenttype"
            | "dataschema"
    );
    match serde_json::from_slice(json) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::String(text)) => Ok(Some(text)),
        Ok(Value::Bool(value)) if !core => Ok(Some(value.to_string())),
        // The digits as they were sent: 64 bits would not hold them all.
        Ok(Value::Number(_)) if !core => Ok(Some(
            String::from_utf8_lossy(json.trim_ascii()).into_owned(),
        )),
        Ok(_) if core => Err(error(format_args!("has `{name}` that is no string"))),
        _ => Err(error(format_args!(
            "has `{name}` that is neither string, number nor boolean"
        ))),
    }
}

/// `data` is JSON, unless the content type says otherwise and it is a string: then it is that text.
fn json_data(json: Bytes, content_type: Option<&str>) -> Result<Bytes, EventError> {
    let json = trimmed(&json);
    if json.as_ref() == b"null" {
        return Ok(Bytes::new());
    }
    if content_type.is_none_or(is_json) || !json.starts_with(b"\"") {
        return Ok(json);
    }
    let text: String = serde_json::from_slice(&json)
        .map_err(|why| error(format_args!("has bad `data`: {why}")))?;
    Ok(Bytes::from(text))
}

/// Without the white space around the value.
fn trimmed(json: &Bytes) -> Bytes {
    json.slice_ref(json.trim_ascii())
}

fn is_json(content_type: &str) -> bool {
    let essence = media_type(content_type);
    essence.ends_with("/json") || essence.ends_with("+json")
}

fn base64_data(json: &Bytes) -> Result<Bytes, EventError> {
    let text: Option<String> =
        serde_json::from_slice(json).map_err(|_| error("has a `data_base64` that is no string"))?;
    STANDARD
        .decode(text.unwrap_or_default())
        .map(Bytes::from)
        .map_err(|why| {
            error(format_args!(
                "has a `data_base64` that is not base64: {why}"
            ))
        })
}
