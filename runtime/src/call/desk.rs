//! Answers one call: stores it, waits for the answer and passes it on.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::service::{self, NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE};
use async_nats::{HeaderMap, Message, PublishError, Subject, Subscriber, header};
use bytes::Bytes;
use futures::StreamExt;
use time::OffsetDateTime;

use super::answer::{Answer, Refusal, one_line};
use super::request::{self, Asked};
use crate::commit::site::Site;
use crate::names::{AppNames, CODE_HEADER};
use crate::nats::raw::{self, Which};
use crate::nats::{Connection, header_map, header_value, headers};
use crate::records::FunctionRecord;

/// Callers of one function who wait on one node: more are told so at once, and another node may have room.
pub(super) const CALLERS: usize = 1024;
/// Tries to store a call whose first one had no answer, or met the answer of an earlier call as it expired.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// No stream keeps what a node tells those who wait: one that dies after its commit, or loses its connection, tells nothing.
/// Then what is stored of the call tells more.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What it takes to answer the calls of one version.
pub(super) struct Desk {
    pub(super) nats: Connection,
    pub(super) site: Arc<Site>,
    pub(super) names: AppNames,
    pub(super) record: FunctionRecord,
}

/// What was found of a call that cannot be stored as a new one.
enum Found {
    /// Nothing, or what is left of a call whose answer is not kept: to be stored upon that.
    Room(u64),
    /// It is being done.
    UnderWay,
    Answered(Answer),
}

impl Desk {
    /// Takes a request and answers it; the error is what its caller was told.
    pub(super) async fn serve(
        &self,
        message: Message,
        taken: bool,
    ) -> Option<service::error::Error> {
        let Some(reply) = message.reply.clone() else {
            tracing::debug!(
                subject = %message.subject,
                "a call that nobody waits for was dropped: publish an event instead"
            );
            return None;
        };
        let answer = match taken {
            true => self.ask(message).await,
            false => Err(busy()),
        };
        let answer = match answer {
            Ok(answer) => answer?,
            Err(refusal) => Answer::Refused(refusal),
        };
        let (told, failed) = match answer {
            Answer::Reply { content_type, data } => {
                (self.reply(reply, content_type, data).await, None)
            }
            Answer::Refused(refusal) => {
                let error = service::error::Error {
                    status: one_line(&refusal.message),
                    code: refusal.status.into(),
                };
                (self.refuse(reply, &refusal.code, &error).await, Some(error))
            }
            Answer::Dropped => return None,
        };
        if let Err(error) = told {
            tracing::debug!(%error, "a caller could not be answered");
        }
        failed
    }

    async fn reply(
        &self,
        caller: Subject,
        content_type: Option<String>,
        data: Bytes,
    ) -> Result<(), PublishError> {
        let Some(kind) = content_type else {
            return self.nats.client().publish(caller, data).await;
        };
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", header_value(&kind));
        let client = self.nats.client();
        client.publish_with_headers(caller, headers, data).await
    }

