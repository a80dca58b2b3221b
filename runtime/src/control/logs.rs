//! What functions log, from the stream that all nodes write it to.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self};
use time::OffsetDateTime;

use super::scan::{LOST, Reader, Scan, readable_from};
use super::{ControlError, open};
use crate::names::{LOGS_PREFIX, LOGS_STREAM};
pub use crate::telemetry::LogRecord;

/// Levels from the least to the most severe.
pub const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "critical"];

/// Pause before a lost reader is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Which lines.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Of one app; none: of all.
    pub app: Option<String>,
    /// Of one function.
    pub function: Option<String>,
    /// At least this severe.
    pub level: Option<String>,
    /// Logged at or after this time.
    pub since: Option<OffsetDateTime>,
    /// The last so many of what is stored; none: all of it.
    pub last: Option<u64>,
    /// Go on with what comes.
    pub follow: bool,
}

/// Hands every line that matches to `each`; returns at the end of what is stored, or never when following.
///
/// # Errors
/// An unknown level; an error of `each`; NATS trouble.
pub async fn tail<E: From<ControlError>>(
    js: &jetstream::Context,
    query: &LogQuery,
    mut each: impl FnMut(LogRecord) -> Result<(), E>,
) -> Result<(), E> {
    let filters = filters(query)?;
    let Some(stream) = open(js, LOGS_STREAM).await? else {
        return Err(ControlError::not_found(
            format!("there is no stream {LOGS_STREAM}: nothing was ever deployed here"),
            "run `pelton deploy` first, or give the right --server or --context",
        )
        .into());
    };
    let (mut reader, mut skip) = start(&stream, query, filters.clone()).await?;
    let (mut next, mut lost) = (None, 0);
    loop {
        let ended = read(reader, query.follow, &mut skip, &mut next, &mut each).await?;
        let Err(error) = ended else { return Ok(()) };
        lost = failed_again(lost, query, error)?;
        // Resume after the last line that was read, and after lines that no client can read.
        let from = next.unwrap_or(1);
        reader = loop {
            tokio::time::sleep(PAUSE).await;
            match resume(js, &stream, &filters, from).await {
                Ok(reader) => break reader,
                Err(error) => lost = failed_again(lost, query, error)?,
            }
        };
    }
}

/// Counts a failure, and returns it when no more are borne: none is too many when following.
fn failed_again(lost: usize, query: &LogQuery, error: ControlError) -> Result<usize, ControlError> {
    match !query.follow && lost + 1 >= LOST {
        true => Err(error),
        false => Ok(lost + 1),
    }
}

/// A reader from the first readable line at or after `from`.
async fn resume(
    js: &jetstream::Context,
    stream: &Stream,
    filters: &[String],
    from: u64,
) -> Result<Reader, ControlError> {
    let start_sequence = readable_from(js, LOGS_STREAM, filters, from).await?;
    let scan = Scan {
        filters: filters.to_vec(),
        from: DeliverPolicy::ByStartSequence { start_sequence },
        headers_only: false,
    };
    Reader::open(stream, scan).await
}

/// Reads to the end of the stream, or when following until the connection breaks. Sets `next` to
/// the sequence at which to resume.
async fn read<E>(
    mut reader: Reader,
    follow: bool,
    skip: &mut u64,
    next: &mut Option<u64>,
    each: &mut impl FnMut(LogRecord) -> Result<(), E>,
) -> Result<Result<(), ControlError>, E> {
    let mut pending = reader.pending();
    let mut ended = Ok(Ok(()));
    while pending > 0 || follow {
        let message = match reader.next().await {
            Ok(message) => message,
            Err(error) => {
                ended = Ok(Err(error));
                break;
            }
        };
        if let Ok(info) = message.info() {
            (pending, *next) = (info.pending, Some(info.stream_sequence + 1));
        }
        if *skip > 0 {
            *skip -= 1;
        } else if let Ok(record) = serde_json::from_slice::<LogRecord>(&message.payload)
            && let Err(error) = each(record)
        {
            ended = Err(error);
            break;
        }
    }
    reader.close().await;
    ended
}

/// A reader that begins not far before the first wanted line, and how many lines to skip. The server counts what
/// matches from a sequence on, so the last lines of one function are found without reading those of others.
async fn start(
    stream: &Stream,
    query: &LogQuery,
    filters: Vec<String>,
) -> Result<(Reader, u64), ControlError> {
    let scan = |from| Scan {
        filters: filters.clone(),
        from,
        headers_only: false,
    };
    let state = &stream.cached_info().state;
    let (first, last) = (state.first_sequence.max(1), state.last_sequence);
    let Some(wanted) = query.last else {
        let from = query.since.map_or(DeliverPolicy::All, |start_time| {
            DeliverPolicy::ByStartTime { start_time }
        });
        return Ok((Reader::open(stream, scan(from)).await?, 0));
    };
    if let Some(start_time) = query.since {
        let from = DeliverPolicy::ByStartTime { start_time };
        let reader = Reader::open(stream, scan(from)).await?;
        let skip = reader.pending().saturating_sub(wanted);
        return Ok((reader, skip));
    }
    let mut window = wanted.max(1);
    loop {
        let start_sequence = (last + 1).saturating_sub(window).max(first);
        let from = DeliverPolicy::ByStartSequence { start_sequence };
        let reader = Reader::open(stream, scan(from)).await?;
        let pending = reader.pending();
        if pending >= wanted || start_sequence <= first {
            return Ok((reader, pending.saturating_sub(wanted)));
        }
        reader.close().await;
        window = window.saturating_mul(16);
    }
}

fn filters(query: &LogQuery) -> Result<Vec<String>, ControlError> {
    let app = query.app.as_deref().unwrap_or("*");
    let function = query.function.as_deref().unwrap_or("*");
    let Some(level) = query.level.as_deref() else {
        return Ok(vec![format!("{LOGS_PREFIX}.{app}.{function}.*")]);
    };
    let least = LEVELS
        .iter()
        .position(|known| *known == level)
        .ok_or_else(|| {
            ControlError::refused(
                format!("{level:?} is no log level"),
                format!("choose one of {}", LEVELS.join(", ")),
            )
        })?;
    Ok(LEVELS
        .iter()
        .skip(least)
        .map(|level| format!("{LOGS_PREFIX}.{app}.{function}.{level}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_takes_in_the_more_severe_ones() {
        let query = LogQuery {
            app: Some("shop".into()),
            level: Some("error".into()),
            ..LogQuery::default()
        };
        assert_eq!(
            filters(&query).unwrap(),
            [
                "$KV.PELTON_LOGS.shop.*.error",
                "$KV.PELTON_LOGS.shop.*.critical"
            ]
        );
        let all = filters(&LogQuery::default()).unwrap();
        assert_eq!(all, ["$KV.PELTON_LOGS.*.*.*"]);
    }
}
