//! The app's keys and values from outside: the state is an ordinary KV bucket, so this is a thin layer that knows which
//! bucket it is and refuses to write into one that Pelton did not make.

use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::scan::{Scan, scan};
use super::{ControlError, open};
use crate::commit::floor::Floor;
use crate::commit::lifetime::Lifetime;
use crate::effects::is_key;
use crate::event::timestamp;
use crate::names::{AppNames, META_APP};
use crate::nats::Connection;
use crate::nats::raw::Stored;
use crate::nats::tail::Tail;
use crate::records::rfc3339;

/// Pause before a watch asks again that had no answer.
const PAUSE: Duration = Duration::from_secs(1);

/// A key in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Key {
    /// The key.
    pub key: String,
    /// Revision of its value.
    pub revision: u64,
    /// Size of its value.
    pub bytes: u64,
    /// When it was written, RFC 3339.
    pub updated_at: String,
    /// When it expires, RFC 3339; none: it does not.
    pub expires_at: Option<String>,
}

/// A key's value, or that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// None: deleted.
    pub value: Option<Bytes>,
    /// Revision of the value or of the deletion.
    pub revision: u64,
    /// When it was written, RFC 3339.
    pub updated_at: String,
    /// When it expires, RFC 3339; none: it does not, or that is not known.
    pub expires_at: Option<String>,
}

/// The state of one app.
#[derive(Debug, Clone)]
pub struct State {
    js: jetstream::Context,
    names: AppNames,
    store: Store,
    made_by_pelton: bool,
}

impl State {
    /// Opens the bucket of an app.
    ///
    /// # Errors
    /// The app was never deployed; NATS trouble.
    pub async fn open(js: &jetstream::Context, app: &str) -> Result<Self, ControlError> {
        let names = AppNames::new(app);
        let stream = open(js, &names.commit_stream()).await?.ok_or_else(|| {
            ControlError::not_found(
                format!("app {app} has no state: there is no KV bucket {app:?}"),
                "run `pelton deploy` first, or give the right app with --app NAME",
            )
        })?;
        let metadata = &stream.cached_info().config.metadata;
        let made_by_pelton = metadata.get(META_APP).is_some_and(|made| made == app);
        let store = js
            .get_key_value(names.bucket())
            .await
            .map_err(|error| ControlError::nats(format!("open KV bucket {app:?}"), error))?;
        Ok(Self {
            js: js.clone(),
            names,
            store,
            made_by_pelton,
        })
    }

