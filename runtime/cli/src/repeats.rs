//! Keeps a lasting condition from filling the log: a warning is written once, its repetitions are
//! counted, and a minute
//! later one line says how many there were.
//!
//! Lines are of one kind when they come from the same place in the code and are about the same app
//! and function. Of a kind,
//! [`LINES`] are written within [`WINDOW`]; warnings and errors only when they give another reason
//! than those before them.
//! Lines below a warning are limited when they are about a single message.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// How long lines of one kind are counted before they may be written again.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines of one kind that are written within that time.
const LINES: usize = 8;
/// Kinds that are told apart; beyond, those of one place in the code count together.
const KINDS: usize = 1024;
/// How often the counts are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is kept of a line to say what was repeated.
const KEPT: usize = 200;
/// Of the lines that say how many there were. They count as the library's, so that a filter that
/// shows its lines shows these.
const TARGET: &str = "pelton_runtime::repeats";

/// The filter; clones share what they know.
#[derive(Clone, Default)]
pub struct Repeats(Arc<Mutex<HashMap<Kind, Seen>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    place: Identifier,
    app: Option<String>,
    function: Option<String>,
}

/// What was written and counted of one kind.
struct Seen {
    since: Instant,
    reasons: Vec<u64>,
    more: u64,
    /// The last line that was not written.
    last: String,
    level: Level,
}

/// What a kind's window came to.
#[derive(Debug, PartialEq)]
struct Summary {
    app: Option<String>,
    function: Option<String>,
    more: u64,
    last: String,
    level: Level,
}

/// What matters of a line.
#[derive(Default)]
struct Line {
    app: Option<String>,
    function: Option<String>,
    message: String,
    /// Why it was written, without what differs from message to message.
    reason: String,
    about_one: bool,
}

impl Repeats {
    /// Writes the counts from now on.
    ///
    /// # Errors
    /// The thread for it cannot be started.
    pub fn report(&self) -> std::io::Result<()> {
        let known = self.clone();
        let thread = std::thread::Builder::new().name("log-repeats".into());
        thread.spawn(move || {
            loop {
                std::thread::park_timeout(LOOK);
                known.ended(Instant::now()).into_iter().for_each(write);
            }
        })?;
        Ok(())
    }

    /// Whether a line is to be written.
    fn admits(&self, place: Identifier, level: Level, line: Line, now: Instant) -> bool {
        let severe = level <= Level::WARN;
        if level > Level::INFO || !severe && !line.about_one {
            return true;
        }
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kind = Kind {
            place,
            app: line.app,
            function: line.function,
        };
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            kinds.retain(|_, seen| seen.more > 0 || now - seen.since < WINDOW);
            if kinds.len() >= KINDS {
                (kind.app, kind.function) = (None, None);
            }
        }
        let seen = kinds.entry(kind).or_insert_with(|| Seen::new(now, level));
        if seen.more == 0 && now - seen.since >= WINDOW {
            *seen = Seen::new(now, level);
        }
        let reason = hash(&line.reason);
        let known = severe && seen.reasons.contains(&reason);
        if !known && seen.reasons.len() < LINES {
            seen.reasons.push(reason);
            return true;
        }
        seen.more += 1;
        seen.last = shortened(line.message, line.reason);
        false
    }

    /// Takes out what has been counted for long enough.
    fn ended(&self, now: Instant) -> Vec<Summary> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |seen: &Seen| now - seen.since >= WINDOW;
        let ended = kinds.extract_if(|_, seen| over(seen));
        let counted = ended.filter(|(_, seen)| seen.more > 0);
        let summaries = counted.map(|(kind, seen)| Summary {
            app: kind.app,
            function: kind.function,
            more: seen.more,
            last: seen.last,
            level: seen.level,
        });
        summaries.collect()
    }
}

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let place = metadata.callsite();
        self.admits(place, *metadata.level(), line, Instant::now())
    }
}

impl Seen {
    fn new(since: Instant, level: Level) -> Self {
        Self {
            since,
            reasons: Vec::new(),
            more: 0,
            last: String::new(),
            level,
        }
    }
}

