//! Reads from NATS what a plan depends on: streams, registered functions, stored components. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::{self};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::commit::{site, stream};
use crate::component::Component;
use crate::config::{Manifest, canonical};
use crate::control::{ControlError, open, versions};
use crate::module_store;
use crate::names::{AppNames, META_APP, REGISTRY_BUCKET};
use crate::records::{FORMAT, FunctionRecord};

/// Pages of streams that are read for one subject, at most: 256 streams each.
const MAX_PAGES: usize = 64;

/// What happens to a stream's messages once consumers had them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// They stay until the stream's limits.
    #[default]
    Limits,
    /// They go when all consumers acked them.
    Interest,
    /// They go when one consumer acked them.
    WorkQueue,
}

/// A stream, as far as a plan looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamView {
    /// Its subjects, sorted.
    pub subjects: Vec<String>,
    /// What happens to messages.
    pub retention: Retention,
    /// Largest message; none: the server's limit alone.
    pub max_message_size: Option<u32>,
    /// The app whose deploy made it.
    pub made_by: Option<String>,
    /// Messages that it holds.
    pub messages: u64,
    /// Copies in the cluster.
    pub replicas: u32,
    /// When it was made, nanoseconds since 1970; 0: it is yet to be.
    pub created: i64,
    /// Age at which messages go, milliseconds.
    pub max_age_ms: Option<u64>,
    /// Bytes at which the oldest go.
    pub max_bytes: Option<u64>,
    /// Window for repeated ids, milliseconds.
    pub duplicate_window_ms: Option<u64>,
}

/// A function in the registry, and the revision to update it at.
#[derive(Debug, Clone, PartialEq)]
pub struct Registered {
    /// Its record.
    pub record: FunctionRecord,
    /// The record's revision.
    pub revision: u64,
    /// The newest version that there is: after a rollback it is not the active one.
    pub latest: u64,
}

/// What NATS holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Streams that have to do with the manifest, by name.
    pub streams: BTreeMap<String, StreamView>,
    /// The app's functions.
    pub functions: BTreeMap<String, Registered>,
    /// Digests of components that are stored already.
    pub modules: BTreeSet<String>,
    /// Whether the app is registered.
    pub app_known: bool,
    /// Whether the server is in no cluster.
    pub alone: bool,
    /// Functions of the apps of the manifest's other environments.
    pub siblings: Vec<FunctionRecord>,
}

/// Reads what a deploy of these components depends on.
///
/// # Errors
/// Another site's JetStream stores what is written here; a record of a later format; NATS trouble.
pub async fn survey(
    js: &jetstream::Context,
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
) -> Result<View, ControlError> {
    let names = AppNames::new(manifest.app.as_str());
    // At the same time: the check waits for answers that should not come. It counts first, for with
    // two JetStreams what was read may be of either.
    let (alone, view) = tokio::join!(
        check_site(js, &names),
        look(js, &names, manifest, components)
    );
    alone.and(view)
}

async fn look(
    js: &jetstream::Context,
    names: &AppNames,
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
) -> Result<View, ControlError> {
    let mut view = View {
        functions: registered(js, names).await?,
        modules: modules(js, components).await?,
        app_known: false,
        alone: js.client().server_info().cluster.is_none(),
        streams: BTreeMap::new(),
        siblings: siblings(js, manifest).await,
    };
    view.app_known = !view.functions.is_empty() || app_known(js, names).await?;
    let declared = manifest.streams.keys().cloned();
    for name in declared.chain([names.commit_stream(), names.dead_stream()]) {
        let info = stream::info(js, &name)
            .await
            .map_err(|error| ControlError::nats(format!("read stream {name}"), error))?;
        if let Some(found) = info.as_ref().and_then(seen) {
            view.streams.insert(name, found);
        }
    }
    for pattern in patterns(manifest, components) {
        for info in covering(js, &pattern).await? {
            if let (Some(name), Some(found)) = (info["config"]["name"].as_str(), seen(&info)) {
                view.streams.insert(name.to_owned(), found);
            }
        }
    }
    Ok(view)
}

/// Functions of the apps of the manifest's other environments that are deployed on this account.
///
/// They are read for a warning: if they cannot be, the deploy goes on without it.
async fn siblings(js: &jetstream::Context, manifest: &Manifest) -> Vec<FunctionRecord> {
    if manifest.siblings.is_empty() {
        return Vec::new();
    }
    let all = crate::control::functions::records(js, None).await;
    all.unwrap_or_default()
        .into_iter()
        .map(|(record, _)| record)
        .filter(|record| manifest.siblings.contains_key(&record.app))
        .collect()
}

/// Refuses to register functions where another site would register them, too.
async fn check_site(js: &jetstream::Context, names: &AppNames) -> Result<(), ControlError> {
    let entry = format!("$KV.{REGISTRY_BUCKET}.{}", names.registry_app());
    match site::streams_with(&js.client(), &entry, site::BRIEF).await {
        Some(2..) => {
            let what = site::shared(names.app(), &format!("$KV.{REGISTRY_BUCKET}.>"));
            Err(ControlError::refused(what, site::FIX))
        }
        _ => Ok(()),
    }
}

