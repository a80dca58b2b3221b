//! What all functions of a node use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Connections;
use super::leaving::Leaving;
use crate::commit::site::Sites;
use crate::commit::{Committer, NatsState};
use crate::members::Members;
use crate::names::AppNames;
use crate::sandbox::Sandbox;
use crate::source::InternalInputs;
use crate::telemetry::{LogPublisher, Meters};

/// What all functions of a node use.
pub(super) struct Shared {
    pub(super) connections: Connections,
    pub(super) sandbox: Sandbox,
    pub(super) logs: LogPublisher,
    pub(super) meters: Arc<Meters>,
    /// Versions and functions on their way out.
    pub(super) retiring: TaskTracker,
    pub(super) leaving: Leaving,
    /// They are to hand back what still runs, at once.
    pub(super) hurry: CancellationToken,
    /// One per app: its batches in flight are bounded together.
    committers: Mutex<BTreeMap<String, Committer>>,
    /// One per app, while one of its functions runs.
    inputs: Mutex<BTreeMap<String, Weak<InternalInputs>>>,
    /// This node's id.
    pub(super) node: String,
    pub(super) members: watch::Receiver<Members>,
    pub(super) sites: Arc<Sites>,
}

impl Shared {
    pub(super) fn new(
        id: Uuid,
        connections: Connections,
        sandbox: Sandbox,
        members: watch::Receiver<Members>,
    ) -> Self {
        let logs = LogPublisher::new(connections.commits.clone(), id.to_string());
        let (committers, inputs) = (Mutex::default(), Mutex::default());
        let sites = Arc::new(Sites::new(connections.commits.clone()));
        Self {
            connections,
            sandbox,
            logs,
            meters: Arc::default(),
            retiring: TaskTracker::new(),
            leaving: Leaving::default(),
            hurry: CancellationToken::new(),
            committers,
            inputs,
            node: id.to_string(),
            members,
            sites,
        }
    }

    /// The app's committer: its batches in flight are bounded together.
    pub(super) fn committer(&self, names: &AppNames, state: &NatsState) -> Committer {
        let mut committers = self
            .committers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let members = self.members.clone();
            Committer::start(
                self.connections.commits.clone(),
                state.clone(),
                names.clone(),
                members,
                self.meters.app(names.app()),
            )
        };
        committers
            .entry(names.app().to_owned())
            .or_insert_with(make)
            .clone()
    }

    /// The shared reader of the app's internal inputs.
    pub(super) fn internal_inputs(&self, names: &AppNames) -> Arc<InternalInputs> {
        let mut all = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(names.app()).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, inputs| inputs.strong_count() > 0);
        let inputs = InternalInputs::start(self.connections.inputs.clone(), names.clone());
        let inputs = Arc::new(inputs);
        all.insert(names.app().to_owned(), Arc::downgrade(&inputs));
        inputs
    }
}
