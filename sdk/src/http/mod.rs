//! Calls to the outside: a small HTTP client over `wasi:http` 0.2, behind the cargo feature `http`.
//!
//! The manifest's `allow.http` says which hosts may be called. A call happens once per attempt, whatever becomes of the
//! attempt: send an idempotency key (the event's id is one) where it matters.
//!
//! ```
//! use pelton_sdk::http::Request;
//! use pelton_sdk::prelude::*;
//!
//! fn charge(event: &Event<Raw>, ctx: &mut Context) -> Result<String> {
//!     let request = Request::post("https://payments.example/charges")
//!         .header("idempotency-key", &event.id)
//!         .json(&serde_json::json!({ "cents": 1250 }));
//!     request.send(ctx)?.success()?.text()
//! }
//! # use pelton_sdk::http::{Response, TestServer};
//! # let mut ctx = Context::test();
//! # ctx.http = Some(TestServer::new(|request| Ok(Response::new(200, request.body.clone()))));
//! # let event = Event::test_bytes("a.b", "");
//! # assert_eq!(charge(&event, &mut ctx).unwrap(), r#"{"cents":1250}"#);
//! ```

#[cfg(target_arch = "wasm32")]
#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::panic, clippy::too_many_lines, clippy::unwrap_used)]
mod bindings;
mod message;
#[cfg(not(target_arch = "wasm32"))]
mod test_server;
mod url;
#[cfg(target_arch = "wasm32")]
mod wasm;

pub use message::{Request, Response};
#[cfg(not(target_arch = "wasm32"))]
pub use test_server::TestServer;
