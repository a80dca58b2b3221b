//! How far a function of the position engine is in one of its inputs, seen and altered from outside: its positions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::{StreamExt, TryStreamExt};

use super::scan::{Scan, scan};
use super::{ControlError, ErrorKind, open};
use crate::commit::position::put;
use crate::config::KeySource;
use crate::event::Message;
use crate::names::AppNames;
use crate::records::{FORMAT, PositionRecord};
use crate::source;

/// Positions that are written at the same time.
const AT_ONCE: usize = 8;
/// A node writes each of its positions up to a hundred times a second: one of so many tries comes in between.
const TRIES: usize = 300;
/// Upper bound of the pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

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

/// The positions of an input, by partition.
///
/// # Errors
/// One that cannot be read; NATS trouble.
pub(super) async fn records(
    js: &jetstream::Context,
    place: Place<'_>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    let mut found = BTreeMap::new();
    let Some(stream) = open(js, &place.names.commit_stream()).await? else {
        return Ok(found);
    };
    let all = Scan {
        filters: vec![place.names.positions_filter(place.function, place.stream)],
        from: DeliverPolicy::LastPerSubject,
        headers_only: false,
    };
    scan(&stream, all, |message| {
        let partition = message.subject.rsplit('.').next();
        if let Some(partition) = partition.and_then(|token| token.parse().ok()) {
            found.insert(partition, read(&message.subject, &message.payload)?);
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok(found)
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

/// Writes positions of an input anew, whoever holds them: `change` makes each partition's from what is stored, and none leaves it as it
/// is. A node that holds one notices at its next commit, which is refused. The records afterwards.
///
/// # Errors
/// NATS trouble; what is written already stays.
pub(super) async fn rewrite(
    js: &jetstream::Context,
    place: Place<'_>,
    change: impl Fn(u16, Option<&PositionRecord>) -> Option<PositionRecord>,
) -> Result<BTreeMap<u16, PositionRecord>, ControlError> {
    let change = &change;
    let written: Vec<_> = futures::stream::iter(0..source::PARTITIONS)
        .map(|partition| async move {
            let record = rewrite_one(js, place, partition, change).await?;
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
    change: &impl Fn(u16, Option<&PositionRecord>) -> Option<PositionRecord>,
) -> Result<Option<PositionRecord>, ControlError> {
    let subject = place
        .names
        .position(place.function, place.stream, partition);
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(format!("write {subject}"), why);
    let stream = js.get_stream_no_info(place.names.commit_stream()).await;
    let stream = stream.map_err(|error| failed(&error))?;
    for _ in 0..TRIES {
        // From the leader: a condition on an older record would fail.
        let (record, at) = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(last) => (Some(read(&subject, &last.payload)?), last.sequence),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => (None, 0),
            Err(error) => return Err(failed(&error)),
        };
        let Some(new) = change(partition, record.as_ref()) else {
            return Ok(record);
        };
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
