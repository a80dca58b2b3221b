//! The harness: real nats-server processes, the real `pelton` binary, real components.
//!
//! Nothing here stands in for NATS or for a node, with one exception that says so ([`old_server`]): what these tests
//! see is what a user sees. Every wait is for a condition and has a deadline ([`wait`]).

pub mod build;
pub mod certificates;
pub mod client;
pub mod foreign;
pub mod http;
pub mod load;
pub mod modules;
pub mod node;
pub mod old_server;
pub mod operator;
pub mod orders;
pub mod pelton;
pub mod production;
pub mod project;
pub mod proxy;
pub mod rates;
pub mod raw;
pub mod scene;
pub mod scrape;
pub mod server;
pub mod wait;

pub use certificates::Certificates;
pub use client::{Dead, Nats};
pub use foreign::foreign;
pub use node::Node;
pub use operator::Operator;
pub use pelton::{Output, Pelton};
pub use project::Project;
pub use scene::Scene;
pub use server::NatsServer;
pub use wait::{eventually, within};
