//! A function's limits and policies, with their defaults: what `pelton.toml` says and the registry stores.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Sample, Schedule, read_canonical};

/// What is promised of each delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// Position engine.
    #[default]
    ExactlyOnce,
    /// Queue engine.
    AtLeastOnce,
}

/// How instances are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceMode {
    /// Warm instances take one attempt after another.
    #[default]
    Reuse,
    /// A new instance per attempt.
    Fresh,
}

/// Where a function begins in a stream that already holds messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With what comes after the first deploy.
    New,
    /// With everything stored.
    All,
    /// With what was stored at or after this time, RFC 3339.
    Time(String),
}

/// Where an event's ordering key is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// A token of the subject, from 1.
    Token(u32),
    /// A CloudEvents attribute.
    Attribute(String),
    /// A JSON pointer into the data.
    Data(String),
}

/// What happens when attempts run out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnExhausted {
    /// The delivery becomes a dead letter.
    #[default]
    DeadLetter,
    /// The function pauses.
    Pause,
}

/// Retries and deferrals of one delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetryPolicy {
    /// Attempts in all; 0: no limit.
    pub max_attempts: u32,
    /// Upper bound of the first delay, milliseconds.
    pub initial_delay_ms: u64,
    /// Growth of that bound per attempt.
    pub multiplier: f64,
    /// Its largest value, milliseconds.
    pub max_delay_ms: u64,
    /// When attempts run out.
    pub on_exhausted: OnExhausted,
    /// How long an event may wait for another one, milliseconds.
    pub max_defer_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_delay_ms: 200,
            multiplier: 2.0,
            max_delay_ms: 30_000,
            on_exhausted: OnExhausted::default(),
            max_defer_ms: 3_600_000,
        }
    }
}

/// What a function may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Allow {
    /// Patterns of subjects, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub emit: Vec<String>,
    /// Hosts, `host` or `host:port`, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub http: Vec<String>,
}

/// Largest `concurrency`.
pub const MAX_CONCURRENCY: u32 = 4096;

/// A function's limits and policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionSettings {
    /// What is promised.
    pub delivery: DeliveryMode,
    /// Ordering key; none: all in parallel.
    pub key: Option<KeySource>,
    /// Where to begin; none: not said.
    pub start: Option<Start>,
    /// Attempts in flight, per node.
    pub concurrency: u32,
    /// Attempts in flight, whole cluster; none: unbounded.
    pub max_in_flight: Option<u32>,
    /// Wall clock per attempt, milliseconds.
    pub timeout_ms: u64,
    /// Linear memory per instance, bytes.
    pub memory_bytes: u64,
    /// Warm or fresh instances.
    pub instance: InstanceMode,
    /// Names of secrets, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub secrets: Vec<String>,
    /// What handlers read through `wasi:config`.
    pub config: BTreeMap<String, String>,
    /// Retries.
    pub retry: RetryPolicy,
    /// What is allowed.
    pub allow: Allow,
    /// When it gets a tick; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// What a new version has to handle before any event goes to it; none: it only has to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

impl Default for FunctionSettings {
    fn default() -> Self {
        Self {
            delivery: DeliveryMode::default(),
            key: None,
            start: None,
            concurrency: 64,
            max_in_flight: None,
            timeout_ms: 5_000,
            memory_bytes: 64 << 20,
            instance: InstanceMode::default(),
            secrets: Vec::new(),
            config: BTreeMap::new(),
            retry: RetryPolicy::default(),
            allow: Allow::default(),
            schedule: None,
            sample: None,
        }
    }
}
