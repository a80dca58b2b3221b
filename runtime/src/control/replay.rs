//! Replay: the original message on its original subject again, for the one function that gave it up.

use async_nats::jetstream::{self};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::dead_letters::{DeadLetter, delete, read, stream};
use super::publish::publish_again;
use super::{ControlError, ErrorKind, functions};
use crate::event::{self, Draft, DraftDefaults, Event, Headers, Message, decode, encode, owned};
use crate::names::{
    AppNames, DUE_KEY_HEADER, DUE_SUBJECT_HEADER, DUE_TARGET_HEADER, INPUT_GONE, ONLY_HEADER,
    TIMER_HEADER,
};

/// A dead letter that was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Replayed {
    /// The dead letter's sequence; it is deleted now.
    pub sequence: u64,
    /// The function that will handle the event.
    pub function: String,
    /// The event's subject.
    pub subject: String,
    /// The stream that stored it again.
    pub stream: String,
    /// Its new sequence there.
    pub stream_sequence: u64,
}

/// Publishes the original message again and then deletes the dead letter. Between the two a crash is no harm: a replay
/// that is repeated within the stream's dedupe window is dropped by it.
///
/// # Errors
/// No such dead letter, or one whose event is lost; its function is gone or takes no such event any more; no stream covers its subject; NATS
/// trouble.
pub async fn replay(
    js: &jetstream::Context,
    app: &str,
    sequence: u64,
) -> Result<Replayed, ControlError> {
    let letters = stream(js, app).await?;
    let (letter, body) = read(&letters, sequence).await?;
    if letter.code == INPUT_GONE {
        return Err(ControlError::refused(
            format!(
                "dead letter {sequence} has no event to put back: {}",
                letter.reason
            ),
            format!(
                "publish the event again from its source, then `pelton dead-letter rm {sequence} --app {app}`"
            ),
        ));
    }
    let names = AppNames::new(app);
    let mut headers = headers(&names, &letter, &body);
    let from_within = letter.stream == names.commit_stream();
    let to = match from_within {
        true if letter.header(DUE_TARGET_HEADER).is_some() => {
            // A delayed event that was to leave is for whoever listens there.
            headers.retain(|(name, _)| name != ONLY_HEADER);
            letter.subject.clone()
        }
        true => {
            takes(js, &letter, None).await?;
            internal(&names, &letter, &mut headers)
        }
        false => {
            takes(js, &letter, Some(&letter.subject)).await?;
            letter.subject.clone()
        }
    };
    check_size(js, sequence, &headers, &body)?;
    let published = publish_again(js, &to, &headers, body).await?;
    delete(&letters, &letter).await.map_err(|mut error| {
        error.what = format!("{}; its event was replayed just now", error.what);
        error
    })?;
    Ok(Replayed {
        sequence,
        function: letter.function,
        subject: letter.subject,
        stream: published.stream.unwrap_or_default(),
        stream_sequence: published.sequence.unwrap_or(0),
    })
}

/// Refuses to put back what its function would not get: with its letter deleted, the event would be lost. None: it goes to the function's
/// internal input, which every function has.
async fn takes(
    js: &jetstream::Context,
    letter: &DeadLetter,
    subject: Option<&str>,
) -> Result<(), ControlError> {
    let (app, function, sequence) = (&letter.app, &letter.function, letter.sequence);
    let record = match functions::record(js, app, function).await {
        Ok((record, _)) => record,
        Err(error) if error.kind == ErrorKind::NotFound => {
            return Err(ControlError::refused(
                format!(
                    "dead letter {sequence} is of function {function}, which app {app} does not have any more"
                ),
                "deploy it again, then replay",
            ));
        }
        Err(error) => return Err(error),
    };
    let taken = || record.inputs.iter().flat_map(|input| &input.subjects);
    match subject {
        Some(to) if !taken().any(|pattern| event::subject::matches(pattern, to)) => {
            let taken: Vec<&str> = taken().map(String::as_str).collect();
            let taken = match taken.is_empty() {
                true => "no events of streams".to_owned(),
                false => taken.join(", "),
            };
            Err(ControlError::refused(
                format!("function {function} does not take {to} any more; it takes {taken}"),
                format!("deploy it with `subjects` that take {to}, then replay"),
            ))
        }
        _ => Ok(()),
    }
}

