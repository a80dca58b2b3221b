//! Failures and what becomes of them, so that a handler decides with one `?` whether its event is tried again.

use std::any::Any;
use std::fmt;
use std::time::Duration;

/// What a handler returns.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// What becomes of an event whose handler failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again when the retry policy says.
    Retry,
    /// Try again no sooner than this; more than 24 h is cut to it. Uses up an attempt, as any retry does.
    RetryAfter(Duration),
    /// Not yet: the event waits for another one. Uses up no attempt, and later events go first.
    Defer,
    /// Trying again cannot help: dead-letter it.
    Reject,
}

/// Why a handler failed, and what to do about it.
///
/// `?` makes one of any error: serde_json's are rejected with code `payload-invalid`, all others are retried with
/// code `handler-error`. What the node answers ([`Context`](crate::Context), [`Table`](crate::Table)) is an `Error` already and
/// passes through unchanged; which is why this type is no `std::error::Error` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What becomes of the event.
    pub disposition: Disposition,
    /// Stable, for grouping and alerts: `a-z 0-9 -`, 1 to 64 bytes. Codes that begin with `pelton-` are the node's.
    pub code: String,
    /// For a person; the node cuts it at 4 KiB.
    pub message: String,
}

impl Error {
    fn new(disposition: Disposition, code: &str, message: String) -> Self {
        Self {
            disposition,
            code: code.to_owned(),
            message,
        }
    }

    /// Trying again cannot help. See also [`reject!`](crate::reject).
    pub fn reject(code: &str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Reject, code, message.into())
    }

    /// The event waits for another one. See also [`defer!`](crate::defer).
    pub fn defer(code: &str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Defer, code, message.into())
    }

    /// Try again when the retry policy says.
    pub fn retry(code: &str, message: impl Into<String>) -> Self {
        Self::new(Disposition::Retry, code, message.into())
    }

    /// Try again, but no sooner than `delay` (at most 24 h).
    pub fn retry_after(delay: Duration, code: &str, message: impl Into<String>) -> Self {
        Self::new(Disposition::RetryAfter(delay), code, message.into())
    }

    fn from_std(error: &dyn fmt::Display, is_json: bool) -> Self {
        let message = error.to_string();
        if is_json {
            Self::reject("payload-invalid", message)
        } else {
            Self::retry("handler-error", message)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        f.write_str(": ")?;
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let is_json = (&error as &dyn Any).is::<serde_json::Error>();
        Self::from_std(&error, is_json)
    }
}

/// `.or_reject(code)`, `.or_defer(code)` and `.or_retry(code)` on what may be missing or may have failed.
///
/// The error's message is that of the failure, or the code where something is missing.
/// `.or_reject_with(code, || format!(…))` and its like give a message; the failure's own follows
/// it.
///
/// ```
/// # use pelton_sdk::prelude::*;
/// # fn find(order: Option<u8>) -> Result<u8> {
/// order.or_defer_with("order-missing", || "order o-1 is not created yet")
/// # }
/// assert_eq!(find(None).unwrap_err().message, "order o-1 is not created yet");
/// ```
///
/// Not for this crate's own [`Error`]: it says already what becomes of the event, so pass it on with `?`.
pub trait OrFail<T>: Sized {
    /// None or an error: the event is dead-lettered.
    ///
    /// # Errors
    /// A [`Disposition::Reject`] with this code.
    fn or_reject(self, code: &str) -> Result<T> {
        self.or_fail(Disposition::Reject, code, None::<fn() -> String>)
    }

    /// As [`or_reject`](Self::or_reject), with a message.
    ///
    /// # Errors
    /// A [`Disposition::Reject`] with this code.
    fn or_reject_with<M: Into<String>>(self, code: &str, message: impl FnOnce() -> M) -> Result<T> {
        self.or_fail(Disposition::Reject, code, Some(message))
    }

    /// None or an error: the event waits for another one.
    ///
    /// # Errors
    /// A [`Disposition::Defer`] with this code.
    fn or_defer(self, code: &str) -> Result<T> {
        self.or_fail(Disposition::Defer, code, None::<fn() -> String>)
    }

    /// As [`or_defer`](Self::or_defer), with a message.
    ///
    /// # Errors
    /// A [`Disposition::Defer`] with this code.
    fn or_defer_with<M: Into<String>>(self, code: &str, message: impl FnOnce() -> M) -> Result<T> {
        self.or_fail(Disposition::Defer, code, Some(message))
    }

    /// None or an error: the event is tried again.
    ///
    /// # Errors
    /// A [`Disposition::Retry`] with this code.
    fn or_retry(self, code: &str) -> Result<T> {
        self.or_fail(Disposition::Retry, code, None::<fn() -> String>)
    }

    /// As [`or_retry`](Self::or_retry), with a message.
    ///
    /// # Errors
    /// A [`Disposition::Retry`] with this code.
    fn or_retry_with<M: Into<String>>(self, code: &str, message: impl FnOnce() -> M) -> Result<T> {
        self.or_fail(Disposition::Retry, code, Some(message))
    }

    /// What the others come to.
    #[doc(hidden)]
    fn or_fail<M: Into<String>>(
        self,
        disposition: Disposition,
        code: &str,
        message: Option<impl FnOnce() -> M>,
    ) -> Result<T>;
}

