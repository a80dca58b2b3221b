//! Write event handlers for Pelton, which runs them on NATS JetStream: one event in, effects out, all or none.
//!
//! ```
//! use pelton_sdk::prelude::*;
//!
//! #[derive(serde::Deserialize)]
//! struct Paid { payment_id: String }
//!
//! static PAYMENTS: Table<String> = Table::new("payments");
//!
//! #[handler("orders.*.paid")]
//! fn paid(event: Event<Paid>, ctx: &mut Context) -> Result {
//!     let order = event.token(2).or_reject("order-missing")?;
//!     PAYMENTS.set(ctx, order, &event.data.payment_id)?;
//!     ctx.emit(Draft::new("notifications.email", &format!("{order} is paid")))
//! }
//! handlers![paid];
//!
//! # fn main() {
//! let mut ctx = Context::test();
//! paid(Event::test("orders.o-1.paid", serde_json::json!({ "payment_id": "p-1" })), &mut ctx).unwrap();
//! assert_eq!(PAYMENTS.get(&ctx, "o-1").unwrap().as_deref(), Some("p-1"));
//! assert_eq!(ctx.emitted[0].subject, "notifications.email");
//! # }
//! ```
//!
//! The last four lines are a unit test: no wasm, no NATS. `pelton build` makes a component of the rest.
//!
//! What a handler returns decides over its event: `Ok` makes its effects durable, [`Error`] says whether it is tried
//! again, waits for another event ([`defer!`]) or is dead-lettered ([`reject!`]). Events are delivered at least once or
//! exactly once as the manifest says, in either case the effects of an attempt that failed never happen; what a handler
//! does beside [`Context`] (an HTTP call) happens once per attempt.
//!
//! A component has no clock of its own: [`Context::now`] is the time, the same in every attempt,
//! and `SystemTime::now()` panics. Integers that overflow panic, too, as they do in tests.

mod context;
mod draft;
mod error;
mod event;
mod function;
mod host;
mod json;
mod payload;
mod subject;
mod table;

#[cfg(feature = "http")]
pub mod http;

// Generated from `wit/`; `./generate.sh` says how, and `tests/bindings.rs` notices when it was not run.
#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, unused_imports, clippy::all, clippy::panic, clippy::too_many_lines, clippy::unwrap_used)]
#[doc(hidden)]
pub mod bindings;

pub use context::{Context, Delivery, Level, Position};
pub use draft::Draft;
pub use error::{Disposition, Error, OrFail, Result};
pub use event::{Event, Timestamp};
pub use function::Function;
#[cfg(not(target_arch = "wasm32"))]
pub use host::{LogLine, TestHost};
pub use payload::{Payload, Raw};
pub use table::Table;

pub use pelton_sdk_macros::{handler, handlers};

/// What a handler needs: `use pelton_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::{Context, Draft, Error, Event, OrFail, Raw, Result, Table};
    pub use crate::{defer, handler, handlers, reject};
}

/// For the macros alone.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::bindings;
    pub use crate::error::is_code;
    pub use crate::function::{
        Announced, assert_context, assert_event, assert_result, call, line, line_len, unhandled,
    };
    pub use crate::subject::overlaps;
}
