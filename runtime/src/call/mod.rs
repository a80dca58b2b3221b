//! Request/reply. A call becomes a delivery of its function's internal input, so that it keeps its key's order and is done
//! once; its outcome is the reply.
//!
//! `endpoint` is what callers find, by the protocol of NATS micro services (`service`); `desk` serves one of them; `request` reads
//! what they ask, purely; `answer` is what they get. The node that was asked and the node that does it may be two: between them lie the commit stream, which holds the
//! call, and the answer's subject. Only the node that was asked publishes to the caller's inbox, so it needs no leave to
//! publish anywhere but to who asked it.

mod answer;
mod desk;
mod endpoint;
mod request;
mod service;

pub(crate) use answer::{Answer, is_left};
pub(crate) use endpoint::Endpoint;
pub(crate) use request::Caller;
