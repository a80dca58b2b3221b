//! NATS subjects and patterns (`*` one token, `>` the rest), as the server matches them.

/// Whether `subject` (no wildcards) matches `pattern`.
pub fn matches(pattern: &str, subject: &str) -> bool {
    covers(pattern, subject)
}

/// Whether every subject that matches `inner` matches `outer`.
pub fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(left), Some(right)) if left == right => {}
            _ => return false,
        }
    }
}

/// Whether some subject matches both.
pub fn overlaps(left: &str, right: &str) -> bool {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Longest subject, bytes. The server closes a connection whose control line is over 4096 bytes, and the outbox's
/// prefix and the reply's subject stand on that line too.
pub const MAX_SUBJECT: usize = 1024;

/// Whether this can be published to: not too long, tokens not empty, no wildcard, no space or control character.
pub fn is_subject(subject: &str) -> bool {
    subject.len() <= MAX_SUBJECT
        && is_pattern(subject)
        && !subject.split('.').any(|token| token == "*" || token == ">")
}

/// Whether this can be subscribed to: as a subject, with `*` as a token and `>` as the last one.
pub fn is_pattern(pattern: &str) -> bool {
    let mut rest = pattern.split('.').peekable();
    while let Some(token) = rest.next() {
        if token.is_empty() || token.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return false;
        }
        if token == ">" && rest.peek().is_some() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations() {
        // pattern, other, covers, overlaps
        for (a, b, covered, overlapping) in [
            ("orders.>", "orders.o-1.paid", true, true),
            ("orders.>", "orders", false, false),
            ("orders.*.paid", "orders.o-1.paid", true, true),
            ("orders.*.paid", "orders.o-1.shipped", false, false),
            ("orders.*.paid", "orders.>", false, true),
            ("orders.*", "orders.>", false, true),
            (">", "a", true, true),
            ("a.*", "*.b", false, true),
            ("a.b", "a.b.c", false, false),
        ] {
            assert_eq!(covers(a, b), covered, "{a} covers {b}");
            assert_eq!(overlaps(a, b), overlapping, "{a} overlaps {b}");
            assert_eq!(overlaps(b, a), overlapping, "{b} overlaps {a}");
        }
    }

    #[test]
    fn forms() {
        for (text, subject, pattern) in [
            ("a.b", true, true),
            ("a.*", false, true),
            ("a.>", false, true),
            ("a.>.b", false, false),
            ("a..b", false, false),
            ("a b", false, false),
            ("", false, false),
        ] {
            assert_eq!(is_subject(text), subject, "{text:?}");
            assert_eq!(is_pattern(text), pattern, "{text:?}");
        }
        assert!(is_subject(&"x".repeat(MAX_SUBJECT)));
        assert!(!is_subject(&"x".repeat(MAX_SUBJECT + 1)));
    }
}
