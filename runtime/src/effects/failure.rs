//! Why an attempt failed and what follows: one type for the node's refusals and the handler's own failures,
//! so that a handler can pass on what it got.

use std::time::Duration;

/// Longest error message that is kept.
pub const MAX_ERROR_BYTES: usize = 4 << 10;
/// Longest code.
const MAX_CODE_BYTES: usize = 64;
/// Longest delay that a handler may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// What stands for a code that no one could group or alert by.
const UNNAMED: &str = "handler-error";

/// What becomes of a delivery that failed (the contract's `disposition`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again when the retry policy says.
    Retry,
    /// Try again no sooner than this (at most 24 h).
    RetryAfter(Duration),
    /// The event waits for another one; uses up no attempt.
    Defer,
    /// Trying again cannot help.
    Reject,
}

/// Why an attempt failed (the contract's `error`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub disposition: Disposition,
    /// Stable code; those that begin with `pelton-` are the node's.
    pub code: String,
    /// For a person; at most [`MAX_ERROR_BYTES`].
    pub message: String,
}

impl Failure {
    /// A failure that trying again cannot help.
    pub fn reject(code: &str, message: impl Into<String>) -> Self {
        Self {
            disposition: Disposition::Reject,
            code: code.into(),
            message: cut(message.into()),
        }
    }

    /// A failure that the retry policy handles.
    pub fn retry(code: &str, message: impl Into<String>) -> Self {
        Self {
            disposition: Disposition::Retry,
            code: code.into(),
            message: cut(message.into()),
        }
    }

    /// What a handler returned, brought within the contract: a code that is none becomes `handler-error`,
    /// the message and the delay are cut.
    pub fn from_handler(disposition: Disposition, code: String, message: String) -> Self {
        let disposition = match disposition {
            Disposition::RetryAfter(delay) => Disposition::RetryAfter(delay.min(MAX_RETRY_AFTER)),
            other => other,
        };
        let (code, message) = if is_code(&code) {
            (code, message)
        } else if code.is_empty() {
            (UNNAMED.to_owned(), message)
        } else {
            // The text is kept: it is often all that says what went wrong.
            (
                UNNAMED.to_owned(),
                format!("{}: {message}", code.escape_debug()),
            )
        };
        Self {
            disposition,
            code,
            message: cut(message),
        }
    }
}

/// Whether this is a code: `a-z 0-9 -`, 1 to 64 bytes.
fn is_code(code: &str) -> bool {
    (1..=MAX_CODE_BYTES).contains(&code.len())
        && code
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// At most [`MAX_ERROR_BYTES`], never in the middle of a character.
pub(crate) fn cut(mut message: String) -> String {
    if message.len() > MAX_ERROR_BYTES {
        message.truncate(message.floor_char_boundary(MAX_ERROR_BYTES));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_handlers_return_is_brought_within_the_contract() {
        for (code, expected) in [
            ("payment-unknown", "payment-unknown"),
            ("pelton-conflict", "pelton-conflict"),
            ("", "handler-error"),
            ("Payment Unknown", "handler-error"),
            (&"a".repeat(64), &"a".repeat(64)),
            (&"a".repeat(65), "handler-error"),
        ] {
            let failure = Failure::from_handler(Disposition::Retry, code.into(), "x".into());
            assert_eq!(failure.code, expected, "{code}");
        }
        let odd = Failure::from_handler(Disposition::Reject, "No Such".into(), "why".into());
        assert_eq!(odd.message, "No Such: why");
        let long = Failure::from_handler(Disposition::Defer, "x".into(), "é".repeat(5000));
        assert_eq!(long.message.len(), MAX_ERROR_BYTES);
        let odd_cut = cut(format!("a{}", "é".repeat(5000)));
        assert_eq!(odd_cut.len(), MAX_ERROR_BYTES - 1);
        let late = Disposition::RetryAfter(Duration::from_secs(1 << 40));
        assert_eq!(
            Failure::from_handler(late, "x".into(), String::new()).disposition,
            Disposition::RetryAfter(MAX_RETRY_AFTER)
        );
    }
}
