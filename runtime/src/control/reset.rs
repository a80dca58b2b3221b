//! Has a function begin elsewhere in its inputs: at the start, at an event, at a time, or with what is new. What it handles again is another
//! delivery than the first time, so that its effects are made once more.
//!
//! Nothing of it may be under way meanwhile: it is paused, by all nodes, until its positions are written.

use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{self, stream::Stream};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::deploy::{before_time, request};
use super::progress::{Place, Progress, records, rewrite};
use super::scan::{Reader, Scan, scan};
use super::{ControlError, functions, hold, open, rollout};
use crate::config::DeliveryMode;
use crate::names::AppNames;
use crate::records::{FunctionRecord, Input, PositionRecord};
use crate::source;

/// Events that are read to count those that are done among others: the window of each partition, at most.
const MAX_READ: u64 = 65_536;
/// Purges of the park on their way at the same time.
const AT_ONCE: usize = 8;

/// Where a function is to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetTo {
    /// With the first event that its inputs hold.
    Start,
    /// With what is published from now on.
    New,
    /// With the event of this sequence, or the next one.
    Sequence(u64),
    /// With the first event that was stored at this time or later, RFC 3339.
    Time(String),
}

/// A reset that is to be carried out.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Reset {
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// By input.
    pub inputs: Vec<InputReset>,
}

/// What a reset means for one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InputReset {
    /// The stream.
    pub stream: String,
    /// Up to here everything was done.
    pub from: u64,
    /// Up to here everything will count as done.
    pub to: u64,
    /// Events that are handled again, at most: some of them may not have been handled before.
    pub again: u64,
    /// Events that are passed by and will not be handled. On a queue those that wait for another attempt or another event are among them;
    /// at most so many then, if `to` lies before the last that it handed out.
    pub passed_by: u64,
    /// Events that wait for another attempt, and are begun anew instead; those that lie before `to` go on waiting. None on a queue: what
    /// waits there beyond `to` is handled again.
    pub begun_anew: u64,
}

/// What a reset would do. Changes nothing.
///
/// # Errors
/// No such function or input; a time that is none; NATS trouble.
pub async fn find(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    stream: Option<&str>,
    to: &ResetTo,
) -> Result<Reset, ControlError> {
    let (record, _) = functions::record(js, app, function).await?;
    let names = AppNames::new(app);
    let chosen = |input: &&Input| stream.is_none_or(|stream| input.stream == stream);
    let chosen: Vec<&Input> = record.inputs.iter().filter(chosen).collect();
    let all = record.inputs.iter().map(|input| input.stream.as_str());
    let all = all.collect::<Vec<_>>().join(", ");
    if chosen.is_empty() {
        return Err(ControlError::not_found(
            format!(
                "function {function} does not read stream {}",
                stream.unwrap_or("any")
            ),
            format!("choose one of {all}"),
        ));
    }
    if let (ResetTo::Sequence(_), 2..) = (to, chosen.len()) {
        return Err(ControlError::refused(
            format!("function {function} reads several streams, and a sequence is of one"),
            format!("name one of {all} with --stream"),
        ));
    }
    let mut inputs = Vec::new();
    for input in chosen {
        inputs.push(look(js, &names, &record, input, to).await?);
    }
    Ok(Reset {
        app: app.to_owned(),
        function: function.to_owned(),
        inputs,
    })
}

async fn look(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    input: &Input,
    to: &ResetTo,
) -> Result<InputReset, ControlError> {
    let name = &input.stream;
    let Some(stream) = open(js, name).await? else {
        return Err(ControlError::not_found(
            format!("there is no stream {name}"),
            "deploy again, which makes it",
        ));
    };
    let state = &stream.cached_info().state;
    let to = match to {
        ResetTo::Start => state.first_sequence.saturating_sub(1),
        ResetTo::New => state.last_sequence,
        ResetTo::Sequence(at) if *at > state.last_sequence + 1 => {
            return Err(ControlError::refused(
                format!("stream {name} ends at {}", state.last_sequence),
                "name a sequence up to that, or say `new`",
            ));
        }
        ResetTo::Sequence(at) => at.saturating_sub(1),
        ResetTo::Time(text) => {
            let before = before_time(js, name, text).await?;
            before.unwrap_or(state.last_sequence)
        }
    };
    match record.settings.delivery {
        DeliveryMode::ExactlyOnce => by_positions(js, names, record, input, &stream, to).await,
        DeliveryMode::AtLeastOnce => by_consumer(names, record, input, &stream, to).await,
    }
}

async fn by_positions(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    input: &Input,
    stream: &Stream,
    to: u64,
) -> Result<InputReset, ControlError> {
    let place = Place {
        names,
        function: &record.function,
        stream: &input.stream,
    };
    let positions = records(js, place).await?;
    let progress = Progress::new(input.start, &positions);
    let mixed = Mixed::of(js, stream, record, input, &progress, to).await?;
    let parked = positions.values();
    let parked = parked.flat_map(PositionRecord::parked_sequences);
    let begun_anew = parked.filter(|at| *at > to).count() as u64;
    let from = progress.floor();
    let between = count(stream, input, from.min(to))
        .await?
        .saturating_sub(count(stream, input, from.max(to)).await?);
    let (again, passed_by) = match to < from {
        true => (between, 0),
        false => (0, between),
    };
    Ok(InputReset {
        stream: input.stream.clone(),
        from,
        to,
        again: (again + mixed.done_beyond).saturating_sub(begun_anew),
        passed_by: passed_by.saturating_sub(mixed.done_before),
        begun_anew,
    })
}

