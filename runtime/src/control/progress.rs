//! How far a function of the position engine is in one of its inputs, seen and altered from outside: its positions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use super::{ControlError, ErrorKind, open};
use crate::commit::position::{put, put_all};
use crate::commit::transport;
use crate::config::KeySource;
use crate::event::Message;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::nats::gets;
use crate::records::{FORMAT, FunctionRecord, PositionRecord};
use crate::source;

/// Positions that are written at the same time.
const AT_ONCE: usize = 8;
/// A node writes each of its positions up to a hundred times a second: one of so many tries comes in between.
const TRIES: usize = 300;
/// Upper bound of the pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server that lags behind is waited for.
const LAG: Duration = Duration::from_secs(1);

/// A function's input, as positions name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) names: &'a AppNames,
    pub(super) function: &'a str,
    pub(super) stream: &'a str,
}

/// What is done of an input.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where partitions without a record begin.
    start: u64,
    /// By partition: up to where everything is done, and what is done beyond.
    partitions: BTreeMap<u16, (u64, BTreeSet<u64>)>,
}

impl Progress {
    /// As these records say; a partition without one has not begun.
    pub(super) fn new(start: u64, records: &BTreeMap<u16, PositionRecord>) -> Self {
        let partitions = records.iter().map(|(partition, record)| {
            let done = record.done_sequences().collect();
            (*partition, (record.sequence, done))
        });
        Self {
            start,
            partitions: partitions.collect(),
        }
    }

    /// Up to here everything is done.
    pub(super) fn floor(&self) -> u64 {
        let all = (0..source::PARTITIONS).map(|one| match self.partitions.get(&one) {
            Some((floor, _)) => *floor,
            None => self.start,
        });
        all.min().unwrap_or(self.start)
    }

    /// Beyond this nothing is done.
    pub(super) fn end(&self) -> u64 {
        let ends = self.partitions.values();
        let ends = ends.map(|(floor, done)| done.last().copied().unwrap_or(0).max(*floor));
        ends.max().unwrap_or(0).max(self.start)
    }

    /// Whether a message of the input is done.
    pub(super) fn is_done(&self, key: Option<&KeySource>, message: &Message) -> bool {
        let sequence = message.sequence;
        match self.partitions.get(&source::partition(key, message)) {
            Some((floor, done)) => sequence <= *floor || done.contains(&sequence),
            None => sequence <= self.start,
        }
    }
}

/// The positions of an input, by partition, as of now: from a server that has what the leader has.
///
/// # Errors
/// One that cannot be read; no server that answers has caught up in time; NATS trouble.
pub(super) async fn records(
    js: &jetstream::Context,
    place: Place<'_>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    let Some(stream) = open(js, &place.names.commit_stream()).await? else {
        return Ok(BTreeMap::new());
    };
    let since = stream.cached_info().state.last_sequence;
    let stream = place.names.commit_stream().into();
    let filter = [place.names.positions_filter(place.function, place.stream)];
    let failed = |why: &dyn std::fmt::Display| ControlError::nats("read positions", why);
    let until = tokio::time::Instant::now() + LAG;
    let batch = loop {
        let batch = gets::last_of_each(&js.client(), &stream, &filter).await;
        let batch = batch.map_err(|error| failed(&error))?;
        let caught_up = match batch.up_to {
            Some(up_to) => up_to >= since,
            // A server that finds nothing does not say how far it is.
            None => !exists(js, &stream, &filter[0]).await?,
        };
        if caught_up {
            break batch;
        }
        if tokio::time::Instant::now() >= until {
            return Err(failed(&"the server that answers lags behind its leader"));
        }
        tokio::time::sleep(PAUSE).await;
    };
    let mut found = BTreeMap::new();
    for message in &batch.messages {
        let partition = message.subject.rsplit('.').next();
        if let Some(partition) = partition.and_then(|token| token.parse().ok()) {
            found.insert(partition, read(&message.subject, &message.payload)?);
        }
    }
    Ok(found)
}

/// Whether the leader of a stream has anything under a filter.
async fn exists(js: &jetstream::Context, stream: &str, filter: &str) -> Result<bool, ControlError> {
    let next = json!({ "seq": 1, "next_by_subj": filter });
    let found = transport::message(js, stream, &next).await;
    let found = found.map_err(|error| ControlError::nats("read positions", error))?;
    Ok(found.is_some())
}

