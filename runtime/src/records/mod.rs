//! What Pelton stores in its registry, as JSON with a format version. Nodes of two releases read each other's
//! records, so fields are added, never changed.

mod node;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

pub use self::node::{
    Counted, NodeFunction, NodeLimits, NodeOrder, NodeRecord, NodeTrial, PAUSED, READY,
};
use crate::config::{FunctionSettings, KeySource, Schedule, read_canonical};
use crate::rollout::{Bounds, Summary};

/// Format version of every record in this module.
pub const FORMAT: u32 = 1;

/// A time as it stands in records and listings.
pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// An app, at registry key `app.<app>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AppRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The app's name.
    pub app: String,
    /// When it was first deployed, RFC 3339.
    pub created_at: String,
}

/// A function as it is deployed, at registry key `function.<app>.<function>`: its active version. The same record without `generation` and
/// `previous` stands at `version.<app>.<function>.<version>` and is never altered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The app's name.
    pub app: String,
    /// The function's name.
    pub function: String,
    /// 1, 2, 3 …
    pub version: u64,
    /// Counts activations, and is no less than `version`: a rollback makes an older version active once more. 0: written before there
    /// were any, see [`generation`](Self::generation).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// The version that was active before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// Until when nodes keep that one loaded, RFC 3339; empty: until the next one is active.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warm_until: String,
    /// Whether it is only tried: nodes load it and say whether they can, and no event goes to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// A version that is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Box<TrialRecord>>,
    /// What became of the latest rollouts, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub story: Vec<Chapter>,
    /// What operators set, whatever version is active.
    #[serde(default, skip_serializing_if = "Controls::are_none")]
    pub controls: Controls,
    /// Nonce made at the first deploy; transaction ids derive from it.
    pub instance: Uuid,
    /// SHA-256 of the component, 64 hex digits; its name in the module store.
    pub digest: String,
    /// Version of `pelton:function` that the component exports.
    pub contract: String,
    /// When this version was deployed, RFC 3339.
    pub deployed_at: String,
    /// When it was made active the last time, RFC 3339; empty: when it was deployed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub activated_at: String,
    /// Who made it, and of what.
    #[serde(default)]
    pub provenance: Provenance,
    /// What the component announces, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub handlers: Vec<Handler>,
    /// Where its events come from.
    pub inputs: Vec<Input>,
    /// Streams that its emitted events may reach.
    pub targets: Vec<Target>,
    /// Limits and policies.
    pub settings: FunctionSettings,
}

impl FunctionRecord {
    /// How often a version was made active, this one included.
    pub fn generation(&self) -> u64 {
        self.generation.max(self.version)
    }

    /// Where its events may go, and those of a version that is tried beside it.
    pub fn all_targets(&self) -> impl Iterator<Item = &Target> {
        let tried = self.trial.iter().flat_map(|trial| &trial.record.targets);
        self.targets.iter().chain(tried)
    }

    /// The version as it is kept: without what is said of it as the active one.
    pub fn alone(&self) -> Self {
        Self {
            generation: 0,
            previous: None,
            warm_until: String::new(),
            activated_at: String::new(),
            pending: false,
            trial: None,
            story: Vec::new(),
            controls: Controls::default(),
            ..self.clone()
        }
    }

    /// Whether a version was ever the active one, as far as the story tells.
    pub fn was_active(&self, version: u64) -> bool {
        let activations = ["promoted", "deployed", "rolled-back"];
        let told: Vec<&str> = self
            .story
            .iter()
            .filter(|one| one.version == version)
            .map(|one| one.what.as_str())
            .collect();
        told.is_empty() || told.iter().any(|what| activations.contains(what))
    }

    /// The record by which a node runs it: with what operators set in place of what was deployed.
    pub fn in_force(&self) -> Self {
        let mut record = self.clone();
        if let Some(concurrency) = self.controls.concurrency {
            record.settings.concurrency = concurrency;
            if let Some(trial) = &mut record.trial {
                trial.record.settings.concurrency = concurrency;
            }
        }
        record
    }

    /// For how long the version before stays loaded from `now` on; none: no end is said.
    pub fn warm_for(&self, now: OffsetDateTime) -> Option<Duration> {
        let until = OffsetDateTime::parse(&self.warm_until, &Rfc3339).ok()?;
        Some(Duration::try_from(until - now).unwrap_or(Duration::ZERO))
    }

