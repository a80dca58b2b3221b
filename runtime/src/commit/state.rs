//! State as a guest reads it: direct gets from the app's bucket, with the revision that each value has.

use std::time::{Duration, Instant};

use async_nats::{Client, Request, StatusCode};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::floor::Floor;
use super::lifetime::Lifetime;
use crate::effects::{MAX_STATE_BYTES, StateError, StateReader, Versioned};
use crate::event::timestamp;
use crate::mutation;
use crate::names::AppNames;
use crate::nats::raw::{self, Stored, Which};
use crate::nats::{self, Connection, gets};

/// How long a listing may take.
const LISTING: Duration = Duration::from_secs(10);
/// How long a server that lags behind is waited for. A stream that was made anew counts from 1 again: what is known of its
/// predecessor must not hold anybody up for ever.
const LAG: Duration = Duration::from_secs(1);
/// Between two looks at a server that lags behind.
const LAG_PAUSE: Duration = Duration::from_millis(20);
/// How long the commit stream's floor is believed; less than `vacuum` waits before it removes
/// anything.
pub(super) const FLOOR_FRESH: Duration = Duration::from_secs(10);
/// Keys below one prefix that a listing looks at.
const MAX_LISTED: usize = 400_000;
/// Keys of one request that asks which of them have a value; the server accepts 1024 at most.
const AT_ONCE: usize = 500;
/// Bytes of one read; an attempt may not read more than [`MAX_STATE_BYTES`] anyway.
const MAX_READ: usize = MAX_STATE_BYTES + (1 << 20);

/// Requests to the JSON API at once.
const RAW_READS: usize = 16;
/// Subjects with an unreadable message that are remembered.
const MAX_ODD: usize = 1024;

/// The last message of each subject that has one, and up to where the server that answered has the
/// stream, if it said so.
type Found = (HashMap<String, Last>, Option<u64>);

/// Reads one app's state.
#[derive(Clone)]
pub struct NatsState {
    nats: Connection,
    names: AppNames,
    /// Subjects whose message no client can read; they are read through the JSON API.
    odd: Arc<Mutex<BTreeSet<String>>>,
    floor: Arc<Known>,
}

impl NatsState {
    /// A reader of the app that `names` names.
    pub fn new(nats: Connection, names: AppNames) -> Self {
        Self {
            nats,
            names,
            odd: Arc::default(),
            floor: Arc::default(),
        }
    }

    /// The commit stream's floor, as it was a moment ago at most.
    pub(super) async fn floor(&self) -> Result<Floor, StateError> {
        let (known, read) = self.floor.lock().clone();
        if read.is_some_and(|read| read.elapsed() < FLOOR_FRESH) {
            return Ok(known);
        }
        let asked = Instant::now();
        let client = self.nats.client();
        let floor = async {
            let read = Floor::read(&self.nats.jetstream(), &self.names, &known).await;
            read.map_err(unreadable)
        };
        let floor = answered(&client, floor).await?;
        *self.floor.lock() = (floor.clone(), Some(asked));
        Ok(floor)
    }

    /// The last message of each subject: sequence, headers' operation and body. Subjects without any are left out.
    pub(crate) async fn last(
        &self,
        subjects: Vec<String>,
    ) -> Result<HashMap<String, Last>, StateError> {
        let found = self.read(subjects, |plain| async move {
            match plain.as_slice() {
                [] => Ok((HashMap::new(), None)),
                [subject] => Ok((self.last_one(subject).await?, None)),
                _ => self.last_many(&plain).await,
            }
        });
        found.await.map(|(found, _)| found)
    }

    /// Reads through `direct`, which is fast; where that breaks the connection, through the JSON
    /// API.
    async fn read<F: Future<Output = Result<Found, StateError>>>(
        &self,
        subjects: Vec<String>,
        direct: impl FnOnce(Vec<String>) -> F,
    ) -> Result<Found, StateError> {
        let (odd, plain) = self.without_odd(subjects);
        let breaks = self.nats.breaks();
        let (all, client) = (plain.clone(), self.nats.client());
        let (mut found, upto) = tokio::select! {
            biased;
            found = answered(&client, direct(plain)) => match found {
                Err(_) if self.nats.breaks() > breaks => (self.last_raw(all).await?, None),
                found => found?,
            },
            () = self.nats.broken(breaks) => (self.last_raw(all).await?, None),
        };
        if !odd.is_empty() {
            found.extend(self.last_raw(odd).await?);
        }
        Ok((found, upto))
    }

