//! Where one attempt's log lines go: to the node's channel, and the last `critical` one is remembered, for it
//! is what a panic says before it traps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::LogLine;
use crate::effects::{MAX_ERROR_BYTES, cut};

/// Shared by the host's imports and the guest's stdout and stderr of one instance.
#[derive(Default)]
pub(super) struct Logs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sender: Option<mpsc::Sender<LogLine>>,
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
    pub(super) fn open(&self, sender: mpsc::Sender<LogLine>) {
        let mut inner = self.lock();
        inner.sender = Some(sender);
        inner.last_critical = None;
    }

    /// The attempt is over; its last `critical` line, if any.
    pub(super) fn close(&self) -> Option<String> {
        let mut inner = self.lock();
        // What was begun belongs to this attempt, finished or not.
        inner.end_line(Output::Stdout);
        inner.end_line(Output::Stderr);
        inner.sender = None;
        inner.last_critical.take()
    }

    /// Passes a line on, or drops it when the channel is full: a guest that logs never waits, and never
    /// makes its node hold more than the channel does.
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
        if let Some(sender) = &self.sender {
            let line = LogLine {
                level,
                context: cut(context),
                message,
            };
            // Full or closed: the line is lost, as documented for `Call::logs`.
            let _ = sender.try_send(line);
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
        let (sender, mut lines) = mpsc::channel(16);
        logs.open(sender.clone());
        let long = format!("a{}\n", "é".repeat(MAX_ERROR_BYTES));
        logs.write(Output::Stdout, long.as_bytes());
        logs.write(Output::Stderr, b"first\nhalf");
        logs.close();

        let mut next = || lines.try_recv().map(|line| (line.context, line.message));
        let pieces: Vec<String> = (0..3).map(|_| next().unwrap().1).collect();
        assert_eq!(pieces.concat(), long.trim_end());
        assert_eq!(next().unwrap(), ("stderr".into(), "first".into()));
        assert_eq!(next().unwrap(), ("stderr".into(), "half".into()));

        logs.open(sender);
        logs.write(Output::Stderr, b"other\n");
        assert_eq!(next().unwrap().1, "other");
        assert!(next().is_err());
    }
}
