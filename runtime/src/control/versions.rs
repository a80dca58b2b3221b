//! A function's versions: each is kept as it was deployed, under its number, and never altered.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::scan::look;
use super::{ControlError, functions, nodes, open};
use crate::module_store;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::{FORMAT, FunctionRecord, NodeFunction, NodeRecord, SHARES};

/// So many of the newest versions of a function are kept, however old.
pub const KEPT: usize = 10;
/// And so many at most, however young.
pub const KEPT_AT_MOST: usize = 100;
/// For how long the others are kept.
pub const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// The versions of an app's functions, or of one, by function and number.
///
/// # Errors
/// NATS trouble. No registry means no version.
pub async fn all(
    js: &jetstream::Context,
    app: &str,
    function: Option<&str>,
) -> Result<Vec<FunctionRecord>, ControlError> {
    let Some(stream) = open(js, &format!("KV_{REGISTRY_BUCKET}")).await? else {
        return Ok(Vec::new());
    };
    let function = function.unwrap_or("*");
    let filter = format!("$KV.{REGISTRY_BUCKET}.version.{app}.{function}.*");
    let mut found = Vec::new();
    look(&js.client(), &stream, &filter, 1, |message, _| {
        // A deletion has no body; what a later release wrote otherwise, it deploys.
        let record = serde_json::from_slice::<FunctionRecord>(&message.payload);
        found.extend(record.ok().filter(|record| record.format == FORMAT));
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    let order = |record: &FunctionRecord| (record.function.clone(), record.version);
    found.sort_by_key(order);
    Ok(found)
}

/// A version in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct VersionStatus {
    /// Its number.
    pub version: u64,
    /// Whether it is the active one.
    pub active: bool,
    /// Whether nodes load it beside the active one, or give it a share of the keys: a canary.
    pub tried: bool,
    /// The share of the keys whose events go to it, of 10,000.
    pub share: u32,
    /// How many live nodes run it.
    pub nodes: usize,
    /// The version, as it was deployed.
    pub record: FunctionRecord,
}

/// The versions of a function, the newest first.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn list(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<Vec<VersionStatus>, ControlError> {
    let active = functions::record(js, app, function).await?.0;
    let nodes = nodes::list(js).await?;
    let mut versions = of_instance(all(js, app, Some(function)).await?, &active);
    // Deployed by a release that kept none.
    versions.entry(active.version).or_insert(active.clone());
    let running = |version| {
        let on = nodes.iter().filter_map(|node| node.function(app, function));
        let trial = |entry: &NodeFunction| {
            let trial = entry.trial.as_ref();
            trial.is_some_and(|trial| trial.version == version && trial.share > 0)
        };
        on.filter(|entry| entry.version == version || trial(entry))
            .count()
    };
    let trial = active.trial.as_ref();
    let trial = trial.map(|trial| (trial.record.version, trial.share));
    let versions = versions.into_iter().rev();
    Ok(versions
        .map(|(version, record)| {
            let is_active = version == active.version && !active.pending;
            let share = match trial {
                Some((tried, share)) if tried == version => share,
                _ if is_active => SHARES - trial.map_or(0, |(_, share)| share),
                _ => 0,
            };
            VersionStatus {
                version,
                active: is_active,
                tried: trial.is_some_and(|(tried, _)| tried == version),
                share,
                nodes: running(version),
                record,
            }
        })
        .collect())
}

/// Those of the function that is deployed, not of one that had its name before.
pub(super) fn of_instance(
    versions: Vec<FunctionRecord>,
    active: &FunctionRecord,
) -> BTreeMap<u64, FunctionRecord> {
    let same =
        |one: &FunctionRecord| one.function == active.function && one.instance == active.instance;
    let versions = versions.into_iter().filter(same);
    versions.map(|one| (one.version, one)).collect()
}

/// Keeps a version as it is deployed; whether there was none of that number.
///
/// # Errors
/// NATS trouble.
pub(super) async fn keep(
    store: &kv::Store,
    names: &AppNames,
    record: &FunctionRecord,
) -> Result<bool, ControlError> {
    let key = names.registry_version(&record.function, record.version);
    let kept = record.alone();
    let doing = format!("keep version {} of {}", record.version, record.function);
    let body = serde_json::to_vec(&kept).map_err(|error| ControlError::nats(&doing, error))?;
    let body = bytes::Bytes::from(body);
    match store.create(&key, body.clone()).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
            replace_stale(store, &key, record, body, &doing).await
        }
        Err(error) => Err(ControlError::nats(&doing, error)),
    }
}

/// A version of that number is there: of a function that had the name before it may be replaced.
async fn replace_stale(
    store: &kv::Store,
    key: &str,
    record: &FunctionRecord,
    body: bytes::Bytes,
    doing: &str,
) -> Result<bool, ControlError> {
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(doing, why);
    let found = store.entry(key).await.map_err(|error| failed(&error))?;
    let Some(found) = found else {
        return Ok(false);
    };
    let same = serde_json::from_slice::<FunctionRecord>(&found.value)
        .is_ok_and(|found| found.instance == record.instance);
    if same {
        return Ok(false);
    }
    let stored = store.update(key, body, found.revision).await;
    stored.map(|_| true).map_err(|error| failed(&error))
}

