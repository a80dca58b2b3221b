//! A node: starts, serves what is deployed, drains within a deadline, stops. Knows nothing of what is in a message.

mod node;

mod function;
mod line;

mod conductor;
mod health;
mod janitor;
mod leaving;
mod observer;
mod sample;
mod shared;
mod station;
mod steward;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::nats::{self, ConnectOptions, Connection};
use crate::registry;
use crate::sandbox::{Sandbox, SandboxConfig};

/// How a node runs. Begin with [`RuntimeOptions::new`].
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// How to connect. A node has three connections: see [`Runtime::start`].
    pub nats: ConnectOptions,
    /// Apps to serve; empty: all of the account.
    pub apps: Vec<String>,
    /// Folder of compiled components.
    pub cache_dir: PathBuf,
    /// How long running attempts may take to finish at a shutdown; then they are handed back.
    pub drain_deadline: Duration,
    /// The node's name in listings.
    pub node_name: String,
    /// Instances at once, over all functions.
    pub max_instances: u32,
    /// Largest memory any function may ask for, bytes.
    pub max_memory: u64,
    /// Where metrics and health are shown over HTTP; port 0: any that is free. None: nowhere, and nothing is measured that no event
    /// passes by.
    pub http: Option<SocketAddr>,
}

impl RuntimeOptions {
    /// Default of [`drain_deadline`](Self::drain_deadline).
    pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
    /// Default of [`max_instances`](Self::max_instances).
    pub const MAX_INSTANCES: u32 = 512;
    /// Default of [`max_memory`](Self::max_memory), bytes.
    pub const MAX_MEMORY: u64 = 256 << 20;

    /// Serves every app of the account, with the defaults of `pelton run`.
    pub fn new(nats: ConnectOptions) -> Self {
        Self {
            nats,
            apps: Vec::new(),
            cache_dir: cache_dir(),
            drain_deadline: Self::DRAIN_DEADLINE,
            node_name: "pelton".into(),
            max_instances: Self::MAX_INSTANCES,
            max_memory: Self::MAX_MEMORY,
            http: None,
        }
    }
}

/// The user's cache folder: in a shared one, others could put compiled code under this node's hands.
fn cache_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    base.unwrap_or_else(|| PathBuf::from("."))
        .join("pelton")
        .join("components")
}

/// Why a node cannot start: what, why, how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RuntimeError(pub String);

/// The connections of one node.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    /// Reads input streams.
    pub(crate) inputs: Connection,
    /// Takes calls, orders to the node, and heartbeats: messages that any client can send.
    pub(crate) requests: Connection,
    /// Commits, reads state, and publishes all else.
    pub(crate) commits: Connection,
}

impl Connections {
    async fn open(options: &ConnectOptions) -> Result<Self, nats::NatsError> {
        let commits = Connection::open(options, "pelton-commits").await?;
        nats::check_server(&commits.client()).await?;
        Ok(Self {
            inputs: Connection::open(options, "pelton-inputs").await?,
            requests: Connection::open(options, "pelton-requests").await?,
            commits,
        })
    }

    pub(crate) fn all(&self) -> [&Connection; 3] {
        [&self.inputs, &self.requests, &self.commits]
    }
}

/// A running node. Dropping it stops the node, and waits for nothing.
#[derive(Debug)]
pub struct Runtime {
    id: Uuid,
    stop: CancellationToken,
    stopped: watch::Receiver<bool>,
    http: Option<SocketAddr>,
}

impl Runtime {
    /// Connects, checks the server, makes the shared buckets where they are missing and begins to
    /// serve.
    ///
    /// One connection reads inputs, one takes calls and questions, one commits and reads state: a
    /// flood of events does not delay commits, and a message that breaks a connection disturbs
    /// neither of the others.
    ///
    /// # Errors
    /// The server cannot be reached, is too old or has no JetStream, the address for metrics is
    /// taken, or the sandbox cannot start.
    pub async fn start(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        let connections = Connections::open(&options.nats)
            .await
            .map_err(|error| RuntimeError(error.to_string()))?;
        registry::ensure_buckets(&connections.commits.jetstream(), 1)
            .await
            .map_err(|error| RuntimeError(error.to_string()))?;
        let sandbox = Sandbox::new(SandboxConfig {
            cache_dir: options.cache_dir.clone(),
            max_instances: options.max_instances,
            max_memory: options.max_memory,
        })
        .map_err(|error| RuntimeError(error.to_string()))?;
        let (listener, http) = match options.http {
            Some(address) => {
                let (listener, address) = station::listen(address).await?;
                (Some(listener), Some(address))
            }
            None => (None, None),
        };
        let id = Uuid::now_v7();
        let stop = CancellationToken::new();
        let (done, stopped) = watch::channel(false);
        let node = node::Node::new(id, options, connections, sandbox, listener);
        let token = stop.clone();
        tokio::spawn(async move {
            node.run(token).await;
            let _ = done.send(true);
        });
        Ok(Self {
            id,
            stop,
            stopped,
            http,
        })
    }

    /// The node's id in `PELTON_NODES`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Where metrics and health are shown, with the port that was found; none: nowhere.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Waits until the node has stopped.
    pub async fn stopped(&self) {
        // An error means that the node's task is gone, which is stopped too.
        let _ = self.stopped.clone().wait_for(|stopped| *stopped).await;
    }

    /// Stops taking, lets running attempts finish within the drain deadline, hands back the rest, and waits for that.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.stopped().await;
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
