//! The commit protocol: effects become durable together, in one atomic batch on the app's commit stream.
//!
//! `stream` makes the streams that take part, `batch` is the wire of ADR-50, `transaction` lays one delivery out as
//! messages, `group` puts many into one batch, `committer` gathers them, `flight` sends a batch and reads the refusals,
//! `state` is what a guest's reads come from and `cache` what this node knows of it, `lifetime`
//! says when a value expires, `outbox` clears what has reached its target, `floor` says what is
//! dead although it is there, and `vacuum` removes that and delete markers.

mod attempts;
mod batch;
pub mod bygone;
mod cache;
mod committer;
mod flight;
pub(crate) mod floor;
mod group;
pub(crate) mod lifetime;
mod locks;
pub mod outbox;
pub mod position;
pub mod site;
mod state;
pub mod stream;
#[cfg(test)]
mod tests;
mod timers;
mod transaction;
pub mod transport;
pub mod vacuum;

pub use attempts::{Attempts, Earlier};
pub use cache::CachedState;
pub use committer::{CommitError, Committer, Expected, Room};
pub use locks::{Locks, Turn, Wanted, touched};
pub use position::Partition;
pub use state::NatsState;
pub use timers::set_timer;
pub(crate) use transaction::MARKER_TTL;
pub use transaction::{Answered, DeadLetter, Fence, Follower, Origin, Parking, Transaction};
