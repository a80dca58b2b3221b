//! The forms of single values: names, subjects, hosts, durations, sizes.

use std::time::Duration;

use crate::event::subject;
use crate::names::OWN_PREFIX;

/// Subjects that belong to NATS or to Pelton.
const RESERVED: [&str; 4] = ["$JS.>", "$SYS.>", "$KV.>", "$O.>"];
/// Where functions are called: a stream that stored calls would answer them, too.
const CALLS: &str = "pelton.call.>";

/// Whether an app or a function may have this name, which becomes a token of subjects and a part of stream and consumer
/// names: 1 to 32 of `a-z 0-9 -`.
pub fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What keeps a stream from having this name.
pub(super) fn stream_name(text: &str) -> Result<(), String> {
    let bad =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    if text.is_empty() || text.len() > 255 || text.contains(bad) {
        return Err("is 1 to 255 characters without dots, spaces, `*`, `>`, `/` or `\\`".into());
    }
    match ["KV_", "OBJ_", "PELTON_"]
        .iter()
        .find(|prefix| text.starts_with(**prefix))
    {
        Some(prefix) => Err(format!(
            "does not begin with `{prefix}`: such streams belong to NATS buckets and to Pelton"
        )),
        None => Ok(()),
    }
}

/// What keeps this from being a subject pattern.
pub(super) fn pattern(text: &str) -> Result<(), String> {
    if !subject::is_pattern(text) {
        return Err(
            "a subject is tokens between dots, none of them empty, without spaces; `>` comes last"
                .into(),
        );
    }
    let mixed = text
        .split('.')
        .any(|token| token.len() > 1 && token.contains(['*', '>']));
    if mixed {
        return Err("`*` and `>` stand for whole tokens".into());
    }
    Ok(())
}

/// The reserved subjects that this pattern reaches.
pub(super) fn reserved(pattern: &str) -> Option<&'static str> {
    RESERVED
        .into_iter()
        .chain([CALLS])
        .find(|reserved| subject::overlaps(reserved, pattern))
}

/// The same for an input, which is only a filter: wildcards may reach further than the streams do, and state buckets
/// and object stores of others may be listened to.
pub(super) fn reserved_input(pattern: &str) -> Option<&'static str> {
    if pattern.starts_with(OWN_PREFIX) {
        return Some(OWN_PREFIX);
    }
    RESERVED
        .into_iter()
        .filter(|reserved| !matches!(*reserved, "$KV.>" | "$O.>"))
        .find(|reserved| pattern.split('.').next() == reserved.split('.').next())
}

/// Names of secrets are parts of environment variables.
pub(super) fn is_secret(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A host or `host:port`, in lower case; what is wrong with it.
pub(super) fn host(text: &str) -> Result<String, &'static str> {
    if text.contains("://") {
        return Err("it is a URL; only the host is wanted, such as \"api.example.com\"");
    }
    if text.contains('*') {
        return Err("it holds a wildcard; each host is named by itself");
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("the port is no number from 1 to 65535");
    }
    let inner = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let fits = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            name.len() <= 253
                && name.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                })
        }
    };
    if fits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("it is no host name or address; write \"api.example.com\" or \"api.example.com:8443\"")
    }
}

/// Milliseconds.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(text).map_err(|why| why.to_string())?;
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err("the finest unit is ms".into());
    }
    u64::try_from(duration.as_millis()).map_err(|_| "too long".into())
}

/// `90s` → `1m 30s`.
pub(super) fn show_duration(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// Bytes that a text such as `64MiB` says; none: it is no size.
pub(super) fn size(text: &str) -> Option<u64> {
    parse_size::parse_size(text).ok()
}

/// Bytes in the largest unit that divides them: `64 MiB`.
pub fn show_size(bytes: u64) -> String {
    [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes} bytes"),
            |(unit, shift)| format!("{} {unit}", bytes >> shift),
        )
}