    /// Those subjects whose message is known to be unreadable, and the others.
    fn without_odd(&self, subjects: Vec<String>) -> (Vec<String>, Vec<String>) {
        let known = self.odd.lock().unwrap_or_else(PoisonError::into_inner);
        match known.is_empty() {
            true => (Vec::new(), subjects),
            false => subjects.into_iter().partition(|one| known.contains(one)),
        }
    }

    /// The last message of each subject, through the JSON API, which returns any bytes.
    async fn last_raw(&self, subjects: Vec<String>) -> Result<HashMap<String, Last>, StateError> {
        let stream = self.names.commit_stream();
        let (js, stream) = (&self.nats.jetstream(), stream.as_str());
        let reads = subjects.into_iter().map(|subject| async move {
            let found = raw::get(js, stream, Which::Last(&subject)).await;
            found.map(|found| (subject, found))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(RAW_READS);
        let mut all = HashMap::new();
        while let Some(read) = reads.next().await {
            let (subject, found) = read.map_err(unreadable)?;
            let Some(found) = found else { continue };
            if let Some(why) = &found.unreadable {
                self.remember(&subject, why);
            }
            all.insert(subject, Last::of(&found));
        }
        Ok(all)
    }

    fn remember(&self, subject: &str, why: &str) {
        let mut odd = self.odd.lock().unwrap_or_else(PoisonError::into_inner);
        if odd.len() >= MAX_ODD {
            odd.clear();
        }
        if odd.insert(subject.to_owned()) {
            tracing::warn!(
                subject,
                why,
                "a state message has unreadable headers; its value is read"
            );
        }
    }

    /// As [`last`](Self::last), from a server that has the stream up to `since`: any server that holds a copy may answer, and one
    /// that has not heard of what was claimed or written there would say that it is not so.
    pub(crate) async fn last_since(
        &self,
        subjects: &[String],
        since: u64,
    ) -> Result<HashMap<String, Last>, StateError> {
        let began = Instant::now();
        loop {
            let read = self.read(subjects.to_vec(), |plain| async move {
                match plain.is_empty() {
                    true => Ok((HashMap::new(), None)),
                    false => self.last_many(&plain).await,
                }
            });
            let (found, upto) = read.await?;
            let heard = upto.is_none_or(|upto| upto >= since) || mutation::is("upto-check");
            if heard || began.elapsed() > LAG {
                return Ok(found);
            }
            tokio::time::sleep(LAG_PAUSE).await;
        }
    }

    /// The last message of a subject as the stream's leader has it: other servers may not have heard of it yet.
    pub(crate) async fn newest(&self, subject: &str) -> Result<Option<Last>, StateError> {
        let (js, stream) = (self.nats.jetstream(), self.names.commit_stream());
        let found = raw::get(&js, &stream, Which::Last(subject)).await;
        Ok(found.map_err(unreadable)?.as_ref().map(Last::of))
    }

    async fn last_one(&self, subject: &str) -> Result<HashMap<String, Last>, StateError> {
        let request = format!(
            "$JS.API.DIRECT.GET.{}.{subject}",
            self.names.commit_stream()
        );
        let answer = self
            .nats
            .client()
            .send_request(request, Request::new().timeout(None))
            .await
            .map_err(unreadable)?;
        Ok(read_answer(&answer)?.into_iter().collect())
    }

    /// What was found, and up to where the server that answered has the stream; it does not say so when it found nothing.
    async fn last_many(&self, subjects: &[String]) -> Result<Found, StateError> {
        let client = self.nats.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(unreadable)?;
        let body =
            serde_json::json!({ "multi_last": subjects, "batch": subjects.len(), "max_bytes": MAX_READ }).to_string();
        let request = format!("$JS.API.DIRECT.GET.{}", self.names.commit_stream());
        client
            .publish_with_reply(request, inbox, body.into())
            .await
            .map_err(unreadable)?;
        let mut found = HashMap::with_capacity(subjects.len());
        while let Some(answer) = answers.next().await {
            match answer.status.map(|status| status.as_u16()) {
                None => found.extend(read_answer(&answer)?),
                Some(204 | 404) => return complete(&answer, found),
                Some(_) => return read_answer(&answer).map(|_| (found, None)),
            }
        }
        Err(StateError("the connection closed while reading".into()))
    }

    /// Lists the keys below a prefix in byte order, deleted ones included. Asks for the subjects,
    /// because a consumer per listing would soon reach the server's limit.
    async fn names_below(&self, prefix: &str) -> Result<Vec<String>, StateError> {
        let state = self.names.state_prefix();
        let filter = if prefix.is_empty() {
            format!("{state}>")
        } else {
            format!("{state}{prefix}.>")
        };
        let stream = self
            .nats
            .jetstream()
            .get_stream_no_info(self.names.commit_stream())
            .await
            .map_err(unreadable)?;
        let subjects = stream.info_with_subjects(filter).await;
        let mut subjects = subjects.map_err(unreadable)?;
        let mut keys = Vec::new();
        while let Some(entry) = subjects.next().await {
            let (subject, _) = entry.map_err(unreadable)?;
            keys.extend(subject.strip_prefix(&state).map(str::to_owned));
            if keys.len() > MAX_LISTED {
                return Err(StateError(format!(
                    "more than {MAX_LISTED} keys below {prefix:?}, deleted ones included; list a longer prefix"
                )));
            }
        }
        keys.sort_unstable();
        // A key that is written between two pages comes twice.
        keys.dedup();
        Ok(keys)
    }

    /// Keeps the keys that have a value, in the same order.
    async fn alive(&self, keys: &[String]) -> Result<Vec<String>, StateError> {
        let (floor, now) = (self.floor().await?, timestamp::now());
        let stream = self.names.commit_stream().into();
        let subjects = keys.iter().map(|key| self.names.state(key)).collect();
        let (mut odd, mut left) = self.without_odd(subjects);
        let mut alive = HashSet::new();
        while !left.is_empty() {
            let breaks = self.nats.breaks();
            let batch = match gets::some_of(&self.nats.client(), &stream, &left).await {
                Ok(batch) => batch,
                Err(_) if self.nats.breaks() > breaks => {
                    odd.append(&mut left);
                    break;
                }
                Err(error) => return Err(unreadable(error)),
            };
            let seen: HashSet<&str> = batch.messages.iter().map(|one| &*one.subject).collect();
            left.retain(|subject| !seen.contains(subject.as_str()));
            let more = batch.pending > 0 && !seen.is_empty();
            let values = batch.messages.into_iter().filter(|message| {
                let header = |wanted: &str| {
                    let mut headers = message.headers.iter();
                    let found = headers.find(|(name, _)| name == wanted);
                    found.map(|(_, value)| value.as_str())
                };
                let deleted = ["KV-Operation", "Nats-Marker-Reason"];
                let deleted = deleted.iter().any(|name| header(name).is_some());
                let until = Lifetime::of(header, || Some(message.stored)).until;
                let expired = until.is_some_and(|until| until <= now);
                !deleted && !expired && !floor.is_dead(message.sequence)
            });
            alive.extend(values.map(|message| message.subject));
            if !more {
                break;
            }
        }
        for (subject, last) in self.last_raw(odd).await? {
            let expired = last.lifetime.until.is_some_and(|until| until <= now);
            if !last.deleted && !expired && !floor.is_dead(last.sequence) {
                alive.insert(subject);
            }
        }
        let keys = keys.iter();
        let found = keys.filter(|key| alive.contains(&self.names.state(key)));
        Ok(found.cloned().collect())
    }
}

impl StateReader for NatsState {
    fn get_many<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Versioned>, StateError>> {
        async move {
            let subjects: Vec<String> = keys.iter().map(|key| self.names.state(key)).collect();
            let floor = self.floor().await?;
            let found = self.last(subjects.clone()).await?;
            let now = timestamp::now();
            let seen = |subject: &String| match found.get(subject) {
                Some(last) if floor.is_dead(last.sequence) => Versioned {
                    ends: Some(0),
                    ..Versioned::new(None, last.sequence)
                },
                Some(last) => last.versioned().as_of(now),
                None => Versioned::default(),
            };
            Ok(subjects.iter().map(seen).collect())
        }
        .boxed()
    }

    fn record<'a>(&'a self, subject: &'a str) -> BoxFuture<'a, Result<Versioned, StateError>> {
        async move {
            let found = self.last(vec![subject.to_owned()]).await?;
            let found = found.get(subject);
            Ok(found.map(Last::versioned).unwrap_or_default())
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<String>, StateError>> {
        async move {
            let page = async {
                let names = self.names_below(prefix).await?;
                let begin = after.map_or(0, |after| {
                    names.partition_point(|key| key.as_str() <= after)
                });
                let (mut found, limit) = (Vec::new(), limit as usize);
                for some in names.get(begin..).unwrap_or_default().chunks(AT_ONCE) {
                    found.extend(self.alive(some).await?);
                    if found.len() >= limit {
                        break;
                    }
                }
                found.truncate(limit);
                Ok(found)
            };
            let late = |_| StateError(format!("listing took longer than {LISTING:?}"));
            tokio::time::timeout(LISTING, page).await.map_err(late)?
        }
        .boxed()
    }
}

/// What is known of the commit stream's floor, and when it was read.
#[derive(Debug, Default)]
struct Known(Mutex<(Floor, Option<Instant>)>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, (Floor, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last message of a subject.
#[derive(Debug, Clone)]
pub(crate) struct Last {
    pub(crate) sequence: u64,
    pub(crate) deleted: bool,
    pub(crate) lifetime: Lifetime,
    pub(crate) payload: Bytes,
}

impl Last {
    fn of(stored: &Stored) -> Self {
        Self {
            sequence: stored.sequence,
            deleted: stored.is_deletion(),
            lifetime: Lifetime::of(|name| stored.header(name), || Some(stored.stored)),
            payload: stored.payload.clone(),
        }
    }

    /// As a guest sees it.
    pub(super) fn versioned(&self) -> Versioned {
        let value = (!self.deleted).then(|| self.payload.clone());
        let Lifetime { until, ends } = self.lifetime;
        Versioned {
            until,
            ends,
            ..Versioned::new(value, self.sequence)
        }
    }
}

async fn answered<T>(
    client: &Client,
    request: impl Future<Output = Result<T, StateError>>,
) -> Result<T, StateError> {
    nats::answered(client, request).await.map_err(unreadable)?
}

/// The server stops at a limit of bytes and says how many are left.
fn complete(
    end: &async_nats::Message,
    found: HashMap<String, Last>,
) -> Result<(HashMap<String, Last>, Option<u64>), StateError> {
    let header = |name: &str| Some(end.headers.as_ref()?.get(name)?.as_str());
    let upto = header("Nats-UpTo-Sequence").and_then(|upto| upto.parse().ok());
    match header("Nats-Num-Pending") {
        None | Some("0") => Ok((found, upto)),
        Some(left) => Err(StateError(format!(
            "the values asked for are larger than {MAX_READ} bytes together ({left} of them are left out); read fewer at once"
        ))),
    }
}

fn read_answer(answer: &async_nats::Message) -> Result<Option<(String, Last)>, StateError> {
    match answer.status {
        None => {}
        Some(status) if status == StatusCode::NOT_FOUND => return Ok(None),
        Some(status) => {
            let why = answer.description.as_deref().unwrap_or("no description");
            return Err(StateError(format!("the server answered {status}: {why}")));
        }
    }
    let header = |name: &str| {
        answer
            .headers
            .as_ref()
            .and_then(|headers| headers.get(name))
            .map(|value| value.as_str())
    };
    let subject = header("Nats-Subject")
        .ok_or_else(|| StateError("an answer without Nats-Subject".into()))?;
    let sequence = header("Nats-Sequence").and_then(|sequence| sequence.parse().ok());
    let sequence = sequence.ok_or_else(|| StateError("an answer without Nats-Sequence".into()))?;
    let deleted = header("KV-Operation").is_some();
    let stored = || timestamp::parse(header("Nats-Time-Stamp")?);
    let lifetime = Lifetime::of(header, stored);
    Ok(Some((
        subject.to_owned(),
        Last {
            sequence,
            deleted,
            lifetime,
            payload: answer.payload.clone(),
        },
    )))
}

fn unreadable(error: impl std::fmt::Display) -> StateError {
    StateError(error.to_string())
}
