//! Rollouts from outside: a version that was deployed is tried by the nodes, gets its share or becomes the active one, and is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, kv};
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::deploy::{clear, give_back, hands_over};
use super::nodes::Wanted;
use super::remove::without_inputs;
use super::{ControlError, ErrorKind, functions, nodes, versions};
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::{Chapter, FORMAT, FunctionRecord, NodeRecord, PAUSED, READY, SHARES};
use crate::rollout::{Both, Summary, promoted, stepped, withdrawn};
use crate::telemetry::LogRecord;

/// Tries to change a record that others change at the same time.
const TRIES: usize = 5;
/// How often who waits looks again.
const LOOK: Duration = Duration::from_millis(100);

/// Changes a function's record by what `step` makes of it, none: not at all. The record afterwards, if it was changed.
///
/// # Errors
/// There is no such function, or `step` says so; others change it again and again; NATS trouble.
pub async fn change(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    step: impl Fn(&FunctionRecord) -> Result<Option<FunctionRecord>, ControlError>,
) -> Result<Option<FunctionRecord>, ControlError> {
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("change function {function}"), why)
    };
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let key = AppNames::new(app).registry_function(function);
    for _ in 0..TRIES {
        let (record, revision) = functions::record(js, app, function).await?;
        let Some(next) = step(&record)? else {
            return Ok(None);
        };
        let body = serde_json::to_vec(&next).map_err(|error| failed(&error))?;
        match store.update(&key, body.into(), revision).await {
            Ok(_) => return Ok(Some(next)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(ControlError::new(
        ErrorKind::Conflict,
        format!("function {function} is changed by others again and again"),
        "try again",
    ))
}

/// Tells all that read the function's log what happened last.
pub async fn publish(client: &Client, record: &FunctionRecord) {
    let Some(chapter) = record.story.last() else {
        return;
    };
    let level = match chapter.what.as_str() {
        "taken-back" => "warn",
        _ => "info",
    };
    let line = LogRecord {
        format: FORMAT,
        app: record.app.clone(),
        function: record.function.clone(),
        version: chapter.version,
        node: String::new(),
        level: level.to_owned(),
        context: "rollout".to_owned(),
        message: text(chapter),
        event_id: String::new(),
        stream: String::new(),
        sequence: 0,
        attempt: 0,
        at: chapter.at.clone(),
    };
    let subject = AppNames::new(record.app.as_str()).log(&record.function, level);
    let Ok(body) = serde_json::to_vec(&line) else {
        return;
    };
    if let Err(error) = client.publish(subject, body.into()).await {
        tracing::debug!(%error, "a rollout's line was lost");
    }
}

/// A chapter in one line.
pub fn text(chapter: &Chapter) -> String {
    let Chapter {
        version,
        what,
        share,
        why,
        old,
        new,
        ..
    } = chapter;
    let percent = f64::from(*share) * 100.0 / f64::from(SHARES);
    let mut text = format!("version {version} {what} ({percent} % of keys): {why}");
    let figures = |name: &str, figures: &Option<Summary>| {
        figures.as_ref().map(|one| {
            format!(
                "; {name}: {} attempts, {:.1} % failed, p99 {:.1} ms",
                one.attempts,
                one.failure_rate * 100.0,
                one.p99_ms
            )
        })
    };
    text.extend(figures("active", old));
    text.extend(figures("new", new));
    text
}

/// What nodes say of a version that they were asked to try.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Tried {
    /// Live nodes that serve the app and try versions; where all drain, those.
    pub nodes: usize,
    /// Live nodes of a release that tries none.
    pub older: usize,
    /// Of those, the ones that loaded it.
    pub ready: usize,
    /// Those that cannot, by name, and why.
    pub failed: BTreeMap<String, String>,
    /// Those that have not said anything, by name.
    pub silent: BTreeSet<String>,
}

impl Tried {
    /// Whether all have said what there is to say.
    fn is_complete(&self) -> bool {
        self.ready + self.failed.len() >= self.nodes
    }

    fn of(nodes: &[NodeRecord], app: &str, function: &str, version: u64) -> Self {
        let older = nodes.iter().filter(|node| !node.tries && node.serves(app));
        let mut tried = Self {
            older: older.count(),
            ..Self::default()
        };
        let all = || nodes.iter().filter(|node| node.tries && node.knows(app));
        let all_drain = all().all(|node| node.draining);
        for node in all().filter(|node| all_drain || !node.draining) {
            tried.nodes += 1;
            let name = format!("{} ({})", node.host, node.node);
            let entry = node.function(app, function);
            // A first version is tried in the place of the active one.
            let status = entry.and_then(|entry| match &entry.trial {
                Some(trial) if trial.version == version => Some(trial.status.as_str()),
                _ if entry.deployed == version && entry.version == 0 => Some(entry.status.as_str()),
                _ => None,
            });
            let status = status.unwrap_or_default();
            match status.strip_prefix("failed") {
                Some(why) => {
                    let why = why.trim_start_matches([':', ' ']);
                    tried.failed.insert(name, why.to_owned());
                }
                // One that drains, or a function that is paused, could as well.
                None if [READY, PAUSED].contains(&status) => tried.ready += 1,
                None => drop(tried.silent.insert(name)),
            }
        }
        tried
    }
}

/// Waits until every live node has loaded this version or says that it cannot, at most `within`.
///
/// # Errors
/// NATS trouble.
pub async fn wait_until_tried(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: u64,
    within: Duration,
) -> Result<Tried, ControlError> {
    let end = tokio::time::Instant::now() + within;
    loop {
        let tried = Tried::of(&nodes::list(js).await?, app, function, version);
        if tried.is_complete() || tokio::time::Instant::now() >= end {
            return Ok(tried);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes the version that is tried the active one; only if it is this `version`, when one is named.
///
/// # Errors
/// Nothing is tried, or another one; see [`change`].
pub async fn promote(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: Option<u64>,
    why: &str,
) -> Result<FunctionRecord, ControlError> {
    let nodes = nodes::list(js).await?;
    if version.is_none() {
        can_run(&functions::record(js, app, function).await?.0, &nodes)?;
    }
    ended(js, app, function, version, |record| {
        let both = Both::of(record, &nodes);
        promoted(record, why, Some(&both), OffsetDateTime::now_utc())
    })
    .await
}

/// What somebody else made meanwhile of functions of which this was wanted, by name.
///
/// # Errors
/// NATS trouble.
pub async fn overtaken(
    js: &jetstream::Context,
    app: &str,
    wanted: &BTreeMap<String, Wanted>,
) -> Result<BTreeMap<String, String>, ControlError> {
    let records = functions::records(js, Some(app)).await?;
    let told = wanted.iter().filter_map(|(function, wanted)| {
        let record = records.iter().map(|(record, _)| record);
        let what = match record.clone().find(|record| record.function == *function) {
            Some(record) if wanted.is_still(record) => return None,
            Some(record) => match &record.controls.paused {
                Some(paused) if !wanted.paused => format!("{} paused it", paused.by),
                _ => record.story.last().map(text).unwrap_or_default(),
            },
            None => "it was removed".to_owned(),
        };
        Some((function.clone(), what))
    });
    Ok(told.collect())
}

/// Refuses to make a version the active one that no live node can run, or that does not have the inputs yet.
fn can_run(record: &FunctionRecord, nodes: &[NodeRecord]) -> Result<(), ControlError> {
    let next = record.trial.as_ref().map_or(record, |trial| &trial.record);
    let (function, version) = (&record.function, next.version);
    if hands_over(record) {
        return Err(ControlError::refused(
            format!(
                "version {version} of function {function} changes `delivery`, and only its deploy hands the inputs over"
            ),
            format!(
                "wait for that, or deploy it again; `pelton rollout {function} abort` takes it back"
            ),
        ));
    }
    let tried = Tried::of(nodes, &record.app, function, version);
    if tried.ready > 0 || tried.failed.is_empty() {
        return Ok(());
    }
    let whys = tried
        .failed
        .iter()
        .map(|(node, why)| format!("{node}: {why}"));
    let whys: Vec<String> = whys.collect();
    Err(ControlError::refused(
        format!(
            "no node can run version {version} of function {function}: {}",
            whys.join("; ")
        ),
        format!("mend that and deploy again; `pelton rollout {function} abort` takes it back"),
    ))
}

/// Gives the version that is tried its next share, if it is this `version`.
///
/// # Errors
/// Nothing is tried, or another one; see [`change`].
pub async fn step(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: u64,
    why: &str,
) -> Result<FunctionRecord, ControlError> {
    ended(js, app, function, Some(version), |record| {
        stepped(record, why, None, OffsetDateTime::now_utc())
    })
    .await
}

/// Takes the version back that is tried; only if it is this `version`, when one is named.
///
/// # Errors
/// Nothing is tried, or another one; see [`change`].
pub async fn abort(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: Option<u64>,
    why: &str,
) -> Result<FunctionRecord, ControlError> {
    let nodes = nodes::list(js).await?;
    let handed_over = hands_over(&functions::record(js, app, function).await?.0);
    let record = ended(js, app, function, version, |record| {
        let both = Both::of(record, &nodes);
        withdrawn(
            record,
            "aborted",
            why,
            Some(&both),
            OffsetDateTime::now_utc(),
        )
    })
    .await?;
    if handed_over {
        give_back(js, &AppNames::new(app), function).await?;
    }
    Ok(record)
}

/// Removes a function whose first version, this one, no node could load, unless it is active by now.
///
/// # Errors
/// NATS trouble.
pub async fn discard(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: u64,
) -> Result<(), ControlError> {
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("remove function {function}"), why)
    };
    let (record, revision) = functions::record(js, app, function).await?;
    if !record.pending || record.version != version {
        return Ok(());
    }
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let key = AppNames::new(app).registry_function(function);
    let removed = store.delete_expect_revision(key, Some(revision)).await;
    removed.map_err(|error| failed(&error))?;
    // A consumer, for one, that was made for it: it would keep others out of a work queue.
    let names = AppNames::new(app);
    clear(js, &names, &without_inputs(record.clone()), &mut |_| {}).await?;
    versions::forget(js, &record).await
}

async fn ended(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    version: Option<u64>,
    next: impl Fn(&FunctionRecord) -> Option<FunctionRecord>,
) -> Result<FunctionRecord, ControlError> {
    let changed = change(js, app, function, |record| {
        let tried = match &record.trial {
            Some(trial) => Some(trial.record.version),
            None => record.pending.then_some(record.version),
        };
        if let Some((version, tried)) = version
            .zip(tried)
            .filter(|(version, tried)| version != tried)
        {
            return Err(ControlError::refused(
                format!(
                    "another deploy of function {function} has put version {tried} in the place of version {version}"
                ),
                format!(
                    "see `pelton rollout {function} status`, and deploy again if that one is not to stay"
                ),
            ));
        }
        match next(record) {
            Some(next) => Ok(Some(next)),
            // Whoever asked for this one had begun it.
            None if version.is_some() => Err(ControlError::new(
                ErrorKind::Conflict,
                format!(
                    "function {function} was changed by somebody else meanwhile: {}",
                    record.story.last().map(text).unwrap_or_default()
                ),
                format!("see `pelton rollout {function} status`"),
            )),
            None if record.pending => Err(ControlError::refused(
                format!(
                    "version {} of function {function} is its first, and no event has gone to it",
                    record.version
                ),
                format!(
                    "`pelton function rm {function}` removes it, and deploying again goes on with a new one"
                ),
            )),
            None => Err(ControlError::refused(
                format!("no version of function {function} is being tried"),
                "see `pelton rollout FN status`; `pelton rollback` makes an older version active",
            )),
        }
    });
    let record = changed.await?;
    let client = js.client();
    match record {
        Some(record) => {
            publish(&client, &record).await;
            Ok(record)
        }
        // `next` always says something.
        None => Ok(functions::record(js, app, function).await?.0),
    }
}
