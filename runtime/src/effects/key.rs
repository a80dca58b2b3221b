//! The syntax of state keys: narrow enough that every key is also one that NATS' KV buckets take.

/// Longest key, bytes.
const MAX_KEY_BYTES: usize = 256;

/// Whether this is a key: 1 to 256 bytes of `A-Z a-z 0-9 - _ = / .`, no empty token between dots.
pub fn is_key(key: &str) -> bool {
    key.len() <= MAX_KEY_BYTES
        && key
            .split('.')
            .all(|token| !token.is_empty() && token.bytes().all(is_key_byte))
}

/// Whether this can be listed below: a key, or nothing, which lists all.
pub fn is_prefix(prefix: &str) -> bool {
    prefix.is_empty() || is_key(prefix)
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=' | b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        for (key, ok) in [
            ("orders.o-1", true),
            ("a", true),
            ("A=/_-9", true),
            ("", false),
            (".a", false),
            ("a.", false),
            ("a..b", false),
            ("a b", false),
            ("a.*", false),
            ("a.>", false),
            ("é", false),
            (&"k".repeat(256), true),
            (&"k".repeat(257), false),
        ] {
            assert_eq!(is_key(key), ok, "{key:?}");
        }
        assert!(is_prefix("") && is_prefix("a.b") && !is_prefix("a."));
    }
}
