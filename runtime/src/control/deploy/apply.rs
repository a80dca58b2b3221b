//! Carries a plan out, in the order in which nothing refers to what is not there yet: buckets, streams, components,
//! consumers, and last the records that nodes act on.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::{self, kv, stream::Config};
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

use super::begin::{begin, go_on};
use super::clean_up;
use super::hand_over::hand_over;
use super::plan::{FunctionAction, FunctionPlan, Plan, StreamAction, StreamPlan};
use super::switch::to_queue;
use super::targets;
use super::trial::{TrialAction, TrialPlan};
use super::{gone, leftovers};
use crate::commit::stream::{self, StreamError};
use crate::component::Component;
use crate::config::{DeliveryMode, Manifest};
use crate::control::progress::changed;
use crate::control::{ControlError, rollout, versions};
use crate::module_store;
use crate::names::{AppNames, REGISTRY_BUCKET};
use crate::records::{AppRecord, FORMAT, FunctionRecord, TrialRecord, rfc3339};
use crate::registry;
use crate::rollout::{Bounds, at_once, tried};
use crate::source;

/// How new versions begin.
#[derive(Debug, Clone, Default)]
pub enum Way {
    /// They are the active ones at once, whether nodes can load them or not.
    #[default]
    AtOnce,
    /// Nodes load them and say whether they can; no event goes to them until somebody says so, as [`rollout`](crate::control::rollout) does.
    Tried(Steps),
}

/// How a version that is tried gets its events.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// Shares of keys, of [`SHARES`](crate::records::SHARES), ascending.
    pub shares: Vec<u32>,
    /// Between two of them.
    pub every: Duration,
    /// For how long the version before stays loaded; none: until the next one is active.
    pub warm: Option<Duration>,
    /// When it is taken back.
    pub bounds: Option<Bounds>,
}

/// Does what the plan says; `step` is told what is going on.
///
/// Every step can be repeated: after a failure half-way, deploying again goes on from there. When the nodes have taken
/// the new versions over, [`clean_up`] removes what only the old ones needed; the next deploy does it otherwise.
///
/// # Errors
/// Another deploy changed a function meanwhile; a stream that cannot take part; NATS trouble.
pub async fn apply(
    js: &jetstream::Context,
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
    plan: &Plan,
    way: &Way,
    mut step: impl FnMut(&str),
) -> Result<(), ControlError> {
    let names = AppNames::new(plan.app.as_str());
    targets::arrived(js, &names, &plan.targets_gone).await?;
    step("Pelton's buckets and the app's commit stream");
    registry::ensure_buckets(js, plan.replicas)
        .await
        .map_err(|error| ControlError::nats("make Pelton's buckets", error))?;
    stream::ensure_commit_stream(js, &names, plan.replicas)
        .await
        .map_err(refused)?;
    for planned in &plan.streams {
        if matches!(planned.action, StreamAction::Create | StreamAction::Update) {
            step(&format!("stream {}", planned.stream));
        }
        ensure_stream(js, &names, planned).await?;
    }
    stream::ensure_dead_stream(js, &names, plan.replicas, &manifest.dead_letters)
        .await
        .map_err(refused)?;
    // What an earlier deploy or a node made with fewer.
    let own = [names.commit_stream(), names.dead_stream()];
    for stream in own.into_iter().chain(registry::shared_streams()) {
        stream::raise_replicas(js, &stream, plan.replicas)
            .await
            .map_err(refused)?;
    }
    // What an earlier deploy that waited for nobody left: it would keep others out of a work queue. Before this one's targets
    // are made: they are no function's yet.
    if plan.app_known
        && let Err(error) = clean_up(js, &plan.app).await
    {
        step(&format!("consumers that are not needed stay: {error}"));
    }
    let wanted: BTreeSet<&String> = plan.functions.iter().flat_map(|one| &one.targets).collect();
    for target in wanted {
        targets::clear_leftovers(js, &names, target, &plan.targets_before).await?;
        let adopt = manifest.streams.get(target).is_some_and(|one| one.adopt);
        stream::ensure_target(js, &names, target, adopt)
            .await
            .map_err(refused)?;
    }
    register_app(js, &names, plan).await?;
    for function in &plan.functions {
        let component = components.get(&function.function);
        apply_function(js, &names, function, component, way, &mut step).await?;
    }
    Ok(())
}