/// The position under this subject.
pub(super) fn read(subject: &str, payload: &[u8]) -> Result<PositionRecord, ControlError> {
    let record = serde_json::from_slice::<PositionRecord>(payload);
    record
        .ok()
        .filter(|record| record.format == FORMAT)
        .ok_or_else(|| {
            ControlError::refused(
                format!("{subject} holds no position that this release reads"),
                "use the latest release of Pelton that runs here",
            )
        })
}

/// What a function's entry of the registry is while its positions are written. It is looked at between the reading of a position and the writing, which
/// holds only upon what was read: who is overtaken by another deploy, however long it sleeps, writes over nothing that came after.
pub(super) struct Guard<'a> {
    pub(super) app: &'a str,
    pub(super) function: &'a str,
    /// Its revision; none: there is none that can be read.
    pub(super) revision: Option<u64>,
}

impl Guard<'_> {
    /// # Errors
    /// The entry is another one; NATS trouble.
    pub(super) async fn check(&self, js: &jetstream::Context) -> Result<(), ControlError> {
        let (function, key) = (
            self.function,
            AppNames::new(self.app).registry_function(self.function),
        );
        let failed = |why: &dyn std::fmt::Display| {
            ControlError::nats(format!("read function {function}"), why)
        };
        let registry = js.get_stream_no_info(format!("KV_{REGISTRY_BUCKET}")).await;
        let registry = registry.map_err(|error| failed(&error))?;
        let subject = format!("$KV.{REGISTRY_BUCKET}.{key}");
        // From the leader.
        let revision = match registry.get_last_raw_message_by_subject(&subject).await {
            Ok(last) if self.revision == Some(last.sequence) => return Ok(()),
            Ok(last) => serde_json::from_slice::<FunctionRecord>(&last.payload)
                .is_ok()
                .then_some(last.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
            Err(error) => return Err(failed(&error)),
        };
        match revision == self.revision {
            true => Ok(()),
            false => Err(changed(function)),
        }
    }
}

/// What is wrong when somebody else was first.
pub(super) fn changed(function: &str) -> ControlError {
    ControlError::new(
        ErrorKind::Conflict,
        format!(
            "function {function} was deployed, or altered otherwise, by somebody else at the same time; that stands"
        ),
        format!(
            "look at `pelton function info {function}` and `pelton rollout {function} status`, then do it again if it is still wanted"
        ),
    )
}