    /// Live keys in byte order: those below `prefix` (whole tokens), or all.
    ///
    /// # Errors
    /// NATS trouble.
    pub async fn list(&self, prefix: Option<&str>) -> Result<Vec<Key>, ControlError> {
        let Some(stream) = open(&self.js, &self.names.commit_stream()).await? else {
            return Ok(Vec::new());
        };
        let keys = Scan {
            filters: vec![self.names.state(&below(prefix))],
            from: DeliverPolicy::LastPerSubject,
            headers_only: true,
        };
        let start = self.names.state_prefix();
        let (floor, now) = (self.floor().await?, timestamp::now());
        let mut found = Vec::new();
        scan(&self.js, &stream, keys, |message| {
            let header = |name: &str| Some(message.headers.as_ref()?.get(name)?.as_str());
            let gone = header("KV-Operation").is_some() || header("Nats-Marker-Reason").is_some();
            if let (false, Some(key), Ok(info)) =
                (gone, message.subject.strip_prefix(&start), message.info())
            {
                let until = Lifetime::of(header, || nanos(info.published)).until;
                if floor.is_dead(info.stream_sequence) || until.is_some_and(|until| until <= now) {
                    return Ok(ControlFlow::Continue(()));
                }
                found.push(Key {
                    key: key.to_owned(),
                    revision: info.stream_sequence,
                    bytes: header("Nats-Msg-Size")
                        .and_then(|size| size.parse().ok())
                        .unwrap_or(0),
                    updated_at: rfc3339(info.published),
                    expires_at: until.map(timestamp::format),
                });
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// A key's value.
    ///
    /// # Errors
    /// The key does not exist or is no key; NATS trouble.
    pub async fn get(&self, key: &str) -> Result<Entry, ControlError> {
        check_key(key)?;
        if let Some(entry) = self.find(key).await? {
            return Ok(entry);
        }
        let app = self.names.app();
        Err(ControlError::not_found(
            format!("key {key} does not exist in app {app}"),
            format!("see the keys with `pelton state ls --app {app}`"),
        ))
    }

    /// A key's value as handlers see it; `None`: there is none.
    async fn find(&self, key: &str) -> Result<Option<Entry>, ControlError> {
        let failed =
            |why: &dyn std::fmt::Display| ControlError::nats(format!("read key {key}"), why);
        let stream = self.js.get_stream_no_info(self.names.commit_stream()).await;
        let stream = stream.map_err(|error| failed(&error))?;
        let floor = self.floor().await?;
        let subject = self.names.state(key);
        let found = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(found) => found,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(failed(&error)),
        };
        let header = |name: &str| Some(found.headers.get(name)?.as_str());
        let gone = header("KV-Operation").is_some() || header("Nats-Marker-Reason").is_some();
        let until = Lifetime::of(header, || nanos(found.time)).until;
        let expired = until.is_some_and(|until| until <= timestamp::now());
        if gone || expired || floor.is_dead(found.sequence) {
            return Ok(None);
        }
        Ok(Some(Entry {
            key: key.to_owned(),
            value: Some(found.payload),
            revision: found.sequence,
            updated_at: rfc3339(found.time),
            expires_at: until.map(timestamp::format),
        }))
    }

    /// What of the commit stream is dead although it is there.
    async fn floor(&self) -> Result<Floor, ControlError> {
        let floor = Floor::read(&self.js, &self.names, &Floor::default()).await;
        floor.map_err(|error| ControlError::nats("read the state".to_owned(), error))
    }

    /// Creates or replaces a key; its new revision. A handler that read the old value meanwhile runs again.
    ///
    /// # Errors
    /// No key; a bucket that Pelton did not make; NATS trouble.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, ControlError> {
        check_key(key)?;
        self.check_ours()?;
        self.store
            .put(key, value)
            .await
            .map_err(|error| ControlError::nats(format!("write key {key}"), error))
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// No key, or one that does not exist; a bucket that Pelton did not make; NATS trouble.
    pub async fn delete(&self, key: &str) -> Result<(), ControlError> {
        check_key(key)?;
        self.check_ours()?;
        // A tombstone for what never was would be a change that nobody made.
        self.get(key).await?;
        self.store
            .delete(key)
            .await
            .map_err(|error| ControlError::nats(format!("delete key {key}"), error))
    }

    /// The values of keys below `prefix` (or of all) and then every change of them, without end.
    ///
    /// # Errors
    /// NATS trouble.
    pub fn watch(
        &self,
        prefix: Option<&str>,
    ) -> impl Stream<Item = Result<Entry, ControlError>> + Unpin + use<> {
        let filter = self.names.state(&below(prefix));
        let connection = Connection::from(self.js.client());
        let tail = Tail::new(connection, &self.names.commit_stream(), filter);
        let names = self.names.clone();
        let entries = stream::unfold((tail, false), move |(mut tail, mut has_begun)| {
            let names = names.clone();
            async move {
                loop {
                    match tail.next().await {
                        Ok(stored) => return Some((Ok(entry(&names, stored)), (tail, true))),
                        // Later the server may be away for a while.
                        Err(error) if std::mem::replace(&mut has_begun, true) => {
                            tracing::warn!(%error, "the watch goes on when NATS answers");
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(error) => {
                            let doing = format!("watch the state of app {}", names.app());
                            let error = ControlError::nats(doing, error);
                            return Some((Err(error), (tail, true)));
                        }
                    }
                }
            }
        });
        entries.boxed()
    }

    fn check_ours(&self) -> Result<(), ControlError> {
        if self.made_by_pelton {
            return Ok(());
        }
        let app = self.names.app();
        Err(ControlError::refused(
            format!("KV bucket {app:?} was not made by Pelton for app {app}"),
            "write it with the `nats kv` command, or give the right app with --app NAME",
        ))
    }
}

/// A stored message as what it says of its key.
fn entry(names: &AppNames, stored: Stored) -> Entry {
    let start = names.state_prefix();
    let key = stored.subject.strip_prefix(&start);
    let header = |name: &str| stored.header(name);
    let until = Lifetime::of(header, || Some(stored.stored)).until;
    let updated = OffsetDateTime::from_unix_timestamp_nanos(stored.stored.into());
    Entry {
        key: key.unwrap_or(&stored.subject).to_owned(),
        value: (!stored.is_deletion()).then(|| stored.payload.clone()),
        revision: stored.sequence,
        updated_at: rfc3339(updated.unwrap_or(OffsetDateTime::UNIX_EPOCH)),
        expires_at: until.map(timestamp::format),
    }
}

fn nanos(time: OffsetDateTime) -> Option<i64> {
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

/// The wildcard for keys below a prefix of whole tokens.
fn below(prefix: Option<&str>) -> String {
    match prefix.map(|prefix| prefix.trim_end_matches(['.', '>'])) {
        None | Some("") => ">".to_owned(),
        Some(prefix) => format!("{prefix}.>"),
    }
}

/// Whether the contract lets a handler use this key.
fn check_key(key: &str) -> Result<(), ControlError> {
    if is_key(key) {
        return Ok(());
    }
    Err(ControlError::refused(
        format!("{key:?} is no key"),
        "a key has 1 to 256 bytes of A-Z a-z 0-9 - _ = / . and no empty token between its dots",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_tokens() {
        for (prefix, pattern) in [
            (None, ">"),
            (Some(""), ">"),
            (Some("orders"), "orders.>"),
            (Some("orders."), "orders.>"),
            (Some("orders.>"), "orders.>"),
        ] {
            assert_eq!(below(prefix), pattern, "{prefix:?}");
        }
    }
}