/// The consumer says how many of those that it handed out are not done, not which: between its floor and the last one they may be any.
async fn by_consumer(
    names: &AppNames,
    record: &FunctionRecord,
    input: &Input,
    stream: &Stream,
    to: u64,
) -> Result<InputReset, ControlError> {
    let beyond = count(stream, input, to).await?;
    let consumer = names.consumer(&record.function, record.instance);
    let (from, last, waiting, ahead) = match stream.consumer_info(&consumer).await {
        Ok(info) => (
            info.ack_floor.stream_sequence,
            info.delivered.stream_sequence,
            info.num_ack_pending as u64,
            info.num_pending,
        ),
        // Nothing was handed out by one that somebody deleted.
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
            (0, 0, 0, count(stream, input, 0).await?)
        }
        Err(error) => {
            let doing = format!("read consumer {consumer} of stream {}", input.stream);
            return Err(ControlError::nats(doing, error));
        }
    };
    let passed_by = match () {
        () if to >= last => waiting + ahead.saturating_sub(beyond),
        () if waiting == 0 || to <= from => 0,
        () => {
            let handed_out = count(stream, input, from).await?.saturating_sub(beyond);
            waiting.min(handed_out)
        }
    };
    Ok(InputReset {
        stream: input.stream.clone(),
        from,
        to,
        again: match to < last {
            true => beyond.saturating_sub(ahead),
            false => 0,
        },
        passed_by,
        begun_anew: 0,
    })
}

/// What lies where some events are done and some are not: behind the first that is not.
#[derive(Debug, Default)]
struct Mixed {
    /// Done, up to where everything will count as done.
    done_before: u64,
    /// Done, beyond that.
    done_beyond: u64,
}

