//! An event source: the service that owns orders tells what happened to them.
//!
//! Nothing in it knows of Pelton. It publishes CloudEvents to JetStream, and takes care of what only a producer can:
//! every event has an id that stays the same however often it is sent, and is sent until the stream has it.

pub mod event;
pub mod order;
pub mod source;

pub use event::Event;
pub use order::Order;
pub use source::EventSource;
