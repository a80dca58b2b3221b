//! From a caller's request to a delivery, purely: what is asked of which handler, and for how long somebody waits.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::answer::Refusal;
use crate::event::{
    self, EventError, Headers, MAX_KEY, Message, attribute_headers, decode, subject,
};
use crate::names::{self, DUE_KEY_HEADER, DUE_SUBJECT_HEADER, ID_HEADER, TIMEOUT_HEADER};
use crate::records::{FORMAT, FunctionRecord};

/// Headers that steer a call, in lower case: two values of one are refused.
const DECIDING: [&str; 5] = [
    "content-type",
    "nats-msg-id",
    "pelton-deadline",
    "pelton-subject",
    "pelton-timeout",
];
/// How long a caller is taken to wait who does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// How long one may say: each caller who waits takes a place on the node that was asked.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Source of an event that its caller did not send as one.
const SOURCE: &str = "/pelton/call";
/// Handlers that a refusal names.
const MAX_NAMED: usize = 20;

/// Until when the caller waits, milliseconds since 1970: as the caller says, or as the node counts that reads the request.
const DEADLINE: &str = names::DEADLINE_HEADER;
/// The call's id.
const CALL: &str = "Pelton-Call";
/// On a call whose caller gave an id and may ask again: its answer takes its place.
const KEPT: &str = "Pelton-Kept";
/// What a call leaves of the largest message: waiting for another attempt it lies beside its errors and a copy of its
/// headers.
const RESERVE: usize = 64 << 10;
/// Bytes of headers of a call: the server takes 64 KiB, and a parked one has as much again beside them.
const MAX_HEADERS: usize = 16 << 10;
/// How long a call may lie there: many times longer than any caller waits.
const TTL: &str = "1h";

/// What was asked.
#[derive(Debug)]
pub(super) struct Asked {
    /// The call's id, a subject token.
    pub(super) call: String,
    /// How long the caller waits, and whether it said so.
    pub(super) wait: (Duration, bool),
    /// Whether that time is over: the request lay before the node for so long.
    pub(super) is_late: bool,
    /// Whether the caller gave an id, so that storing it twice is storing it once.
    pub(super) named: bool,
    /// What the internal input is to hold.
    pub(super) headers: Headers,
    pub(super) payload: Bytes,
}

/// What the delivery of a call must know of its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The call's id.
    pub(super) call: String,
    /// Whether the answer is kept for who asks again.
    pub(super) named: bool,
    /// Milliseconds since 1970.
    pub(super) deadline_ms: i64,
}

impl Caller {
    /// Of a message of the internal input; `None`: it is no call.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        Some(Self {
            call: value(headers, CALL)?.to_owned(),
            named: value(headers, KEPT).is_some(),
            deadline_ms: value(headers, DEADLINE)?.parse().ok()?,
        })
    }

    /// Whether the call stays where it is until its answer takes its place.
    pub(crate) fn stays(&self) -> bool {
        self.named
    }

    /// Whether nobody waits any more; `now` is in milliseconds since 1970.
    pub(crate) fn is_late(&self, now: i64) -> bool {
        now > self.deadline_ms
    }
}

