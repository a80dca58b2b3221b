//! Gathers the effects of one attempt while the guest runs, and enforces the contract's limits at the call
//! that breaks them, where the guest can still see the error.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use time::OffsetDateTime;

use super::{
    Disposition, Effects, Emit, Failure, MAX_EMIT_BYTES, MAX_EMITS, MAX_KEYS, MAX_STATE_BYTES,
    Reply, Rules, StateReader, Versioned, Write, is_key, is_prefix,
};
use crate::event::{Delivery, Draft, DraftDefaults, content_type, encode};
use crate::names::Txn;

mod timers;

use timers::Pending;

/// How long a value with a TTL lives: the server counts in seconds, and a year is as far ahead as a
/// timer may be.
const MIN_TTL_MS: u64 = 1000;
const MAX_TTL_MS: u64 = 366 * 24 * 3600 * 1000;
/// Most keys that one listing may ask for.
const MAX_LIST: u32 = 1000;

/// The effects of one attempt, so far.
pub struct Collector {
    rules: Arc<Rules>,
    state: Arc<dyn StateReader>,
    txn: Txn,
    /// The transaction's id, once it was asked for.
    id: Option<Arc<str>>,
    trace: Vec<(String, String)>,
    /// What was read, as first seen: the same key reads the same throughout the attempt.
    seen: BTreeMap<String, Versioned>,
    writes: BTreeMap<String, Write>,
    emits: Vec<Emit>,
    /// Events made so far, whether they leave at once or later.
    drafts: usize,
    timers: BTreeMap<String, Pending>,
    /// When the delivery's message was stored.
    stored: i64,
    expects_reply: bool,
    reply: Option<Reply>,
    state_bytes: usize,
    emit_bytes: usize,
}

impl Collector {
    /// For one attempt at `delivery` in transaction `txn`.
    pub fn new(
        rules: Arc<Rules>,
        state: Arc<dyn StateReader>,
        txn: Txn,
        delivery: &Delivery,
    ) -> Self {
        let trace = ["traceparent", "tracestate"]
            .into_iter()
            .filter_map(|name| {
                let value = delivery.event.extensions.get(name)?;
                Some((name.to_owned(), value.clone()))
            })
            .collect();
        Self {
            rules,
            state,
            txn,
            id: None,
            trace,
            seen: BTreeMap::new(),
            writes: BTreeMap::new(),
            emits: Vec::new(),
            drafts: 0,
            timers: BTreeMap::new(),
            stored: delivery.stored,
            expects_reply: delivery.expects_reply,
            reply: None,
            state_bytes: 0,
            emit_bytes: 0,
        }
    }

    /// What was collected.
    pub fn finish(mut self) -> Effects {
        let seen = std::mem::take(&mut self.seen);
        let ends = seen
            .iter()
            .filter_map(|(key, versioned)| Some((key.clone(), versioned.ends?)))
            .collect();
        let mut effects = Effects {
            reads: seen
                .into_iter()
                .map(|(key, versioned)| (key, versioned.revision))
                .collect(),
            ends,
            writes: std::mem::take(&mut self.writes),
            emits: std::mem::take(&mut self.emits),
            timers: BTreeMap::new(),
            reply: self.reply.take(),
            txn: self.id.take(),
        };
        self.finish_timers(&mut effects);
        effects
    }

