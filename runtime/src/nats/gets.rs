//! Batched direct gets, which read many messages of a stream without a consumer.
//!
//! By default a server allows 1000 consumers per stream, and a cluster agrees on each one. Any
//! server with a copy of the stream answers a direct get, so the answer may lag behind the leader:
//! a caller that must not miss a message checks with the leader.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use futures::StreamExt;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::headers;
use crate::event::{Headers, Message};

/// Most messages of one answer.
pub(crate) const BATCH: usize = 500;
/// The server ends an answer with the message that exceeds this many bytes.
const MAX_BYTES: usize = 1 << 20;
/// Longest wait for the next message of an answer.
const SILENCE: Duration = Duration::from_secs(2);
/// What the server adds to the headers of a stored message.
const ADDED: [&str; 6] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
];

/// A direct get without an answer, or with an incomplete one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read stream {stream} by direct get: {why}")]
pub(crate) struct GetError {
    stream: String,
    why: String,
}

/// One answer.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// In the order of their sequences.
    pub(crate) messages: Vec<Message>,
    /// How many messages match behind the last of these.
    pub(crate) pending: u64,
    /// Last sequence of the server that answered; missing if nothing was found, and from [`next`].
    pub(crate) up_to: Option<u64>,
}

/// Reads up to `most` messages, or about 1 MiB, under `filter` from sequence `from` on.
pub(crate) async fn next(
    client: &Client,
    stream: &Arc<str>,
    filter: &str,
    from: u64,
    most: usize,
) -> Result<Batch, GetError> {
    let request = json!({ "seq": from.max(1), "next_by_subj": filter, "batch": most, "max_bytes": MAX_BYTES });
    get(client, stream, &request).await
}

/// Reads the last message of each subject that matches the filters; the server allows 1024
/// subjects.
pub(crate) async fn last_of_each(
    client: &Client,
    stream: &Arc<str>,
    filters: &[String],
) -> Result<Batch, GetError> {
    let request = json!({ "multi_last": filters });
    get(client, stream, &request).await
}

/// Reads the last message of these subjects up to about 1 MiB; `pending` counts the others.
pub(crate) async fn some_of(
    client: &Client,
    stream: &Arc<str>,
    subjects: &[String],
) -> Result<Batch, GetError> {
    let request = json!({ "multi_last": subjects, "max_bytes": MAX_BYTES });
    get(client, stream, &request).await
}

async fn get(client: &Client, stream: &Arc<str>, request: &Value) -> Result<Batch, GetError> {
    let failed = |why: &dyn std::fmt::Display| GetError {
        stream: stream.to_string(),
        why: why.to_string(),
    };
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await;
    let mut answers = answers.map_err(|error| failed(&error))?;
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    let sent = client.publish_with_reply(subject, inbox, request.to_string().into());
    sent.await.map_err(|error| failed(&error))?;
    let mut batch = Batch::default();
    loop {
        let answer = tokio::time::timeout(SILENCE, answers.next()).await;
        let answer = answer.map_err(|_| failed(&"no answer in time"))?;
        let answer = answer.ok_or_else(|| failed(&"the connection was closed"))?;
        let said = |name: &str| {
            let value = answer.headers.as_ref()?.get_last(name)?;
            value.as_str().parse().ok()
        };
        match answer.status.map(|status| status.as_u16()) {
            None => {}
            Some(204) => {
                batch.pending = said("Nats-Num-Pending").unwrap_or(0);
                batch.up_to = said("Nats-UpTo-Sequence");
                return Ok(batch);
            }
            Some(404) => return Ok(batch),
            Some(503) => {
                return Err(failed(
                    &"no server answers; see that the stream allows direct gets",
                ));
            }
            Some(status) => {
                let why = answer.description.as_deref().unwrap_or("no description");
                return Err(failed(&format!("status {status}, {why}")));
            }
        }
        // Each message names the one before it, which reveals messages that a broken connection
        // lost.
        let before = batch.messages.last().map_or(0, |message| message.sequence);
        let follows = said("Nats-Last-Sequence").is_none_or(|last: u64| last == before);
        match message(&answer, stream).filter(|_| follows) {
            Some(message) => batch.messages.push(message),
            None => return Err(failed(&"a part of the answer is missing")),
        }
    }
}

/// Returns the message as it was stored.
fn message(answer: &async_nats::Message, stream: &Arc<str>) -> Option<Message> {
    let map = answer.headers.as_ref()?;
    let said = |name: &str| Some(map.get_last(name)?.as_str());
    let stored = OffsetDateTime::parse(said("Nats-Time-Stamp")?, &Rfc3339).ok()?;
    Some(Message {
        subject: said("Nats-Subject")?.to_owned(),
        headers: original(map),
        payload: answer.payload.clone(),
        stream: stream.clone(),
        sequence: said("Nats-Sequence")?.parse().ok()?,
        stored: i64::try_from(stored.unix_timestamp_nanos()).ok()?,
    })
}

/// Removes the headers that the server added: the last value of each name, because the message may
/// already have had a header of that name.
fn original(map: &HeaderMap) -> Headers {
    let mut all = headers(Some(map));
    for name in ADDED {
        if let Some(at) = all.iter().rposition(|(known, _)| known == name) {
            all.remove(at);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_added_by_the_server_are_removed() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("Nats-Subject", "copied.from"),
            ("ce-id", "7"),
            ("Nats-Subject", "in.a"),
            ("Nats-Sequence", "3"),
        ] {
            map.append(name, value);
        }
        let mut left = original(&map);
        left.sort();
        let expected = [("Nats-Subject", "copied.from"), ("ce-id", "7")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(left, expected);
    }
}
