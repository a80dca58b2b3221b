//! The streams that take part in commits: the app's commit stream, its dead letters, and the targets that source the
//! outbox. Made idempotently; what Pelton did not make is never altered unless the manifest says `adopt = true`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::DeadLetterLimits;
use crate::mutation;
use crate::names::{AppNames, META_APP, META_FORMAT};
use crate::records::FORMAT;

/// `stream not found`.
const NOT_FOUND: u64 = 10059;
/// Producers that publish to a target keep their dedupe window: a stream with sources has none unless it is set.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How long a stream that was given more copies is waited for, and between two looks at it.
const SETTLED: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why a stream cannot take part: what, why, how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StreamError(pub String);

/// Makes the app's commit stream, or mends it when something rewrote its settings.
///
/// # Errors
/// A KV bucket of that name which Pelton did not make; NATS trouble.
pub async fn ensure_commit_stream(
    js: &jetstream::Context,
    names: &AppNames,
    replicas: usize,
) -> Result<(), StreamError> {
    let name = names.commit_stream();
    let Some(info) = info(js, &name).await? else {
        let config = stream::Config {
            name: name.clone(),
            description: Some(format!(
                "Pelton app {}: state, positions, outbox",
                names.app()
            )),
            subjects: names.commit_subjects(),
            max_messages_per_subject: 1,
            discard: stream::DiscardPolicy::Old,
            num_replicas: replicas,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            allow_message_ttl: true,
            allow_atomic_publish: true,
            allow_message_schedules: true,
            duplicate_window: DUPLICATE_WINDOW,
            metadata: metadata(names),
            ..Default::default()
        };
        js.create_stream(config)
            .await
            .map_err(|error| failed("create", &name, error))?;
        return Ok(());
    };
    if made_by(&info).as_deref() != Some(names.app()) {
        return Err(foreign(names));
    }
    mend(js, names, &info).await
}

/// Puts back the settings that commits rest on, should something have altered them: a KV client that updates the
/// bucket's configuration drops Pelton's subjects from it. A stream that is missing is left to `deploy`.
///
/// # Errors
/// A KV bucket of that name which Pelton did not make: another app's, or made after the app was `deployed`; NATS trouble.
pub async fn mend_commit_stream(
    js: &jetstream::Context,
    names: &AppNames,
    deployed: OffsetDateTime,
) -> Result<(), StreamError> {
    let Some(info) = info(js, &names.commit_stream()).await? else {
        return Ok(());
    };
    let ours = match made_by(&info) {
        Some(app) => app == names.app(),
        // Such a client drops the metadata, too; but a stream that was there at the deploy is the app's.
        None => info["created"]
            .as_str()
            .and_then(|created| OffsetDateTime::parse(created, &Rfc3339).ok())
            .is_some_and(|created| created < deployed),
    };
    if !ours {
        return Err(foreign(names));
    }
    mend(js, names, &info).await
}

fn foreign(names: &AppNames) -> StreamError {
    StreamError(format!(
        "KV bucket {:?} (stream {}) exists and Pelton did not make it; choose another `app` in pelton.toml, or delete that bucket",
        names.bucket(),
        names.commit_stream()
    ))
}

/// Settings by which the server removes messages: what they were set for is gone.
const REMOVING: [&str; 3] = ["max_msgs", "max_bytes", "max_age"];

/// Puts back what was altered, and says what that was.
async fn mend(js: &jetstream::Context, names: &AppNames, info: &Value) -> Result<(), StreamError> {
    let name = names.commit_stream();
    if info["config"]["sealed"] == true {
        return Err(StreamError(format!(
            "stream {name} is sealed, and a sealed stream can never be written to again: nothing of app {app} can be committed; back it up \
             (`nats stream backup {name}`), delete it, and restore the copy with \"sealed\": false",
            app = names.app()
        )));
    }
    let mut config = info["config"].clone();
    // The server keeps entries of its own there.
    for (key, value) in metadata(names) {
        config["metadata"][key] = json!(value);
    }
    for (key, value) in [
        ("subjects", json!(names.commit_subjects())),
        ("max_msgs_per_subject", json!(1)),
        ("allow_atomic", json!(true)),
        ("allow_msg_ttl", json!(true)),
        ("allow_direct", json!(true)),
        ("allow_msg_schedules", json!(true)),
        ("max_age", json!(0)),
        ("max_bytes", json!(-1)),
        ("max_msgs", json!(-1)),
        ("max_msg_size", json!(-1)),
        ("discard", json!("old")),
        ("discard_new_per_subject", Value::Null),
        ("no_ack", Value::Null),
        ("allow_rollup_hdrs", json!(true)),
        ("deny_purge", json!(false)),
        (
            "duplicate_window",
            json!(DUPLICATE_WINDOW.as_nanos() as u64),
        ),
        ("subject_transform", Value::Null),
        ("republish", Value::Null),
    ] {
        let unset = |found: &Value| found.is_null() || *found == false;
        match value {
            Value::Null if unset(&config[key]) => {}
            value => config[key] = value,
        }
    }
    let altered = altered(&info["config"], &config);
    if altered.is_empty() {
        return Ok(());
    }
    let said = altered.values().cloned().collect::<Vec<_>>().join(", ");
    if REMOVING.iter().any(|key| altered.contains_key(*key)) {
        tracing::error!(
            stream = name,
            altered = said,
            "the commit stream was limited from outside, and state, positions and events on their way may have been removed; the settings are \
             put back. Restore the stream from a backup if something is missing"
        );
    } else {
        tracing::warn!(
            stream = name,
            altered = said,
            "settings of the commit stream were altered from outside; they are put back"
        );
    }
    update(js, &name, &config).await
}