    /// The contract's `state.get`.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`, `pelton-unavailable`.
    pub async fn get(&mut self, key: String) -> Result<Option<Bytes>, Failure> {
        let found = self.get_many(vec![key]).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// The contract's `state.get-many`: at most one round trip, none for what was read or written before.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`, `pelton-unavailable`.
    pub async fn get_many(&mut self, keys: Vec<String>) -> Result<Vec<Option<Bytes>>, Failure> {
        let mut missing: Vec<String> = Vec::new();
        for key in &keys {
            check_key(key)?;
            if !self.touched(key) {
                missing.push(key.clone());
            }
        }
        missing.sort_unstable();
        missing.dedup();
        self.check_keys(missing.len())?;
        if !missing.is_empty() {
            self.read(missing).await?;
        }
        Ok(keys.iter().map(|key| self.known(key)).collect())
    }

    /// The contract's `state.list`, with this attempt's own writes merged in.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`, `pelton-unavailable`.
    pub async fn list(
        &mut self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Failure> {
        if !is_prefix(prefix) {
            return Err(invalid_key(prefix));
        }
        if !(1..=MAX_LIST).contains(&limit) {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "list asked for {limit} keys; ask for 1 to {MAX_LIST} and go on behind the last"
                ),
            ));
        }
        let below = |key: &str| {
            let under = prefix.is_empty()
                || key
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with('.'));
            under && after.is_none_or(|after| key > after)
        };
        let own = || self.writes.iter().filter(|(key, _)| below(key));
        let deleted = own().filter(|(_, w)| matches!(w, Write::Delete)).count();
        // So many more that the page stays full when what this attempt deleted is taken out.
        let wanted = limit.saturating_add(u32::try_from(deleted).unwrap_or(u32::MAX));
        let mut found = self.stored_keys(prefix, after, wanted).await?;
        // Behind a full page there may be stored keys that were not read: own keys beyond it wait for the next.
        let full = found.len() >= wanted as usize;
        let end = if full { found.last().cloned() } else { None };
        found.retain(|key| !matches!(self.writes.get(key), Some(Write::Delete)));
        found.extend(
            own()
                .filter(|(_, write)| write.value().is_some())
                .map(|(key, _)| key.clone())
                .filter(|key| end.as_ref().is_none_or(|end| key < end)),
        );
        found.sort_unstable();
        found.dedup();
        found.truncate(limit as usize);
        Ok(found)
    }

    /// The contract's `state.set`.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`.
    pub fn set(&mut self, key: String, value: Bytes) -> Result<(), Failure> {
        self.check_value(&key, &value)?;
        self.write(key, Write::Set(value))
    }

    /// The contract's `state.set-with-ttl`, `ttl` in milliseconds. It reads the key, unless that
    /// was read before: whether the server may remove the value by itself depends on what it
    /// replaces.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`, `pelton-unavailable`.
    pub async fn set_with_ttl(
        &mut self,
        key: String,
        value: Bytes,
        ttl: u64,
    ) -> Result<(), Failure> {
        check_key(&key)?;
        self.check_value(&key, &value)?;
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl) {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "the value of {key:?} is to expire after {ttl} ms; give {MIN_TTL_MS} ms (1 s) to \
                     {MAX_TTL_MS} ms (366 days), or set it without a TTL"
                ),
            ));
        }
        if !self.seen.contains_key(&key) {
            if !self.touched(&key) {
                self.check_keys(1)?;
            }
            self.read(vec![key.clone()]).await?;
        }
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        let until = now().saturating_add(ttl.saturating_mul(1_000_000));
        self.write(key, Write::SetUntil(value, until))
    }

    fn check_value(&self, key: &str, value: &Bytes) -> Result<(), Failure> {
        let max = self.rules.max_value();
        if value.len() <= max {
            return Ok(());
        }
        Err(Failure::reject(
            "pelton-limit",
            format!(
                "the value of {key:?} has {} bytes; at most {max} can be stored",
                value.len()
            ),
        ))
    }

    /// The contract's `state.delete`.
    ///
    /// # Errors
    /// `pelton-key-invalid`, `pelton-limit`.
    pub fn delete(&mut self, key: String) -> Result<(), Failure> {
        self.write(key, Write::Delete)
    }

    /// The contract's `events.emit`.
    ///
    /// # Errors
    /// `pelton-event-invalid`, `pelton-not-allowed`, `pelton-limit`.
    pub fn emit(&mut self, draft: Draft) -> Result<(), Failure> {
        let (_, emit) = self.prepare(draft, now())?;
        self.emits.push(emit);
        Ok(())
    }

    /// The transaction's id.
    fn id(&mut self) -> Arc<str> {
        self.id.get_or_insert_with(|| self.txn.id()).clone()
    }

    /// An event within the limits, and its number; `time` is what it says if the draft does not.
    fn prepare(&mut self, draft: Draft, time: i64) -> Result<(usize, Emit), Failure> {
        if self.drafts >= MAX_EMITS {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "an attempt may emit {MAX_EMITS} events; emit fewer, or one that leads to the others"
                ),
            ));
        }
        let rules = Arc::clone(&self.rules);
        let target = rules.target(&draft.subject)?;
        let defaults = DraftDefaults {
            id: format!("{}.{}", self.id(), self.drafts),
            source: format!("/{}/{}", rules.app, rules.function),
            time,
            trace: self.trace.clone(),
        };
        let message =
            encode(draft, defaults).map_err(|why| Failure::reject("pelton-event-invalid", why))?;
        rules.fits(target, &message)?;
        let bytes = self.emit_bytes + message.payload.len();
        if bytes > MAX_EMIT_BYTES {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "an attempt may emit {MAX_EMIT_BYTES} bytes; this event would make it {bytes}"
                ),
            ));
        }
        self.emit_bytes = bytes;
        let n = self.drafts;
        self.drafts += 1;
        let emit = Emit {
            target: target.stream.clone(),
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
        };
        Ok((n, emit))
    }

    /// The contract's `events.reply`: the last one counts; ignored when nobody waits for one.
    ///
    /// # Errors
    /// `pelton-event-invalid`: no media type; `pelton-limit`: more than one message can carry.
    pub fn reply(&mut self, datacontenttype: Option<String>, data: Bytes) -> Result<(), Failure> {
        if !self.expects_reply {
            return Ok(());
        }
        let content_type = content_type(datacontenttype)
            .map_err(|why| Failure::reject("pelton-event-invalid", why))?;
        let (size, max) = (data.len() + content_type.len(), self.rules.max_value());
        if size > max {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "the reply has {size} bytes with its media type and may have {max}: put larger data \
                     into the object store and reply with a reference, or raise the server's max_payload"
                ),
            ));
        }
        self.reply = Some(Reply::Data { content_type, data });
        Ok(())
    }

    /// The contract's `events.reply-error`: in place of a reply, under the same rules.
    pub fn reply_error(&mut self, code: String, message: String) {
        if self.expects_reply {
            let failure = Failure::from_handler(Disposition::Reject, code, message);
            self.reply = Some(Reply::Error(failure));
        }
    }

    /// The contract's `clock.now`.
    pub fn now(&self) -> i64 {
        self.stored
    }

    /// Reads keys that are neither read nor written yet.
    async fn read(&mut self, keys: Vec<String>) -> Result<(), Failure> {
        let found = self.state.get_many(&keys).await.map_err(unavailable)?;
        if found.len() != keys.len() {
            return Err(unavailable("the answer was incomplete"));
        }
        let sizes = keys.iter().zip(&found);
        let size = sizes
            .map(|(key, found)| key.len() + found.value.as_ref().map_or(0, Bytes::len))
            .sum();
        // All or none: a handler that goes on after the refusal has not seen a part of them.
        self.take_bytes(size, 0)?;
        self.seen.extend(keys.into_iter().zip(found));
        Ok(())
    }

    async fn stored_keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        let mut behind = after.map(str::to_owned);
        // Deletions of this attempt can ask for more than one page: 512 of them at most, so two.
        while (all.len() as u32) < limit {
            let page = (limit - all.len() as u32).min(MAX_LIST);
            let found = self
                .state
                .list(prefix, behind.as_deref(), page)
                .await
                .map_err(unavailable)?;
            let ended = (found.len() as u32) < page;
            all.extend(found);
            if ended {
                break;
            }
            behind = all.last().cloned();
        }
        Ok(all)
    }

    fn write(&mut self, key: String, write: Write) -> Result<(), Failure> {
        check_key(&key)?;
        if !self.touched(&key) {
            self.check_keys(1)?;
        }
        let size = |write: &Write| key.len() + write.size();
        let replaced = self.writes.get(&key).map_or(0, size);
        self.take_bytes(size(&write), replaced)?;
        self.writes.insert(key, write);
        Ok(())
    }

    fn touched(&self, key: &str) -> bool {
        self.seen.contains_key(key) || self.writes.contains_key(key)
    }

    /// The value of a touched key as the guest sees it.
    fn known(&self, key: &str) -> Option<Bytes> {
        match self.writes.get(key) {
            Some(write) => write.value().cloned(),
            None => self.seen.get(key).and_then(|v| v.value.clone()),
        }
    }

    fn check_keys(&self, more: usize) -> Result<(), Failure> {
        let only_written = self
            .writes
            .keys()
            .filter(|key| !self.seen.contains_key(*key));
        let keys = self.seen.len() + only_written.count() + more;
        if keys <= MAX_KEYS {
            return Ok(());
        }
        Err(Failure::reject(
            "pelton-limit",
            format!(
                "an attempt may read and write {MAX_KEYS} keys; this call would make it {keys}"
            ),
        ))
    }

    fn take_bytes(&mut self, more: usize, less: usize) -> Result<(), Failure> {
        let bytes = self.state_bytes - less + more;
        if bytes > MAX_STATE_BYTES {
            return Err(Failure::reject(
                "pelton-limit",
                format!(
                    "an attempt may read and write {MAX_STATE_BYTES} bytes of keys and values; \
                     this call would make it {bytes}"
                ),
            ));
        }
        self.state_bytes = bytes;
        Ok(())
    }
}

fn check_key(key: &str) -> Result<(), Failure> {
    if is_key(key) {
        Ok(())
    } else {
        Err(invalid_key(key))
    }
}

fn invalid_key(key: &str) -> Failure {
    Failure::reject(
        "pelton-key-invalid",
        format!(
            "{key:?} is no key: 1 to 256 bytes of A-Z a-z 0-9 - _ = / and `.` between tokens, none of them empty"
        ),
    )
}

fn unavailable(why: impl std::fmt::Display) -> Failure {
    Failure::retry("pelton-unavailable", why.to_string())
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
