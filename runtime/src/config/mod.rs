//! `pelton.toml`: read once, checked whole, refused with the place and the fix.

mod function;
mod manifest;
mod parse;
mod reader;
mod sample;
mod schedule;
mod settings;
mod tree;
mod values;

pub use values::{is_name, size as parse_size};

pub use sample::Sample;
pub use schedule::Schedule;

pub use manifest::{ConfigError, FunctionManifest, Manifest, StreamManifest};
pub use settings::{
    Allow, DeliveryMode, FunctionSettings, InstanceMode, KeySource, MAX_CONCURRENCY, OnExhausted,
    RetryPolicy, Start,
};

#[cfg(test)]
mod tests;
