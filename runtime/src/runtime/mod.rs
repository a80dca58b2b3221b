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

use async_nats::Client;
use async_nats::jetstream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::nats;
use crate::registry;
use crate::sandbox::{Sandbox, SandboxConfig};

/// A request in flight waits this out across a disconnect.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How a node runs. Begin with [`RuntimeOptions::new`].
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// The connection that takes events.
    pub client: Client,
    /// A second one that publishes and reads state, so that a flood of events does not delay commits; none: `client`.
    pub publisher: Option<Client>,
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

    /// Serves every app of the client's account, with the defaults of `pelton run`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            publisher: None,
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

/// A running node. Dropping it stops the node, and waits for nothing.
#[derive(Debug)]
pub struct Runtime {
    id: Uuid,
    stop: CancellationToken,
    stopped: watch::Receiver<bool>,
    http: Option<SocketAddr>,
}

impl Runtime {
    /// Checks the server, makes the shared buckets where they are missing and begins to serve.
    ///
    /// # Errors
    /// The server is too old or has no JetStream, the address for metrics is taken, or the sandbox cannot start.
    pub async fn start(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        nats::check_server(&options.client)
            .await
            .map_err(|error| RuntimeError(error.to_string()))?;
        let publisher = options
            .publisher
            .clone()
            .unwrap_or_else(|| options.client.clone());
        let mut js = jetstream::new(publisher.clone());
        js.set_timeout(REQUEST_TIMEOUT);
        registry::ensure_buckets(&js, 1)
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
        let node = node::Node::new(id, options, publisher, js, sandbox, listener);
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
