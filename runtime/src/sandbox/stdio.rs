//! A guest's stdout and stderr: lines become log lines, since a node's own output is not a guest's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::logs::Logs;
use crate::effects::MAX_ERROR_BYTES;

/// Longest write that is taken at once.
const PERMIT: usize = 64 << 10;

/// One of the two streams of one instance.
#[derive(Clone)]
pub(super) struct Stdio {
    logs: Arc<Logs>,
    name: &'static str,
    level: &'static str,
    partial: Vec<u8>,
}

impl Stdio {
    /// Standard output: level `info`.
    pub(super) fn stdout(logs: Arc<Logs>) -> Self {
        Self {
            logs,
            name: "stdout",
            level: "info",
            partial: Vec::new(),
        }
    }

    /// Standard error: level `error`.
    pub(super) fn stderr(logs: Arc<Logs>) -> Self {
        Self {
            logs,
            name: "stderr",
            level: "error",
            partial: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            // A line that never ends is logged in pieces.
            if part.ends_with(b"\n") || self.partial.len() >= MAX_ERROR_BYTES {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        if !text.is_empty() {
            self.logs
                .line(self.level, self.name.to_owned(), text.into_owned());
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl IsTerminal for Stdio {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdio {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stdio {
    async fn ready(&mut self) {}
}

impl OutputStream for Stdio {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