impl<T> OrFail<T> for Option<T> {
    fn or_fail<M: Into<String>>(
        self,
        disposition: Disposition,
        code: &str,
        message: Option<impl FnOnce() -> M>,
    ) -> Result<T> {
        self.ok_or_else(|| {
            let message = message.map_or_else(|| code.to_owned(), |message| message().into());
            Error::new(disposition, code, message)
        })
    }
}

impl<T, E: std::error::Error> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<M: Into<String>>(
        self,
        disposition: Disposition,
        code: &str,
        message: Option<impl FnOnce() -> M>,
    ) -> Result<T> {
        self.map_err(|error| {
            let why = error.to_string();
            let message = match message {
                Some(message) => [message().into(), why].join(": "),
                None => why,
            };
            Error::new(disposition, code, message)
        })
    }
}

/// Whether this is a code that a function may use: checked by the macros while compiling.
#[doc(hidden)]
pub const fn is_code(code: &str) -> bool {
    let bytes = code.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'-') {
            return false;
        }
        at += 1;
    }
    1 <= at && at <= 64 && !crate::subject::starts_with(bytes, b"pelton-")
}

/// Returns from the handler: this event can never be handled. `reject!("code", "text {}", argument)`.
#[macro_export]
macro_rules! reject {
    ($code:literal) => { $crate::reject!($code, $code) };
    ($code:literal, $($text:tt)+) => {{
        $crate::__check_code!($code);
        return ::core::result::Result::Err($crate::Error::reject($code, ::std::format!($($text)+)))
    }};
}

/// Returns from the handler: this event waits for another one. `defer!("code", "text {}", argument)`.
#[macro_export]
macro_rules! defer {
    ($code:literal) => { $crate::defer!($code, $code) };
    ($code:literal, $($text:tt)+) => {{
        $crate::__check_code!($code);
        return ::core::result::Result::Err($crate::Error::defer($code, ::std::format!($($text)+)))
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __check_code {
    ($code:literal) => {
        const _: () = ::core::assert!(
            $crate::__private::is_code($code),
            "a code is 1 to 64 bytes of a-z 0-9 - and does not begin with pelton-"
        );
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<u8> {
        Ok(serde_json::from_str(text)?)
    }

    fn number(text: &str) -> Result<u8> {
        Ok(text.parse::<u8>()?)
    }

    fn passed_on(error: Error) -> Result {
        Err(error)?;
        Ok(())
    }

    #[test]
    fn the_question_mark_decides() {
        let error = parsed("x").unwrap_err();
        assert_eq!(error.disposition, Disposition::Reject);
        assert_eq!(error.code, "payload-invalid");
        let error = number("x").unwrap_err();
        assert_eq!(error.disposition, Disposition::Retry);
        assert_eq!(error.code, "handler-error");
        assert!(error.message.contains("invalid digit"));
        let node = Error::reject("pelton-not-allowed", "no");
        assert_eq!(passed_on(node.clone()).unwrap_err(), node);
    }

    #[test]
    fn what_is_missing_gets_a_disposition() {
        let none: Option<u8> = None;
        assert_eq!(
            none.or_defer("later").unwrap_err().disposition,
            Disposition::Defer
        );
        assert_eq!(
            none.or_retry("again").unwrap_err().disposition,
            Disposition::Retry
        );
        let error = "x".parse::<u8>().or_reject("not-a-number").unwrap_err();
        assert_eq!(error.disposition, Disposition::Reject);
        assert_eq!(error.code, "not-a-number");
        assert_eq!(Some(1).or_reject("never").unwrap(), 1);
    }

    #[test]
    fn a_message_says_more_than_a_code() {
        let none: Option<u8> = None;
        let unknown = || format!("no order {}", "o-1");
        let error = none.or_reject_with("order-missing", unknown).unwrap_err();
        assert_eq!(error, Error::reject("order-missing", "no order o-1"));
        let error = none.or_defer_with("order-missing", unknown).unwrap_err();
        assert_eq!(error, Error::defer("order-missing", "no order o-1"));
        let error = none.or_retry_with("order-missing", unknown).unwrap_err();
        assert_eq!(error, Error::retry("order-missing", "no order o-1"));
        let error = "x".parse::<u8>().or_reject_with("count", || "the count");
        let said = "the count: invalid digit found in string";
        assert_eq!(error.unwrap_err(), Error::reject("count", said));
        let kept: Result<u8> = Some(1).or_reject_with("never", || -> String { unreachable!() });
        assert_eq!(kept.unwrap(), 1);
    }

    #[test]
    fn macros_return_from_the_handler() {
        fn gives_up(n: u8) -> Result {
            if n == 0 {
                reject!("zero", "{n} is nothing");
            }
            defer!("not-yet");
        }
        assert_eq!(
            gives_up(0).unwrap_err(),
            Error::reject("zero", "0 is nothing")
        );
        assert_eq!(gives_up(1).unwrap_err(), Error::defer("not-yet", "not-yet"));
    }

    #[test]
    fn codes() {
        assert!(is_code("order-step-illegal"));
        for bad in ["", "Upper", "pelton-trap", "a b", &"x".repeat(65)] {
            assert!(!is_code(bad), "{bad:?}");
        }
    }
}
