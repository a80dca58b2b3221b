//! Whether a stream is the input that it was: positions in it mean nothing in another one.

use async_nats::jetstream::stream::{Info, RetentionPolicy};

use super::Context;
use crate::records::{Input, PositionRecord};
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
    /// A position beyond the input's end, or whose latest message is another one now, belongs to another input: events
    /// would be passed by unseen.
    pub(super) async fn check_input(&self, record: &PositionRecord) -> Result<(), SourceError> {
        // An internal input lies in the stream of its positions.
        if record.witness == 0 || self.internal {
            return Ok(());
        }
        let name = &self.input.stream;
        let mut stream = self
            .js
            .get_stream(name)
            .await
            .map_err(|error| stream_error(name, &error))?;
        let info = stream.info().await;
        let state = info
            .map_err(|error| SourceError(format!("cannot read stream {name}: {error}")))?
            .state
            .clone();
        let rewound = |why: String| {
            SourceError(format!(
                "stream {name} is not what it was: {why}; it was restored or made anew, and the function's positions do not fit it. \
                 Deploy the function under another name, or restore the stream as it was"
            ))
        };
        if state.last_sequence < record.witness {
            return Err(rewound(format!(
                "it ends at {} and {} was handled",
                state.last_sequence, record.witness
            )));
        }
        match stream.get_raw_message(record.witness).await {
            Ok(message)
                if message.time.unix_timestamp_nanos() != i128::from(record.witness_stored) =>
            {
                Err(rewound(format!(
                    "message {} is another one",
                    record.witness
                )))
            }
            // Gone by age, or as it was.
            _ => Ok(()),
        }
    }
}