/// By name, what differs between two configurations, as a person reads it.
fn altered(found: &Value, wanted: &Value) -> BTreeMap<String, String> {
    let keys = wanted.as_object().into_iter().flat_map(|all| all.keys());
    let differ = keys.filter(|key| found[key.as_str()] != wanted[key.as_str()]);
    differ
        .map(|key| (key.clone(), format!("{key} = {}", found[key.as_str()])))
        .collect()
}

/// Makes the app's dead-letter stream, a target like any other, or gives it these limits. Its
/// oldest messages go: one that refused new ones would block the outbox for good.
///
/// # Errors
/// NATS trouble, or a stream of that name which Pelton did not make.
pub async fn ensure_dead_stream(
    js: &jetstream::Context,
    names: &AppNames,
    replicas: usize,
    limits: &DeadLetterLimits,
) -> Result<(), StreamError> {
    let name = names.dead_stream();
    let found = info(js, &name).await?;
    if let Some(found) = &found {
        limit_dead(js, names, found, limits).await?;
    } else {
        let source = stream::Source {
            name: names.commit_stream(),
            subject_transforms: vec![stream::SubjectTransform {
                source: names.outbox_source_filter(&name),
                destination: ">".into(),
            }],
            ..Default::default()
        };
        let config = stream::Config {
            name: name.clone(),
            description: Some(format!(
                "Pelton app {}: deliveries given up on",
                names.app()
            )),
            sources: Some(vec![source]),
            num_replicas: replicas,
            max_age: Duration::from_millis(limits.max_age_ms),
            max_bytes: i64::try_from(limits.max_bytes).unwrap_or(i64::MAX),
            discard: stream::DiscardPolicy::Old,
            allow_direct: true,
            metadata: metadata(names),
            ..Default::default()
        };
        js.create_stream(config)
            .await
            .map_err(|error| failed("create", &name, error))?;
    }
    ensure_target(js, names, &name, false).await
}

async fn limit_dead(
    js: &jetstream::Context,
    names: &AppNames,
    found: &Value,
    limits: &DeadLetterLimits,
) -> Result<(), StreamError> {
    if made_by(found).as_deref() != Some(names.app()) {
        // Said where it is to become a target.
        return Ok(());
    }
    let mut config = found["config"].clone();
    let age = limits.max_age_ms.saturating_mul(1_000_000);
    config["max_age"] = json!(age);
    config["max_bytes"] = json!(limits.max_bytes);
    config["discard"] = json!("old");
    // The server refuses a window that is longer than the messages live.
    if config["duplicate_window"]
        .as_u64()
        .is_some_and(|window| window > age)
    {
        config["duplicate_window"] = json!(age);
    }
    match altered(&found["config"], &config).is_empty() {
        true => Ok(()),
        false => update(js, &names.dead_stream(), &config).await,
    }
}