/// One function: what it needs, then its record.
pub(super) async fn apply_function(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    component: Option<&Component>,
    way: &Way,
    step: &mut impl FnMut(&str),
) -> Result<(), ControlError> {
    if let Some(component) = component.filter(|_| function.upload) {
        step(&format!(
            "component of {} ({} bytes)",
            function.function, function.bytes
        ));
        ensure_stored(js, component).await?;
    }
    if function.action != FunctionAction::Unchanged {
        step(&format!(
            "function {} version {}",
            function.function, function.version
        ));
    }
    let way = if function.is_tried() {
        way
    } else {
        &Way::AtOnce
    };
    // The active version needs the inputs until nodes have loaded this one.
    if function.changes_delivery() {
        let (steps, at_once) = match way {
            Way::Tried(steps) => (steps.clone(), false),
            Way::AtOnce => (Steps::default(), true),
        };
        let (record, tried) = (function.record.clone(), Way::Tried(steps));
        register(js, names, function, component, record, &tried).await?;
        if at_once {
            hand_over(js, names.app(), function, "at once", step).await?;
        }
        return Ok(());
    }
    let record = take_inputs(js, names, function, step).await?;
    if let Some(TrialPlan { version, action }) = function.trial
        && action == TrialAction::Withdrawn
    {
        let (app, name) = (names.app(), function.function.as_str());
        rollout::abort(
            js,
            app,
            name,
            Some(version),
            "the active version was deployed again",
        )
        .await?;
    }
    if function.action != FunctionAction::Unchanged {
        register(js, names, function, component, record, way).await?;
    }
    Ok(())
}

/// What its inputs need for its kind of delivery; the record with where each begins.
pub(super) async fn take_inputs(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    step: &mut impl FnMut(&str),
) -> Result<FunctionRecord, ControlError> {
    if function.previous.is_none() {
        leftovers::clear(js, names, &function.record, step).await?;
    }
    gone::see_to(js, names, function, step).await?;
    match function.record.settings.delivery {
        DeliveryMode::AtLeastOnce => {
            to_queue(js, names, function, step).await?;
            ensure_consumers(js, names, function).await?;
            Ok(function.record.clone())
        }
        DeliveryMode::ExactlyOnce => begin(js, names, function, step).await,
    }
}

pub(super) fn refused(error: StreamError) -> ControlError {
    let text = error.to_string();
    let (what, fix) = text.split_once("; ").unwrap_or((
        &text,
        "see that the server is up and lets this user do it, then try again",
    ));
    ControlError::refused(what, fix)
}

async fn ensure_stream(
    js: &jetstream::Context,
    names: &AppNames,
    planned: &StreamPlan,
) -> Result<(), ControlError> {
    let failed = |verb: &str, why: String| {
        ControlError::nats(format!("{verb} stream {}", planned.stream), why)
    };
    match planned.action {
        StreamAction::Create => {
            let created = js.create_stream(config(names, planned)).await;
            created
                .map(|_| ())
                .map_err(|error| failed("create", error.to_string()))
        }
        StreamAction::Update => {
            let info = stream::info(js, &planned.stream).await.map_err(refused)?;
            let mut config = info.map_or(Value::Null, |info| info["config"].clone());
            let wanted = &planned.wanted;
            config["subjects"] = json!(wanted.subjects);
            config["num_replicas"] = json!(wanted.replicas);
            config["max_age"] = json!(wanted.max_age_ms.unwrap_or(0) * 1_000_000);
            config["max_bytes"] = wanted.max_bytes.map_or(json!(-1), |bytes| json!(bytes));
            config["max_msg_size"] = wanted
                .max_message_size
                .map_or(json!(-1), |size| json!(size));
            config["duplicate_window"] = json!(wanted.duplicate_window_ms.unwrap_or(0) * 1_000_000);
            let answer: Value = js
                .request(format!("STREAM.UPDATE.{}", planned.stream), &config)
                .await
                .map_err(|error| failed("update", error.to_string()))?;
            match answer.get("error") {
                None => Ok(()),
                Some(error) => Err(failed("update", error["description"].to_string())),
            }
        }
        StreamAction::Keep | StreamAction::Adopt | StreamAction::Leave => Ok(()),
    }
}

