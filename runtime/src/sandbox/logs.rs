//! Where one attempt's log lines go: to whoever made the call, and the last `critical` one is remembered, for it
//! is what a panic says before it traps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::LogLine;
use crate::effects::{MAX_ERROR_BYTES, cut};

/// Lines that one attempt may log; more are dropped.
const MAX_LINES: usize = 256;

/// The lines of one attempt, at most 256; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LogLines(Arc<Mutex<Vec<LogLine>>>);

impl LogLines {
    /// The lines so far, in their order.
    pub fn take(&self) -> Vec<LogLine> {
        std::mem::take(&mut *self.lock())
    }

    fn push(&self, line: LogLine) {
        let mut lines = self.lock();
        // More are lost, so that no guest makes its node hold more than that.
        if lines.len() < MAX_LINES {
            lines.push(line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LogLine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared by the host's imports and the guest's stdout and stderr of one instance.
#[derive(Default)]
pub(super) struct Logs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    lines: Option<LogLines>,
    last_critical: Option<String>,
    /// The unfinished lines of stdout and stderr.
    unfinished: [Vec<u8>; 2],
}

/// Which of a guest's two outputs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

impl Logs {
    /// A new attempt begins.
    pub(super) fn open(&self, lines: LogLines) {
        let mut inner = self.lock();
        inner.lines = Some(lines);
        inner.last_critical = None;
    }

    /// The attempt is over; its last `critical` line, if any.
    pub(super) fn close(&self) -> Option<String> {
        let mut inner = self.lock();
        // What was begun belongs to this attempt, finished or not.
        inner.end_line(Output::Stdout);
        inner.end_line(Output::Stderr);
        inner.lines = None;
        inner.last_critical.take()
    }

    /// Passes a line on, or drops it when there are too many.
    pub(super) fn line(&self, level: &'static str, context: String, message: String) {
        self.lock().line(level, context, message);
    }

    /// Bytes that the guest wrote: every finished line of them becomes a log line.
    pub(super) fn write(&self, output: Output, bytes: &[u8]) {
        let mut inner = self.lock();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let unfinished = inner.unfinished(output);
            unfinished.extend_from_slice(part);
            if part.ends_with(b"\n") {
                inner.end_line(output);
            } else if unfinished.len() > MAX_ERROR_BYTES {
                inner.pieces(output);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that could panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn line(&mut self, level: &'static str, context: String, message: String) {
        let message = cut(message);
        if level == "critical" {
            self.last_critical = Some(message.clone());
        }
        if let Some(lines) = &self.lines {
            lines.push(LogLine {
                level,
                context: cut(context),
                message,
            });
        }
    }

    fn unfinished(&mut self, output: Output) -> &mut Vec<u8> {
        let [stdout, stderr] = &mut self.unfinished;
        match output {
            Output::Stdout => stdout,
            Output::Stderr => stderr,
        }
    }

    /// Logs what there is of a line, in as many pieces as it takes.
    fn end_line(&mut self, output: Output) {
        self.pieces(output);
        let rest = std::mem::take(self.unfinished(output));
        self.piece(output, rest.trim_ascii_end());
    }

    /// Logs the full pieces of a line, between characters; less than one stays.
    fn pieces(&mut self, output: Output) {
        let all = std::mem::take(self.unfinished(output));
        let mut rest = all.as_slice();
        while rest.len() > MAX_ERROR_BYTES {
            let continues = |at: &usize| rest.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
            // A character has at most three bytes behind its first.
            let end = (MAX_ERROR_BYTES - 3..=MAX_ERROR_BYTES)
                .rev()
                .find(|at| !continues(at))
                .unwrap_or(MAX_ERROR_BYTES);
            let (piece, behind) = rest.split_at(end);
            self.piece(output, piece);
            rest = behind;
        }
        *self.unfinished(output) = rest.to_vec();
    }

    fn piece(&mut self, output: Output, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        if !text.is_empty() {
            let (level, name) = match output {
                Output::Stdout => ("info", "stdout"),
                Output::Stderr => ("error", "stderr"),
            };
            self.line(level, name.to_owned(), text.into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_comes_in_pieces_and_an_unfinished_one_with_its_own_attempt() {
        let logs = Logs::default();
        let lines = LogLines::default();
        logs.open(lines.clone());
        let long = format!("a{}\n", "é".repeat(MAX_ERROR_BYTES));
        logs.write(Output::Stdout, long.as_bytes());
        logs.write(Output::Stderr, b"first\nhalf");
        logs.close();

        let said = lines.take();
        let said: Vec<_> = said
            .iter()
            .map(|one| (one.context.as_str(), one.message.as_str()))
            .collect();
        let (stdout, stderr) = said.split_at(3);
        let pieces: String = stdout.iter().map(|(_, message)| *message).collect();
        assert_eq!(pieces, long.trim_end());
        assert_eq!(stderr, [("stderr", "first"), ("stderr", "half")]);

        logs.open(lines.clone());
        for _ in 0..=MAX_LINES {
            logs.write(Output::Stderr, b"other\n");
        }
        let said = lines.take();
        assert!(said.iter().all(|one| one.message == "other"));
        assert_eq!(said.len(), MAX_LINES, "one was too many");
    }
}
