//! The commit protocol: effects become durable together, in one atomic batch on the app's commit stream.
//!
//! `stream` makes the streams that take part, `batch` is the wire of ADR-50, `transaction` lays one delivery out as a
//! batch, `committer` sends it and reads the refusals, `state` is what a guest's reads come from, and `outbox` clears
//! what has reached its target.

mod batch;
mod committer;
pub mod outbox;
mod state;
pub mod stream;
mod transaction;

pub use committer::{Attempts, CommitError, Committer, Earlier};
pub use state::NatsState;
pub use transaction::{DeadLetter, Origin, Transaction};