/// A call or a tick goes back to the function's internal input.
fn internal(names: &AppNames, letter: &DeadLetter, headers: &mut Headers) -> String {
    let subject = (DUE_SUBJECT_HEADER.to_owned(), letter.subject.clone());
    headers.push(subject);
    let key = letter.header(DUE_KEY_HEADER);
    if let Some(key) = key.or_else(|| letter.header(TIMER_HEADER)) {
        headers.push((DUE_KEY_HEADER.to_owned(), key.to_owned()));
    }
    names.due(&letter.function, &format!("replay.{}", letter.txn))
}

/// A replay adds headers to the original.
fn check_size(
    js: &jetstream::Context,
    sequence: u64,
    headers: &Headers,
    body: &Bytes,
) -> Result<(), ControlError> {
    let added: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    let (size, limit) = (body.len() + added, js.client().server_info().max_payload);
    if size <= limit {
        return Ok(());
    }
    Err(ControlError::refused(
        format!(
            "dead letter {sequence} with the headers of a replay has {size} bytes, and the server takes {limit}"
        ),
        format!(
            "raise the server's max_payload by {} bytes for the replay, or publish what `pelton dead-letter show {sequence} --json` prints in smaller pieces",
            size - limit
        ),
    ))
}

/// Headers of the repeated message: the original ones, without those by which NATS or Pelton steered the message (a
/// replay, a call), and with what keeps the event the same event.
fn headers(names: &AppNames, letter: &DeadLetter, body: &Bytes) -> Headers {
    let steering = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("nats-") || name.starts_with("pelton-")
    };
    let original = letter.headers.iter().filter(|(name, _)| !steering(name));
    let mut headers: Headers = original.cloned().collect();
    if let Some(attributes) = plain(letter, body) {
        headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("ce-"));
        headers.extend(attributes);
    }
    headers.push((
        ONLY_HEADER.to_owned(),
        format!("{}/{}", names.app(), letter.function),
    ));
    headers.push((
        "Nats-Msg-Id".to_owned(),
        // The transaction is part of it: a stream of dead letters that was made anew counts from 1 again.
        format!("replay:{}:{}", letter.txn, letter.sequence),
    ));
    headers
}

/// For a plain message: the attributes that were made from its place, which will be another one. A CloudEvent, or what
/// was none because it is malformed, goes as it came.
fn plain(letter: &DeadLetter, body: &Bytes) -> Option<Headers> {
    let has = |wanted: &str, start: &str| {
        letter.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case(wanted) && value.to_ascii_lowercase().starts_with(start)
        })
    };
    if has("ce-specversion", "") || has("content-type", "application/cloudevents") {
        return None;
    }
    let stored = OffsetDateTime::parse(&letter.stored_at, &Rfc3339).ok()?;
    let message = Message {
        subject: letter.subject.clone(),
        headers: letter.headers.clone(),
        payload: body.clone(),
        stream: letter.stream.as_str().into(),
        sequence: letter.stream_sequence,
        stored: i64::try_from(stored.unix_timestamp_nanos()).ok()?,
    };
    let event = decode(&message).ok()?.event;
    // Not said is not the same as said to be the default.
    let unsaid = event.datacontenttype.is_none();
    let encoded = encode(draft(&letter.subject, event), no_defaults()).ok()?;
    let attributes = owned(encoded.headers)
        .into_iter()
        .filter(|(name, _)| name.starts_with("ce-") && !(unsaid && name == "ce-datacontenttype"));
    Some(attributes.collect())
}

fn draft(subject: &str, event: Event) -> Draft {
    let named = [("subject", event.subject), ("dataschema", event.dataschema)];
    let named = named
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Draft {
        subject: subject.to_owned(),
        id: Some(event.id),
        source: Some(event.source),
        ty: Some(event.ty),
        time: Some(event.time),
        datacontenttype: event.datacontenttype,
        attributes: named.chain(event.extensions).collect(),
        data: Bytes::new(),
    }
}

/// Everything is said in the draft already.
fn no_defaults() -> DraftDefaults {
    DraftDefaults {
        id: String::new(),
        source: String::new(),
        time: 0,
        trace: Vec::new(),
    }
}