    /// When it was made active, RFC 3339.
    pub fn activated_at(&self) -> &str {
        match self.activated_at.as_str() {
            "" => &self.deployed_at,
            at => at,
        }
    }

    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            format: FORMAT,
            app: "shop".into(),
            function: "orders".into(),
            version: 2,
            generation: 0,
            previous: None,
            warm_until: String::new(),
            pending: false,
            trial: None,
            story: Vec::new(),
            controls: Controls::default(),
            instance: Uuid::nil(),
            digest: String::new(),
            contract: String::new(),
            deployed_at: String::new(),
            activated_at: String::new(),
            provenance: Provenance::default(),
            handlers: Vec::new(),
            inputs: Vec::new(),
            targets: Vec::new(),
            settings: FunctionSettings::default(),
        }
    }
}

/// What operators set of a function from outside; it outlives the version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Controls {
    /// No node takes events; what comes waits in its stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Attempts in flight per node, in place of the deployed number; until a new version is deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

impl Controls {
    /// Whether nothing is set.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Since when a function takes no events, and who said so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Paused {
    /// RFC 3339.
    pub at: String,
    /// User and host.
    pub by: String,
    /// Whether it is only for as long as a reset or a removal takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
}

/// Parts of all keys that a share is counted in.
pub const SHARES: u32 = 10_000;

/// A version that is tried beside the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrialRecord {
    /// The version.
    pub record: FunctionRecord,
    /// The share of keys whose events it gets, of [`SHARES`].
    pub share: u32,
    /// When it got that share, RFC 3339.
    pub since: String,
    /// Shares that follow, ascending; with the last, all, it becomes the active one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<u32>,
    /// Between two of them, milliseconds.
    #[serde(default)]
    pub every_ms: u64,
    /// For how long the active version stays loaded when this one takes its place, milliseconds; none: until the next one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_ms: Option<u64>,
    /// When it is taken back; none: nobody judges it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
}

/// One thing that happened in a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chapter {
    /// When, RFC 3339.
    pub at: String,
    /// The version that is, or was, to be the active one.
    pub version: u64,
    /// `begun`, `step`, `promoted`, `taken-back`, `aborted`, `deployed` or `rolled-back`.
    pub what: String,
    /// The share of keys that it had from then on, of [`SHARES`].
    pub share: u32,
    /// Why, for a person.
    pub why: String,
    /// How the active version fared meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Summary>,
    /// How the new one fared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Summary>,
}

/// Where a version comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// Who deployed it: user and host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The commit that was checked out, if the manifest lies in a git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitCommit>,
    /// The environment of the manifest (`--env`) that it was deployed with; none: the manifest as
    /// it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Signatures of the component's digest; none is made or asked for yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GitCommit {
    /// Its hash.
    pub commit: String,
    /// Whether tracked files differed from it.
    pub dirty: bool,
}

/// A signature of a component's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Signature {
    /// Whose key.
    pub key: String,
    /// In base64.
    pub signature: String,
}

/// A line of the custom section `pelton:handlers`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Handler {
    /// The handler's name.
    pub handler: String,
    /// The subjects it takes; may hold wildcards.
    pub subject: String,
}

/// A stream and the subjects of it that a function takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Input {
    /// The stream's name.
    pub stream: String,
    /// Filters that do not overlap, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub subjects: Vec<String>,
    /// The position engine begins behind this sequence, as the first deploy found it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start: u64,
    /// Whether a deploy wrote the positions there: one that is missing then was lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// When the stream that `start` is about was made, nanoseconds since 1970; 0: the queue engine's, or not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub created: i64,
    /// How often it was reset: what is handled again is another delivery.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resets: u32,
}

impl Input {
    /// Which life of the input a delivery is of, part of its transaction's id: when the stream was made, and how often it was reset.
    pub fn life(&self, created: i64) -> i64 {
        created.wrapping_add(i64::from(self.resets))
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// A stream that a function may emit to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Target {
    /// The stream's name.
    pub stream: String,
    /// The stream's subjects, sorted.
    #[serde(deserialize_with = "read_canonical")]
    pub subjects: Vec<String>,
    /// The stream's `max_msg_size`; none: the server's `max_payload` alone counts.
    pub max_message_size: Option<u32>,
}

/// One attempt that failed, as kept while a delivery waits and in its dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptError {
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Stable code.
    pub code: String,
    /// For a person.
    pub message: String,
    /// When, RFC 3339.
    pub at: String,
    /// Function version that ran.
    pub version: u64,
}

