//! Whether a stream is the input that it was: positions in it mean nothing in another one. And single messages of it.

use std::str::FromStr;
use std::sync::Arc;

use async_nats::HeaderName;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Info, RawMessageErrorKind, RetentionPolicy};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Context, due};
use crate::event::{Headers, Message};
use crate::names::UNREADABLE_HEADER;
use crate::nats::headers;
use crate::records::Input;
use crate::source::SourceError;
use crate::source::queue::stream_error;

/// When a stream was made, nanoseconds since 1970.
pub(super) fn created(info: &Info) -> i64 {
    i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default()
}

/// Refuses a stream that removes what is acknowledged, and one that is not what the function was deployed on.
pub(super) fn check_stream(input: &Input, info: &Info) -> Result<(), SourceError> {
    if info.config.retention != RetentionPolicy::Limits {
        return Err(SourceError(format!(
            "stream {} removes what is acknowledged (retention {:?}), and delivery = \"exactly-once\" acknowledges nothing; \
             say delivery = \"at-least-once\", or use a stream with retention = \"limits\"",
            input.stream, info.config.retention
        )));
    }
    let another = input.created != 0 && input.created != created(info);
    if another || info.state.last_sequence < input.start {
        return Err(SourceError(format!(
            "stream {} is not what it was: it was made anew or restored since the function was deployed; deploy it again, \
             and `start` says where it begins",
            input.stream
        )));
    }
    Ok(())
}

/// A message as the leader of a stream has it; `None`: not any more.
async fn message(
    js: &jetstream::Context,
    name: &Arc<str>,
    sequence: u64,
) -> Result<Option<Message>, SourceError> {
    let failed =
        |why: &dyn std::fmt::Display| SourceError(format!("cannot read stream {name}: {why}"));
    let stream = js.get_stream_no_info(name.as_ref()).await;
    let stream = stream.map_err(|error| failed(&error))?;
    let found = match stream.get_raw_message(sequence).await {
        Ok(found) => found,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    Ok(Some(Message {
        subject: found.subject.to_string(),
        headers: headers(Some(&found.headers)),
        payload: found.payload,
        stream: name.clone(),
        sequence,
        stored: i64::try_from(found.time.unix_timestamp_nanos()).unwrap_or_default(),
    }))
}

/// Headers as they are stored; of those that the client cannot read, which breaks its connection for them, why. Servers store any bytes.
fn split(stored: &[u8]) -> (Headers, Option<String>) {
    let (mut headers, mut damaged) = (Headers::new(), None);
    // The first line says the protocol's version.
    let lines = stored.split(|byte| *byte == b'\n').skip(1);
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let text = std::str::from_utf8(line).ok();
        // A value may go on in the next line.
        let folded = text.filter(|text| text.starts_with(char::is_whitespace));
        if let Some((more, (_, value))) = folded.zip(headers.last_mut()) {
            value.push_str(more);
            continue;
        }
        let readable = text.and_then(|line| {
            let (name, value) = line.split_once(':')?;
            HeaderName::from_str(name).ok()?;
            Some((name.to_owned(), value.trim().to_owned()))
        });
        match readable {
            Some(header) => headers.push(header),
            None => {
                let shown = String::from_utf8_lossy(line);
                let shown: String = shown.chars().take(80).collect();
                damaged = Some(format!(
                    "header {shown:?} is no name and a value in UTF-8, which is what clients of NATS read"
                ));
            }
        }
    }
    (headers, damaged)
}

