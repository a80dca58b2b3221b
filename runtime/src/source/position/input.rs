//! Whether a stream is the input that it was: positions in it mean nothing in another one. And single messages of it.

use async_nats::jetstream::stream::{Info, RetentionPolicy};

use super::{Context, due};
use crate::event::Message;
use crate::nats::raw::{self, Stored, Which};
use crate::records::Input;
use crate::source::SourceError;
use crate::source::queue::stream_error;

/// When a stream was made, nanoseconds since 1970.
pub(super) fn created(info: &Info) -> i64 {
    i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default()
}

/// Refuses a stream that removes what is acknowledged, and one that is not what the function was deployed on.
pub(super) fn check_stream(input: &Input, info: &Info) -> Result<(), SourceError> {
    if info.config.retention != RetentionPolicy::Limits {
        return Err(SourceError(format!(
            "stream {} removes what is acknowledged (retention {:?}), and delivery = \"exactly-once\" acknowledges nothing; \
             say delivery = \"at-least-once\", or use a stream with retention = \"limits\"",
            input.stream, info.config.retention
        )));
    }
    let another = input.created != 0 && input.created != created(info);
    if another || info.state.last_sequence < input.start {
        return Err(SourceError(format!(
            "stream {} is not what it was: it was made anew or restored since the function was deployed; deploy it again, \
             and `start` says where it begins",
            input.stream
        )));
    }
    Ok(())
}

impl Context {
    /// The next message behind this sequence, read through the JSON API: whatever its bytes are,
    /// reading it breaks no connection. `None`: there is none yet.
    pub(super) async fn read_behind(&self, passed: u64) -> Result<Option<Stored>, SourceError> {
        let filter = match self.filter() {
            filter if filter.is_empty() => ">".to_owned(),
            filter => filter,
        };
        let js = self.nats.jetstream();
        let found = raw::get(&js, &self.stream, Which::Next(passed + 1, &filter)).await;
        found.map_err(|error| SourceError(error.to_string()))
    }

    /// A message of the input's stream as its leader has it; `None`: not any more.
    async fn message(&self, sequence: u64) -> Result<Option<Stored>, SourceError> {
        let js = self.nats.jetstream();
        let found = raw::get(&js, &self.stream, Which::Sequence(sequence)).await;
        found.map_err(|error| SourceError(error.to_string()))
    }

    /// A message as a delivery of this input.
    pub(super) fn deliverable(&self, stored: Stored) -> Message {
        let message = stored.into_message(&self.stream);
        match self.internal {
            true => due::open(message),
            false => message,
        }
    }

    /// Why this is not the input that positions speak of whose latest message is `witness`, stored at that time: made anew, or restored.
    /// A position beyond the input's end, or whose latest message is another one now, would pass events by unseen.
    pub(super) async fn misfit(
        &self,
        witness: (u64, i64),
    ) -> Result<Option<SourceError>, SourceError> {
        // An internal input lies in the stream of its positions.
        if self.internal {
            return Ok(None);
        }
        let (witness, stored) = witness;
        let name = &self.input.stream;
        let stream = self
            .nats
            .jetstream()
            .get_stream(name)
            .await
            .map_err(|error| stream_error(name, &error))?;
        let info = stream.cached_info();
        if created(info) != self.stream_created {
            return Ok(Some(SourceError(format!(
                "stream {name} is not what it was: it was made anew while it was read; deploy the function again, and `start` says where \
                 it begins"
            ))));
        }
        let last = info.state.last_sequence;
        let rewound = |why: String| {
            SourceError(format!(
                "stream {name} is not what it was: {why}; it was restored or made anew, and the function's positions do not fit it. \
                 Deploy the function under another name, or restore the stream as it was"
            ))
        };
        if last < witness {
            let why = format!("it ends at {last} and {witness} was handled");
            return Ok(Some(rewound(why)));
        }
        if witness == 0 {
            return Ok(None);
        }
        let found = self.message(witness).await?;
        // Gone by age, or as it was.
        let another = found.is_some_and(|found| found.stored != stored);
        Ok(another.then(|| rewound(format!("message {witness} is another one"))))
    }

    /// A message as the function's input has it; `None`: not any more.
    pub(super) async fn original(&self, sequence: u64) -> Result<Option<Message>, SourceError> {
        let found = self.message(sequence).await?;
        let name = &self.stream;
        let stream = self.nats.jetstream().get_stream(name.as_ref()).await;
        let stream = stream.map_err(|error| stream_error(name, &error))?;
        let info = stream.cached_info();
        // Of another stream, or not there yet: a server that has just begun to lead may lag behind.
        if created(info) != self.stream_created || info.state.last_sequence < sequence {
            return Err(SourceError(format!(
                "stream {name} is not what it was, or its leader lags behind: message {sequence} cannot be read"
            )));
        }
        Ok(found.map(|stored| self.deliverable(stored)))
    }
}