/// Lets a stream receive the app's events: adds its one source, the app's outbox for it.
///
/// A source is never edited in place: the server would start it over and double what is still in the outbox.
///
/// # Errors
/// The stream is missing, was not made by this app and is not to be adopted, or has another source from this app.
pub async fn ensure_target(
    js: &jetstream::Context,
    names: &AppNames,
    stream: &str,
    adopt: bool,
) -> Result<(), StreamError> {
    let Some(info) = info(js, stream).await? else {
        return Err(StreamError(format!(
            "stream {stream} does not exist; declare it as [streams.{stream}] in pelton.toml"
        )));
    };
    let (commit, filter) = (names.commit_stream(), names.outbox_source_filter(stream));
    let mut sources = info["config"]["sources"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let wanted = json!({ "name": commit, "subject_transforms": [{ "src": filter, "dest": ">" }] });
    if mutation::is("source-in-place") {
        let edited = |source: &Value| source["name"] == commit.as_str() && *source != wanted;
        sources.retain(|source| !edited(source));
    }
    if let Some(found) = sources
        .iter()
        .find(|source| source["name"] == commit.as_str())
    {
        if found["subject_transforms"] == wanted["subject_transforms"] {
            return Ok(());
        }
        return Err(StreamError(format!(
            "stream {stream} has a source from {commit} that Pelton did not make; remove that source (a change in place would double events), then deploy again"
        )));
    }
    if made_by(&info).as_deref() != Some(names.app()) && !adopt {
        return Err(StreamError(format!(
            "functions of app {} may emit to stream {stream}, which this app did not create; say adopt = true in [streams.{stream}] to let Pelton add a source to it",
            names.app()
        )));
    }
    let mut config = info["config"].clone();
    config["sources"] = sources.into_iter().chain([wanted]).collect();
    if config["duplicate_window"].as_u64().unwrap_or(0) == 0 {
        let window = u64::try_from(DUPLICATE_WINDOW.as_nanos()).unwrap_or(u64::MAX);
        let age = config["max_age"].as_u64().filter(|age| *age > 0);
        config["duplicate_window"] = json!(age.map_or(window, |age| window.min(age)));
    }
    update(js, stream, &config).await
}

/// Whether a stream sources the app's outbox.
///
/// # Errors
/// NATS trouble.
pub async fn is_target(
    js: &jetstream::Context,
    names: &AppNames,
    stream: &str,
) -> Result<bool, StreamError> {
    let commit = names.commit_stream();
    let info = info(js, stream).await?;
    let sources = info
        .as_ref()
        .and_then(|info| info["config"]["sources"].as_array());
    Ok(sources.is_some_and(|all| all.iter().any(|one| one["name"] == commit.as_str())))
}

/// Takes the app's source from a stream again; its other settings stay.
///
/// # Errors
/// NATS trouble.
pub async fn remove_source(
    js: &jetstream::Context,
    names: &AppNames,
    stream: &str,
) -> Result<(), StreamError> {
    let Some(info) = info(js, stream).await? else {
        return Ok(());
    };
    let commit = names.commit_stream();
    let mut config = info["config"].clone();
    if let Some(sources) = config["sources"].as_array_mut() {
        sources.retain(|source| source["name"] != commit.as_str());
    }
    update(js, stream, &config).await
}

/// Gives a stream that Pelton made at least so many copies; a missing one is passed by. Copies are never taken away:
/// another app may have asked for them.
///
/// # Errors
/// The server has not so many peers; NATS trouble.
pub async fn raise_replicas(
    js: &jetstream::Context,
    stream: &str,
    replicas: usize,
) -> Result<(), StreamError> {
    let Some(info) = info(js, stream).await? else {
        return Ok(());
    };
    let mut config = info["config"].clone();
    if config["num_replicas"].as_u64().unwrap_or(1) >= replicas as u64 {
        return Ok(());
    }
    config["num_replicas"] = json!(replicas);
    update(js, stream, &config).await?;
    settled(js, stream, replicas).await
}

/// Waits until a stream that was given more copies has a leader and a majority of them: before, it may take nothing for some seconds.
async fn settled(
    js: &jetstream::Context,
    stream: &str,
    replicas: usize,
) -> Result<(), StreamError> {
    let began = Instant::now();
    loop {
        // Without a leader nobody answers.
        let info = info(js, stream).await.ok().flatten().unwrap_or_default();
        let others = info["cluster"]["replicas"].as_array();
        let current = others.map_or(0, |all| {
            all.iter().filter(|one| one["current"] == true).count()
        });
        if info["cluster"]["leader"].is_string() && 1 + current > replicas / 2 {
            return Ok(());
        }
        if began.elapsed() > SETTLED {
            let why = format!(
                "no leader with a majority of its {replicas} copies within {SETTLED:?}; see `nats stream info {stream}`, then try again"
            );
            return Err(failed("copy", stream, why));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A stream's info as the server gives it, so that settings this client does not know survive an update.
///
/// # Errors
/// NATS trouble; a missing stream is `None`.
pub async fn info(js: &jetstream::Context, stream: &str) -> Result<Option<Value>, StreamError> {
    info_with(js, stream, &json!({})).await
}

/// What the server says of a stream when it is asked like `which`, as its `STREAM.INFO` takes it; `None`: there is none.
///
/// # Errors
/// NATS trouble.
pub(super) async fn info_with(
    js: &jetstream::Context,
    stream: &str,
    which: &Value,
) -> Result<Option<Value>, StreamError> {
    let answer: Value = js
        .request(format!("STREAM.INFO.{stream}"), which)
        .await
        .map_err(|error| failed("read", stream, error))?;
    match answer.get("error") {
        None => Ok(Some(answer)),
        Some(error) if error["err_code"] == NOT_FOUND => Ok(None),
        Some(error) => Err(failed("read", stream, &error["description"])),
    }
}

/// The app whose deploy made a stream.
pub fn made_by(info: &Value) -> Option<String> {
    info["config"]["metadata"][META_APP]
        .as_str()
        .map(str::to_owned)
}

/// Metadata of streams that a deploy of this app makes.
pub fn metadata(names: &AppNames) -> std::collections::HashMap<String, String> {
    [
        (META_APP.to_owned(), names.app().to_owned()),
        (META_FORMAT.to_owned(), FORMAT.to_string()),
    ]
    .into()
}

async fn update(js: &jetstream::Context, stream: &str, config: &Value) -> Result<(), StreamError> {
    let answer: Value = js
        .request(format!("STREAM.UPDATE.{stream}"), config)
        .await
        .map_err(|error| failed("update", stream, error))?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => Err(failed("update", stream, &error["description"])),
    }
}

fn failed(what: &str, stream: &str, why: impl std::fmt::Display) -> StreamError {
    StreamError(format!("cannot {what} stream {stream}: {why}"))
}
