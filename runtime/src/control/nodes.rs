//! Who is alive: what each node says of itself in the bucket of nodes, rewritten every second.

use async_nats::Client;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::{self};
use async_nats::service::NATS_SERVICE_ERROR;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ControlError, ErrorKind, open};
use crate::names::{self, NODES_BUCKET};
use crate::nats::raw::{self, Which};
use crate::records::{FunctionRecord, NodeFunction, NodeOrder, NodeRecord, PAUSED, READY};

/// Nodes that an error names.
const MAX_NAMED: usize = 20;
/// How often a waiting deploy looks again.
const LOOK: Duration = Duration::from_millis(200);
/// How long a failure is taken for one of before the deploy: a node tries again every 5 s at the least, and says
/// within a second what came of it.
const PATIENCE: Duration = Duration::from_secs(7);

impl NodeRecord {
    /// Whether it serves functions of this app: one that drains serves none.
    pub fn serves(&self, app: &str) -> bool {
        !self.draining && self.knows(app)
    }

    /// Whether this app is one of those that it is for.
    pub fn knows(&self, app: &str) -> bool {
        self.apps.is_empty() || self.apps.iter().any(|name| name == app)
    }

    /// `serving`, `draining` while something is under way, or `drained`.
    pub fn state(&self) -> &'static str {
        let rests = |one: &NodeFunction| one.status == PAUSED || one.failure().is_some();
        match self.draining {
            false => "serving",
            true if self.functions.iter().all(rests) && self.retiring.is_empty() => "drained",
            true => "draining",
        }
    }

    /// Whether it has let go of all it holds, or takes events of all it serves.
    pub fn is_settled(&self, drained: bool) -> bool {
        let starts = |one: &NodeFunction| one.status == "starting";
        match drained {
            true => self.state() == "drained",
            false => self.state() == "serving" && !self.functions.iter().any(starts),
        }
    }

    /// What it says of a function.
    pub fn function(&self, app: &str, function: &str) -> Option<&NodeFunction> {
        self.functions
            .iter()
            .find(|entry| entry.app == app && entry.function == function)
    }
}

