//! Pelton's host: runs WebAssembly event handlers on NATS JetStream and commits their effects.
//!
//! The modules stand in the order in which one event meets them:
//!
//! ```text
//! message ─► decode ─► version ─► invoke in the sandbox ─► commit effects ─► ack / retry / dead-letter
//!  source     event     route           sandbox                commit          verdict, settle
//! ```
//!
//! `delivery` is the spine that says those steps in that order; `names` and `records` hold what is
//! stored in NATS and under which name; `control` is what operators do from outside the data path.

pub mod runtime;

pub mod config;
pub mod nats;

pub mod names;
pub mod records;

pub mod source;

mod call;
mod delivery;
mod members;
mod mutation;
pub mod rollout;
mod route;
mod series;

pub mod event;
pub mod module_store;
pub mod registry;

pub mod component;
pub mod sandbox;

pub mod effects;

pub mod commit;
mod settle;
pub mod verdict;

pub mod telemetry;

pub mod control;
pub mod dev;