fn config(names: &AppNames, planned: &StreamPlan) -> Config {
    let wanted = &planned.wanted;
    Config {
        name: planned.stream.clone(),
        description: Some(format!("Pelton app {}", names.app())),
        subjects: wanted.subjects.clone(),
        num_replicas: wanted.replicas as usize,
        max_age: Duration::from_millis(wanted.max_age_ms.unwrap_or(0)),
        max_bytes: wanted
            .max_bytes
            .and_then(|bytes| i64::try_from(bytes).ok())
            .unwrap_or(-1),
        max_message_size: wanted
            .max_message_size
            .and_then(|size| i32::try_from(size).ok())
            .unwrap_or(-1),
        duplicate_window: Duration::from_millis(wanted.duplicate_window_ms.unwrap_or(0)),
        allow_direct: true,
        metadata: stream::metadata(names),
        ..Default::default()
    }
}

pub(super) async fn registry_bucket(js: &jetstream::Context) -> Result<kv::Store, ControlError> {
    js.get_key_value(REGISTRY_BUCKET)
        .await
        .map_err(|error| ControlError::nats(format!("open bucket {REGISTRY_BUCKET}"), error))
}

async fn register_app(
    js: &jetstream::Context,
    names: &AppNames,
    plan: &Plan,
) -> Result<(), ControlError> {
    if plan.app_known {
        return Ok(());
    }
    let record = AppRecord {
        format: FORMAT,
        app: plan.app.clone(),
        created_at: rfc3339(time::OffsetDateTime::now_utc()),
    };
    let created = registry_bucket(js)
        .await?
        .create(names.registry_app(), json_bytes(&record)?)
        .await;
    match created {
        Ok(_) => Ok(()),
        // Another deploy was first: the record is the same.
        Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(ControlError::nats(
            format!("register app {}", plan.app),
            error,
        )),
    }
}