impl Mixed {
    async fn of(
        js: &jetstream::Context,
        stream: &Stream,
        record: &FunctionRecord,
        input: &Input,
        progress: &Progress,
        to: u64,
    ) -> Result<Self, ControlError> {
        let behind = Scan {
            filters: input.subjects.clone(),
            from: DeliverPolicy::ByStartSequence {
                start_sequence: progress.floor() + 1,
            },
            headers_only: false,
        };
        let doing = format!("read stream {}", input.stream);
        let name = input.stream.as_str().into();
        let (mut mixed, mut read) = (Self::default(), 0);
        scan(js, stream, behind, |message| {
            let info = message.info();
            let info = info.map_err(|error| ControlError::nats(&doing, error))?;
            let message = source::message(message, &info, &name);
            read += 1;
            if message.sequence > progress.end() || read > MAX_READ {
                return Ok(ControlFlow::Break(()));
            }
            if progress.is_done(record.settings.key.as_ref(), &message) {
                match message.sequence <= to {
                    true => mixed.done_before += 1,
                    false => mixed.done_beyond += 1,
                }
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        Ok(mixed)
    }
}

/// Events of an input beyond a sequence; the server counts them.
async fn count(stream: &Stream, input: &Input, beyond: u64) -> Result<u64, ControlError> {
    let scan = Scan {
        filters: input.subjects.clone(),
        from: DeliverPolicy::ByStartSequence {
            start_sequence: beyond + 1,
        },
        headers_only: true,
    };
    let reader = Reader::open(stream, scan).await?;
    let pending = reader.pending();
    reader.close().await;
    Ok(pending)
}

/// Carries it out; `to` is what it was found for. What it was in the end, and the record that nodes follow then.
///
/// # Errors
/// A node does not let go within `within`, and nothing was changed; somebody else resumes or resets it meanwhile; NATS trouble: the error
/// says so if the function stays paused, and resetting it again goes on.
pub async fn carry_out(
    js: &jetstream::Context,
    mut reset: Reset,
    to: &ResetTo,
    by: &str,
    within: Duration,
    mut step: impl FnMut(&str),
) -> Result<(Reset, FunctionRecord), ControlError> {
    let (app, function) = (reset.app.clone(), reset.function.clone());
    let names = AppNames::new(app.as_str());
    step("waiting for the nodes to let go of it");
    let rest = hold::at_rest(js, &app, &function, by, within).await?;
    // What came and was handled until now is not to be handled again.
    for one in &mut reset.inputs {
        let mut inputs = rest.record.inputs.iter();
        if let Some(input) = inputs.find(|input| input.stream == one.stream) {
            *one = match look(js, &names, &rest.record, input, to).await {
                Ok(found) => found,
                Err(error) => return Err(rest.undone(js, error).await),
            };
        }
    }
    // First: should somebody resume it too early, what it handles again is another delivery all the same.
    let changed = rollout::change(js, &app, &function, |record| {
        rest.holds(record)?;
        let mut next = record.clone();
        let trial = next.trial.iter_mut().map(|trial| &mut trial.record.inputs);
        for inputs in std::iter::once(&mut next.inputs).chain(trial) {
            moved(inputs, &reset);
        }
        next.generation = record.generation() + 1;
        Ok(Some(next))
    });
    if let Err(error) = changed.await {
        return Err(rest.undone(js, error).await);
    }
    for input in &reset.inputs {
        step(&format!("writing where it is in stream {}", input.stream));
        let placed = place(js, &names, &rest.record, input).await;
        placed.map_err(|error| rest.unfinished(error))?;
    }
    let record = rest.end(js).await.map_err(|error| rest.unfinished(error))?;
    Ok((reset, record))
}

/// The inputs with their new begin, each in another life.
fn moved(inputs: &mut [Input], reset: &Reset) {
    for input in inputs {
        if let Some(to) = reset.inputs.iter().find(|one| one.stream == input.stream) {
            input.start = to.to;
            input.resets = input.resets.wrapping_add(1);
        }
    }
}

/// Says where the function is in one input.
async fn place(
    js: &jetstream::Context,
    names: &AppNames,
    record: &FunctionRecord,
    reset: &InputReset,
) -> Result<(), ControlError> {
    let (function, name, to) = (record.function.as_str(), reset.stream.as_str(), reset.to);
    let Some(commit) = open(js, &names.commit_stream()).await? else {
        return Ok(());
    };
    match record.settings.delivery {
        DeliveryMode::ExactlyOnce => {
            let place = Place {
                names,
                function,
                stream: name,
            };
            rewrite(js, place, None, |_, stored| {
                let next = begin(stored, to);
                (stored != Some(&next)).then_some(next)
            })
            .await?;
            let filter = names.parked_filter(function, name, None);
            clear(&commit, &filter, Some(to)).await
        }
        DeliveryMode::AtLeastOnce => {
            let consumer = format!("{name}.{}", names.consumer(function, record.instance));
            let doing = format!("move consumer {consumer}");
            request(
                js,
                &format!("CONSUMER.DELETE.{consumer}"),
                json!({}),
                &doing,
            )
            .await?;
            let input = record.inputs.iter().find(|input| input.stream == name);
            if let (Some(input), Some(stream)) = (input, open(js, name).await?) {
                let made = source::ensure_consumer_from(&stream, record, input, to + 1).await;
                made.map_err(|error| ControlError::nats(&doing, error))?;
            }
            // What positions before the queue, or of a deploy that did not end, said is done is to be done again.
            let place = Place {
                names,
                function,
                stream: name,
            };
            rewrite(js, place, None, |_, stored| {
                let stored = stored?;
                let next = PositionRecord::new("", to, std::iter::empty(), (0, 0));
                Some(next.close(stored.key.clone()))
            })
            .await?;
            clear(&commit, &names.waiting_filter(function, name), None).await
        }
    }
}

/// A position that begins behind `to`; what waits from before that goes on waiting.
fn begin(stored: Option<&PositionRecord>, to: u64) -> PositionRecord {
    let parked = stored
        .into_iter()
        .flat_map(PositionRecord::parked_sequences);
    let parked: Vec<u64> = parked.filter(|at| *at <= to).collect();
    PositionRecord::new("", to, std::iter::empty(), (0, 0)).with_parked(parked.into_iter())
}

/// Removes what waits beyond a sequence, or all.
async fn clear(commit: &Stream, filter: &str, beyond: Option<u64>) -> Result<(), ControlError> {
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(format!("purge {filter}"), why);
    let Some(beyond) = beyond else {
        let purged = commit.purge().filter(filter).await;
        return purged.map(drop).map_err(|error| failed(&error));
    };
    let subjects = commit.info_with_subjects(filter).await;
    let subjects = subjects.map_err(|error| failed(&error))?;
    let mut purges = subjects
        .map(async |entry| {
            let (subject, _) = entry.map_err(|error| failed(&error))?;
            let at = subject
                .rsplit('.')
                .next()
                .and_then(|token| token.parse::<u64>().ok());
            if at.is_none_or(|at| at <= beyond) {
                return Ok(());
            }
            let purged = commit.purge().filter(subject).await;
            purged.map(drop).map_err(|error| failed(&error))
        })
        .buffer_unordered(AT_ONCE);
    while let Some(purged) = purges.next().await {
        purged?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_from_before_goes_on_waiting() {
        let stored = PositionRecord::new("node", 90, [95].into_iter(), (95, 950));
        let stored = stored.with_parked([20, 50, 95].into_iter());
        let next = begin(Some(&stored), 50);
        assert_eq!(
            (next.sequence, next.owner.as_str(), next.witness),
            (50, "", 0)
        );
        assert_eq!(next.parked_sequences().collect::<Vec<_>>(), [20, 50]);
        assert_eq!(next.done_sequences().count(), 0);
        assert_eq!(begin(None, 7).sequence, 7);
    }
}
