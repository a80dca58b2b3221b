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

/// Subjects that match `pattern` and none of `others`, as a pattern that holds no `>`; `None`: there are none.
///
/// A token that none of them names is taken by their wildcards alone. So it is enough to look at the pattern with such a token
/// in the place of each wildcard, and `>` as any number of them up to one more than the longest of the others has.
pub fn beyond(pattern: &str, others: &[&str]) -> Option<String> {
    let untaken = |one: &String| !others.iter().any(|other| covers(other, one));
    let Some(head) = pattern.strip_suffix('>') else {
        return Some(pattern.to_owned()).filter(untaken);
    };
    let longest = others.iter().map(|other| other.split('.').count()).max();
    let lengths = 1..=longest.unwrap_or(0) + 1;
    let mut all = lengths.map(|length| format!("{head}{}", vec!["*"; length].join(".")));
    all.find(untaken)
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
    fn what_others_leave_of_a_pattern() {
        for (pattern, others, left) in [
            ("a.b", &["a.*"] as &[&str], None),
            ("a.*", &["a.b", "a.c"], Some("a.*")),
            ("a.>", &["a.>"], None),
            ("a.>", &["a.*", "a.*.>"], None),
            ("a.>", &["a.*", "a.*.*.>"], Some("a.*.*")),
            ("a.>", &["a.*", "a.*.*"], Some("a.*.*.*")),
            ("a.>", &["a.b.>"], Some("a.*")),
            ("a.*.c", &["a.b.c", "*.*.*"], None),
            (">", &["*", "*.>"], None),
            ("a", &[], Some("a")),
        ] {
            assert_eq!(
                beyond(pattern, others).as_deref(),
                left,
                "{pattern} {others:?}"
            );
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
