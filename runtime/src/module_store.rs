//! Components by digest, in the KV bucket `PELTON_MODULES`: `<digest>` describes one, and
//! `<digest>.0`, `<digest>.1` … are its parts.
//!
//! This is not a NATS object store. Object stores publish below `$O`, which nats-server carries
//! over
//! leaf connections: an upload at one site would end in the store of the other one, or half of it
//! would. `$KV` never crosses a leaf connection.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::names::MODULES_BUCKET;
use crate::nats::raw::{self, Which};
use crate::records::FORMAT;
use crate::registry::RegistryError;

/// Largest component, bytes: a download must end.
const MAX_COMPONENT: usize = 256 << 20;
/// How long a download may take: one that hangs would keep its function from starting, and say
/// nothing.
const FETCH_LIMIT: Duration = Duration::from_secs(60);
/// Bytes per part: eight fit into the default `max_payload`.
const PART: usize = 128 << 10;
/// What a message needs beside its payload, at most: `max_payload` includes headers.
const OVERHEAD: usize = 1 << 10;
/// Parts under way at once: enough to hide the round trip, few enough to stay small in memory.
const PARTS_IN_FLIGHT: usize = 8;

/// Describes a stored component. Written after its parts, so it says that all of them are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ModuleRecord {
    /// [`FORMAT`].
    format: u32,
    /// Bytes.
    size: usize,
    /// How many parts.
    parts: usize,
}

/// The stream that holds them.
pub fn stream_name() -> String {
    format!("KV_{MODULES_BUCKET}")
}

