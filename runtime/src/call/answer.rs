//! What a caller gets: the handler's reply, or why there is none. Told on the answer's subject once it is committed, and
//! kept beside it for a caller who gave an id and asks again.

use async_nats::Client;
use bytes::Bytes;

use super::Caller;
use crate::commit::Answered;
use crate::effects::{Disposition, Failure, Reply};
use crate::event::Headers;
use crate::names::{AppNames, CODE_HEADER};
use crate::nats::header_map;
use crate::records::FunctionRecord;

/// How long an answer is kept for who asks again: the usual duplicate window of a stream.
const KEPT: &str = "2m";

/// `200`, the status of a refusal, or `dropped`: tells an answer from a call.
const ANSWER: &str = "Pelton-Answer";
const DROPPED: &str = "dropped";
const REASON: &str = "Pelton-Reason";
const CONTENT_TYPE: &str = "Content-Type";

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It committed.
    Reply {
        /// Media type of `data`; none when the handler said nothing.
        content_type: Option<String>,
        /// What the handler replied.
        data: Bytes,
    },
    /// It was given up on, or not taken at all.
    Refused(Refusal),
    /// It was not begun in its caller's time: who asked again meanwhile has to ask anew.
    Dropped,
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// As of HTTP: what kind of error it is, for clients that know no codes of Pelton's.
    pub(super) status: u16,
    /// Stable code.
    pub(super) code: String,
    /// For a person.
    pub(super) message: String,
}

impl Refusal {
    /// What the caller has to change.
    pub(super) fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self {
            status: 400,
            code: code.into(),
            message: message.into(),
        }
    }

    /// What may go well later.
    pub(super) fn unavailable(code: &str, message: impl Into<String>) -> Self {
        Self {
            status: 503,
            ..Self::invalid(code, message)
        }
    }
}

impl Answer {
    /// Of a delivery that committed.
    pub(crate) fn done(reply: Option<Reply>) -> Self {
        match reply {
            Some(Reply::Data { content_type, data }) => Self::Reply {
                content_type: Some(content_type),
                data,
            },
            Some(Reply::Error(failure)) => Self::given_up(&failure),
            None => Self::Reply {
                content_type: None,
                data: Bytes::new(),
            },
        }
    }

    /// Of a delivery that was given up on (rejected, or failed too often), or whose handler replied
    /// with an error.
    pub(crate) fn given_up(failure: &Failure) -> Self {
        let rejected = failure.disposition == Disposition::Reject;
        Self::Refused(Refusal {
            status: if rejected { 422 } else { 500 },
            code: failure.code.clone(),
            message: failure.message.clone(),
        })
    }

    /// As a message.
    pub(super) fn write(&self) -> (Headers, Bytes) {
        let (headers, data) = match self {
            Self::Reply { content_type, data } => {
                let content_type = content_type.iter().map(|kind| (CONTENT_TYPE, kind.clone()));
                let status = (ANSWER, "200".to_owned());
                ([status].into_iter().chain(content_type).collect(), data)
            }
            Self::Refused(refusal) => (
                vec![
                    (ANSWER, refusal.status.to_string()),
                    (CODE_HEADER, refusal.code.clone()),
                    (REASON, one_line(&refusal.message)),
                ],
                &Bytes::new(),
            ),
            Self::Dropped => (vec![(ANSWER, DROPPED.to_owned())], &Bytes::new()),
        };
        let headers = headers.into_iter();
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        (headers.collect(), data.clone())
    }

    /// What [`write`](Self::write) made; `None`: it is no answer.
    pub(super) fn read(headers: &Headers, payload: &Bytes) -> Option<Self> {
        let text = |wanted: &str| {
            let mut all = headers.iter();
            all.find(|(name, _)| name == wanted)
                .map(|(_, value)| value.clone())
        };
        let answer = text(ANSWER)?;
        if answer == DROPPED {
            return Some(Self::Dropped);
        }
        Some(match answer.parse().ok()? {
            200 => Self::Reply {
                content_type: text(CONTENT_TYPE),
                data: payload.clone(),
            },
            status => Self::Refused(Refusal {
                status,
                code: text(CODE_HEADER).unwrap_or_default(),
                message: text(REASON).unwrap_or_default(),
            }),
        })
    }

    /// Tells those who wait for it; there may be others than the first, whose time may be over.
    pub(crate) async fn tell(&self, caller: &Caller, client: &Client, record: &FunctionRecord) {
        let (headers, data) = self.write();
        let names = AppNames::new(record.app.as_str());
        let subject = names.answer(&record.function, &caller.call);
        let told = client.publish_with_headers(subject, header_map(&headers), data);
        if let Err(error) = told.await {
            let FunctionRecord { app, function, .. } = record;
            tracing::warn!(%error, app, function, call = caller.call, "the answer to a call could not be sent");
        }
    }
}

impl Caller {
    /// What takes the place of the call when it ends; `None`: nobody can ask again. Without an answer, as if it had never
    /// been asked.
    pub(crate) fn answered(
        &self,
        record: &FunctionRecord,
        answer: Option<&Answer>,
    ) -> Option<Answered> {
        if !self.named {
            return None;
        }
        let names = AppNames::new(record.app.as_str());
        let message = answer.map(|answer| {
            let (mut headers, data) = answer.write();
            headers.push(("Nats-TTL".to_owned(), KEPT.to_owned()));
            (headers, data)
        });
        Some(Answered {
            subject: names.called(&record.function, &self.call),
            message,
        })
    }
}

/// Whether a message of an internal input is what is left of a call, and no call.
pub(crate) fn is_left(headers: &Headers) -> bool {
    let left = |name: &String| {
        name.eq_ignore_ascii_case(ANSWER) || name.eq_ignore_ascii_case("KV-Operation")
    };
    headers.iter().any(|(name, _)| left(name))
}

/// A header value ends at the line's end.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_were_written() {
        let data = Bytes::from_static(b"1");
        let content_type = "text/plain".to_owned();
        for answer in [
            Answer::done(None),
            Answer::Dropped,
            Answer::done(Some(Reply::Data { content_type, data })),
            Answer::done(Some(Reply::Error(Failure::reject("c", "why")))),
            Answer::given_up(&Failure::reject("payment-unknown", "no payment p-1")),
            Answer::given_up(&Failure::retry("shop-closed", "try tomorrow")),
        ] {
            let (headers, data) = answer.write();
            assert_eq!(Answer::read(&headers, &data), Some(answer));
        }
        let (headers, _) = Answer::given_up(&Failure::reject("c", "two\r\nlines")).write();
        assert!(headers.iter().any(|(_, value)| value == "two  lines"));
        assert_eq!(Answer::read(&Headers::new(), &Bytes::new()), None);
    }
}
