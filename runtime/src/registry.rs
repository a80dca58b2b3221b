//! Which functions exist and which version gets an event, watched from NATS.

use std::time::Duration;

use async_nats::jetstream::{self, kv, stream};

use crate::module_store;
use crate::names::{LOGS_PREFIX, LOGS_STREAM, MODULES_BUCKET, NODES_BUCKET, REGISTRY_BUCKET};
use crate::nats::Connection;
use crate::nats::raw::Stored;
use crate::nats::tail::Tail;
use crate::records::{FORMAT, FunctionRecord};

/// A node that says nothing for this long is gone.
pub const NODE_TTL: Duration = Duration::from_secs(3);
/// Kept in the log stream.
const LOGS_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
const LOGS_BYTES: i64 = 1 << 30;

/// What is wrong with the registry or the module store.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(pub String);

/// A change of what is deployed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A function's newest version.
    Deployed(Box<FunctionRecord>),
    /// A function is gone.
    Removed {
        /// The app.
        app: String,
        /// The function.
        function: String,
    },
}

/// Makes the buckets that all apps share, where they are missing.
///
/// # Errors
/// NATS trouble.
pub async fn ensure_buckets(js: &jetstream::Context, replicas: usize) -> Result<(), RegistryError> {
    let bucket = |name: &str| kv::Config {
        bucket: name.to_owned(),
        history: 1,
        num_replicas: replicas,
        storage: stream::StorageType::File,
        ..Default::default()
    };
    for name in [REGISTRY_BUCKET, MODULES_BUCKET] {
        if js.get_key_value(name).await.is_err() {
            js.create_key_value(bucket(name))
                .await
                .map_err(|error| failed(name, error))?;
        }
    }
    if js.get_key_value(NODES_BUCKET).await.is_err() {
        // On disk, though its entries live for seconds: a bucket in memory is gone when the server restarts, and no
        // heartbeat would be stored from then on.
        let config = kv::Config {
            max_age: NODE_TTL,
            ..bucket(NODES_BUCKET)
        };
        js.create_key_value(config)
            .await
            .map_err(|error| failed(NODES_BUCKET, error))?;
    }
    let logs = stream::Config {
        name: LOGS_STREAM.to_owned(),
        subjects: vec![format!("{LOGS_PREFIX}.>")],
        max_age: LOGS_AGE,
        max_bytes: LOGS_BYTES,
        num_replicas: replicas,
        allow_direct: true,
        ..Default::default()
    };
    js.get_or_create_stream(logs)
        .await
        .map_err(|error| failed(LOGS_STREAM, error))?;
    Ok(())
}

/// The streams behind them.
pub fn shared_streams() -> [String; 4] {
    [
        format!("KV_{REGISTRY_BUCKET}"),
        format!("KV_{NODES_BUCKET}"),
        module_store::stream_name(),
        LOGS_STREAM.to_owned(),
    ]
}

/// Follows what is deployed: first what is deployed now, then every change.
pub(crate) struct Watch(Tail);

impl Watch {
    pub(crate) fn new(connection: Connection) -> Self {
        let stream = format!("KV_{REGISTRY_BUCKET}");
        let filter = format!("$KV.{REGISTRY_BUCKET}.function.>");
        Self(Tail::new(connection, &stream, filter))
    }

    /// Whether all that is deployed was read, and changes are waited for.
    pub(crate) fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Waits for the next change. It may be dropped at any moment and loses nothing.
    ///
    /// # Errors
    /// The registry cannot be read; the next call goes on where this one failed.
    pub(crate) async fn next(&mut self) -> Result<Change, RegistryError> {
        loop {
            let entry = self.0.next().await;
            let entry = entry.map_err(|error| failed(REGISTRY_BUCKET, error))?;
            if let Some(change) = read(&entry) {
                return Ok(change);
            }
        }
    }
}

fn read(entry: &Stored) -> Option<Change> {
    let prefix = format!("$KV.{REGISTRY_BUCKET}.");
    let key = entry.subject.strip_prefix(&prefix)?;
    let mut tokens = key.split('.').skip(1).map(str::to_owned);
    let (app, function) = (tokens.next()?, tokens.next()?);
    if entry.is_deletion() {
        return Some(Change::Removed { app, function });
    }
    match serde_json::from_slice::<FunctionRecord>(&entry.payload) {
        Ok(record) if record.format == FORMAT => Some(Change::Deployed(Box::new(record))),
        Ok(record) => {
            let found = record.format;
            tracing::error!(
                key,
                found,
                "the registry entry has a format that this node does not read; upgrade the node"
            );
            None
        }
        Err(error) => {
            tracing::error!(key, %error, "the registry entry cannot be read; deploy the function again");
            None
        }
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> RegistryError {
    RegistryError(format!("{what}: {error}"))
}
