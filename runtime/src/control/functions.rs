//! What is deployed and how it fares.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use async_nats::jetstream::{self};
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::Serialize;

use super::lag::{self, InputStatus, Looks};
use super::scan::look;
use super::{ControlError, nodes, open};
use crate::commit::transport;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::{FORMAT, FunctionRecord, NodeRecord, PAUSED};

/// Records of the functions of one app, or of all, with their revisions.
///
/// # Errors
/// A record that cannot be read; NATS trouble. No registry means no function.
pub async fn records(
    js: &jetstream::Context,
    app: Option<&str>,
) -> Result<Vec<(FunctionRecord, u64)>, ControlError> {
    let Some(stream) = open(js, &format!("KV_{REGISTRY_BUCKET}")).await? else {
        return Ok(Vec::new());
    };
    let filter = format!("$KV.{REGISTRY_BUCKET}.function.{}.*", app.unwrap_or("*"));
    let mut found = Vec::new();
    look(&js.client(), &stream, &filter, 1, |message, _| {
        if message.payload.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let record = match serde_json::from_slice::<FunctionRecord>(&message.payload) {
            Ok(record) => record,
            // One damaged entry must not hide the others; the function's next deploy writes over it.
            Err(error) => {
                tracing::warn!(entry = %message.subject, %error, "this entry of the registry cannot be read; deploy that function again");
                return Ok(ControlFlow::Continue(()));
            }
        };
        if record.format > FORMAT {
            return Err(ControlError::refused(
                format!("the registry's entry {} has format {}", message.subject, record.format),
                "it was written by a later Pelton: use that release, or a later one",
            ));
        }
        found.push((record, message.sequence));
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    found.sort_by(|(a, _), (b, _)| (&a.app, &a.function).cmp(&(&b.app, &b.function)));
    Ok(found)
}

/// The record of one function, with its revision.
///
/// # Errors
/// There is none of that name; NATS trouble.
pub async fn record(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<(FunctionRecord, u64), ControlError> {
    let mut records = records(js, Some(app)).await?;
    let Some(at) = records.iter().position(|(one, _)| one.function == function) else {
        is_absent(js, app, function).await?;
        let known: Vec<&str> = records
            .iter()
            .map(|(one, _)| one.function.as_str())
            .collect();
        return Err(ControlError::not_found(
            format!("app {app} has no function {function}"),
            if known.is_empty() {
                "run `pelton deploy` first, or give the right app with --app NAME".to_owned()
            } else {
                format!("choose one of {}, or deploy it", known.join(", "))
            },
        ));
    };
    Ok(records.swap_remove(at))
}

/// Refuses to take an entry that cannot be read for none: nodes may run what it was before.
async fn is_absent(js: &jetstream::Context, app: &str, function: &str) -> Result<(), ControlError> {
    let Some(registry) = open(js, &format!("KV_{REGISTRY_BUCKET}")).await? else {
        return Ok(());
    };
    let key = AppNames::new(app).registry_function(function);
    let subject = format!("$KV.{REGISTRY_BUCKET}.{key}");
    let stored = registry.get_last_raw_message_by_subject(&subject).await;
    let Some(stored) = stored.ok().filter(|stored| !stored.payload.is_empty()) else {
        return Ok(());
    };
    match serde_json::from_slice::<FunctionRecord>(&stored.payload) {
        // Deployed at this moment.
        Ok(_) => Ok(()),
        Err(error) => Err(ControlError::refused(
            format!("the entry of function {function} in the registry cannot be read: {error}"),
            format!(
                "somebody altered it: put back what it was (`nats kv history {REGISTRY_BUCKET} {key}`); nodes that run go on with that"
            ),
        )),
    }
}

/// Names of the deployed apps, sorted.
///
/// # Errors
/// NATS trouble.
pub async fn apps(js: &jetstream::Context) -> Result<Vec<String>, ControlError> {
    let records = records(js, None).await?;
    let apps: std::collections::BTreeSet<String> =
        records.into_iter().map(|(record, _)| record.app).collect();
    Ok(apps.into_iter().collect())
}

/// A function and how it fares.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct FunctionStatus {
    /// The app's name.
    pub app: String,
    /// The function's name.
    pub function: String,
    /// The active version.
    pub version: u64,
    /// A version beside it that nodes load, or that has a share of the keys: a canary.
    pub trial: Option<TrialShare>,
    /// Whether no event goes to it yet: nodes load it, or its deploy was cut off.
    pub tried: bool,
    /// Whether somebody paused it.
    pub paused: bool,
    /// When that was deployed, RFC 3339.
    pub deployed_at: String,
    /// What the live nodes say of it.
    pub nodes: Vec<OnNode>,
    /// Where its events come from and what waits there.
    pub inputs: Vec<InputStatus>,
    /// The same of what comes from no stream: calls, ticks and timers that are due; none: there are none.
    pub internal: Option<InputStatus>,
    /// Events not yet done with, over all inputs; calls, ticks and timers that are due count, too.
    /// None: not all of them can be read, see `error`.
    pub pending: Option<u64>,
    /// Age of the oldest of them, milliseconds: since it was stored.
    pub oldest_pending_ms: Option<u64>,
    /// Of the pending events, those that wait for another attempt, or behind such a one of their key.
    pub retrying: u64,
    /// Of the pending events, those that wait for another event.
    pub deferred: u64,
    /// Deliveries given up on and still kept; none: they cannot be read, see `error`.
    pub dead_letters: Option<u64>,
    /// Streams that its events may go to, and what waits for them.
    pub targets: Vec<TargetStatus>,
    /// What of this cannot be read, and why; none: all could be.
    pub error: Option<String>,
}

/// A version that is tried, and how many events go to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TrialShare {
    /// The version.
    pub version: u64,
    /// Its share of the keys, of 10,000; 0: nodes load it, and no event goes to it yet.
    pub share: u32,
}

/// A target stream of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TargetStatus {
    /// The stream.
    pub stream: String,
    /// Age of the oldest event of the app's outbox that has not reached it, milliseconds; none: all have.
    pub oldest_waiting_ms: Option<u64>,
    /// What keeps that event, as far as can be told.
    pub blocked: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

/// A function on a live node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OnNode {
    /// The node's id.
    pub node: String,
    /// The node's name.
    pub host: String,
    /// The version that takes events there; 0: none.
    pub version: u64,
    /// `running`, `starting`, `pausing`, `paused`, or `failed: ` and why.
    pub status: String,
    /// Whether the node drains: it takes no events, whatever is deployed.
    pub draining: bool,
    /// The version that is tried there.
    pub trial: Option<TrialOnNode>,
}