/// Reads a request of `record`'s function. `now` is in nanoseconds since 1970.
pub(super) fn read(
    record: &FunctionRecord,
    headers: &Headers,
    payload: Bytes,
    now: i64,
    max_payload: usize,
) -> Result<Asked, Refusal> {
    let malformed = |why: EventError| Refusal::invalid("pelton-event-malformed", why.to_string());
    event::unambiguous(headers, &DECIDING).map_err(malformed)?;
    let subject = handled(record, value(headers, DUE_SUBJECT_HEADER))?;
    let given = value(headers, ID_HEADER);
    let id = given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    let said = value(headers, TIMEOUT_HEADER).map(wait).transpose()?;
    let wait = said.unwrap_or(DEFAULT_WAIT);
    let message = Message {
        subject: subject.clone(),
        headers: with_id(headers, &id),
        payload,
        stream: SOURCE.into(),
        sequence: 0,
        stored: now,
    };
    let decoded = decode(&message).map_err(malformed)?;
    let source = record.settings.key.as_ref();
    let key = source.map(|source| event::key(source, &message));
    // A version with another `key` finds it in the partition where it was stored.
    let placed = key.clone().flatten().unwrap_or_default();
    if let Some(None) = key {
        let why = format!(
            "the call has no key where `key` of function {} says",
            record.function
        );
        return Err(Refusal::invalid("pelton-key-missing", why));
    }
    if let Some(length) = key
        .flatten()
        .map(|key| key.len())
        .filter(|length| *length > MAX_KEY)
    {
        let why = format!("the call's key has {length} bytes, {MAX_KEY} at most");
        return Err(Refusal::invalid("pelton-key-too-long", why));
    }
    let read = now / 1_000_000;
    let deadline = read.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let until = until(headers)?;
    let deadline = deadline.min(until.unwrap_or(i64::MAX));
    let left = u64::try_from(deadline.saturating_sub(read)).unwrap_or(0);
    let call = names::call(record.instance, &id);
    let own = [
        ("Pelton-Format", FORMAT.to_string()),
        (DUE_SUBJECT_HEADER, subject),
        (DEADLINE, deadline.to_string()),
        (CALL, call.clone()),
        (DUE_KEY_HEADER, placed),
    ];
    let kept = given.map(|_| [(KEPT, "yes".to_owned()), ("Nats-TTL", TTL.to_owned())]);
    // In binary mode, whatever it came in: the event keeps its id and time from here on.
    let others = decoded.headers.into_iter().filter(passes);
    let attributes = event::owned(attribute_headers(&decoded.event));
    let own = own
        .into_iter()
        .chain(kept.into_iter().flatten())
        .map(|(name, value)| (name.to_owned(), value));
    let asked = Asked {
        call,
        wait: (
            Duration::from_millis(left),
            said.is_some() || until.is_some_and(|until| until <= deadline),
        ),
        is_late: read > deadline,
        named: given.is_some(),
        headers: own.chain(attributes).chain(others).collect(),
        payload: decoded.event.data,
    };
    fits(&asked, max_payload)?;
    Ok(asked)
}

/// The subject that is asked for, or the only one that there is.
fn handled(record: &FunctionRecord, wanted: Option<&str>) -> Result<String, Refusal> {
    let refused = |what: String| {
        let all = record.handlers.iter().map(|one| one.subject.as_str());
        let all: Vec<&str> = all.take(MAX_NAMED).collect();
        let why = format!(
            "{what}; function {} handles {}: name the subject in header {DUE_SUBJECT_HEADER} (--subject)",
            record.function,
            all.join(", ")
        );
        Refusal::invalid("pelton-call-invalid", why)
    };
    match (wanted, record.handlers.as_slice()) {
        (Some(wanted), _) if !subject::is_subject(wanted) => {
            Err(refused(format!("{wanted:?} is no subject")))
        }
        (Some(wanted), handlers) => {
            let takes = |pattern: &str| subject::matches(pattern, wanted);
            match handlers.iter().any(|one| takes(&one.subject)) {
                true => Ok(wanted.to_owned()),
                false => Err(refused(format!("no handler takes {wanted}"))),
            }
        }
        (None, [only]) if subject::is_subject(&only.subject) => Ok(only.subject.clone()),
        (None, _) => Err(refused(
            "the call does not say which handler it is for".into(),
        )),
    }
}

fn wait(text: &str) -> Result<Duration, Refusal> {
    let range = Duration::from_millis(1)..=MAX_WAIT;
    let found = humantime::parse_duration(text.trim()).ok();
    found.filter(|wait| range.contains(wait)).ok_or_else(|| {
        let why = format!(
            "header {TIMEOUT_HEADER} is {text:?}; it says how long the caller waits, 1ms to {}, such as 5s",
            humantime::format_duration(MAX_WAIT)
        );
        Refusal::invalid("pelton-call-invalid", why)
    })
}

