//! Stored messages as the server has them, byte for byte, and which of them are readable.
//!
//! Servers store any bytes as headers and nearly any as a subject. The client parses them before
//! anybody sees a message, and gives up its connection over those that it cannot parse. So single
//! messages are read through the JSON API, which returns headers as bytes, and are parsed here.
//!
//! What a message means must not depend on the way it came. [`parse_headers`] therefore gives the
//! same headers as the client for all that the client reads, and [`unreadable_subject`] is asked
//! about messages from the client, too.

use std::str::FromStr;
use std::sync::Arc;

use async_nats::HeaderName;
use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::headers::sort;
use crate::event::{Headers, Message};
use crate::names::UNREADABLE_HEADER;

/// What a subject has in the place of characters that no client reads back.
const REPLACEMENT: char = '\u{fffd}';
/// Characters of a message that an explanation quotes, at most.
const QUOTED: usize = 80;
/// The server's code for a message that does not exist.
const NO_MESSAGE: u64 = 10037;

/// Which message of a stream is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// The one with this sequence.
    Sequence(u64),
    /// The last one of a subject.
    Last(&'a str),
    /// The first one that matches a filter, from this sequence on.
    Next(u64, &'a str),
}

/// A stored message.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its subject; bytes that are not UTF-8 are replaced.
    pub(crate) subject: String,
    /// Those headers that can be read, in the order of [`sort`].
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) sequence: u64,
    /// When it was stored, nanoseconds since 1970.
    pub(crate) stored: i64,
    /// Why it is not readable; none: it is.
    pub(crate) unreadable: Option<String>,
}

/// Why a stream could not be asked for a message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read stream {stream}: {why}")]
pub(crate) struct RawError {
    stream: String,
    why: String,
}