/// A version that is tried on a live node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TrialOnNode {
    /// The version.
    pub version: u64,
    /// Its share of the keys there, of 10,000.
    pub share: u32,
    /// `ready`, `starting`, or `failed: ` and why.
    pub status: String,
}

impl FunctionStatus {
    /// In a word: `running`, `pausing`, `paused`, `failed`, `starting`, `tried`, or `no node`. Nodes that drain do not count.
    pub fn summary(&self) -> &'static str {
        let nodes = || self.nodes.iter().filter(|node| !node.draining);
        let rests = |node: &OnNode| node.status == PAUSED;
        match () {
            () if self.paused && self.nodes.iter().all(rests) => "paused",
            () if self.paused => "pausing",
            () if nodes().next().is_none() => "no node",
            () if nodes().any(|node| node.status.starts_with("failed")) => "failed",
            () if self.tried => "tried",
            () if nodes().all(|node| node.version == self.version) => "running",
            () => "starting",
        }
    }
}

/// Lists the functions of one app, or of all. One that cannot be read does not hide the others.
///
/// # Errors
/// NATS trouble; a registry that cannot be read.
pub async fn list(
    js: &jetstream::Context,
    app: Option<&str>,
) -> Result<Vec<FunctionStatus>, ControlError> {
    let nodes = nodes::list(js).await?;
    let mut survey = Survey::new(js, true);
    let mut all = Vec::new();
    for (record, _) in records(js, app).await? {
        all.push(survey.status(&record, &nodes).await);
    }
    Ok(all)
}

/// A function in full.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct FunctionInfo {
    /// How it fares.
    pub status: FunctionStatus,
    /// What is deployed.
    pub record: FunctionRecord,
}