/// Every subject pattern that the plan has to place in a stream.
fn patterns(manifest: &Manifest, components: &BTreeMap<String, Component>) -> BTreeSet<String> {
    let streams = manifest.streams.values().flat_map(|one| &one.subjects);
    let functions = manifest.functions.values().flat_map(|function| {
        let given = function.subjects.iter().flatten();
        given.chain(&function.settings.allow.emit)
    });
    let handlers = components.values().flat_map(|one| &one.handlers);
    let announced = handlers.map(|handler| &handler.subject);
    streams.chain(functions).chain(announced).cloned().collect()
}

/// Streams whose subjects have some in common with `pattern`.
async fn covering(js: &jetstream::Context, pattern: &str) -> Result<Vec<Value>, ControlError> {
    let failed = |why: String| ControlError::nats(format!("list streams for {pattern}"), why);
    let mut all: Vec<Value> = Vec::new();
    for _ in 0..MAX_PAGES {
        let page: Value = js
            .request(
                "STREAM.LIST",
                &json!({ "subject": pattern, "offset": all.len() }),
            )
            .await
            .map_err(|error| failed(error.to_string()))?;
        if let Some(error) = page.get("error") {
            return Err(failed(error["description"].to_string()));
        }
        let streams = page["streams"].as_array().cloned().unwrap_or_default();
        let total = page["total"].as_u64().unwrap_or(0);
        let last = streams.is_empty();
        all.extend(streams);
        if last || all.len() as u64 >= total {
            break;
        }
    }
    Ok(all)
}

/// The parts of a stream's info that count here.
pub(super) fn seen(info: &Value) -> Option<StreamView> {
    let config = info.get("config")?;
    let positive = |name: &str| {
        config[name]
            .as_i64()
            .filter(|n| *n > 0)
            .map(i64::unsigned_abs)
    };
    let subjects = config["subjects"].as_array().into_iter().flatten();
    let subjects = subjects.filter_map(|subject| subject.as_str().map(str::to_owned));
    Some(StreamView {
        subjects: canonical(subjects.collect()),
        retention: Retention::deserialize(&config["retention"]).unwrap_or_default(),
        max_message_size: positive("max_msg_size").and_then(|size| u32::try_from(size).ok()),
        made_by: config["metadata"][META_APP].as_str().map(str::to_owned),
        messages: info["state"]["messages"].as_u64().unwrap_or(0),
        replicas: positive("num_replicas")
            .and_then(|replicas| u32::try_from(replicas).ok())
            .unwrap_or(1),
        created: info["created"].as_str().map_or(0, nanoseconds),
        max_age_ms: positive("max_age").map(|ns| ns / 1_000_000),
        max_bytes: positive("max_bytes"),
        duplicate_window_ms: positive("duplicate_window").map(|ns| ns / 1_000_000),
    })
}

fn nanoseconds(time: &str) -> i64 {
    OffsetDateTime::parse(time, &Rfc3339)
        .ok()
        .and_then(|time| i64::try_from(time.unix_timestamp_nanos()).ok())
        .unwrap_or(0)
}

/// The app's functions in the registry.
async fn registered(
    js: &jetstream::Context,
    names: &AppNames,
) -> Result<BTreeMap<String, Registered>, ControlError> {
    let mut found = BTreeMap::new();
    for (record, revision) in crate::control::functions::records(js, Some(names.app())).await? {
        if record.format > FORMAT {
            return Err(ControlError::refused(
                format!(
                    "function {} was deployed by a later Pelton (format {})",
                    record.function, record.format
                ),
                "use that release, or a later one",
            ));
        }
        let latest = record.version;
        let registered = Registered {
            record,
            revision,
            latest,
        };
        found.insert(registered.record.function.clone(), registered);
    }
    for version in versions::all(js, names.app(), None).await? {
        if let Some(known) = found.get_mut(&version.function)
            && known.record.instance == version.instance
        {
            known.latest = known.latest.max(version.version);
        }
    }
    Ok(found)
}

async fn app_known(js: &jetstream::Context, names: &AppNames) -> Result<bool, ControlError> {
    let Some(stream) = open(js, &format!("KV_{REGISTRY_BUCKET}")).await? else {
        return Ok(false);
    };
    let subject = format!("$KV.{REGISTRY_BUCKET}.{}", names.registry_app());
    Ok(stream
        .get_last_raw_message_by_subject(&subject)
        .await
        .is_ok())
}

/// Which of the components are stored already, whole.
async fn modules(
    js: &jetstream::Context,
    components: &BTreeMap<String, Component>,
) -> Result<BTreeSet<String>, ControlError> {
    if open(js, &module_store::stream_name()).await?.is_none() {
        return Ok(BTreeSet::new());
    }
    let mut found = BTreeSet::new();
    for component in components.values() {
        // An error means that it must be stored: then that says what is the matter.
        let size = Some(component.bytes.len());
        if let Ok(true) = module_store::is_stored(js, &component.digest, size).await {
            found.insert(component.digest.clone());
        }
    }
    Ok(found)
}