/// Writes the record if it is still the one that the plan was made from.
async fn register(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
    component: Option<&Component>,
    mut record: FunctionRecord,
    way: &Way,
) -> Result<(), ControlError> {
    let name = &function.function;
    // The time of registering, not of planning: nodes tell by it that the streams of this deploy are not newer.
    let now = time::OffsetDateTime::now_utc();
    record.activated_at = rfc3339(now);
    if function.action != FunctionAction::Back {
        record.deployed_at = record.activated_at.clone();
    }
    let entry = match way {
        Way::AtOnce => {
            let (what, why) = match function.action {
                FunctionAction::Back => ("rolled-back", "asked for"),
                _ => ("deployed", "at once"),
            };
            at_once(function.previous.as_ref(), record.clone(), what, why, now)
        }
        Way::Tried(steps) => tried(function.previous.as_ref(), trial(&record, steps), now),
    };
    let (key, body) = (names.registry_function(name), json_bytes(&entry)?);
    let store = registry_bucket(js).await?;
    // Of a release that kept none.
    if let Some(previous) = &function.previous {
        versions::keep(&store, names, previous).await?;
    }
    let lost = || changed(name);
    if function.action != FunctionAction::Back && !versions::keep(&store, names, &record).await? {
        return Err(lost());
    }
    // From here on nobody prunes it; who did it before did not know of this version.
    if let Some(component) = component {
        ensure_stored(js, component).await?;
    }
    let failed = |why: String| ControlError::nats(format!("register function {name}"), why);
    let damaged = || async {
        let entry = store.entry(key.as_str()).await.ok().flatten()?;
        let readable = serde_json::from_slice::<FunctionRecord>(&entry.value).is_ok();
        (entry.operation == kv::Operation::Put && !readable).then_some(entry.revision)
    };
    let revision = match function.revision {
        Some(revision) => Some(revision),
        // An entry that nobody can read counts as none, and is written over.
        None => damaged().await,
    };
    match revision {
        None => store.create(&key, body).await.map_err(|error| {
            if error.kind() == kv::CreateErrorKind::AlreadyExists {
                lost()
            } else {
                failed(error.to_string())
            }
        })?,
        Some(revision) => store.update(&key, body, revision).await.map_err(|error| {
            if error.kind() == kv::UpdateErrorKind::WrongLastRevision {
                lost()
            } else {
                failed(error.to_string())
            }
        })?,
    };
    rollout::publish(&js.client(), &entry).await;
    Ok(())
}

/// Stores a component that is not there, or not any more.
async fn ensure_stored(js: &jetstream::Context, component: &Component) -> Result<(), ControlError> {
    let (digest, size) = (component.digest.as_str(), component.bytes.len());
    let failed =
        |why: &dyn std::fmt::Display| ControlError::nats(format!("store component {digest}"), why);
    let stored = module_store::is_stored(js, digest, Some(size)).await;
    if stored.map_err(|error| failed(&error))? {
        return Ok(());
    }
    let stored = module_store::store(js, digest, &component.bytes).await;
    stored.map_err(|error| failed(&error))
}

fn trial(record: &FunctionRecord, steps: &Steps) -> TrialRecord {
    TrialRecord {
        record: record.alone(),
        share: 0,
        since: record.activated_at.clone(),
        steps: steps.shares.clone(),
        every_ms: u64::try_from(steps.every.as_millis()).unwrap_or(u64::MAX),
        warm_ms: steps
            .warm
            .map(|warm| u64::try_from(warm.as_millis()).unwrap_or(u64::MAX)),
        bounds: steps.bounds.clone(),
    }
}

/// Makes the consumers that are missing, new inputs' or deleted ones, for nodes do not: `start = "new"` counts from here
/// on, not from when the first node comes up. Those that exist are altered by the node that takes the new version over,
/// not while the old one still runs.
async fn ensure_consumers(
    js: &jetstream::Context,
    names: &AppNames,
    function: &FunctionPlan,
) -> Result<(), ControlError> {
    let name = names.consumer(&function.function, function.record.instance);
    for input in &function.record.inputs {
        let doing = format!("make a consumer on stream {}", input.stream);
        let found: Value = js
            .request(format!("CONSUMER.INFO.{}.{name}", input.stream), &json!({}))
            .await
            .map_err(|error| ControlError::nats(&doing, error))?;
        if found["paused"] == true {
            // By a deploy to the other kind of delivery that did not end.
            go_on(js, names, &function.record).await?;
        }
        if found.get("error").is_none_or(|error| error["code"] != 404) {
            continue;
        }
        let stream = js
            .get_stream(&input.stream)
            .await
            .map_err(|error| ControlError::nats(&doing, error))?;
        source::ensure_consumer(&stream, &function.record, input)
            .await
            .map_err(|error| ControlError::nats(&doing, error))?;
    }
    Ok(())
}

pub(super) fn json_bytes(value: &impl serde::Serialize) -> Result<Bytes, ControlError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        ControlError::refused(
            format!("a record cannot be written: {error}"),
            "report this as a bug",
        )
    })
}
