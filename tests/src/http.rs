//! A tiny HTTP server for handlers to call. Each request is counted and answered with `pong`, at once or, behind a
//! gate, when the test opens it: so a test decides how long a handler runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::eventually;

/// A listener on a free port of this machine; gone when dropped.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    gate: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Answers at once.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> Result<Self> {
        Self::with_gate(true).await
    }

    /// Answers nobody before [`open`](Self::open).
    ///
    /// # Errors
    /// No port is free.
    pub async fn closed() -> Result<Self> {
        Self::with_gate(false).await
    }

    async fn with_gate(open: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicUsize::new(0));
        let (gate, opened) = watch::channel(open);
        let seen = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, opened) = (seen.clone(), opened.clone());
                tokio::spawn(async move {
                    // A caller that hangs up early is its own affair.
                    let _ = answer(socket, &seen, opened).await;
                });
            }
        });
        Ok(Self {
            address,
            requests,
            gate,
            task,
        })
    }

    /// `host:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// An address for a handler to ask.
    pub fn url(&self) -> String {
        format!("http://{}/ping", self.address)
    }

    /// Answers all who wait, and from here on at once.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Waits until this many requests have come.
    ///
    /// # Errors
    /// They do not come.
    pub async fn asked(&self, count: usize) -> Result<()> {
        eventually("the handler to call", || async {
            let seen = self.requests();
            ensure!(seen >= count, "{seen} requests");
            Ok(Some(()))
        })
        .await
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads one request's head and answers it.
async fn answer(
    mut socket: TcpStream,
    seen: &AtomicUsize,
    mut opened: watch::Receiver<bool>,
) -> Result<()> {
    let mut head: Vec<u8> = Vec::new();
    let mut part = [0_u8; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 1 << 16 {
        let read = socket.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend(part.iter().take(read));
    }
    seen.fetch_add(1, Ordering::SeqCst);
    opened.wait_for(|open| *open).await?;
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\npong";
    socket.write_all(text.as_bytes()).await?;
    socket.shutdown().await?;
    Ok(())
}
