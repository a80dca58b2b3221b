//! Typed state: a table is the keys below one token, each holding one value as JSON.

use std::marker::PhantomData;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::{Context, Error, Result, json};

/// Typed state of the app, shared by its functions: the id `o-1` of the table `orders` is the key `orders.o-1`.
///
/// Any text is an id: bytes that a key cannot hold are escaped as `=` and two hex digits, so a key leads back to its id.
/// A key has at most 256 bytes in all; hash longer ids.
///
/// ```
/// # use pelton_sdk::prelude::*;
/// static VISITS: Table<u32> = Table::new("visits");
///
/// fn count(page: &str, ctx: &mut Context) -> Result {
///     VISITS.update(ctx, page, |visits| Ok(Some(visits.unwrap_or(0) + 1)))
/// }
/// # let mut ctx = Context::test();
/// # count("/home?x=1", &mut ctx).unwrap();
/// # assert_eq!(VISITS.get(&ctx, "/home?x=1").unwrap(), Some(1));
/// ```
pub struct Table<T> {
    name: &'static str,
    values: PhantomData<fn() -> T>,
}

impl<T> Table<T> {
    /// The table of this name: 1 to 64 bytes of `A-Z a-z 0-9 - _`, checked while compiling where it is a `static` or `const`.
    ///
    /// # Panics
    /// When the name is none.
    pub const fn new(name: &'static str) -> Self {
        assert!(
            is_name(name),
            "a table's name is 1 to 64 bytes of A-Z a-z 0-9 - _"
        );
        let values = PhantomData;
        Self { name, values }
    }

    /// The key that holds the value of `id`.
    pub fn key(&self, id: &str) -> String {
        key(self.name, id)
    }

    /// Deletes; no error when there is nothing.
    ///
    /// # Errors
    /// The node's, as they are.
    pub fn delete(&self, ctx: &mut Context, id: &str) -> Result {
        ctx.host.delete(&self.key(id))
    }

    /// At most `limit` (1 to 1000) ids from behind `after` on, in the order of their keys; fewer mean the end.
    ///
    /// A listing is not checked at commit: [`get`](Self::get) what a decision rests on.
    ///
    /// # Errors
    /// The node's, as they are.
    pub fn list(&self, ctx: &Context, after: Option<&str>, limit: u32) -> Result<Vec<String>> {
        let after = after.map(|id| self.key(id));
        let keys = ctx.host.list(self.name, after.as_deref(), limit)?;
        let ids = keys
            .iter()
            .filter_map(|key| unescape(key.get(self.name.len() + 1..)?));
        Ok(ids.collect())
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    /// None when there is nothing.
    ///
    /// # Errors
    /// The node's, as they are; a reject with code `state-invalid` when the value is no `T`.
    pub fn get(&self, ctx: &Context, id: &str) -> Result<Option<T>> {
        let key = self.key(id);
        match ctx.host.get(&key)? {
            Some(value) => decode(&key, &value).map(Some),
            None => Ok(None),
        }
    }

    /// Many in one round trip, in the order asked.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_many(&self, ctx: &Context, ids: &[&str]) -> Result<Vec<Option<T>>> {
        let keys: Vec<String> = ids.iter().map(|id| self.key(id)).collect();
        let values = ctx.host.get_many(&keys)?;
        let decoded = keys.iter().zip(values).map(|(key, value)| match value {
            Some(value) => decode(key, &value).map(Some),
            None => Ok(None),
        });
        decoded.collect()
    }

    /// Creates or replaces.
    ///
    /// # Errors
    /// The node's, as they are; a reject with code `data-invalid` when the value does not serialize.
    pub fn set(&self, ctx: &mut Context, id: &str, value: &T) -> Result {
        let json = serde_json::to_vec(value)
            .map_err(|error| Error::reject("data-invalid", error.to_string()))?;
        ctx.host.set(&self.key(id), json)
    }

    /// Creates or replaces with a value that expires after `ttl`, 1 s to 366 days: from then on
    /// there is nothing, as if it had been deleted. Setting it again sets its time again;
    /// [`set`](Self::set) keeps the new value for good.
    ///
    /// ```
    /// # use pelton_sdk::prelude::*;
    /// # use std::time::Duration;
    /// static SESSIONS: Table<String> = Table::new("sessions");
    ///
    /// fn log_in(user: &str, ctx: &mut Context) -> Result {
    ///     SESSIONS.set_with_ttl(ctx, user, &"active".into(), Duration::from_secs(3600))
    /// }
    /// # let mut ctx = Context::test();
    /// # log_in("u-1", &mut ctx).unwrap();
    /// # assert!(SESSIONS.get(&ctx, "u-1").unwrap().is_some());
    /// # ctx.expire("sessions.u-1");
    /// # assert!(SESSIONS.get(&ctx, "u-1").unwrap().is_none());
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set); `pelton-limit`, a reject, for another `ttl`.
    pub fn set_with_ttl(&self, ctx: &mut Context, id: &str, value: &T, ttl: Duration) -> Result {
        let json = serde_json::to_vec(value)
            .map_err(|error| Error::reject("data-invalid", error.to_string()))?;
        ctx.host.set_with_ttl(&self.key(id), json, ttl)
    }

    /// Reads, changes, writes; None deletes. Nothing is written when `change` fails.
    ///
    /// # Errors
    /// As [`get`](Self::get) and [`set`](Self::set), and what `change` returns.
    pub fn update(
        &self,
        ctx: &mut Context,
        id: &str,
        change: impl FnOnce(Option<T>) -> Result<Option<T>>,
    ) -> Result {
        match change(self.get(ctx, id)?)? {
            Some(value) => self.set(ctx, id, &value),
            None => self.delete(ctx, id),
        }
    }
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    json::from_slice(value).map_err(|text| invalid(key, &text))
}

