//! What `#[handler]` and `handlers!` expand to: choosing a handler by subject, and announcing which there are.

use crate::event::Event;
use crate::payload::{Payload, Raw};
use crate::{Context, Error, Result};

/// A function: its handlers, behind one door. `handlers!` implements it for the type `Handlers`.
///
/// A test may come in through that door as a node does, with the event's bytes:
///
/// ```
/// # use pelton_sdk::prelude::*;
/// use pelton_sdk::Function;
///
/// #[handler("greetings.*")]
/// fn greet(event: Event<String>, ctx: &mut Context) -> Result {
///     ctx.info(event.data);
///     Ok(())
/// }
/// handlers![greet];
///
/// # fn main() {
/// let event = Event::test_bytes("greetings.en", "not JSON");
/// let error = Handlers::handle(event, &mut Context::test()).unwrap_err();
/// assert_eq!(error.code, "payload-invalid");
/// # }
/// ```
pub trait Function {
    /// Each handler's name and the subjects that it takes.
    const HANDLERS: &'static [(&'static str, &'static str)];

    /// Hands the event to the one handler that takes its subject.
    ///
    /// # Errors
    /// The handler's; a reject when the data does not parse (`payload-invalid`) or no handler takes the subject
    /// (`subject-unhandled`).
    fn handle(event: Event<Raw>, ctx: &mut Context) -> Result;
}

/// Made by `#[handler]`: a type beside the function, of the same name, that knows the subjects.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no handler",
    label = "not marked with `#[handler(\"subject\")]`"
)]
pub trait Announced {
    const SUBJECT: &'static str;
    /// File and line of its definition.
    const PLACE: &'static str;
}

/// What a handler's first parameter can be.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a handler's first parameter is an `Event<…>`, not `{Self}`",
    label = "expected `Event<…>`"
)]
pub trait IsEvent {}
impl<T: Payload> IsEvent for Event<T> {}

/// What a handler's second parameter can be, behind its `&mut`.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a handler's second parameter is a `&mut Context`, not `&mut {Self}`",
    label = "expected `Context`"
)]
pub trait IsContext {}
impl IsContext for Context {}

/// What a handler can return.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a handler returns `pelton_sdk::Result`, not `{Self}`",
    label = "expected `Result`"
)]
pub trait IsResult {}
impl IsResult for Result {}

#[doc(hidden)]
pub const fn assert_event<T: IsEvent>() {}
#[doc(hidden)]
pub const fn assert_context<T: IsContext>() {}
#[doc(hidden)]
pub const fn assert_result<T: IsResult>() {}

/// Calls the handler of this name, which is defined at `place`: a panic says so.
#[doc(hidden)]
pub fn call<T: Payload>(
    (name, place): (&'static str, &'static str),
    handler: fn(Event<T>, &mut Context) -> Result,
    event: Event<Raw>,
    ctx: &mut Context,
) -> Result {
    #[cfg(target_arch = "wasm32")]
    crate::host::enter(name, place);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (name, place);
    handler(event.decode()?, ctx)
}

/// What the standard library says where there is no clock.
#[cfg(any(target_arch = "wasm32", test))]
const NO_CLOCK: &str = "time not implemented on this platform";

/// What a panic says: its text, where it came from (file and line), and in which handler, for the
/// former may be in the standard library or in another crate.
#[cfg(any(target_arch = "wasm32", test))]
pub(crate) fn panic_text(
    said: &str,
    (file, line): (&str, &str),
    (name, place): (&str, &str),
) -> String {
    let remedy = match said.starts_with(NO_CLOCK) {
        true => {
            ": a component has no clock; use ctx.now() instead of SystemTime::now() or Instant::now()"
        }
        false => "",
    };
    let parts = [
        said,
        " (",
        file,
        ":",
        line,
        ")",
        " in handler `",
        name,
        "` (",
        place,
        ")",
        remedy,
    ];
    match name {
        // Somebody's own `Function`, without the macros.
        "" => parts[..6].concat(),
        _ => parts.concat(),
    }
}

#[doc(hidden)]
#[cold]
pub fn unhandled(subject: &str) -> Result {
    let text = [
        "no handler of this function takes the subject `",
        subject,
        "`",
    ];
    Err(Error::reject("subject-unhandled", text.concat()))
}

/// The parts of a line of the custom section; names and patterns hold nothing that JSON escapes.
const fn parts<'a>(name: &'a str, subject: &'a str) -> [&'a [u8]; 5] {
    [
        b"{\"handler\":\"",
        name.as_bytes(),
        b"\",\"subject\":\"",
        subject.as_bytes(),
        b"\"}\n",
    ]
}

#[doc(hidden)]
pub const fn line_len(name: &str, subject: &str) -> usize {
    let parts = parts(name, subject);
    let (mut at, mut len) = (0, 0);
    while at < parts.len() {
        len += parts[at].len();
        at += 1;
    }
    len
}

/// One line of the custom section `pelton:handlers`.
#[doc(hidden)]
pub const fn line<const N: usize>(name: &str, subject: &str) -> [u8; N] {
    let parts = parts(name, subject);
    let mut line = [0; N];
    let (mut part, mut at) = (0, 0);
    while part < parts.len() {
        let mut byte = 0;
        while byte < parts[part].len() {
            line[at] = parts[part][byte];
            byte += 1;
            at += 1;
        }
        part += 1;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_the_handler_and_what_to_do() {
        let handler = ("paid", "functions/orders/src/lib.rs:12");
        let own = panic_text(
            "attempt to add with overflow",
            ("src/lib.rs", "14"),
            handler,
        );
        assert_eq!(
            own,
            "attempt to add with overflow (src/lib.rs:14) in handler `paid` (functions/orders/src/lib.rs:12)"
        );
        let std = ("/rustc/1/library/std/src/sys/time/unsupported.rs", "31");
        let clock = panic_text(NO_CLOCK, std, handler);
        assert!(clock.contains("functions/orders/src/lib.rs:12"), "{clock}");
        assert!(clock.contains("ctx.now()"), "{clock}");
        let bare = panic_text("panicked", ("src/lib.rs", "14"), ("", ""));
        assert_eq!(bare, "panicked (src/lib.rs:14)");
    }

    #[test]
    fn a_line_of_the_section() {
        const LINE: [u8; line_len("paid", "orders.*.paid")] = line("paid", "orders.*.paid");
        let expected = "{\"handler\":\"paid\",\"subject\":\"orders.*.paid\"}\n";
        assert_eq!(std::str::from_utf8(&LINE).unwrap(), expected);
    }
}
