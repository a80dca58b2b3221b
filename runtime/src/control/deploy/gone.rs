//! What waits in the park of an input that goes away. One whose stream was deleted or made anew is gone already: no attempt can follow, for
//! sequences count anew; the park has a copy of the event, and it becomes a dead letter. One that the manifest takes away has to wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::leftovers::last_of;
use super::plan::FunctionPlan;
use crate::commit::{
    CommitError, Committer, Fence, NatsState, Origin, Parking, Partition, Transaction,
};
use crate::config::DeliveryMode;
use crate::control::progress::{Place, read, records};
use crate::control::{ControlError, ErrorKind, open};
use crate::effects::Failure;
use crate::members::Members;
use crate::names::{AppNames, INPUT_GONE, INPUT_REPLACED, Txn};
use crate::records::{FunctionRecord, Input, PositionRecord};
use crate::settle::{dead, park};

/// A node that has not found out yet may write the position in between.
const TRIES: usize = 20;
/// Letters on their way at the same time: they go into batches together.
const AT_ONCE: usize = 64;

/// Sees to it that nothing is lost that waits of inputs which the version before read and this one will not, be it under the same name.
///
/// # Errors
/// Something waits of a stream that is still there; NATS trouble. What was given up stays so; deploying again goes on.
pub(super) async fn see_to(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    let previous = function.previous.iter();
    let previous = previous.filter(|one| one.settings.delivery == DeliveryMode::ExactlyOnce);
    for (version, input) in
        previous.flat_map(|one| one.inputs.iter().map(move |input| (one, input)))
    {
        let stream = input.stream.as_str();
        let place = Place {
            names,
            function: &function.function,
            stream,
        };
        if is_gone(js, input).await? {
            let count = give_up(js, place, version, input.life(input.created)).await?;
            if count > 0 {
                step(&format!(
                    "stream {stream} was deleted, or made anew: {count} events of the former one that waited are dead letters ({INPUT_REPLACED})"
                ));
            }
        } else if !function
            .record
            .inputs
            .iter()
            .any(|kept| kept.stream == stream)
        {
            nothing_waits(js, place).await?;
        }
    }
    Ok(())
}

/// Whether a stream is not there any more as a version read it.
pub(super) async fn is_gone(js: &jetstream::Context, input: &Input) -> Result<bool, ControlError> {
    let Some(stream) = open(js, &input.stream).await? else {
        return Ok(true);
    };
    let created = stream.cached_info().created.unix_timestamp_nanos();
    Ok(input.created != 0 && created != i128::from(input.created))
}

/// Refuses to take an input away of which events wait: nobody would handle them, nor give them up.
async fn nothing_waits(js: &jetstream::Context, place: Place<'_>) -> Result<(), ControlError> {
    let positions = records(js, place).await?;
    let waiting = positions
        .values()
        .flat_map(PositionRecord::parked_sequences);
    let waiting = waiting.count();
    if waiting == 0 {
        return Ok(());
    }
    let (function, stream) = (place.function, place.stream);
    Err(ControlError::refused(
        format!(
            "function {function} would not read stream {stream} any more, and {waiting} events of it wait for another attempt or another event"
        ),
        format!(
            "keep the input until `pelton function info {function}` shows none that waits: they are handled, or given up when their attempts (max-attempts) or their time (max-defer) are over"
        ),
    ))
}

/// Gives up everything that waits of an input; how many there were. `function` is the version that put it off, and `life` says which life of the
/// stream it read (`Input::life`).
async fn give_up(
    js: &jetstream::Context,
    place: Place<'_>,
    function: &FunctionRecord,
    life: i64,
) -> Result<usize, ControlError> {
    let positions = records(js, place).await?;
    let waiting = positions.iter().filter(|(_, one)| !one.parked.is_empty());
    let mut waiting = waiting.map(|(partition, _)| *partition).peekable();
    let Some(commit) = open(js, &place.names.commit_stream()).await? else {
        return Ok(0);
    };
    if waiting.peek().is_none() {
        return Ok(0);
    }
    let (client, names) = (js.client(), place.names.clone());
    let state = NatsState::new(client.clone().into(), names.clone());
    let members = watch::Sender::new(Members::default());
    let gone = Gone {
        place,
        function,
        life,
        max_payload: client.server_info().max_payload,
        committer: Committer::start(
            client.into(),
            state,
            names,
            members.subscribe(),
            Arc::default(),
        ),
        commit,
    };
    let mut given_up = 0;
    for partition in waiting {
        given_up += gone.partition(partition).await?;
    }
    Ok(given_up)
}

struct Gone<'a> {
    place: Place<'a>,
    function: &'a FunctionRecord,
    /// Which life of the stream it was (`Input::life`).
    life: i64,
    max_payload: usize,
    committer: Committer,
    commit: Stream,
}