#[cold]
fn invalid(key: &str, text: &str) -> Error {
    let text = [
        "the state at key `",
        key,
        "` is not what this function keeps there: ",
        text,
    ];
    Error::reject("state-invalid", text.concat())
}

const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_alphanumeric() && bytes[at] != b'-' && bytes[at] != b'_' {
            return false;
        }
        at += 1;
    }
    1 <= at && at <= 64
}

fn key(table: &str, id: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut key = String::with_capacity(table.len() + 1 + id.len());
    key.push_str(table);
    key.push('.');
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/') {
            key.push(char::from(byte));
        } else {
            key.push('=');
            key.push(char::from(HEX[usize::from(byte >> 4)]));
            key.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    if id.is_empty() {
        key.push('='); // A token cannot be empty, and a lone `=` is no escape.
    }
    key
}

/// The id that was escaped; None for a token that this module did not make.
fn unescape(token: &str) -> Option<String> {
    if token == "=" {
        return Some(String::new());
    }
    let mut id = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'=' => {
                let (high, low) = (bytes.next()?, bytes.next()?);
                let digit = |byte: u8| char::from(byte).to_digit(16);
                id.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
            }
            b'.' => return None,
            _ => id.push(byte),
        }
    }
    String::from_utf8(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    static NUMBERS: Table<u32> = Table::new("numbers");

    #[test]
    fn ids_fit_a_key_and_come_back() {
        for (id, key) in [
            ("o-1", "n.o-1"),
            ("a.b", "n.a=2Eb"),
            ("=2E", "n.=3D2E"),
            ("/x_y", "n./x_y"),
            ("ä *>", "n.=C3=A4=20=2A=3E"),
            ("", "n.="),
        ] {
            assert_eq!(super::key("n", id), key);
            assert_eq!(unescape(&key[2..]).as_deref(), Some(id));
        }
        assert_eq!(unescape("=4"), None);
        assert_eq!(unescape("a.b"), None);
    }

    #[test]
    fn reads_what_it_wrote() {
        let mut ctx = Context::test();
        NUMBERS.set(&mut ctx, "b", &2).unwrap();
        NUMBERS
            .update(&mut ctx, "a", |old| Ok(Some(old.unwrap_or(0) + 1)))
            .unwrap();
        assert_eq!(NUMBERS.get(&ctx, "a").unwrap(), Some(1));
        assert_eq!(
            NUMBERS.get_many(&ctx, &["x", "b"]).unwrap(),
            [None, Some(2)]
        );
        assert_eq!(NUMBERS.list(&ctx, None, 10).unwrap(), ["a", "b"]);
        assert_eq!(NUMBERS.list(&ctx, Some("a"), 10).unwrap(), ["b"]);
        NUMBERS.update(&mut ctx, "a", |_| Ok(None)).unwrap();
        NUMBERS.delete(&mut ctx, "never").unwrap();
        assert_eq!(NUMBERS.list(&ctx, None, 10).unwrap(), ["b"]);
    }

    #[test]
    fn an_expired_value_is_gone_unless_it_was_set_for_good() {
        let mut ctx = Context::test();
        let minute = Duration::from_secs(60);
        for id in ["a", "b", "c"] {
            NUMBERS.set_with_ttl(&mut ctx, id, &1, minute).unwrap();
        }
        NUMBERS.set(&mut ctx, "b", &2).unwrap();
        NUMBERS.delete(&mut ctx, "c").unwrap();
        assert_eq!(ctx.expiring.get("numbers.a"), Some(&minute));
        for key in ["numbers.a", "numbers.b", "numbers.c"] {
            ctx.expire(key);
        }
        assert_eq!(NUMBERS.list(&ctx, None, 10).unwrap(), ["b"]);
        for ttl in [
            Duration::from_millis(999),
            Duration::from_secs(367 * 24 * 3600),
        ] {
            let error = NUMBERS.set_with_ttl(&mut ctx, "a", &1, ttl).unwrap_err();
            assert_eq!(error.code, "pelton-limit");
        }
    }

    #[test]
    fn a_failed_change_writes_nothing() {
        let mut ctx = Context::test();
        NUMBERS.set(&mut ctx, "a", &1).unwrap();
        let failed = NUMBERS.update(&mut ctx, "a", |_| Err(Error::defer("not-yet", "")));
        assert_eq!(failed.unwrap_err().code, "not-yet");
        assert_eq!(NUMBERS.get(&ctx, "a").unwrap(), Some(1));
    }

    #[test]
    fn foreign_values_are_rejected_by_key() {
        let mut ctx = Context::test();
        ctx.state.insert("numbers.a".into(), b"\"one\"".to_vec());
        let error = NUMBERS.get(&ctx, "a").unwrap_err();
        assert_eq!(error.code, "state-invalid");
        assert!(error.message.contains("`numbers.a`"), "{error}");
    }

    #[test]
    fn an_id_that_is_too_long_is_refused() {
        let mut ctx = Context::test();
        let error = NUMBERS.set(&mut ctx, &"x".repeat(300), &1).unwrap_err();
        assert_eq!(error.code, "pelton-key-invalid");
    }
}
