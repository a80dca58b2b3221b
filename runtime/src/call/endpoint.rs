//! What callers find: a NATS micro service of each function, on every node that serves it. It stores what it is asked,
//! waits for the answer and passes it on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::service::{self, Request, Service, ServiceExt};
use async_nats::{Client, HeaderMap, header};
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Answer, Refusal, header_map, one_line};
use super::request::{self, Asked};
use crate::event::Headers;
use crate::names::{AppNames, CODE_HEADER};
use crate::records::FunctionRecord;

/// Callers of one function who wait on one node: more are told so at once, and another node may have room.
const CALLERS: usize = 1024;
/// Tries to store a call whose first one had no answer, or met the answer of an earlier call as it expired.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// What a node that stops may still have in its hands of what the server sent it.
const LEAVING: Duration = Duration::from_secs(1);

/// A function's service on this node.
pub(crate) struct Endpoint {
    desk: Arc<Desk>,
    service: Service,
    requests: service::endpoint::Endpoint,
}

/// What it takes to answer a call.
struct Desk {
    client: Client,
    js: jetstream::Context,
    names: AppNames,
    record: FunctionRecord,
    callers: Arc<Semaphore>,
}

/// What was found of a call that cannot be stored as a new one.
enum Found {
    /// Nothing, or what is left of a call whose answer is not kept: to be stored upon that.
    Room(u64),
    /// It is being done.
    UnderWay,
    Answered(Answer),
}

impl Endpoint {
    /// Registers the service.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn open(
        client: Client,
        js: jetstream::Context,
        record: FunctionRecord,
    ) -> Result<Self, async_nats::Error> {
        let names = AppNames::new(record.app.as_str());
        let (app, function) = (&record.app, &record.function);
        let subjects: Vec<&str> = record.handlers.iter().map(|h| h.subject.as_str()).collect();
        let metadata = HashMap::from([
            ("pelton-app".to_owned(), app.clone()),
            ("pelton-function".to_owned(), function.clone()),
            ("pelton-subjects".to_owned(), subjects.join(" ")),
        ]);
        let service = client
            .service_builder()
            .description(format!("Pelton function {function} of app {app}"))
            .metadata(metadata)
            .start(names.service(function), format!("{}.0.0", record.version))
            .await?;
        let requests = service
            .endpoint_builder()
            .name("call")
            .add(names.call(function))
            .await?;
        let desk = Desk {
            client,
            js,
            names,
            record,
            callers: Arc::new(Semaphore::new(CALLERS)),
        };
        Ok(Self {
            desk: Arc::new(desk),
            service,
            requests,
        })
    }

    /// Answers until `stop`, then what it has begun; drops that at `abort`.
    pub(crate) async fn serve(mut self, stop: CancellationToken, abort: CancellationToken) {
        let begun = TaskTracker::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                request = self.requests.next() => match request {
                    Some(request) => self.take(request, &begun, &abort),
                    None => break,
                },
            }
        }
        let _ = self.requests.stop().await;
        let rest = async {
            while let Some(request) = self.requests.next().await {
                self.take(request, &begun, &abort);
            }
        };
        let _ = tokio::time::timeout(LEAVING, rest).await;
        let _ = self.service.stop().await;
        begun.close();
        begun.wait().await;
    }

    fn take(&self, request: Request, begun: &TaskTracker, abort: &CancellationToken) {
        let permit = self.desk.callers.clone().try_acquire_owned().ok();
        let (desk, abort) = (self.desk.clone(), abort.clone());
        begun.spawn(async move {
            tokio::select! {
                () = desk.serve(request, permit) => {}
                () = abort.cancelled() => {}
            }
        });
    }
}

impl Desk {
    async fn serve(&self, request: Request, permit: Option<OwnedSemaphorePermit>) {
        if request.message.reply.is_none() {
            tracing::debug!(
                subject = %request.message.subject,
                "a call that nobody waits for was dropped: publish an event instead"
            );
            return;
        }
        let answer = match permit {
            Some(_) => self.ask(&request).await,
            None => {
                let why = format!("{CALLERS} callers wait on this node already; try again");
                Err(Refusal::unavailable("pelton-busy", why))
            }
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(refusal) => Answer::Refused(refusal),
        };
        let told = match answer {
            Answer::Reply { content_type, data } => {
                let mut headers = HeaderMap::new();
                if let Some(kind) = &content_type {
                    headers.insert("Content-Type", kind.as_str());
                }
                request.respond_with_headers(Ok(data), headers).await
            }
            Answer::Refused(refusal) => {
                let mut headers = HeaderMap::new();
                headers.insert(CODE_HEADER, refusal.code.as_str());
                let error = service::error::Error {
                    status: one_line(&refusal.message),
                    code: refusal.status.into(),
                };
                request.respond_with_headers(Err(error), headers).await
            }
            Answer::Dropped => return,
        };
        if let Err(error) = told {
            tracing::debug!(%error, "a caller could not be answered");
        }
    }

    /// The outcome of a call; `None`: it did not come in the caller's time.
    async fn ask(&self, request: &Request) -> Result<Option<Answer>, Refusal> {
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let message = &request.message;
        let asked = request::read(
            &self.record,
            &headers(message.headers.as_ref()),
            message.payload.clone(),
            i64::try_from(now).unwrap_or(i64::MAX),
            self.client.server_info().max_payload,
        )?;
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
        // Before the call is stored, or looked for: its answer comes after that.
        let subject = self.names.answer(&self.record.function, &asked.call);
        let mut answers = self
            .client
            .subscribe(subject)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        // Anew when an earlier caller's was dropped, which ends with this one's time.
        loop {
            if let Some(answer) = self.store(asked).await.map_err(unavailable)? {
                return Ok(answer);
            }
            let message = answers.next().await;
            let message = message.ok_or_else(|| unavailable("the connection closed".into()))?;
            let headers = message.headers.unwrap_or_default();
            match Answer::read(&headers, message.payload) {
                Some(Answer::Dropped) | None => {}
                Some(answer) => return Ok(answer),
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
            let sent = self
                .js
                .publish_with_headers(subject.clone(), headers, payload);
            let stored = match sent.await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => {
                    // It may be there all the same: the next try tells.
                    last = error.to_string();
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
        let stream = self.js.get_stream_no_info(self.names.commit_stream()).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let found = match stream.get_last_raw_message_by_subject(subject).await {
            Ok(found) => found,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(Found::Room(0));
            }
            Err(error) => return Err(error.to_string()),
        };
        if let Some(answer) = Answer::read(&found.headers, found.payload) {
            return Ok(Found::Answered(answer));
        }
        Ok(match found.headers.get("KV-Operation") {
            Some(_) => Found::Room(found.sequence),
            None => Found::UnderWay,
        })
    }
}

fn headers(map: Option<&HeaderMap>) -> Headers {
    let all = map.into_iter().flat_map(HeaderMap::iter);
    all.flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect()
}