/// The live nodes, by id.
///
/// # Errors
/// NATS trouble. No bucket means no node.
pub async fn list(js: &jetstream::Context) -> Result<Vec<NodeRecord>, ControlError> {
    let bucket = format!("KV_{NODES_BUCKET}");
    let Some(stream) = open(js, &bucket).await? else {
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
        let found = raw::get(js, &bucket, Which::Last(&subject)).await;
        let Ok(Some(message)) = found else {
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

/// The node of this name or id; of an id the beginning or the end is enough.
///
/// # Errors
/// There is none, or several.
pub fn find(nodes: &[NodeRecord], wanted: &str) -> Result<NodeRecord, ControlError> {
    let exact = |node: &&NodeRecord| node.node == wanted || node.host == wanted;
    let part = |node: &&NodeRecord| node.node.starts_with(wanted) || node.node.ends_with(wanted);
    let mut found: Vec<&NodeRecord> = nodes.iter().filter(exact).collect();
    if found.is_empty() {
        found = nodes.iter().filter(part).collect();
    }
    let names = |nodes: &[&NodeRecord]| {
        let names = nodes.iter().take(MAX_NAMED);
        let names = names.map(|node| format!("{} ({})", node.host, node.node));
        names.collect::<Vec<_>>().join(", ")
    };
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] if nodes.is_empty() => Err(ControlError::not_found(
            format!("no node {wanted}: none is alive"),
            "start one with `pelton run`",
        )),
        [] => Err(ControlError::not_found(
            format!("no node {wanted} is alive"),
            format!("choose one of {}", names(&nodes.iter().collect::<Vec<_>>())),
        )),
        several => Err(ControlError::refused(
            format!("{wanted} is several nodes"),
            format!("give the id of one of {}", names(several)),
        )),
    }
}

/// Tells a node to take no more events, or to take them again, and waits until it has let go of all it holds, or runs all, at most `within`.
/// What it says of itself then.
///
/// # Errors
/// It does not answer, or is gone; NATS trouble.
pub async fn drain(
    client: &Client,
    js: &jetstream::Context,
    id: &str,
    drain: bool,
    within: Duration,
) -> Result<NodeRecord, ControlError> {
    let doing = || format!("tell node {id} to drain");
    let order = serde_json::to_vec(&NodeOrder { drain });
    let order = order.map_err(|error| ControlError::nats(doing(), error))?;
    let answer = client.request(names::node(id), order.into()).await;
    let answer = answer.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => ControlError::not_found(
            format!("node {id} does not answer: it has just gone, or its release knows no orders"),
            "see `pelton node ls`; SIGTERM drains and ends any node",
        ),
        RequestErrorKind::TimedOut => ControlError::new(
            ErrorKind::Conflict,
            format!("node {id} has not confirmed: it does not answer"),
            "it follows if it sleeps and wakes up; see `pelton node ls` whether it is alive",
        ),
        _ => ControlError::nats(doing(), error),
    })?;
    let refused = answer.headers.as_ref();
    if let Some(why) = refused.and_then(|headers| headers.get(NATS_SERVICE_ERROR)) {
        return Err(ControlError::nats(doing(), why.as_str()));
    }
    let start = tokio::time::Instant::now();
    loop {
        let nodes = list(js).await?;
        let Some(node) = nodes.into_iter().find(|node| node.node == id) else {
            return Err(ControlError::not_found(
                format!("node {id} is gone"),
                "see `pelton node ls`",
            ));
        };
        if node.is_settled(drain) || start.elapsed() >= within {
            return Ok(node);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What became of a deploy on the nodes that are alive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rollout {
    /// Live nodes that serve the app.
    pub nodes: usize,
    /// Live nodes that would, and drain.
    pub draining: usize,
    /// Functions that run their version everywhere.
    pub running: Vec<String>,
    /// Functions that some node could not start, and why.
    pub failed: Vec<RolloutFailure>,
    /// Functions that some node had not taken over in time.
    pub waiting: Vec<String>,
    /// The nodes that had not, by name and id.
    pub silent: BTreeSet<String>,
    /// Nodes that had not, and are not heard from any more: killed, or asleep.
    pub gone: BTreeSet<String>,
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
    /// Whether it is to take no events.
    pub paused: bool,
    /// Whether no other version is to be tried beside it.
    pub alone: bool,
    /// A version that is to have this share, of which nodes say whether they run it.
    pub trial: Option<(u64, u32)>,
}

impl Wanted {
    /// What nodes should run when this is the function's record.
    pub fn of(record: &FunctionRecord) -> Self {
        Self {
            version: record.version,
            generation: record.generation(),
            paused: record.controls.paused.is_some(),
            alone: record.trial.is_none(),
            trial: record
                .trial
                .as_ref()
                .filter(|trial| trial.share > 0)
                .map(|trial| (trial.record.version, trial.share)),
        }
    }

    /// Whether that is still what is to run, or what became of it by itself: a version that had a share has all keys.
    pub(crate) fn is_still(self, record: &FunctionRecord) -> bool {
        let now = Self::of(record);
        let share = |wanted: Self| wanted.trial.map(|(version, _)| version);
        let promoted = share(self).is_some_and(|tried| tried == now.version);
        let same = (self.version, share(self)) == (now.version, share(now));
        (same || promoted) && self.paused == now.paused
    }

    /// Whether a node is to do it: those that serve, and of a pause also those that drain, which still end attempts.
    fn is_for(self, node: &NodeRecord, app: &str, function: &str) -> bool {
        let ends = || node.draining && node.function(app, function).is_some();
        node.serves(app) || self.paused && ends()
    }

    /// Whether a node that speaks of it has done what is wanted.
    fn is_met_by(self, entry: &NodeFunction) -> bool {
        match self.paused {
            true => entry.status == PAUSED,
            false => {
                let alone = !self.alone || entry.trial.is_none();
                let shares = self.trial.is_none_or(|(version, share)| {
                    entry.trial.as_ref().is_some_and(|trial| {
                        (trial.version, trial.share) == (version, share) && trial.status == READY
                    })
                });
                alone && shares && entry.version == entry.deployed && entry.status == "running"
            }
        }
    }

    /// Why a node does not run what is wanted, if it says so.
    fn failure_on(self, entry: &NodeFunction) -> Option<&str> {
        let (version, _) = self.trial.unzip();
        let trial = entry.trial.as_ref();
        let trial = trial.filter(|trial| Some(trial.version) == version);
        entry.failure().or_else(|| trial?.failure())
    }

    /// Whether a node speaks of it, or of a later one.
    pub(crate) fn is_known_to(self, entry: &NodeFunction) -> bool {
        match entry.generation {
            // Its release knows no activations: of a version that is active once more it says what it said before.
            0 if self.generation > self.version => entry.deployed == self.version,
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
    let mut expected = BTreeSet::new();
    loop {
        let nodes = list(js).await?;
        let mut rollout = judge(&nodes, app, versions);
        let alive: BTreeSet<String> = nodes.iter().map(name).collect();
        rollout.gone = expected.difference(&alive).cloned().collect();
        // Who drains ends, and says so before.
        let drains = nodes
            .iter()
            .filter(|node| node.draining)
            .map(name)
            .collect();
        expected = rollout.silent.difference(&drains).cloned().collect();
        expected.extend(rollout.gone.iter().cloned());
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

fn name(node: &NodeRecord) -> String {
    format!("{} ({})", node.host, node.node)
}

fn judge(nodes: &[NodeRecord], app: &str, versions: &BTreeMap<String, Wanted>) -> Rollout {
    let mut rollout = Rollout::default();
    let mut asked = BTreeSet::new();
    for (function, wanted) in versions {
        let (mut running, mut failed, mut all) = (0, 0, 0);
        for node in nodes
            .iter()
            .filter(|node| wanted.is_for(node, app, function))
        {
            all += 1;
            asked.insert(node.node.as_str());
            let entry = node.function(app, function);
            let entry = entry.filter(|entry| wanted.is_known_to(entry));
            // Its release knows no shares, and leaves all keys to the active version.
            let wanted = match node.tries {
                true => *wanted,
                false => Wanted {
                    trial: None,
                    ..*wanted
                },
            };
            if let Some(why) = entry.and_then(|entry| wanted.failure_on(entry)) {
                failed += 1;
                rollout.failed.push(RolloutFailure {
                    function: function.clone(),
                    node: node.node.clone(),
                    host: node.host.clone(),
                    why: why.to_owned(),
                });
            } else if entry.is_some_and(|entry| wanted.is_met_by(entry)) {
                running += 1;
            } else {
                rollout.silent.insert(name(node));
            }
        }
        if running + failed < all {
            rollout.waiting.push(function.clone());
        } else if failed == 0 {
            rollout.running.push(function.clone());
        }
    }
    rollout.nodes = asked.len();
    let drains = |node: &&NodeRecord| node.draining && node.knows(app);
    rollout.draining = nodes.iter().filter(drains).count();
    rollout
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, apps: &[&str], functions: &[(&str, u64, &str)]) -> NodeRecord {
        let functions = functions.iter();
        let functions = functions.map(|(function, version, status)| NodeFunction {
            app: "shop".into(),
            function: (*function).into(),
            version: *version,
            deployed: *version,
            generation: *version,
            status: (*status).into(),
            ..NodeFunction::default()
        });
        NodeRecord {
            node: id.into(),
            host: "h".into(),
            apps: apps.iter().map(ToString::to_string).collect(),
            functions: functions.collect(),
            tries: true,
            ..NodeRecord::default()
        }
    }

    #[test]
    fn a_rollout_is_judged_over_all_nodes_that_serve_the_app() {
        let wanted = |version| Wanted {
            version,
            generation: version,
            paused: false,
            alone: true,
            trial: None,
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
        assert_eq!(rollout.silent, BTreeSet::from(["h (n2)".to_owned()]));
        assert!(rollout.running.is_empty());
        assert_eq!(rollout.failed.len(), 1);
        assert_eq!(rollout.failed[0].why, "no secret X");
    }

    #[test]
    fn a_pause_is_confirmed_by_nodes_that_rest_and_by_those_that_drain() {
        let wanted = |paused| {
            let one = Wanted {
                version: 1,
                generation: 1,
                paused,
                alone: true,
                trial: None,
            };
            BTreeMap::from([("a".to_owned(), one)])
        };
        let resting = node("n1", &[], &[("a", 1, PAUSED)]);
        let running = node("n2", &[], &[("a", 1, "running")]);
        let leaving = NodeRecord {
            draining: true,
            ..node("n3", &[], &[("a", 1, PAUSED)])
        };
        assert_eq!((leaving.state(), running.state()), ("drained", "serving"));
        let nodes = [resting, running, leaving];
        let paused = judge(&nodes, "shop", &wanted(true));
        assert_eq!((paused.nodes, paused.silent.len()), (3, 1));
        assert!(paused.silent.contains("h (n2)"), "{paused:?}");
        let ending = NodeRecord {
            draining: true,
            ..node("n4", &[], &[("a", 1, "pausing")])
        };
        let paused = judge(&[ending], "shop", &wanted(true));
        assert_eq!(paused.waiting, ["a"], "it still ends attempts");
        let resumed = judge(&nodes, "shop", &wanted(false));
        assert!(resumed.silent.contains("h (n1)"), "{resumed:?}");
    }

    #[test]
    fn a_node_is_found_by_name_and_by_part_of_its_id() {
        let nodes = [node("0197-aa", &[], &[]), node("0197-bb", &[], &[])];
        let found = |wanted: &str| find(&nodes, wanted).map(|node| node.node);
        assert_eq!(found("0197-bb").unwrap(), "0197-bb");
        assert_eq!(found("aa").unwrap(), "0197-aa");
        assert!(found("0197").unwrap_err().what.contains("several"));
        assert!(found("h").unwrap_err().fix.contains("h (0197-aa)"));
        assert!(found("x").unwrap_err().what.contains("no node x"));
    }
}
