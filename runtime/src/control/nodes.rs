//! Who is alive: what each node says of itself in the bucket of nodes, rewritten every second.

use async_nats::jetstream::{self};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{ControlError, open};
use crate::names::NODES_BUCKET;
use crate::records::{FunctionRecord, NodeFunction, NodeRecord};

/// How often a waiting deploy looks again.
const LOOK: Duration = Duration::from_millis(200);
/// How long a failure is taken for one of before the deploy: a node tries again every 5 s at the least, and says
/// within a second what came of it.
const PATIENCE: Duration = Duration::from_secs(7);

impl NodeRecord {
    /// Whether it serves functions of this app.
    pub fn serves(&self, app: &str) -> bool {
        self.apps.is_empty() || self.apps.iter().any(|name| name == app)
    }

    /// What it says of a function.
    pub fn function(&self, app: &str, function: &str) -> Option<&NodeFunction> {
        self.functions
            .iter()
            .find(|entry| entry.app == app && entry.function == function)
    }
}

impl NodeFunction {
    /// Why the newest version does not run here, if that is so.
    pub fn failure(&self) -> Option<&str> {
        let why = self.status.strip_prefix("failed")?;
        Some(why.trim_start_matches([':', ' ']))
    }
}

/// The live nodes, by id.
///
/// # Errors
/// NATS trouble. No bucket means no node.
pub async fn list(js: &jetstream::Context) -> Result<Vec<NodeRecord>, ControlError> {
    let Some(stream) = open(js, &format!("KV_{NODES_BUCKET}")).await? else {
        return Ok(Vec::new());
    };
    let failed = |why: String| ControlError::nats("list the nodes", why);
    // Not a consumer: entries come and go while one reads, and it would wait for what has expired.
    let mut subjects = stream
        .info_with_subjects(format!("$KV.{NODES_BUCKET}.>"))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut nodes = Vec::new();
    while let Some(entry) = subjects.next().await {
        let (subject, _) = entry.map_err(|error| failed(error.to_string()))?;
        let Ok(message) = stream.get_last_raw_message_by_subject(&subject).await else {
            continue;
        };
        // A deletion has no body, and what a later release writes otherwise is not ours to judge.
        if let Ok(node) = serde_json::from_slice::<NodeRecord>(&message.payload) {
            nodes.push(node);
        }
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(nodes)
}

/// What became of a deploy on the nodes that are alive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rollout {
    /// Live nodes that serve the app.
    pub nodes: usize,
    /// Functions that run their version everywhere.
    pub running: Vec<String>,
    /// Functions that some node could not start, and why.
    pub failed: Vec<RolloutFailure>,
    /// Functions that some node had not taken over in time.
    pub waiting: Vec<String>,
}

/// A version that does not run on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RolloutFailure {
    /// The function's name.
    pub function: String,
    /// The node's id.
    pub node: String,
    /// Its machine.
    pub host: String,
    /// Why.
    pub why: String,
}

/// A version that is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub version: u64,
    /// Its activation.
    pub generation: u64,
}

impl Wanted {
    /// What nodes should run when this is the function's record.
    pub fn of(record: &FunctionRecord) -> Self {
        Self {
            version: record.version,
            generation: record.generation(),
        }
    }

    /// Whether a node speaks of it, or of a later one.
    fn is_known_to(self, entry: &NodeFunction) -> bool {
        match entry.generation {
            0 => entry.deployed >= self.version,
            generation => generation >= self.generation,
        }
    }
}

/// Waits until every live node runs these versions, by function, or says that it cannot, at most `within`.
///
/// # Errors
/// NATS trouble.
pub async fn wait(
    js: &jetstream::Context,
    app: &str,
    versions: &BTreeMap<String, Wanted>,
    within: Duration,
) -> Result<Rollout, ControlError> {
    let start = tokio::time::Instant::now();
    loop {
        let rollout = judge(&list(js).await?, app, versions);
        let passed = start.elapsed();
        let said = rollout.waiting.is_empty() && (rollout.failed.is_empty() || passed >= PATIENCE);
        if said || rollout.nodes == 0 || passed >= within {
            return Ok(rollout);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until no live node ends attempts of versions of this app that gave way, at most `within`; whether that is so.
///
/// # Errors
/// NATS trouble.
pub async fn settled(
    js: &jetstream::Context,
    app: &str,
    within: Duration,
) -> Result<bool, ControlError> {
    let start = tokio::time::Instant::now();
    loop {
        let nodes = list(js).await?;
        let retiring = |node: &NodeRecord| node.retiring.iter().any(|one| one == app);
        if !nodes.iter().any(retiring) {
            return Ok(true);
        }
        if start.elapsed() >= within {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn judge(nodes: &[NodeRecord], app: &str, versions: &BTreeMap<String, Wanted>) -> Rollout {
    let serving: Vec<&NodeRecord> = nodes.iter().filter(|node| node.serves(app)).collect();
    let mut rollout = Rollout {
        nodes: serving.len(),
        ..Rollout::default()
    };
    for (function, wanted) in versions {
        let (mut running, mut failed) = (0, 0);
        for node in &serving {
            let Some(entry) = node
                .function(app, function)
                .filter(|entry| wanted.is_known_to(entry))
            else {
                continue;
            };
            if let Some(why) = entry.failure() {
                failed += 1;
                rollout.failed.push(RolloutFailure {
                    function: function.clone(),
                    node: node.node.clone(),
                    host: node.host.clone(),
                    why: why.to_owned(),
                });
            } else if entry.version == entry.deployed && entry.status == "running" {
                running += 1;
            }
        }
        if running + failed < serving.len() {
            rollout.waiting.push(function.clone());
        } else if failed == 0 {
            rollout.running.push(function.clone());
        }
    }
    rollout
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, apps: &[&str], functions: &[(&str, u64, &str)]) -> NodeRecord {
        NodeRecord {
            format: 1,
            node: id.into(),
            host: "h".into(),
            pid: 1,
            pelton: "0".into(),
            started_at: String::new(),
            apps: apps.iter().map(ToString::to_string).collect(),
            functions: functions
                .iter()
                .map(|(function, version, status)| NodeFunction {
                    app: "shop".into(),
                    function: (*function).into(),
                    version: *version,
                    deployed: *version,
                    generation: *version,
                    figures: None,
                    trial: None,
                    counts: Default::default(),
                    status: (*status).into(),
                })
                .collect(),
            tries: true,
            retiring: Vec::new(),
        }
    }

    #[test]
    fn a_rollout_is_judged_over_all_nodes_that_serve_the_app() {
        let wanted = |version| Wanted {
            version,
            generation: version,
        };
        let versions = BTreeMap::from([("a".to_owned(), wanted(2)), ("b".to_owned(), wanted(1))]);
        let nodes = [
            node("n1", &[], &[("a", 2, "running"), ("b", 1, "running")]),
            node(
                "n2",
                &["shop"],
                &[("a", 1, "running"), ("b", 1, "failed: no secret X")],
            ),
            node("n3", &["other"], &[]),
        ];
        let rollout = judge(&nodes, "shop", &versions);
        assert_eq!(rollout.nodes, 2);
        assert_eq!(rollout.waiting, ["a"], "n2 still runs version 1");
        assert!(rollout.running.is_empty());
        assert_eq!(rollout.failed.len(), 1);
        assert_eq!(rollout.failed[0].why, "no secret X");
    }
}