/// Writes positions of an input anew, whoever holds them: `change` makes each partition's from what is stored, and none leaves it as it
/// is. A node that holds one notices at its next commit, which is refused. The records afterwards.
///
/// # Errors
/// The function is not what `guard` says any more; NATS trouble; what is written already stays.
pub(super) async fn rewrite(
    js: &jetstream::Context,
    place: Place<'_>,
    guard: Option<&Guard<'_>>,
    change: impl Fn(u16, Option<&PositionRecord>) -> Option<PositionRecord>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    let change = &change;
    let written: Vec<_> = futures::stream::iter(0..source::PARTITIONS)
        .map(|partition| async move {
            let record = rewrite_one(js, place, partition, guard, change).await?;
            Ok::<_, ControlError>(record.map(|record| (partition, record)))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(written.into_iter().flatten().collect())
}

async fn rewrite_one(
    js: &jetstream::Context,
    place: Place<'_>,
    partition: u16,
    guard: Option<&Guard<'_>>,
    change: &impl Fn(u16, Option<&PositionRecord>) -> Option<PositionRecord>,
) -> Result<Option<PositionRecord>, ControlError> {
    let subject = place
        .names
        .position(place.function, place.stream, partition);
    for _ in 0..TRIES {
        let (record, at) = stored(js, place.names, &subject).await?;
        let Some(new) = change(partition, record.as_ref()) else {
            return Ok(record);
        };
        if let Some(guard) = guard {
            guard.check(js).await?;
        }
        if let Ok(Some(_)) = put(&js.client(), &subject, &new, at).await {
            return Ok(Some(new));
        }
        // Its holder was first, or a batch of its is under way.
        tokio::time::sleep(PAUSE.mul_f64(fastrand::f64())).await;
    }
    Err(ControlError::new(
        ErrorKind::Conflict,
        format!("{subject} is written by its node again and again"),
        "try again",
    ))
}

/// What is stored under a subject, and its revision, 0: nothing. From the leader: a condition on an older record would fail.
async fn stored(
    js: &jetstream::Context,
    names: &AppNames,
    subject: &str,
) -> Result<(Option<PositionRecord>, u64), ControlError> {
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(format!("read {subject}"), why);
    let stream = js.get_stream_no_info(names.commit_stream()).await;
    let stream = stream.map_err(|error| failed(&error))?;
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(last) => Ok((Some(read(subject, &last.payload)?), last.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((None, 0)),
        Err(error) => Err(failed(&error)),
    }
}

/// Writes all positions of an input anew, or none, so that who is killed leaves the former ones whole; for where no node holds any.
///
/// # Errors
/// The function is not what `guard` says any more; NATS trouble.
pub(super) async fn begin(
    js: &jetstream::Context,
    place: Place<'_>,
    guard: &Guard<'_>,
    make: impl Fn(u16) -> PositionRecord,
) -> Result<(), ControlError> {
    let mut former: Vec<(u16, String, u64)> = futures::stream::iter(0..source::PARTITIONS)
        .map(|partition| async move {
            let subject = place
                .names
                .position(place.function, place.stream, partition);
            let (_, at) = stored(js, place.names, &subject).await?;
            Ok::<_, ControlError>((partition, subject, at))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    former.sort_unstable();
    guard.check(js).await?;
    let records: Vec<PositionRecord> = former.iter().map(|(one, ..)| make(*one)).collect();
    let all = former.iter().zip(&records);
    let all = all.map(|((_, subject, at), record)| (subject.as_str(), record, *at));
    let written = put_all(&js.client(), all).await;
    match written.map_err(|error| ControlError::nats("write positions", error))? {
        Some(_) => Ok(()),
        None => Err(changed(place.function)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::stream::ensure_commit_stream;
    use crate::dev::fresh_server;
    use crate::nats::connect;
    use crate::registry;

    fn message(sequence: u64) -> Message {
        Message {
            subject: "in.a".into(),
            headers: Vec::new(),
            payload: bytes::Bytes::new(),
            stream: "IN".into(),
            sequence,
            stored: 0,
        }
    }

    #[test]
    fn what_is_done_is_told_by_partition() {
        // Without a key a message belongs to the partition of its sequence.
        let records = BTreeMap::from([
            (1, PositionRecord::new("", 65, [193].into_iter(), (193, 1))),
            (2, PositionRecord::new("", 300, std::iter::empty(), (0, 0))),
        ]);
        let progress = Progress::new(60, &records);
        assert_eq!((progress.floor(), progress.end()), (60, 300));
        let done: Vec<u64> = [3, 60, 61, 65, 66, 129, 130, 193, 257, 258, 322]
            .into_iter()
            .filter(|at| progress.is_done(None, &message(*at)))
            .collect();
        assert_eq!(done, [3, 60, 65, 66, 130, 193, 258]);
    }

    /// Who sleeps between its look at the registry and here, and is overtaken meanwhile, must not put positions back that others moved on since.
    #[tokio::test]
    async fn who_is_overtaken_writes_no_position() {
        let (server, _data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client);
        let names = AppNames::new("shop");
        ensure_commit_stream(&js, &names, 1).await.unwrap();
        registry::ensure_buckets(&js, 1).await.unwrap();
        let store = js.get_key_value(REGISTRY_BUCKET).await.unwrap();
        let entry = serde_json::to_vec(&FunctionRecord::sample()).unwrap();
        let key = names.registry_function("orders");
        let put = || store.put(&key, entry.clone().into());
        let guard = |revision| Guard {
            app: "shop",
            function: "orders",
            revision,
        };
        let place = Place {
            names: &names,
            function: "orders",
            stream: "IN",
        };
        let at = |sequence| move |_| PositionRecord::new("", sequence, std::iter::empty(), (0, 0));
        begin(&js, place, &guard(None), at(3)).await.unwrap();
        let first = put().await.unwrap();
        begin(&js, place, &guard(Some(first)), at(5)).await.unwrap();
        put().await.unwrap();

        for stale in [None, Some(first)] {
            let guard = guard(stale);
            let begun = begin(&js, place, &guard, at(9)).await;
            assert_eq!(begun.unwrap_err().kind, ErrorKind::Conflict, "{stale:?}");
            let written = rewrite(&js, place, Some(&guard), |_, stored| {
                Some(stored?.clone().close(None))
            });
            let error = written.await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict, "{stale:?}");
        }
        let found = records(&js, place).await.unwrap();
        assert_eq!(found.len(), usize::from(source::PARTITIONS));
        let stayed = |one: &PositionRecord| one.sequence == 5 && !one.closed;
        assert!(found.values().all(stayed), "{found:?}");
    }
}
