//! What nodes say of themselves, once a second, and what is asked of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::{FORMAT, SHARES};
use crate::rollout::Figures;

/// Status of a function on a node that takes no events of it, and has nothing of it under way.
pub const PAUSED: &str = "paused";
/// Status of a version that is tried and could take events.
pub const READY: &str = "ready";

/// A live node, at its id in the nodes bucket; rewritten every second, gone 3 s after the last time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The node's id, made at its start.
    pub node: String,
    /// Its name, by default the host's.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Version of Pelton.
    pub pelton: String,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// Apps that it serves; empty: all of the account.
    #[serde(default)]
    pub apps: Vec<String>,
    /// What it serves.
    pub functions: Vec<NodeFunction>,
    /// Whether it loads versions before they are active, and says so.
    #[serde(default)]
    pub tries: bool,
    /// Whether it was asked to take no more events: see [`state`](Self::state).
    #[serde(default)]
    pub draining: bool,
    /// What it has, and may use.
    #[serde(default)]
    pub limits: NodeLimits,
    /// Memory that its process has, bytes; none: the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Apps of which versions that gave way, or functions that are gone, still end attempts here.
    #[serde(default)]
    pub retiring: Vec<String>,
    /// Whether it shows metrics: of these, the one with the least id counts what is stored in an app's input streams.
    #[serde(default)]
    pub metrics: bool,
    /// Up to where it has counted that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counted: Vec<Counted>,
}

/// Up to where the events of an app's input stream are counted: the node that goes on with it begins there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counted {
    /// The app.
    pub app: String,
    /// The stream.
    pub stream: String,
    /// When that was made, RFC 3339: one that is made anew counts from 1 again.
    pub created: String,
    /// The last sequence that is counted.
    pub sequence: u64,
}

/// What a node has, and may use. Zeros: its release does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeLimits {
    /// Processors.
    pub cpus: u32,
    /// Instances at once, over all functions.
    pub instances: u32,
    /// Largest memory that one function may ask for, bytes.
    pub memory_bytes: u64,
}

/// What is asked of a node, as JSON, on its own subject (`pelton.node.<id>`); it answers with the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeOrder {
    /// Whether it is to take no more events, and let go of what it holds.
    pub drain: bool,
}

/// A function on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFunction {
    /// The app.
    pub app: String,
    /// The function.
    pub function: String,
    /// The version that takes events; 0 when none does.
    pub version: u64,
    /// The newest version that this node knows of: what `status` speaks of.
    #[serde(default)]
    pub deployed: u64,
    /// The newest activation that this node knows of. 0: its release knows of none.
    #[serde(default)]
    pub generation: u64,
    /// `running`, `starting`, `pausing`, [`PAUSED`], or `failed: ` and why.
    pub status: String,
    /// Since this version started here.
    pub counts: crate::telemetry::Counts,
    /// Attempts inside a handler just now.
    #[serde(default)]
    pub busy: u32,
    /// How many there may be.
    #[serde(default)]
    pub concurrency: u32,
    /// How it fares since another version is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
    /// The version that is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<NodeTrial>,
}

/// A version that is tried on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTrial {
    /// Which.
    pub version: u64,
    /// The share that it has here, of [`SHARES`].
    #[serde(default)]
    pub share: u32,
    /// [`READY`], `starting`, or `failed: ` and why.
    pub status: String,
    /// How it fares here, since it has that share.
    pub figures: Figures,
    /// Its attempts inside a handler just now.
    #[serde(default)]
    pub busy: u32,
}

impl NodeTrial {
    /// Why it does not run here, if that is so.
    pub fn failure(&self) -> Option<&str> {
        failure(&self.status)
    }
}

impl NodeFunction {
    /// Why the newest version does not run here, if that is so.
    pub fn failure(&self) -> Option<&str> {
        failure(&self.status)
    }
}

fn failure(status: &str) -> Option<&str> {
    let why = status.strip_prefix("failed")?;
    Some(why.trim_start_matches([':', ' ']))
}
