//! What becomes of a version that is tried when its function is deployed.

use schemars::JsonSchema;
use serde::Serialize;

use super::Change;
use super::changes::between;
use crate::records::FunctionRecord;

/// What becomes of a version that is tried when its function is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TrialPlan {
    /// The version.
    pub version: u64,
    /// What becomes of it.
    pub action: TrialAction,
}

/// What becomes of a version that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrialAction {
    /// It is what is deployed: it goes on.
    GoesOn,
    /// The active version is what is deployed: it is taken back.
    Withdrawn,
    /// Another one is deployed, which takes its place.
    Replaced,
}

impl TrialPlan {
    /// What becomes of the version that is tried beside `active`, from which what is deployed differs by `changes`.
    pub(super) fn of(
        active: &FunctionRecord,
        deployed: &FunctionRecord,
        changes: &[Change],
    ) -> Option<Self> {
        let trial = active.trial.as_ref()?;
        // One without a share is of a deploy that loads it, or was cut off: nobody would go on with it.
        let same = trial.share > 0 && between(&trial.record, deployed).is_empty();
        let action = match changes.is_empty() {
            true => TrialAction::Withdrawn,
            false if same => TrialAction::GoesOn,
            false => TrialAction::Replaced,
        };
        Some(Self {
            version: trial.record.version,
            action,
        })
    }

    /// That, for a person.
    pub(super) fn note(self, name: &str) -> String {
        let Self { version, action } = self;
        match action {
            TrialAction::GoesOn => format!(
                "function {name}: this is version {version}, which is tried already and goes on: `pelton rollout {name} status`"
            ),
            TrialAction::Withdrawn => format!(
                "function {name}: version {version}, which is tried, is taken back, for this is the active version"
            ),
            TrialAction::Replaced => {
                format!("function {name}: version {version}, which is tried, gives way to this one")
            }
        }
    }
}