/// Removes versions that are old and many, and components that no version needs; none that is active, was active before, or runs on a node.
///
/// # Errors
/// NATS trouble. Calling it again goes on.
pub async fn prune(js: &jetstream::Context, app: &str) -> Result<(), ControlError> {
    let doing = "remove old versions";
    let failed = |why: &dyn std::fmt::Display| ControlError::nats(doing, why);
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let names = AppNames::new(app);
    let nodes = nodes::list(js).await?;
    let versions = all(js, app, None).await?;
    let mut gone = BTreeSet::new();
    for (active, _) in functions::records(js, Some(app)).await? {
        let of_function: Vec<&FunctionRecord> = versions
            .iter()
            .filter(|one| one.function == active.function)
            .collect();
        for version in superfluous(&active, &of_function, &nodes, OffsetDateTime::now_utc()) {
            let key = names.registry_version(&version.function, version.version);
            store.purge(key).await.map_err(|error| failed(&error))?;
            gone.insert(version.digest.clone());
        }
    }
    drop_components(js, gone).await
}

/// Removes all versions of a function that is no more, and components that no version needs; not those of another one that has its name
/// by now.
///
/// # Errors
/// NATS trouble. Calling it again goes on.
pub(super) async fn forget(
    js: &jetstream::Context,
    gone: &FunctionRecord,
) -> Result<(), ControlError> {
    let (app, function) = (gone.app.as_str(), gone.function.as_str());
    let failed = |why: &dyn std::fmt::Display| {
        ControlError::nats(format!("remove the versions of {function}"), why)
    };
    let store = js.get_key_value(REGISTRY_BUCKET).await;
    let store = store.map_err(|error| failed(&error))?;
    let names = AppNames::new(app);
    let mut digests = BTreeSet::new();
    for (_, version) in of_instance(all(js, app, Some(function)).await?, gone) {
        let key = names.registry_version(function, version.version);
        store.purge(key).await.map_err(|error| failed(&error))?;
        digests.insert(version.digest);
    }
    drop_components(js, digests).await
}

/// The latest version of a function that is no more, and of which its versions are left: its removal was cut off.
///
/// # Errors
/// NATS trouble.
pub(super) async fn left_of(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<Option<FunctionRecord>, ControlError> {
    Ok(all(js, app, Some(function)).await?.pop())
}

/// Removes those of these components, by digest, that no version of any app needs.
async fn drop_components(
    js: &jetstream::Context,
    gone: BTreeSet<String>,
) -> Result<(), ControlError> {
    if gone.is_empty() {
        return Ok(());
    }
    // Of all apps: the same component may be another's, too.
    let mut needed = BTreeSet::new();
    for (record, _) in functions::records(js, None).await? {
        needed.insert(record.digest);
    }
    for version in all(js, "*", None).await? {
        needed.insert(version.digest);
    }
    for digest in gone.difference(&needed) {
        if let Err(error) = module_store::remove(js, digest).await {
            tracing::debug!(%error, digest, "a component that nobody needs stays");
        }
    }
    Ok(())
}

/// Which of a function's versions, in ascending order, need not be kept.
fn superfluous<'a>(
    active: &FunctionRecord,
    versions: &[&'a FunctionRecord],
    nodes: &[NodeRecord],
    now: OffsetDateTime,
) -> Vec<&'a FunctionRecord> {
    let in_use = |version: &FunctionRecord| {
        let on_nodes = nodes
            .iter()
            .filter_map(|node| node.function(&active.app, &active.function));
        version.instance == active.instance
            && (version.version == active.version
                || Some(version.version) == active.previous
                || on_nodes.into_iter().any(|entry| {
                    entry.version == version.version || entry.deployed == version.version
                }))
    };
    let old = |version: &FunctionRecord| {
        let deployed = OffsetDateTime::parse(&version.deployed_at, &Rfc3339);
        deployed.is_ok_and(|deployed| now - deployed > KEPT_FOR)
    };
    let newest_first = versions.iter().rev().enumerate();
    newest_first
        .filter(|(n, version)| *n >= KEPT_AT_MOST || *n >= KEPT && old(version))
        .map(|(_, version)| *version)
        .filter(|version| !in_use(version))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::NodeFunction;

    #[test]
    fn old_versions_go_but_none_in_use_and_the_newest_stay() {
        let now = OffsetDateTime::now_utc();
        let version = |number: u64, age: u64| FunctionRecord {
            version: number,
            deployed_at: crate::records::rfc3339(now - Duration::from_secs(age * 24 * 3600)),
            ..FunctionRecord::sample()
        };
        let all: Vec<FunctionRecord> = (1..=130)
            .map(|n| version(n, if n < 60 { 40 } else { 1 }))
            .collect();
        let all: Vec<&FunctionRecord> = all.iter().collect();
        let active = FunctionRecord {
            version: 20,
            previous: Some(19),
            ..FunctionRecord::sample()
        };
        let node = NodeRecord {
            functions: vec![NodeFunction {
                app: active.app.clone(),
                function: active.function.clone(),
                version: 7,
                deployed: 20,
                ..NodeFunction::default()
            }],
            ..NodeRecord::default()
        };
        let gone = superfluous(&active, &all, &[node], now);
        let gone: BTreeSet<u64> = gone.iter().map(|one| one.version).collect();
        let stay: Vec<u64> = (1..=130).filter(|n| !gone.contains(n)).collect();
        let young: Vec<u64> = [7, 19, 20].into_iter().chain(60..=130).collect();
        assert_eq!(stay, young);
        // Many young ones go by their number alone.
        let all: Vec<FunctionRecord> = (1..=130).map(|n| version(n, 1)).collect();
        let all: Vec<&FunctionRecord> = all.iter().collect();
        assert_eq!(
            superfluous(&active, &all, &[], now).len(),
            130 - KEPT_AT_MOST - 2
        );
    }
}
