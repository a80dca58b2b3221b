//! The node's own log, for commands that stay: lines on stderr, as text or JSON, filtered in the language of `RUST_LOG`.

use clap::ValueEnum;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::repeats::Repeats;

/// What a node prints when nobody says anything.
pub const NODE_LEVEL: &str = "info,async_nats=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether this is a filter of log lines: levels, or targets with theirs.
///
/// # Errors
/// What would do.
pub fn check(filter: &str) -> Result<(), String> {
    let fix = "write error, warn, info, debug or trace, or TARGET=LEVEL for a part, such as info,async_nats=debug";
    // A bare word would be a target, all of whose lines are wanted; here it is a misspelt level. Nothing would be the level error.
    let misspelt = |part: &str| {
        part.is_empty() || !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err()
    };
    if filter.split(',').any(misspelt) {
        return Err(fix.into());
    }
    match EnvFilter::try_new(filter) {
        Ok(_) => Ok(()),
        Err(why) => Err(format!("{fix} ({why})")),
    }
}

/// A filter as a flag or variable says it; an empty one is none.
///
/// # Errors
/// See [`check`].
pub fn level(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        check(text)?;
    }
    Ok(text.to_owned())
}

/// Starts logging; a second call changes nothing. `default` counts when `RUST_LOG` is not set.
pub fn init(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    start(format, filter);
}

/// As [`init`], with a filter that was decided on already.
pub fn init_with(format: LogFormat, filter: &str) {
    start(format, EnvFilter::new(filter));
}

fn start(format: LogFormat, filter: EnvFilter) {
    let repeats = Repeats::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = registry.with(lines.with_filter(repeats.clone())).try_init();
    // Only the first subscriber counts; a later one is no failure worth stopping for.
    if started.is_ok()
        && let Err(error) = repeats.report()
    {
        tracing::warn!(%error, "repeated log lines are suppressed without a count");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in [
            "info",
            "DEBUG",
            "off",
            NODE_LEVEL,
            "pelton_runtime=debug",
            "info,a[b]=trace",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "inof",
            "info,loud",
            "pelton_runtime=loud",
            "info, debug",
            "",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(level(""), Ok(String::new()));
    }
}
