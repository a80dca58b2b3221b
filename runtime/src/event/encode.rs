//! Draft to message: binary mode, values percent-encoded as the binding says.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::decode::{PREFIX, media_type, shown};
use super::{Event, OutHeaders, subject, timestamp};

/// What the binding encodes, beside everything that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
/// Longest extension name.
const MAX_NAME: usize = 20;
/// W3C trace context, which consumers that know no CloudEvents read under these very names.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// An event to be, as the contract's `draft`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The NATS subject to publish to.
    pub subject: String,
    /// None: made from the transaction and this draft's number.
    pub id: Option<String>,
    /// None: `/<app>/<function>`.
    pub source: Option<String>,
    /// None: the NATS subject.
    pub ty: Option<String>,
    /// None: now. Nanoseconds since 1970.
    pub time: Option<i64>,
    /// None: `application/json`.
    pub datacontenttype: Option<String>,
    /// `subject`, `dataschema` and extensions.
    pub attributes: Vec<(String, String)>,
    /// The data.
    pub data: Bytes,
}

/// What fills a draft's gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftDefaults {
    /// `<txn>.<n>`.
    pub id: String,
    /// `/<app>/<function>`.
    pub source: String,
    /// Now, nanoseconds since 1970.
    pub time: i64,
    /// Trace context to pass on: `traceparent`, `tracestate`.
    pub trace: Vec<(String, String)>,
}

/// A message ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The NATS subject.
    pub subject: String,
    /// `ce-*` headers, `content-type`, and the trace context under its own names.
    pub headers: OutHeaders,
    /// The data.
    pub payload: Bytes,
}

/// Completes and encodes a draft.
///
/// # Errors
/// What is malformed: subject with a wildcard or an empty token, attribute name or value, content type.
pub fn encode(draft: Draft, defaults: DraftDefaults) -> Result<Outgoing, String> {
    if !subject::is_subject(&draft.subject) {
        return Err(format!(
            "subject {} cannot be published to: it needs tokens between dots, none of them empty or a wildcard, without spaces",
            shown(&draft.subject)
        ));
    }
    let mut extensions = attributes(draft.attributes)?;
    let event = Event {
        id: text("id", draft.id.unwrap_or(defaults.id))?,
        source: text("source", draft.source.unwrap_or(defaults.source))?,
        ty: text("type", draft.ty.unwrap_or_else(|| draft.subject.clone()))?,
        time: draft.time.unwrap_or(defaults.time),
        subject: taken(&mut extensions, "subject")?,
        datacontenttype: Some(content_type(draft.datacontenttype)?),
        dataschema: taken(&mut extensions, "dataschema")?,
        extensions: with_trace(extensions, defaults.trace),
        data: draft.data,
    };
    let mut headers = attribute_headers(&event);
    headers.extend(plain_headers(&event));
    Ok(Outgoing {
        subject: draft.subject,
        headers,
        payload: event.data,
    })
}

/// An event's attributes as `ce-*` headers, percent-encoded: what makes a plain message keep its identity when it is
/// published again.
pub fn attribute_headers(event: &Event) -> OutHeaders {
    let time = timestamp::format(event.time);
    let fixed = [
        ("ce-specversion", Some("1.0")),
        ("ce-id", Some(event.id.as_str())),
        ("ce-source", Some(event.source.as_str())),
        ("ce-type", Some(event.ty.as_str())),
        ("ce-time", Some(time.as_str())),
        ("ce-subject", event.subject.as_deref()),
        ("ce-dataschema", event.dataschema.as_deref()),
        ("ce-datacontenttype", event.datacontenttype.as_deref()),
    ];
    let fixed = fixed
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), encode_value(value?))));
    let extensions = event.extensions.iter();
    let extensions =
        extensions.map(|(name, value)| (format!("{PREFIX}{name}").into(), encode_value(value)));
    fixed.chain(extensions).collect()
}

/// The same for readers that do not look at `ce-*`.
fn plain_headers(event: &Event) -> OutHeaders {
    // Data that is itself a structured event must not make this message one.
    let content_type = event
        .datacontenttype
        .iter()
        .filter(|text| !media_type(text).starts_with("application/cloudevents"))
        .map(|text| ("content-type".into(), text.clone()));
    let trace = TRACE
        .iter()
        .filter_map(|name| Some((*name, event.extensions.get(*name)?)))
        // These headers are not percent-encoded; what would need it is no trace context.
        .filter(|(_, value)| value.bytes().all(|b| (b' '..=b'~').contains(&b)))
        .map(|(name, value)| (name.into(), value.clone()));
    content_type.chain(trace).collect()
}

fn encode_value(value: &str) -> String {
    Cow::from(utf8_percent_encode(value, ENCODED)).into_owned()
}

/// The draft's attributes by name.
fn attributes(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (name, value) in given {
        let fits = (1..=MAX_NAME).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !fits {
            return Err(format!(
                "attribute name {} is not 1 to {MAX_NAME} bytes of a-z 0-9",
                shown(&name)
            ));
        }
        if matches!(
            name.as_str(),
            "id" | "source" | "type" | "time" | "specversion" | "datacontenttype" | "data"
        ) {
            return Err(format!(
                "attribute `{name}` has a place of its own in an event; set it there"
            ));
        }
        allowed(&name, &value)?;
        if found.contains_key(&name) {
            return Err(format!("attribute `{name}` is given twice"));
        }
        found.insert(name, value);
    }
    Ok(found)
}

fn taken(attributes: &mut BTreeMap<String, String>, name: &str) -> Result<Option<String>, String> {
    attributes
        .remove(name)
        .map(|value| text(name, value))
        .transpose()
}

fn text(name: &str, value: String) -> Result<String, String> {
    if value.is_empty() {
        return Err(format!("attribute `{name}` is empty"));
    }
    allowed(name, &value)?;
    Ok(value)
}

/// CloudEvents strings hold no control characters.
fn allowed(name: &str, value: &str) -> Result<(), String> {
    match value.chars().find(|c| c.is_control()) {
        None => Ok(()),
        Some(c) => Err(format!(
            "attribute `{name}` holds the control character U+{:04X}",
            u32::from(c)
        )),
    }
}

/// A media type that a header can carry; none: JSON's.
pub(crate) fn content_type(given: Option<String>) -> Result<String, String> {
    let text = given.unwrap_or_else(|| "application/json".into());
    let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    let kinds = media_type(&text);
    match kinds.split_once('/') {
        Some((kind, sub)) if printable && !kind.is_empty() && !sub.is_empty() => Ok(text),
        _ => Err(format!(
            "datacontenttype {} is no media type such as application/json",
            shown(&text)
        )),
    }
}

/// A draft that says its own trace keeps it; the two names belong together.
fn with_trace(
    mut extensions: BTreeMap<String, String>,
    trace: Vec<(String, String)>,
) -> BTreeMap<String, String> {
    if TRACE.iter().any(|name| extensions.contains_key(*name)) {
        return extensions;
    }
    extensions.extend(
        trace
            .into_iter()
            .filter(|(name, value)| TRACE.contains(&name.as_str()) && allowed(name, value).is_ok()),
    );
    extensions
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