/// Stores a component; the same one again changes nothing.
///
/// # Errors
/// NATS trouble.
pub async fn store(
    js: &jetstream::Context,
    digest: &str,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    let limit = js.client().server_info().max_payload;
    let part = PART.min(limit.saturating_sub(OVERHEAD)).max(1);
    let parts: Vec<(String, Bytes)> = bytes
        .chunks(part)
        .enumerate()
        .map(|(n, part)| (part_subject(digest, n), Bytes::copy_from_slice(part)))
        .collect();
    let record = ModuleRecord {
        format: FORMAT,
        size: bytes.len(),
        parts: parts.len(),
    };
    futures::stream::iter(parts)
        .map(|(subject, part)| put(js, digest, subject, part))
        .buffer_unordered(PARTS_IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    let record = serde_json::to_vec(&record).map_err(|error| failed("store", digest, &error))?;
    put(js, digest, subject(digest), record.into()).await
}

/// Whether a component of this size is stored with all of its parts.
///
/// # Errors
/// NATS trouble.
pub async fn is_stored(
    js: &jetstream::Context,
    digest: &str,
    size: Option<usize>,
) -> Result<bool, RegistryError> {
    let failed = |error: &dyn std::fmt::Display| failed("look for", digest, error);
    let stream = open(js).await.map_err(|error| failed(&error))?;
    let Some(record) = describe(js, digest).await? else {
        return Ok(false);
    };
    if size.is_some_and(|size| size != record.size) {
        return Ok(false);
    }
    let mut parts = stream
        .info_with_subjects(parts_filter(digest))
        .await
        .map_err(|error| failed(&error))?;
    let mut found = 0;
    while let Some(part) = parts.try_next().await.map_err(|error| failed(&error))? {
        found += usize::from(!part.0.is_empty());
    }
    Ok(found == record.parts)
}

/// Removes a component.
///
/// # Errors
/// NATS trouble; calling it again goes on.
pub async fn remove(js: &jetstream::Context, digest: &str) -> Result<(), RegistryError> {
    let failed = |error: &dyn std::fmt::Display| failed("remove", digest, error);
    let stream = open(js).await.map_err(|error| failed(&error))?;
    // Its description first: without it the parts do not count.
    for filter in [subject(digest), parts_filter(digest)] {
        let purged = stream.purge().filter(filter).await;
        purged.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// A component's bytes, checked against their digest.
///
/// # Errors
/// It is missing, too large or damaged, or does not arrive within a minute; NATS trouble.
pub async fn fetch(js: &jetstream::Context, digest: &str) -> Result<Vec<u8>, RegistryError> {
    tokio::time::timeout(FETCH_LIMIT, download(js, digest))
        .await
        .unwrap_or_else(|_| {
            Err(RegistryError(format!(
                "component {digest} did not arrive within {} s; see whether the server is busy \
                 (`nats stream info {}`)",
                FETCH_LIMIT.as_secs(),
                stream_name()
            )))
        })
}

async fn download(js: &jetstream::Context, digest: &str) -> Result<Vec<u8>, RegistryError> {
    let missing = |what: &str| {
        RegistryError(format!(
            "component {digest} is {what}; deploy the function again"
        ))
    };
    let record = describe(js, digest)
        .await?
        .ok_or_else(|| missing("not stored"))?;
    if record.size > MAX_COMPONENT || record.parts > record.size {
        return Err(RegistryError(format!(
            "component {digest} is larger than {MAX_COMPONENT} bytes"
        )));
    }
    let mut bytes = Vec::with_capacity(record.size);
    let mut parts = futures::stream::iter(0..record.parts)
        .map(|n| last(js, digest, part_subject(digest, n)))
        .buffered(PARTS_IN_FLIGHT);
    while let Some(part) = parts.try_next().await? {
        let part = part.ok_or_else(|| missing("damaged: a part of it is missing"))?;
        if bytes.len() + part.len() > record.size {
            return Err(missing("damaged: it is longer than it should be"));
        }
        bytes.extend_from_slice(&part);
    }
    let found = hex::encode(Sha256::digest(&bytes));
    if found != digest {
        return Err(missing(&format!("damaged (its digest is {found})")));
    }
    Ok(bytes)
}

async fn put(
    js: &jetstream::Context,
    digest: &str,
    subject: String,
    body: Bytes,
) -> Result<(), RegistryError> {
    let failed = |error: &dyn std::fmt::Display| failed("store", digest, error);
    let ack = js.publish(subject, body).await;
    ack.map_err(|error| failed(&error))?
        .await
        .map_err(|error| failed(&error))?;
    Ok(())
}

async fn describe(
    js: &jetstream::Context,
    digest: &str,
) -> Result<Option<ModuleRecord>, RegistryError> {
    let Some(found) = last(js, digest, subject(digest)).await? else {
        return Ok(None);
    };
    // What cannot be read counts as missing: a deploy stores it again.
    let record = serde_json::from_slice::<ModuleRecord>(&found).ok();
    Ok(record.filter(|record| record.format == FORMAT))
}

/// From the stream's leader: a follower may not have yet what a deploy has just stored.
async fn last(
    js: &jetstream::Context,
    digest: &str,
    subject: String,
) -> Result<Option<Bytes>, RegistryError> {
    let found = raw::get(js, &stream_name(), Which::Last(&subject)).await;
    let found = found.map_err(|error| failed("fetch", digest, &error))?;
    Ok(found.map(|message| message.payload))
}

async fn open(js: &jetstream::Context) -> Result<Stream<()>, jetstream::context::GetStreamError> {
    js.get_stream_no_info(stream_name()).await
}

fn subject(digest: &str) -> String {
    format!("$KV.{MODULES_BUCKET}.{digest}")
}

fn part_subject(digest: &str, n: usize) -> String {
    format!("$KV.{MODULES_BUCKET}.{digest}.{n}")
}

fn parts_filter(digest: &str) -> String {
    format!("$KV.{MODULES_BUCKET}.{digest}.*")
}

fn failed(verb: &str, digest: &str, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError(format!("cannot {verb} component {digest}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::fresh_server;
    use crate::nats::connect;
    use crate::registry;

    #[tokio::test]
    async fn a_component_is_fetched_only_with_all_of_its_parts() {
        let (server, _data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client);
        registry::ensure_buckets(&js, 1).await.unwrap();

        let bytes: Vec<u8> = (0..PART * 2 + 7).map(|n| (n % 251) as u8).collect();
        let digest = hex::encode(Sha256::digest(&bytes));
        let size = Some(bytes.len());
        assert!(!is_stored(&js, &digest, size).await.unwrap());
        assert!(fetch(&js, &digest).await.is_err());
        store(&js, &digest, &bytes).await.unwrap();
        assert!(is_stored(&js, &digest, size).await.unwrap());
        assert!(!is_stored(&js, &digest, Some(1)).await.unwrap());
        assert_eq!(fetch(&js, &digest).await.unwrap(), bytes);

        let stream = open(&js).await.unwrap();
        let part = part_subject(&digest, 1);
        stream.purge().filter(&part).await.unwrap();
        assert!(!is_stored(&js, &digest, size).await.unwrap());
        let error = fetch(&js, &digest).await.unwrap_err().to_string();
        assert!(error.contains("a part of it is missing"), "{error}");

        // Storing it again repairs it, another part in its place does not.
        store(&js, &digest, &bytes).await.unwrap();
        assert_eq!(fetch(&js, &digest).await.unwrap(), bytes);
        js.publish(part, "x".into()).await.unwrap().await.unwrap();
        let error = fetch(&js, &digest).await.unwrap_err().to_string();
        assert!(error.contains("damaged (its digest is"), "{error}");

        remove(&js, &digest).await.unwrap();
        let left = js.get_stream(stream_name()).await.unwrap();
        assert_eq!(left.cached_info().state.messages, 0);
    }
}