/// What the caller says itself of the end of its wait.
fn until(headers: &Headers) -> Result<Option<i64>, Refusal> {
    let Some(text) = value(headers, DEADLINE) else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        let why = format!(
            "header {DEADLINE} is {text:?}; it says until when the caller waits, in milliseconds since 1970"
        );
        Refusal::invalid("pelton-call-invalid", why)
    })
}

/// A plain message takes its id from there.
fn with_id(headers: &Headers, id: &str) -> Headers {
    let others = headers
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case(ID_HEADER));
    others
        .cloned()
        .chain([(ID_HEADER.to_owned(), id.to_owned())])
        .collect()
}

/// What steers NATS or Pelton is not the caller's to say; the media type of a structured event is not that of its data.
fn passes((name, value): &(String, String)) -> bool {
    let steers = name.starts_with("nats-") || name.starts_with("pelton-") || name == "kv-operation";
    let structured = name == "content-type" && value.contains("application/cloudevents");
    !steers && !structured
}

fn fits(asked: &Asked, max_payload: usize) -> Result<(), Refusal> {
    let headers = asked.headers.iter();
    let headers: usize = headers
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum();
    // A small server takes small calls.
    let reserve = RESERVE.min(max_payload / 2);
    let (size, max) = (headers + asked.payload.len(), max_payload - reserve);
    if size <= max && headers <= MAX_HEADERS {
        return Ok(());
    }
    Err(Refusal {
        status: 413,
        code: "pelton-too-large".into(),
        message: format!(
            "the call has {size} bytes, {headers} of them headers, and may have {max} and {MAX_HEADERS}; put large data \
             into the object store and call with a reference"
        ),
    })
}

