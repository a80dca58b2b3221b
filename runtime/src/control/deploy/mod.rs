//! Deploy: what a manifest and its components ask for, compared with what NATS holds, then carried out.
//!
//! [`survey`] reads, [`plan`] decides without touching anything — so it can be shown, tested and thrown away — and
//! [`apply`] does what the plan says. Nodes notice the registry's new records by themselves; [`clean_up`] removes what
//! the versions before needed.

mod apply;
mod back;
mod begin;
mod changes;
mod checks;
mod clean_up;
mod coverage;
mod environments;
mod gone;
mod hand_over;
mod inputs;
mod leftovers;
mod plan;
mod streams;
mod survey;
mod switch;
mod targets;
mod timers;
mod trial;

#[cfg(test)]
mod tests;

pub use apply::{Steps, Way, apply};
pub use back::{Rollback, back, find};
pub(super) use begin::before_time;
pub use changes::Change;
pub use clean_up::clean_up;
pub(super) use clean_up::request;
pub use hand_over::hand_over;
pub(super) use hand_over::{give_back, hands_over};
pub(super) use leftovers::clear;
pub use plan::{
    FunctionAction, FunctionPlan, InputAction, InputPlan, Plan, StreamAction, StreamPlan, plan,
};
pub use survey::{Registered, Retention, StreamView, View, survey};
pub use trial::{TrialAction, TrialPlan};

use crate::config::{ConfigError, Manifest};

/// One thing that stands in the way of a deploy, and which entry of the manifest it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  fix: {fix}")]
pub struct Problem {
    /// Keys from the top of the file down to the entry, such as `functions`, `orders`, `subjects`.
    pub keys: Vec<String>,
    /// What is wrong and why.
    pub what: String,
    /// How to mend it.
    pub fix: String,
}

impl Problem {
    /// The problem at its line: of the entry, or of the nearest table above it.
    pub fn located(&self, manifest: &Manifest) -> ConfigError {
        manifest.error_at(&self.keys.join("."), &self.what, &self.fix)
    }

    fn new(keys: &[&str], what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            keys: keys.iter().map(ToString::to_string).collect(),
            what: what.into(),
            fix: fix.into(),
        }
    }
}
