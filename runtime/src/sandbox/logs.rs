//! Where one attempt's log lines go: to the node's channel, and the last `critical` one is remembered, for it
//! is what a panic says before it traps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::LogLine;
use crate::effects::cut;

/// Shared by the host's imports and the guest's stdout and stderr of one instance.
#[derive(Default)]
pub(super) struct Logs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sender: Option<mpsc::Sender<LogLine>>,
    last_critical: Option<String>,
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
        inner.sender = None;
        inner.last_critical.take()
    }

    /// Passes a line on, or drops it when the channel is full: a guest that logs never waits, and never
    /// makes its node hold more than the channel does.
    pub(super) fn line(&self, level: &'static str, context: String, message: String) {
        let message = cut(message);
        let mut inner = self.lock();
        if level == "critical" {
            inner.last_critical = Some(message.clone());
        }
        if let Some(sender) = &inner.sender {
            let line = LogLine {
                level,
                context: cut(context),
                message,
            };
            // Full or closed: the line is lost, as documented for `Call::logs`.
            let _ = sender.try_send(line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that could panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