/// The first header of this name, in any case.
fn value<'a>(headers: &'a Headers, wanted: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(name, value)| name.eq_ignore_ascii_case(wanted) && !value.is_empty());
    found.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeySource;
    use crate::records::Handler;

    const NOW: i64 = 1_700_000_000_000_000_000;

    fn function(subjects: &[&str]) -> FunctionRecord {
        let handlers = subjects.iter().map(|subject| Handler {
            handler: "h".into(),
            subject: (*subject).to_owned(),
        });
        FunctionRecord {
            handlers: handlers.collect(),
            ..FunctionRecord::sample()
        }
    }

    fn asked(record: &FunctionRecord, headers: &[(&str, &str)]) -> Result<Asked, Refusal> {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        read(record, &headers, "{}".into(), NOW, 1 << 20)
    }

    fn header<'a>(asked: &'a Asked, name: &str) -> &'a str {
        value(&asked.headers, name).unwrap_or_default()
    }

    #[test]
    fn the_subject_is_the_callers_or_the_only_one() {
        let (one, two) = (function(&["a.b"]), function(&["a.*", "c.>"]));
        let subject = |record, headers: &[(&str, &str)]| {
            asked(record, headers).map(|asked| header(&asked, DUE_SUBJECT_HEADER).to_owned())
        };
        assert_eq!(subject(&one, &[]).unwrap(), "a.b");
        let named = [("pelton-subject", "c.d.e")];
        assert_eq!(subject(&two, &named).unwrap(), "c.d.e");
        for (record, headers, says) in [
            (&two, &[][..], "handles a.*, c.>"),
            (&function(&["a.*"]), &[], "handles a.*"),
            (&two, &[(DUE_SUBJECT_HEADER, "x.y")], "no handler takes x.y"),
            (&two, &[(DUE_SUBJECT_HEADER, "c.*")], "is no subject"),
            (&one, &[(TIMEOUT_HEADER, "soon")], "such as 5s"),
            (&one, &[(TIMEOUT_HEADER, "1h")], "1ms to 10m"),
            (&one, &[("ce-specversion", "1.0")], "`id` is missing"),
        ] {
            let refusal = asked(record, headers).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.message.contains(says), "{refusal:?}");
        }
    }

    #[test]
    fn a_call_is_an_event_and_its_headers_steer_nothing() {
        let record = function(&["a.b"]);
        let plain = asked(
            &record,
            &[
                ("X", "y"),
                ("Nats-Rollup", "all"),
                ("Pelton-Only", "a/b"),
                (ID_HEADER, "7"),
                ("Content-Type", "text/plain"),
                (TIMEOUT_HEADER, "1500ms"),
            ],
        )
        .unwrap();
        for (name, expected) in [
            ("ce-id", "7"),
            ("ce-source", SOURCE),
            ("ce-type", "a.b"),
            ("ce-datacontenttype", "text/plain"),
            ("x", "y"),
            ("Nats-Rollup", ""),
            ("Pelton-Only", ""),
            (ID_HEADER, ""),
            (TIMEOUT_HEADER, ""),
            (DEADLINE, "1700000001500"),
            (KEPT, "yes"),
        ] {
            assert_eq!(header(&plain, name), expected, "{name}");
        }
        assert_eq!(plain.wait, (Duration::from_millis(1500), true));
        let caller = Caller::of(&plain.headers).unwrap();
        assert!(caller.named && !caller.is_late(1_700_000_001_500));
        assert!(caller.is_late(1_700_000_001_501));

        let structured =
            r#"{"specversion":"1.0","id":"e","source":"/s","type":"t","data":{"k":1}}"#;
        let headers = vec![(
            "Content-Type".to_owned(),
            "application/cloudevents+json".to_owned(),
        )];
        let asked = read(&record, &headers, structured.into(), NOW, 1 << 20).unwrap();
        assert_eq!(header(&asked, "ce-id"), "e");
        assert_eq!(header(&asked, "content-type"), "");
        assert_eq!(asked.payload, r#"{"k":1}"#);
        assert_eq!(asked.wait, (DEFAULT_WAIT, false));
        assert!(!Caller::of(&asked.headers).unwrap().named);
    }

    #[test]
    fn a_caller_that_says_when_its_time_is_over_is_believed() {
        let record = function(&["a.b"]);
        let until = |at: &str| asked(&record, &[(DEADLINE, at), (TIMEOUT_HEADER, "1500ms")]);
        let (soon, later, past) = ("1700000000200", "1800000000000", "1699999999999");
        assert_eq!(header(&until(soon).unwrap(), DEADLINE), soon);
        assert_eq!(header(&until(later).unwrap(), DEADLINE), "1700000001500");
        assert!(until(past).unwrap().is_late && !until(soon).unwrap().is_late);
        let wait = |at: &str| until(at).unwrap().wait;
        assert_eq!(wait(soon), (Duration::from_millis(200), true));
        assert_eq!(wait(later), (Duration::from_millis(1500), true));
        let alone = asked(&record, &[(DEADLINE, soon)]).unwrap();
        assert_eq!(alone.wait, (Duration::from_millis(200), true));
        assert_eq!(until("soon").unwrap_err().code, "pelton-call-invalid");
    }

    #[test]
    fn the_same_id_is_the_same_call_and_only_that() {
        let record = function(&["a.b"]);
        let of = |headers: &[(&str, &str)]| asked(&record, headers).unwrap().call;
        assert_eq!(of(&[(ID_HEADER, "7")]), of(&[(ID_HEADER, "7")]));
        assert_ne!(of(&[(ID_HEADER, "7")]), of(&[(ID_HEADER, "8")]));
        assert_ne!(of(&[]), of(&[]));
    }

    #[test]
    fn what_could_not_be_handled_is_not_taken() {
        let mut record = function(&["a.b"]);
        record.settings.key = Some(KeySource::Data("/id".into()));
        assert_eq!(asked(&record, &[]).unwrap_err().code, "pelton-key-missing");
        record.settings.key = None;
        let large = read(
            &record,
            &Headers::new(),
            vec![0; 1 << 20].into(),
            NOW,
            1 << 20,
        );
        assert_eq!(large.unwrap_err().status, 413);
        let header = [("x", "y".repeat(MAX_HEADERS))];
        let header = header
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        assert_eq!(asked(&record, &header).unwrap_err().status, 413);
    }
}