impl Gone<'_> {
    async fn partition(&self, number: u16) -> Result<usize, ControlError> {
        let (function, stream) = (self.place.function, self.place.stream);
        let position = self.place.names.position(function, stream, number);
        let mut given_up = 0;
        for _ in 0..TRIES {
            let Some(last) = last_of(&self.commit, &position).await? else {
                return Ok(given_up);
            };
            let record = read(&position, &last.payload)?;
            let partition = claimed(&position, &record, last.sequence);
            let subjects = self.parked(number).await?;
            let ended = futures::stream::iter(record.parked_sequences())
                .map(|sequence| self.one(&partition, number, sequence, &subjects))
                .buffer_unordered(AT_ONCE);
            given_up += ended.try_fold(0, async |sum, one| Ok(sum + one)).await?;
            let mut parked = record.parked_sequences();
            if !partition.is_lost() && !parked.any(|one| partition.is_parked(one)) {
                return Ok(given_up);
            }
        }
        Err(ControlError::new(
            ErrorKind::Conflict,
            format!("{position} is written by its node again and again"),
            "try again",
        ))
    }

    /// Subjects in the park of a partition, by sequence.
    async fn parked(&self, partition: u16) -> Result<HashMap<u64, String>, ControlError> {
        let Place {
            names,
            function,
            stream,
        } = self.place;
        let filter = names.parked_filter(function, stream, Some(partition));
        let failed =
            |why: &dyn std::fmt::Display| ControlError::nats(format!("list {filter}"), why);
        let found = self.commit.info_with_subjects(&filter).await;
        let found: Vec<(String, usize)> = found
            .map_err(|error| failed(&error))?
            .try_collect()
            .await
            .map_err(|error| failed(&error))?;
        let by_sequence = found.into_iter().filter_map(|(subject, _)| {
            let sequence = subject.rsplit('.').next()?.parse().ok()?;
            Some((sequence, subject))
        });
        Ok(by_sequence.collect())
    }

    /// Gives one up: 1, or 0 if somebody else has written the position meanwhile.
    async fn one(
        &self,
        partition: &Partition,
        number: u16,
        sequence: u64,
        subjects: &HashMap<u64, String>,
    ) -> Result<usize, ControlError> {
        let Place {
            names,
            function,
            stream,
        } = self.place;
        let lost = || names.parked(function, stream, number, None, sequence);
        let subject = subjects.get(&sequence).cloned().unwrap_or_else(lost);
        let letter = self.letter(partition, sequence, subject).await?;
        match self.committer.commit(Arc::new(letter)).await {
            Ok(()) => Ok(1),
            Err(CommitError::Duplicate | CommitError::Lost | CommitError::Conflict(_)) => Ok(0),
            Err(error) => {
                let doing = format!("give up event {sequence} of stream {stream}, which waits");
                Err(ControlError::nats(doing, error))
            }
        }
    }

    /// What takes one that waits under `subject` out of the park, and stores its letter.
    async fn letter(
        &self,
        partition: &Partition,
        sequence: u64,
        subject: String,
    ) -> Result<Transaction, ControlError> {
        let stream: Arc<str> = self.place.stream.into();
        let txn = Txn {
            instance: self.function.instance,
            stream: stream.clone(),
            life: self.life,
            sequence,
        }
        .id();
        let found = last_of(&self.commit, &subject).await?;
        let found = found.filter(|one| one.headers.get("KV-Operation").is_none());
        let revision = found.as_ref().map_or(0, |one| one.sequence);
        let parked = found
            .and_then(|one| {
                let headers = crate::nats::headers(Some(&one.headers));
                park::read(&headers, one.payload, &stream, sequence)
            })
            .unwrap_or_else(|| park::lost(&stream, sequence));
        let code = if parked.whole {
            INPUT_REPLACED
        } else {
            INPUT_GONE
        };
        let why = format!(
            "stream {stream} was deleted, or made anew, while the event waited for another attempt"
        );
        let letter = dead::letter(
            self.function,
            &parked.message,
            &txn,
            &Failure::reject(code, why),
            &parked.record.errors,
            self.max_payload,
        );
        let origin = Origin {
            function: self.place.function.into(),
            stream,
            sequence,
            txn,
        };
        let fence = Fence::Position {
            partition: partition.clone(),
            stored: None,
        };
        Ok(Transaction {
            dead: Some(letter),
            parking: Some(Parking {
                subject,
                revision,
                message: None,
            }),
            ..Transaction::new(origin, fence)
        })
    }
}

/// A hold on a partition under which nothing is handed out.
fn claimed(subject: &str, record: &PositionRecord, revision: u64) -> Partition {
    let owner = format!("deploy-{}", uuid::Uuid::new_v4().simple());
    let passed = Arc::new(AtomicU64::new(record.sequence));
    Partition::claimed(subject.to_owned(), owner, record, revision, passed)
}