/// Attempts so far of a queue delivery that is to be tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptsRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The transaction's id: a record of another one is not ours.
    pub txn: String,
    /// Attempts used up.
    pub attempts: u32,
    /// Deferrals so far.
    pub deferrals: u32,
    /// When the first deferral was, milliseconds since 1970.
    pub deferred_since_ms: Option<i64>,
    /// Not to be tried before this, milliseconds since 1970.
    pub not_before_ms: i64,
    /// The latest failures, oldest first.
    pub errors: Vec<AttemptError>,
}

/// The latest timer of its name, at `$KV.PELTON_<app>.timer.<name>` or, the next tick of a
/// schedule, `$KV.PELTON_<app>.tick.<function>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimerRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Which one.
    pub id: String,
    /// When it is due, RFC 3339.
    pub at: String,
    /// What it is a tick of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticking: Option<Ticking>,
}

/// A schedule that ticks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ticking {
    /// When.
    pub schedule: Schedule,
    /// The activation of the function that set it.
    pub version: u64,
}

impl TimerRecord {
    /// Reads one; `None`: it is none that this release knows.
    pub fn read(stored: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(stored).ok()?;
        (record.format == FORMAT).then_some(record)
    }
}

/// The commit stream's floor, at `$KV.PELTON_<app>.txn.floor`: of what is stored before it, only
/// what
/// `$KV.PELTON_<app>.txn.alive` lists is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloorRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The first sequence of which nothing is said.
    pub sequence: u64,
}

/// How far one partition of a function's input is done, at
/// `$KV.PELTON_<app>.pos.<function>.<input stream>.<partition>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PositionRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The node that runs it; empty: it was let go.
    pub owner: String,
    /// Up to here everything is done.
    pub sequence: u64,
    /// Done beyond it: each as the distance from the one before, the first from `sequence`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<u64>,
    /// The latest message that is known to be done; 0: none yet.
    #[serde(default)]
    pub witness: u64,
    /// When that one was stored, nanoseconds since 1970: another time there means another stream.
    #[serde(default)]
    pub witness_stored: i64,
    /// Done with for the position, and waiting in the park; ascending, each as the distance from the one before. What else is found
    /// there has ended: a server that was killed may bring back what was cleared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parked: Vec<u64>,
    /// A deploy handed the input to the queue engine: nobody claims it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// Of a closed one, by which key its partition was told; none: by no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySource>,
}

impl PositionRecord {
    /// A record of `sequence` and of those `done` beyond it, ascending.
    pub fn new(
        owner: &str,
        sequence: u64,
        done: impl Iterator<Item = u64>,
        (witness, witness_stored): (u64, i64),
    ) -> Self {
        let mut last = sequence;
        let done = done.map(|at| at.saturating_sub(std::mem::replace(&mut last, at)));
        Self {
            format: FORMAT,
            owner: owner.to_owned(),
            sequence,
            done: done.collect(),
            witness,
            witness_stored,
            parked: Vec::new(),
            closed: false,
            key: None,
        }
    }

    /// The same, claimed by nobody until it is opened again; `key` is by what partitions are told.
    pub fn close(self, key: Option<KeySource>) -> Self {
        Self {
            owner: String::new(),
            closed: true,
            key,
            ..self
        }
    }

    /// The same, to be claimed.
    pub fn open(self) -> Self {
        Self {
            closed: false,
            key: None,
            ..self
        }
    }

    /// The same with these in the park, ascending.
    pub fn with_parked(mut self, parked: impl Iterator<Item = u64>) -> Self {
        let mut last = 0;
        let parked = parked.map(|at| at.saturating_sub(std::mem::replace(&mut last, at)));
        self.parked = parked.collect();
        self
    }

    /// What waits in the park, ascending.
    pub fn parked_sequences(&self) -> impl Iterator<Item = u64> {
        self.parked.iter().scan(0, |at: &mut u64, step| {
            *at = at.saturating_add(*step);
            Some(*at)
        })
    }

    /// Whether a message is done, and does not wait for another attempt.
    pub fn has_ended(&self, sequence: u64) -> bool {
        let done = sequence <= self.sequence || self.done_sequences().any(|one| one == sequence);
        done && !self.parked_sequences().any(|one| one == sequence)
    }

    /// What is done beyond `sequence`, ascending.
    pub fn done_sequences(&self) -> impl Iterator<Item = u64> {
        self.done.iter().scan(self.sequence, |at, step| {
            *at = at.saturating_add(*step);
            Some(*at)
        })
    }
}

#[cfg(test)]
mod tests;
