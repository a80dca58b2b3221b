//! `pelton.toml` and a node's `node.toml`: read once, checked whole, refused with the place and the fix.

mod function;
mod list;
mod manifest;
mod node;
mod parse;
mod reader;
mod sample;
mod schedule;
mod settings;
mod tree;
mod values;

pub(crate) use list::{canonical, read_canonical};
pub use values::{is_name, show_size};

pub use sample::Sample;
pub use schedule::Schedule;

pub use node::{
    NodeConnection, NodeFile, node_drain, node_http, node_instances, node_keys, node_memory,
    node_name, node_timeout,
};

pub use manifest::{ConfigError, DeadLetterLimits, FunctionManifest, Manifest, StreamManifest};
pub use settings::{
    Allow, DeliveryMode, FunctionSettings, InstanceMode, KeySource, MAX_CONCURRENCY, OnExhausted,
    RetryPolicy, Start,
};

#[cfg(test)]
mod tests;