impl RawError {
    pub(super) fn new(stream: &str, why: &dyn std::fmt::Display) -> Self {
        Self {
            stream: stream.to_owned(),
            why: why.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct Found {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

/// A message as the leader of its stream has it; `None`: there is no such message.
///
/// # Errors
/// NATS trouble, or there is no such stream.
pub(crate) async fn get(
    js: &jetstream::Context,
    stream: &str,
    which: Which<'_>,
) -> Result<Option<Stored>, RawError> {
    let failed = |why: &dyn std::fmt::Display| RawError::new(stream, why);
    let request = match which {
        Which::Sequence(sequence) => json!({ "seq": sequence }),
        Which::Last(subject) => json!({ "last_by_subj": subject }),
        Which::Next(from, filter) => json!({ "seq": from, "next_by_subj": filter }),
    };
    let asked = js.request(format!("STREAM.MSG.GET.{stream}"), &request);
    let mut answer: Value = asked.await.map_err(|error| failed(&error))?;
    match &answer["error"] {
        Value::Null => {}
        error if error["err_code"] == NO_MESSAGE => return Ok(None),
        error => return Err(failed(&error["description"])),
    }
    let found: Found =
        serde_json::from_value(answer["message"].take()).map_err(|error| failed(&error))?;
    read(found).map(Some).map_err(|why| failed(&why))
}

fn read(found: Found) -> Result<Stored, String> {
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    let time = OffsetDateTime::parse(&found.time, &Rfc3339).map_err(|error| error.to_string())?;
    let block = bytes(&found.hdrs)?;
    let (headers, unreadable) = match block.is_empty() {
        true => (Headers::new(), None),
        false => parse_headers(&block),
    };
    Ok(Stored {
        unreadable: unreadable_subject(&found.subject).or(unreadable),
        headers,
        payload: Bytes::from(bytes(&found.data)?),
        sequence: found.seq,
        stored: i64::try_from(time.unix_timestamp_nanos()).unwrap_or_default(),
        subject: found.subject,
    })
}

impl Stored {
    /// The first value of a header; names are compared as they are written.
    pub(crate) fn header(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether it says of its subject that what was stored there is deleted or has expired.
    pub(crate) fn is_deletion(&self) -> bool {
        ["KV-Operation", "Nats-Marker-Reason"]
            .iter()
            .any(|name| self.header(name).is_some_and(|value| value != "PUT"))
    }

    /// As a source hands it over. One that is unreadable says so in a header.
    pub(crate) fn into_message(self, stream: &Arc<str>) -> Message {
        let message = Message {
            subject: self.subject,
            headers: self.headers,
            payload: self.payload,
            stream: stream.clone(),
            sequence: self.sequence,
            stored: self.stored,
        };
        marked(message, self.unreadable)
    }
}

/// A message that no handler may see gets a header that says why, and a subject that can be shown.
pub(crate) fn marked(mut message: Message, unreadable: Option<String>) -> Message {
    if let Some(why) = unreadable {
        message.headers.push((UNREADABLE_HEADER.to_owned(), why));
        message.subject = message
            .subject
            .replace(|c: char| !is_in_subjects(c), &REPLACEMENT.to_string());
    }
    message
}

/// Why a subject cannot be read by every client; none: it can.
pub(crate) fn unreadable_subject(subject: &str) -> Option<String> {
    let readable = subject.chars().all(is_in_subjects);
    (!readable).then(|| {
        format!(
            "its subject {} is not UTF-8 without white space and control characters; publish it \
             to a subject that is",
            quoted(subject)
        )
    })
}

fn is_in_subjects(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && c != REPLACEMENT
}

/// Headers as the client reads them; of those that it cannot read, why.
pub(crate) fn parse_headers(block: &[u8]) -> (Headers, Option<String>) {
    let mut lines = block.split(|byte| *byte == b'\n');
    let version = lines.next().unwrap_or_default();
    let is_version = std::str::from_utf8(version).is_ok_and(|text| text.trim_end() == "NATS/1.0");
    let mut unreadable = (!is_version).then(|| {
        let shown = String::from_utf8_lossy(version);
        format!(
            "its headers begin with {} instead of \"NATS/1.0\"",
            quoted(&shown)
        )
    });
    let mut headers = Headers::new();
    // Whether the line before is a header, which this one may continue.
    let mut continues = false;
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continues = false;
            continue;
        }
        let text = std::str::from_utf8(line).ok();
        let more = text.filter(|text| continues && text.starts_with(char::is_whitespace));
        if let (Some(more), Some((_, value))) = (more, headers.last_mut()) {
            value.push_str(more);
            continue;
        }
        continues = match text.and_then(header) {
            Some(header) => {
                headers.push(header);
                true
            }
            None => {
                let shown = String::from_utf8_lossy(line);
                unreadable = Some(format!(
                    "header {} is not a name, a colon and a value in UTF-8",
                    quoted(&shown)
                ));
                false
            }
        };
    }
    for (name, value) in &mut headers {
        value.truncate(value.trim_end().len());
        if value.contains('\r') {
            unreadable = Some(format!(
                "the value of header {} holds a carriage return",
                quoted(name)
            ));
        }
    }
    sort(&mut headers);
    (headers, unreadable)
}

fn header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    HeaderName::from_str(name).ok()?;
    Some((name.to_owned(), value.trim_start().to_owned()))
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(QUOTED).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(headers: &[(&str, &str)]) -> Headers {
        let one = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        headers.iter().map(one).collect()
    }

    #[test]
    fn headers_that_the_client_reads_are_read_alike() {
        for (block, expected) in [
            (&b"NATS/1.0\r\n\r\n"[..], &[][..]),
            (b"NATS/1.0  \r\nEmpty:\r\n\r\n", &[("Empty", "")]),
            (
                b"NATS/1.0\r\nce-id: caf\xc3\xa9\r\n au lait \r\nA:b: c\r\n\r\n",
                &[("A", "b: c"), ("ce-id", "caf\u{e9} au lait")],
            ),
            (
                b"NATS/1.0\r\nA: 2\r\na: 3\r\nA: 1\r\n",
                &[("A", "2"), ("A", "1"), ("a", "3")],
            ),
        ] {
            assert_eq!(parse_headers(block), (owned(expected), None));
        }
    }

    #[test]
    fn headers_that_the_client_refuses_are_named() {
        for (bad, quoted) in [
            (&b"X-L: caf\xe9"[..], "X-L: caf\u{fffd}"),
            (b"X A: b", "X A: b"),
            (b"ce-\xc3\xa9: b", "ce-\u{e9}: b"),
            (b"nothing", "nothing"),
        ] {
            let block = [b"NATS/1.0\r\nA: b\r\n", bad, b"\r\n\r\n"].concat();
            let (headers, unreadable) = parse_headers(&block);
            assert_eq!(headers, owned(&[("A", "b")]));
            let why = unreadable.unwrap();
            assert!(why.contains(quoted), "{why}");
        }
    }

    #[test]
    fn header_block_that_is_a_status_is_unreadable() {
        let (_, unreadable) = parse_headers(b"NATS/1.0 200 Fine\r\n\r\n");
        assert!(unreadable.unwrap().contains("NATS/1.0 200 Fine"));
    }

    #[test]
    fn subjects_with_white_space_or_replaced_bytes_are_unreadable() {
        for subject in ["a.caf\u{e9}", "a.\u{1f600}", "a.%20"] {
            assert_eq!(unreadable_subject(subject), None);
        }
        for subject in ["a.\u{a0}", "a.\u{fffd}", "a.\u{85}b"] {
            let why = unreadable_subject(subject).unwrap();
            let message = Message {
                subject: subject.to_owned(),
                headers: Headers::new(),
                payload: Bytes::new(),
                stream: "IN".into(),
                sequence: 1,
                stored: 0,
            };
            let message = marked(message, Some(why.clone()));
            assert!(message.subject.starts_with("a.\u{fffd}"));
            assert_eq!(message.headers, [(UNREADABLE_HEADER.to_owned(), why)]);
        }
    }
}