impl Context {
    /// The first message behind this sequence, if it is one that breaks the connection of whoever reads it: without the headers that do it,
    /// and with one that says so. The server gives it in JSON.
    pub(super) async fn unreadable(&self, passed: u64) -> Result<Option<Message>, SourceError> {
        let name = &self.stream;
        let failed =
            |why: &dyn std::fmt::Display| SourceError(format!("cannot read stream {name}: {why}"));
        let filter = match self.filter() {
            filter if filter.is_empty() => ">".to_owned(),
            filter => filter,
        };
        let next = json!({ "seq": passed + 1, "next_by_subj": filter });
        let answer: Value = self
            .js
            .request(format!("STREAM.MSG.GET.{name}"), &next)
            .await
            .map_err(|error| failed(&error))?;
        let found = &answer["message"];
        let bytes = |part: &str| {
            let text = found[part].as_str().unwrap_or_default();
            STANDARD.decode(text).map_err(|error| failed(&error))
        };
        let (mut headers, damaged) = split(&bytes("hdrs")?);
        let (Some(why), Some(sequence)) = (damaged, found["seq"].as_u64()) else {
            return Ok(None);
        };
        tracing::warn!(
            stream = &**name,
            sequence,
            why,
            "a message cannot be read, and breaks the connection of whoever does"
        );
        headers.push((UNREADABLE_HEADER.to_owned(), why));
        let stored = found["time"].as_str().unwrap_or_default();
        let stored = OffsetDateTime::parse(stored, &Rfc3339).map_err(|error| failed(&error))?;
        Ok(Some(Message {
            subject: found["subject"].as_str().unwrap_or_default().to_owned(),
            headers,
            payload: Bytes::from(bytes("data")?),
            stream: name.clone(),
            sequence,
            stored: i64::try_from(stored.unix_timestamp_nanos()).unwrap_or_default(),
        }))
    }

    /// Why this is not the input that positions speak of whose latest message is `witness`, stored at that time: made anew, or restored.
    /// A position beyond the input's end, or whose latest message is another one now, would pass events by unseen.
    pub(super) async fn misfit(
        &self,
        witness: (u64, i64),
    ) -> Result<Option<SourceError>, SourceError> {
        // An internal input lies in the stream of its positions.
        if self.internal {
            return Ok(None);
        }
        let (witness, stored) = witness;
        let name = &self.input.stream;
        let stream = self
            .js
            .get_stream(name)
            .await
            .map_err(|error| stream_error(name, &error))?;
        let info = stream.cached_info();
        if created(info) != self.stream_created {
            return Ok(Some(SourceError(format!(
                "stream {name} is not what it was: it was made anew while it was read; deploy the function again, and `start` says where \
                 it begins"
            ))));
        }
        let last = info.state.last_sequence;
        let rewound = |why: String| {
            SourceError(format!(
                "stream {name} is not what it was: {why}; it was restored or made anew, and the function's positions do not fit it. \
                 Deploy the function under another name, or restore the stream as it was"
            ))
        };
        if last < witness {
            let why = format!("it ends at {last} and {witness} was handled");
            return Ok(Some(rewound(why)));
        }
        if witness == 0 {
            return Ok(None);
        }
        let found = message(&self.js, &self.stream, witness).await?;
        // Gone by age, or as it was.
        let another = found.is_some_and(|found| found.stored != stored);
        Ok(another.then(|| rewound(format!("message {witness} is another one"))))
    }

    /// A message as the function's input has it; `None`: not any more.
    pub(super) async fn original(&self, sequence: u64) -> Result<Option<Message>, SourceError> {
        let found = message(&self.js, &self.stream, sequence).await?;
        let name = &self.stream;
        let stream = self.js.get_stream(name.as_ref()).await;
        let stream = stream.map_err(|error| stream_error(name, &error))?;
        let info = stream.cached_info();
        // Of another stream, or not there yet: a server that has just begun to lead may lag behind.
        if created(info) != self.stream_created || info.state.last_sequence < sequence {
            return Err(SourceError(format!(
                "stream {name} is not what it was, or its leader lags behind: message {sequence} cannot be read"
            )));
        }
        Ok(match self.internal {
            true => found.map(due::open),
            false => found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_no_client_reads_are_told_apart() {
        let (headers, damaged) =
            split(b"NATS/1.0\r\nce-id: caf\xc3\xa9\r\n au lait\r\nEmpty:\r\n\r\n");
        let expected = [("ce-id", "caf\u{e9} au lait"), ("Empty", "")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!((headers, damaged), (expected.to_vec(), None));
        for bad in ["X-L: caf\u{fffd}", "X A: b", "ce-\u{e9}: b", "nothing"] {
            let latin = bad.replace('\u{fffd}', "\u{1}");
            let bytes = format!("NATS/1.0\r\nA: b\r\n{latin}\r\n\r\n").into_bytes();
            let bytes: Vec<u8> = bytes
                .into_iter()
                .map(|byte| if byte == 1 { 0xe9 } else { byte })
                .collect();
            let (headers, damaged) = split(&bytes);
            assert_eq!(headers, [("A".to_owned(), "b".to_owned())]);
            assert!(damaged.unwrap().contains(bad), "{bad}");
        }
    }
}
