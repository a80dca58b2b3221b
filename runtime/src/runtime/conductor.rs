//! Moves rollouts on: looks at how the versions fare, and goes to the next share, or takes a version back that is worse. Of the nodes that serve a
//! function one does it, and should two believe it is them, the registry takes one of them at its word.

use std::collections::BTreeSet;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::every;
use crate::control::rollout;
use crate::control::{ControlError, nodes};
use crate::nats::Connection;
use crate::records::NodeRecord;
use crate::rollout::{Both, decided};

/// How often it looks: figures come with heartbeats, once a second.
const LOOK: Duration = Duration::from_millis(500);

/// Apps and functions with a version that has a share.
pub(super) type Trials = BTreeSet<(String, String)>;

pub(super) struct Conductor {
    pub(super) nats: Connection,
    /// This node's id.
    pub(super) node: String,
    pub(super) trials: watch::Receiver<Trials>,
}

impl Conductor {
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut look = every(LOOK);
        let mut failing = BTreeSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            let trials = self.trials.borrow().clone();
            failing.retain(|key| trials.contains(key));
            if trials.is_empty() {
                continue;
            }
            let nodes = match nodes::list(&self.nats.jetstream()).await {
                Ok(nodes) => nodes,
                Err(error) => {
                    tracing::debug!(%error, "rollouts are not looked at");
                    continue;
                }
            };
            for (app, function) in trials {
                if !self.conducts(&nodes, &app, &function) {
                    continue;
                }
                let key = (app, function);
                match self.move_on(&nodes, &key.0, &key.1).await {
                    Ok(()) => {
                        failing.remove(&key);
                    }
                    // Said once, until it goes well again: a version that is worse keeps its share.
                    Err(error) if failing.insert(key.clone()) => {
                        let (app, function) = key;
                        tracing::warn!(%error, app, function, "a rollout does not move on; `pelton rollout` does it by hand");
                    }
                    Err(error) => tracing::debug!(%error, "a rollout does not move on"),
                }
            }
        }
    }

    /// Whether of all that could, it is this node.
    fn conducts(&self, nodes: &[NodeRecord], app: &str, function: &str) -> bool {
        let could = nodes.iter().filter(|node| {
            node.tries && node.serves(app) && node.function(app, function).is_some()
        });
        could.map(|node| node.node.as_str()).min() == Some(self.node.as_str())
    }

    async fn move_on(
        &self,
        nodes: &[NodeRecord],
        app: &str,
        function: &str,
    ) -> Result<(), ControlError> {
        let js = self.nats.jetstream();
        let changed = rollout::change(&js, app, function, |record| {
            let both = Both::of(record, nodes);
            Ok(decided(record, &both, OffsetDateTime::now_utc()))
        });
        if let Some(record) = changed.await?
            && let Some(chapter) = record.story.last()
        {
            tracing::info!(
                app,
                function,
                version = chapter.version,
                what = chapter.what,
                why = chapter.why,
                "rollout"
            );
            rollout::publish(&self.nats.client(), &record).await;
        }
        Ok(())
    }
}
