//! `pelton.toml`: read once, checked whole, refused with the place and the fix.

mod manifest;
mod settings;

pub use manifest::{ConfigError, FunctionManifest, Manifest, StreamManifest};
pub use settings::{
    Allow, DeliveryMode, FunctionSettings, InstanceMode, KeySource, OnExhausted, RetryPolicy, Start,
};
