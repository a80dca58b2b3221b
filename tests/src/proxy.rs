//! A proxy between a node and a server, so that what the network does to a connection can be done on purpose.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What is read at once; also what is held back, beside the kernel's buffers.
const CHUNK: usize = 64 << 10;
/// Connections at once; a node has a few.
const CONNECTIONS: usize = 64;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Open,
    /// Connections are closed, new ones too; what was held back is lost.
    Cut,
    /// What the node sends waits, and arrives late.
    HoldRequests,
    /// What the server answers waits, and arrives late.
    HoldAnswers,
    /// Both wait.
    HoldAll,
    /// Each chunk is late by so much.
    Delay(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

impl Mode {
    fn holds(self, way: Way) -> bool {
        match self {
            Self::HoldAll => true,
            Self::HoldRequests => way == Way::Request,
            Self::HoldAnswers => way == Way::Answer,
            _ => false,
        }
    }
}

/// A listening proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    task: AbortHandle,
}

impl Proxy {
    /// Listens on a free port and passes on to `target`, a port of this machine.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let (mode, watched) = watch::channel(Mode::Open);
        let task = tokio::spawn(accept(listener, target, watched)).abort_handle();
        Ok(Self { port, mode, task })
    }

    /// Where to connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on, for connections that exist, too.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((node, _)) = listener.accept().await else {
            continue;
        };
        if *mode.borrow() == Mode::Cut || connections.len() >= CONNECTIONS {
            continue;
        }
        connections.spawn(connection(node, target, mode.clone()));
    }
}

async fn connection(node: TcpStream, target: u16, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    // Small messages at once, as without a proxy.
    let _ = (node.set_nodelay(true), server.set_nodelay(true));
    let (from_node, to_node) = node.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = mode.clone();
    tokio::select! {
        _ = pump(from_node, to_server, Way::Request, mode.clone()) => {}
        _ = pump(from_server, to_node, Way::Answer, mode) => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut mode: watch::Receiver<Mode>,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let now = *mode.wait_for(|mode| !mode.holds(way)).await?;
        if let Mode::Delay(by) = now {
            tokio::time::sleep(by).await;
        }
        to.write_all(chunk.get(..length).unwrap_or_default())
            .await?;
    }
}