    async fn refuse(
        &self,
        caller: Subject,
        code: &str,
        error: &service::error::Error,
    ) -> Result<(), PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(CODE_HEADER, header_value(code));
        headers.insert(NATS_SERVICE_ERROR, header_value(&error.status));
        headers.insert(NATS_SERVICE_ERROR_CODE, error.code.to_string());
        let client = self.nats.client();
        client
            .publish_with_headers(caller, headers, Bytes::new())
            .await
    }

    /// The outcome of a call; `None`: it did not come in the caller's time.
    async fn ask(&self, message: Message) -> Result<Option<Answer>, Refusal> {
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let asked = request::read(
            &self.record,
            &headers(message.headers.as_ref()),
            message.payload,
            i64::try_from(now).unwrap_or(i64::MAX),
            self.nats.max_payload(),
        )?;
        if asked.is_late {
            return Ok(None);
        }
        let (wait, said) = asked.wait;
        match tokio::time::timeout(wait, self.outcome(&asked)).await {
            Ok(outcome) => outcome.map(Some),
            Err(_) if said => Ok(None),
            Err(_) => Err(Refusal {
                status: 504,
                code: "pelton-call-timeout".into(),
                message: format!(
                    "no outcome within {wait:?}; the call may still be done. Say how long to wait in header {}",
                    crate::names::TIMEOUT_HEADER
                ),
            }),
        }
    }

    async fn outcome(&self, asked: &Asked) -> Result<Answer, Refusal> {
        let unavailable =
            |why: String| Refusal::unavailable("pelton-unavailable", format!("NATS failed: {why}"));
        self.site
            .admit()
            .await
            .map_err(|why| unavailable(why.to_string()))?;
        // Before the call is stored, or looked for: its answer comes after that.
        let subject = self.names.answer(&self.record.function, &asked.call);
        let mut answers = self
            .nats
            .client()
            .subscribe(subject)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        // Anew when an earlier caller's was dropped, which ends with this one's time.
        loop {
            if let Some(answer) = self.store(asked).await.map_err(unavailable)? {
                return Ok(answer);
            }
            match self.wait(asked, &mut answers).await.map_err(unavailable)? {
                Some(Answer::Dropped) => {}
                Some(answer) => return Ok(answer),
                None => return Err(lost()),
            }
        }
    }

    /// The answer to a call that is stored; `None`: it is settled, and what became of it cannot be known any more.
    async fn wait(
        &self,
        asked: &Asked,
        answers: &mut Subscriber,
    ) -> Result<Option<Answer>, String> {
        let subject = self.names.called(&self.record.function, &asked.call);
        let mut gone = false;
        loop {
            match tokio::time::timeout(LOOK_AGAIN, answers.next()).await {
                Ok(Some(message)) => {
                    let headers = headers(message.headers.as_ref());
                    if let Some(answer) = Answer::read(&headers, &message.payload) {
                        return Ok(Some(answer));
                    }
                }
                Ok(None) => return Err("the connection closed".into()),
                Err(_) => match self.look(&subject).await {
                    Ok(Found::Answered(answer)) => return Ok(Some(answer)),
                    // What was told as it was removed has come by the next time.
                    Ok(Found::Room(_)) if gone => return Ok(None),
                    Ok(Found::Room(_)) => gone = true,
                    Ok(Found::UnderWay) => gone = false,
                    // The server may be away: the caller's time bounds this.
                    Err(error) => tracing::debug!(error, "a call could not be looked at"),
                },
            }
        }
    }

    /// Puts the call into the internal input, unless it is there; then its answer, if it has one by now.
    async fn store(&self, asked: &Asked) -> Result<Option<Answer>, String> {
        let subject = self.names.called(&self.record.function, &asked.call);
        let mut upon = 0;
        let mut last = String::new();
        for _ in 0..TRIES {
            let mut headers = header_map(&asked.headers);
            headers.insert(
                header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
                upon.to_string(),
            );
            let payload = asked.payload.clone();
            let js = self.nats.jetstream();
            let sent = js.publish_with_headers(subject.clone(), headers, payload);
            let stored = match sent.await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => {
                    last = error.to_string();
                    // It may be there all the same. Of a call with an id the next try tells; any other may be done and gone by then, and
                    // its answer is what tells.
                    if !asked.named && error.kind() != PublishErrorKind::StreamNotFound {
                        return Ok(None);
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            match self.look(&subject).await? {
                Found::Room(at) => upon = at,
                Found::UnderWay => return Ok(None),
                Found::Answered(answer) => return Ok(Some(answer)),
            }
        }
        Err(last)
    }

    /// What the internal input has of a call, as the stream's leader knows it.
    async fn look(&self, subject: &str) -> Result<Found, String> {
        let (js, stream) = (self.nats.jetstream(), self.names.commit_stream());
        let found = raw::get(&js, &stream, Which::Last(subject)).await;
        let Some(found) = found.map_err(|error| error.to_string())? else {
            return Ok(Found::Room(0));
        };
        if let Some(answer) = Answer::read(&found.headers, &found.payload) {
            return Ok(Found::Answered(answer));
        }
        Ok(match found.is_deletion() {
            true => Found::Room(found.sequence),
            false => Found::UnderWay,
        })
    }
}

fn busy() -> Refusal {
    let why = format!("{CALLERS} callers wait on this node already; try again");
    Refusal::unavailable("pelton-busy", why)
}

fn lost() -> Refusal {
    let why = "the call is not waiting any more and its answer did not come: it was done, or lost with its server. Give an id \
               (Nats-Msg-Id) to be able to ask again";
    Refusal::unavailable("pelton-answer-lost", why)
}