/// One function.
///
/// # Errors
/// There is none of that name; NATS trouble.
pub async fn info(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<FunctionInfo, ControlError> {
    let (record, _) = self::record(js, app, function).await?;
    let nodes = nodes::list(js).await?;
    let status = Survey::new(js, false).status(&record, &nodes).await;
    Ok(FunctionInfo { status, record })
}

/// Reads the status of several functions and requests what they share only once.
pub(crate) struct Survey {
    looks: Looks,
    /// By app and stream.
    targets: BTreeMap<(String, String), TargetStatus>,
    /// By app, the dead letters of each function.
    dead: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Collects what could not be read of a function.
#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    /// Returns what was read, or records the error.
    fn note<T>(&mut self, read: Result<T, ControlError>) -> Option<T> {
        read.map_err(|error| self.0.push(error.what)).ok()
    }
}

impl Survey {
    /// `wide`: all functions of an app are looked at.
    pub(crate) fn new(js: &jetstream::Context, wide: bool) -> Self {
        Self {
            looks: Looks::new(js, wide),
            targets: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    /// Reads the status of a function, as far as it can be read.
    pub(crate) async fn status(
        &mut self,
        record: &FunctionRecord,
        nodes: &[NodeRecord],
    ) -> FunctionStatus {
        let names = AppNames::new(record.app.as_str());
        let mut errors = Errors::default();
        let mut inputs = Vec::new();
        for input in &record.inputs {
            let mut status = InputStatus {
                stream: input.stream.clone(),
                subjects: input.subjects.clone(),
                ..InputStatus::default()
            };
            errors.note(lag::of(&mut self.looks, &names, record, input, &mut status).await);
            inputs.push(status);
        }
        let internal = lag::internal(&mut self.looks, &names, record).await;
        let internal = errors.note(internal).flatten();
        let whole = errors.0.is_empty();
        let mut targets = Vec::new();
        for one in &record.targets {
            targets.extend(errors.note(self.target(&names, &one.stream).await));
        }
        let dead_letters = errors.note(self.dead_letters(&names, &record.function).await);
        let all = || inputs.iter().chain(&internal);
        FunctionStatus {
            app: record.app.clone(),
            function: record.function.clone(),
            version: record.version,
            trial: record.trial.as_ref().map(|trial| TrialShare {
                version: trial.record.version,
                share: trial.share,
            }),
            tried: record.pending,
            paused: record.controls.paused.is_some(),
            deployed_at: record.deployed_at.clone(),
            nodes: nodes
                .iter()
                .filter_map(|node| on_node(node, record))
                .collect(),
            pending: whole.then(|| all().filter_map(|one| one.pending).sum()),
            oldest_pending_ms: all().filter_map(|one| one.oldest_pending_ms).max(),
            retrying: all().map(|one| one.retrying).sum(),
            deferred: all().map(|one| one.deferred).sum(),
            inputs,
            internal,
            dead_letters,
            targets,
            error: (!errors.0.is_empty()).then(|| errors.0.join("; ")),
        }
    }

    async fn target(
        &mut self,
        names: &AppNames,
        stream: &str,
    ) -> Result<TargetStatus, ControlError> {
        let key = (names.app().to_owned(), stream.to_owned());
        if let Some(known) = self.targets.get(&key) {
            return Ok(known.clone());
        }
        let status = target(self.looks.js(), names, stream).await?;
        self.targets.insert(key, status.clone());
        Ok(status)
    }

    async fn dead_letters(
        &mut self,
        names: &AppNames,
        function: &str,
    ) -> Result<u64, ControlError> {
        if !self.dead.contains_key(names.app()) {
            let counted = dead_letters(&mut self.looks, names).await?;
            self.dead.insert(names.app().to_owned(), counted);
        }
        let counted = self.dead.get(names.app());
        Ok(counted
            .and_then(|all| all.get(function))
            .copied()
            .unwrap_or(0))
    }
}

/// What a node says of a function.
fn on_node(node: &NodeRecord, record: &FunctionRecord) -> Option<OnNode> {
    let entry = node.function(&record.app, &record.function)?;
    Some(OnNode {
        node: node.node.clone(),
        host: node.host.clone(),
        version: entry.version,
        status: entry.status.clone(),
        draining: node.draining,
        trial: entry.trial.as_ref().map(|trial| TrialOnNode {
            version: trial.version,
            share: trial.share,
            status: trial.status.clone(),
        }),
    })
}

async fn target(
    js: &jetstream::Context,
    names: &AppNames,
    stream: &str,
) -> Result<TargetStatus, ControlError> {
    let waiting = transport::waiting(js, names, stream).await;
    let waiting = waiting.map_err(|error| ControlError::nats("look into the outbox", error))?;
    let age = |since: time::OffsetDateTime| {
        u64::try_from((time::OffsetDateTime::now_utc() - since).whole_milliseconds()).unwrap_or(0)
    };
    Ok(TargetStatus {
        stream: stream.to_owned(),
        oldest_waiting_ms: waiting.as_ref().map(|one| age(one.since)),
        blocked: waiting.as_ref().map(|one| one.why.clone()),
        fix: waiting.map(|one| one.fix),
    })
}

/// Counts the dead letters of an app by function, from the stream's state: a node may not read
/// them.
async fn dead_letters(
    looks: &mut Looks,
    names: &AppNames,
) -> Result<BTreeMap<String, u64>, ControlError> {
    let stream = names.dead_stream();
    let Some(opened) = looks.stream(&stream).await? else {
        return Ok(BTreeMap::new());
    };
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("count what stream {stream} holds"), why)
    };
    let subjects = opened.info_with_subjects(names.dead_subject("*")).await;
    let subjects: Vec<(String, usize)> = subjects
        .map_err(|error| failed(&error))?
        .try_collect()
        .await
        .map_err(|error| failed(&error))?;
    let counted = subjects.into_iter().filter_map(|(subject, count)| {
        let (_, function) = subject.rsplit_once('.')?;
        Some((function.to_owned(), count as u64))
    });
    Ok(counted.collect())
}
