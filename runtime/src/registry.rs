//! Which functions exist and which version gets an event, watched from NATS; and where their components are kept.

use std::time::Duration;

use async_nats::jetstream::{self, kv, object_store, stream};
use sha2::{Digest, Sha256};

use crate::names::{LOGS_PREFIX, LOGS_STREAM, MODULES_BUCKET, NODES_BUCKET, REGISTRY_BUCKET};
use crate::nats::raw::Stored;
use crate::nats::tail::Tail;
use crate::nats::{Connection, gets};
use crate::records::{FORMAT, FunctionRecord};

/// A node that says nothing for this long is gone.
pub const NODE_TTL: Duration = Duration::from_secs(3);
/// Largest component, bytes: a download must end.
const MAX_COMPONENT: usize = 256 << 20;
/// How long a download may take: one that hangs would keep its function from starting, and say nothing.
const FETCH_LIMIT: Duration = Duration::from_secs(60);
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
    if js.get_key_value(REGISTRY_BUCKET).await.is_err() {
        js.create_key_value(bucket(REGISTRY_BUCKET))
            .await
            .map_err(|error| failed(REGISTRY_BUCKET, error))?;
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
    if js.get_object_store(MODULES_BUCKET).await.is_err() {
        let config = object_store::Config {
            bucket: MODULES_BUCKET.to_owned(),
            num_replicas: replicas,
            ..Default::default()
        };
        js.create_object_store(config)
            .await
            .map_err(|error| failed(MODULES_BUCKET, error))?;
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
        format!("OBJ_{MODULES_BUCKET}"),
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

/// A component's bytes, checked against their digest.
///
/// # Errors
/// It is missing, too large or damaged, or does not arrive within a minute; NATS trouble.
pub async fn fetch_module(js: &jetstream::Context, digest: &str) -> Result<Vec<u8>, RegistryError> {
    tokio::time::timeout(FETCH_LIMIT, download(js, digest))
        .await
        .unwrap_or_else(|_| {
            Err(RegistryError(format!(
                "component {digest} did not arrive within {} s; see whether the server is busy or the object store \
                 {MODULES_BUCKET} is damaged (`nats object info {MODULES_BUCKET} {digest}`)",
                FETCH_LIMIT.as_secs()
            )))
        })
}

async fn download(js: &jetstream::Context, digest: &str) -> Result<Vec<u8>, RegistryError> {
    let store = js
        .get_object_store(MODULES_BUCKET)
        .await
        .map_err(|error| failed(MODULES_BUCKET, error))?;
    let info = store.info(digest).await.map_err(|error| {
        RegistryError(format!(
            "component {digest} cannot be fetched: {error}; deploy the function again"
        ))
    })?;
    if info.deleted || info.size > MAX_COMPONENT {
        let why = match info.deleted {
            true => "was deleted; deploy the function again".to_owned(),
            false => format!("is larger than {MAX_COMPONENT} bytes"),
        };
        return Err(RegistryError(format!("component {digest} {why}")));
    }
    // The client's reader would leave a consumer behind for half a minute.
    let stream = format!("OBJ_{MODULES_BUCKET}").into();
    let chunks = format!("$O.{MODULES_BUCKET}.C.{}", info.nuid);
    let (mut bytes, mut from) = (Vec::with_capacity(info.size), 1);
    while bytes.len() < info.size {
        let batch = gets::next(&js.client(), &stream, &chunks, from, gets::BATCH).await;
        let batch = batch.map_err(|error| {
            RegistryError(format!("component {digest} cannot be read: {error}"))
        })?;
        for chunk in &batch.messages {
            bytes.extend_from_slice(&chunk.payload);
            from = chunk.sequence + 1;
        }
        if batch.messages.is_empty() {
            break;
        }
    }
    let found = hex::encode(Sha256::digest(&bytes));
    if found != digest {
        return Err(RegistryError(format!(
            "component {digest} is damaged (its digest is {found}); deploy the function again"
        )));
    }
    Ok(bytes)
}

fn failed(what: &str, error: impl std::fmt::Display) -> RegistryError {
    RegistryError(format!("{what}: {error}"))
}