impl Line {
    fn take(&mut self, field: &Field, value: &str) {
        match field.name() {
            "app" => self.app = Some(value.to_owned()),
            "function" => self.function = Some(value.to_owned()),
            "message" => {
                self.message = value.to_owned();
                self.reason += &without_digits(value);
            }
            "sequence" => self.about_one = true,
            // Lines that differ in one of these tell of different things. `times` counts what ended
            // in between.
            "times" => self.reason += value,
            "code" | "connection" | "error" | "reason" | "stream" | "target" | "why" => {
                self.reason += " ";
                self.reason += &without_digits(value);
            }
            _ => {}
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, &format!("{value:?}"));
    }
}

/// Ids, sequences and durations are not what tells one reason from another.
fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn shortened(message: String, reason: String) -> String {
    let mut text = if message.is_empty() { reason } else { message };
    if let Some((at, _)) = text.char_indices().nth(KEPT) {
        text.truncate(at);
    }
    text
}

fn write(summary: Summary) {
    let Summary {
        app,
        function,
        more,
        last,
        level,
    } = summary;
    let (app, function, seconds) = (app.as_deref(), function.as_deref(), WINDOW.as_secs());
    match level {
        Level::ERROR => {
            tracing::error!(target: TARGET, app, function, more, "{last}: and {more} more like this in the last {seconds} s");
        }
        Level::WARN => {
            tracing::warn!(target: TARGET, app, function, more, "{last}: and {more} more like this in the last {seconds} s");
        }
        _ => {
            tracing::info!(target: TARGET, app, function, more, "{last}: and {more} more like this in the last {seconds} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    /// What is written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What is written of what `log` logs, and what is said a minute later.
    fn logged(log: impl FnOnce()) -> (Vec<String>, Vec<Summary>) {
        let (written, repeats) = (Written::default(), Repeats::default());
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(written.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(repeats.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let later = Instant::now() + WINDOW;
        (
            text.lines().map(str::to_owned).collect(),
            repeats.ended(later),
        )
    }

    #[test]
    fn one_line_for_a_condition_and_a_count() {
        let (lines, summaries) = logged(|| {
            for sequence in 0..40_000 {
                let function = if sequence % 2 == 0 { "even" } else { "odd" };
                let error = format!("insufficient resources ({sequence})");
                tracing::warn!(app = "shop", function, sequence, error, "cannot commit");
            }
        });
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert_eq!(summaries.len(), 2);
        for summary in summaries {
            assert_eq!(
                (summary.more, summary.last.as_str()),
                (19_999, "cannot commit")
            );
            assert_eq!(summary.app.as_deref(), Some("shop"));
        }
    }

    #[test]
    fn different_reasons_are_told_and_bounded() {
        let (lines, summaries) = logged(|| {
            for letter in ('a'..='z').flat_map(|letter| [letter, letter]) {
                let why = letter.to_string();
                tracing::error!(app = "shop", function = "f", why, "dead letter");
            }
        });
        assert_eq!(lines.len(), LINES);
        assert_eq!(summaries[0].more, 2 * 26 - LINES as u64);
    }

    #[test]
    fn lines_about_messages_are_limited_and_those_about_states_are_not() {
        let (lines, _) = logged(|| {
            for n in 0..100 {
                tracing::info!(app = "shop", function = "f", sequence = n, "retry");
                tracing::info!(app = "shop", function = "f", version = n, "running");
            }
        });
        let retries = lines.iter().filter(|line| line.contains("retry"));
        assert_eq!((retries.count(), lines.len()), (LINES, LINES + 100));
    }

    #[test]
    fn what_ended_in_between_is_told_again() {
        let (lines, _) = logged(|| {
            for times in 1..=3 {
                tracing::warn!(connection = "node", times, "connection lost");
            }
        });
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn kinds_are_bounded() {
        let (lines, summaries) = logged(|| {
            for n in 0..3 * KINDS {
                tracing::warn!(app = format!("app-{n}"), "trouble");
            }
        });
        assert_eq!(lines.len(), KINDS + 1);
        assert_eq!(summaries.len(), 1);
    }
}
