//! Subjects and patterns as NATS matches them, in functions that run while the user's crate compiles.

/// Whether `bytes` begins with `start`.
pub(crate) const fn starts_with(bytes: &[u8], start: &[u8]) -> bool {
    if bytes.len() < start.len() {
        return false;
    }
    let mut at = 0;
    while at < start.len() {
        if bytes[at] != start[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Where the token that begins at `from` ends.
const fn token_end(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < text.len() && text[at] != b'.' {
        at += 1;
    }
    at
}

/// Whether the token `from..end` is this one byte.
const fn is_wild(text: &[u8], from: usize, end: usize, wild: u8) -> bool {
    end == from + 1 && text[from] == wild
}

const fn same(left: &[u8], l: (usize, usize), right: &[u8], r: (usize, usize)) -> bool {
    if l.1 - l.0 != r.1 - r.0 {
        return false;
    }
    let mut at = 0;
    while at < l.1 - l.0 {
        if left[l.0 + at] != right[r.0 + at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Whether some subject matches both patterns. With a subject instead of a pattern: whether it matches the other.
#[doc(hidden)]
pub const fn overlaps(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let (mut l, mut r) = (0, 0);
    loop {
        let (l_end, r_end) = (token_end(left, l), token_end(right, r));
        if is_wild(left, l, l_end, b'>') || is_wild(right, r, r_end, b'>') {
            return true;
        }
        if !is_wild(left, l, l_end, b'*')
            && !is_wild(right, r, r_end, b'*')
            && !same(left, (l, l_end), right, (r, r_end))
        {
            return false;
        }
        match (l_end == left.len(), r_end == right.len()) {
            (true, true) => return true,
            (false, false) => {}
            _ => return false,
        }
        l = l_end + 1;
        r = r_end + 1;
    }
}

/// Whether this can be published to.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn is_subject(subject: &str) -> bool {
    subject.split('.').all(|token| {
        !matches!(token, "" | "*" | ">")
            && !token.chars().any(|c| c.is_whitespace() || c.is_control())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_as_nats_says() {
        for (left, right, expected) in [
            ("orders.>", "orders.o-1.paid", true),
            ("orders.>", "orders", false),
            ("orders.*.paid", "orders.o-1.paid", true),
            ("orders.*.paid", "orders.*.shipped", false),
            ("orders.*.paid", "orders.>", true),
            ("orders.*", "orders.*.paid", false),
            (">", "a", true),
            ("a.*", "*.b", true),
            ("a.b", "a.bc", false),
            ("a.b", "a.b.c", false),
            ("a.>>", "a.b", false),
        ] {
            assert_eq!(overlaps(left, right), expected, "{left} and {right}");
            assert_eq!(overlaps(right, left), expected, "{right} and {left}");
        }
    }

    #[test]
    fn subjects() {
        assert!(is_subject("orders.o-1.paid"));
        for bad in ["", "a..b", "a.*", "a.>", "a b", ".a", "a."] {
            assert!(!is_subject(bad), "{bad:?}");
        }
    }
}
