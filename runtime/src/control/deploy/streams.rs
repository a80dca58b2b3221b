//! The streams part of a plan: what each `[streams.NAME]` asks for against what exists.

use std::collections::BTreeMap;

use super::plan::{StreamAction, StreamPlan};
use super::survey::{StreamView, View};
use super::{Change, Problem};
use crate::config::{DeadLetterLimits, Manifest, StreamManifest};
use crate::event::subject::overlaps;
use crate::names::AppNames;

/// Dedupe window where the manifest says none: a stream with sources has none unless it is set.
pub(super) const DUPLICATE_WINDOW_MS: u64 = 120_000;

/// What becomes of the declared streams, and how all streams will be afterwards.
pub(super) fn plan(
    manifest: &Manifest,
    view: &View,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<String>,
) -> (Vec<StreamPlan>, BTreeMap<String, StreamView>) {
    let mut after = view.streams.clone();
    let mut plans = Vec::new();
    for (name, declared) in &manifest.streams {
        problems.extend(too_many_copies(name, declared, view));
        let wanted = wanted(declared, view.streams.get(name), &manifest.app);
        let plan = match view.streams.get(name) {
            None => {
                problems.extend(collision(name, declared, &after));
                stream_plan(name, StreamAction::Create, &wanted, Vec::new())
            }
            Some(existing) if existing.made_by.as_deref() == Some(&manifest.app) => {
                let changes = changes(existing, &wanted);
                let action = if changes.is_empty() {
                    StreamAction::Keep
                } else {
                    StreamAction::Update
                };
                stream_plan(name, action, &wanted, changes)
            }
            Some(existing) => {
                if existing.subjects != declared.subjects {
                    notes.push(format!(
                        "stream {name} was not created by this app: its subjects stay {}",
                        existing.subjects.join(", ")
                    ));
                }
                let action = if declared.adopt {
                    StreamAction::Adopt
                } else {
                    StreamAction::Leave
                };
                plans.push(stream_plan(name, action, existing, Vec::new()));
                continue;
            }
        };
        after.insert(name.clone(), wanted);
        plans.push(plan);
    }
    (plans, after)
}

fn stream_plan(
    name: &str,
    action: StreamAction,
    stream: &StreamView,
    changes: Vec<Change>,
) -> StreamPlan {
    StreamPlan {
        stream: name.to_owned(),
        action,
        subjects: stream.subjects.clone(),
        changes,
        wanted: stream.clone(),
    }
}

/// Copies that no cluster is there for.
fn too_many_copies(name: &str, declared: &StreamManifest, view: &View) -> Option<Problem> {
    let copies = declared
        .replicas
        .filter(|copies| view.alone && *copies > 1)?;
    Some(Problem::new(
        &["streams", name, "replicas"],
        format!(
            "stream {name}: {copies} copies need as many servers, and this one is in no cluster"
        ),
        "deploy to a cluster, or say replicas = 1, here or for one environment",
    ))
}

/// How a stream of ours is to be; what the manifest leaves open stays as it is.
fn wanted(declared: &StreamManifest, existing: Option<&StreamView>, app: &str) -> StreamView {
    let window = declared.duplicate_window_ms.unwrap_or(DUPLICATE_WINDOW_MS);
    // The server refuses a window that is longer than the messages live.
    let window = declared.max_age_ms.map_or(window, |age| window.min(age));
    StreamView {
        subjects: declared.subjects.clone(),
        replicas: declared
            .replicas
            .or(existing.map(|stream| stream.replicas))
            .unwrap_or(1),
        max_message_size: declared.max_msg_size,
        max_age_ms: declared.max_age_ms,
        max_bytes: declared.max_bytes,
        duplicate_window_ms: Some(window),
        made_by: Some(app.to_owned()),
        ..existing.cloned().unwrap_or_default()
    }
}

fn changes(existing: &StreamView, wanted: &StreamView) -> Vec<Change> {
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let pairs = [
        (
            "subjects",
            Some(existing.subjects.join(", ")),
            Some(wanted.subjects.join(", ")),
        ),
        (
            "replicas",
            Some(existing.replicas.to_string()),
            Some(wanted.replicas.to_string()),
        ),
        (
            "max-age (ms)",
            number(existing.max_age_ms),
            number(wanted.max_age_ms),
        ),
        (
            "max-bytes",
            number(existing.max_bytes),
            number(wanted.max_bytes),
        ),
        (
            "max-msg-size",
            number(existing.max_message_size.map(u64::from)),
            number(wanted.max_message_size.map(u64::from)),
        ),
        (
            "duplicate-window (ms)",
            number(existing.duplicate_window_ms),
            number(wanted.duplicate_window_ms),
        ),
    ];
    pairs
        .into_iter()
        .filter(|(_, from, to)| from != to)
        .map(|(what, from, to)| Change {
            what: what.to_owned(),
            from,
            to,
        })
        .collect()
}

/// Says that dead letters will be kept for another time, or in other amounts: some may go.
pub(super) fn dead_letters(manifest: &Manifest, view: &View) -> Option<String> {
    let name = AppNames::new(manifest.app.as_str()).dead_stream();
    let existing = view.streams.get(&name)?;
    let DeadLetterLimits {
        max_age_ms,
        max_bytes,
    } = manifest.dead_letters;
    if (existing.max_age_ms, existing.max_bytes) == (Some(max_age_ms), Some(max_bytes)) {
        return None;
    }
    let age = |ms: Option<u64>| {
        let ms = ms.map(std::time::Duration::from_millis);
        ms.map_or("for ever".to_owned(), |age| {
            format!("for {}", humantime::format_duration(age))
        })
    };
    let size = |bytes: Option<u64>| {
        bytes.map_or("any number of bytes".to_owned(), |bytes| {
            format!("up to {bytes} bytes")
        })
    };
    Some(format!(
        "dead letters in stream {name} are kept {}, {}, no longer {}, {}: the oldest beyond that go; [dead-letters] in pelton.toml says \
         how long and how many",
        age(Some(max_age_ms)),
        size(Some(max_bytes)),
        age(existing.max_age_ms),
        size(existing.max_bytes),
    ))
}

/// Subjects of two streams may not overlap: the server would refuse the new one.
fn collision(
    name: &str,
    declared: &StreamManifest,
    streams: &BTreeMap<String, StreamView>,
) -> Option<Problem> {
    streams.iter().find_map(|(other, stream)| {
        let taken = stream.subjects.iter().find(|taken| {
            declared
                .subjects
                .iter()
                .any(|subject| overlaps(subject, taken))
        })?;
        Some(Problem::new(
            &["streams", name, "subjects"],
            format!("stream {name} cannot be created: stream {other} holds {taken} already"),
            format!(
                "take that subject out of [streams.{name}], or declare [streams.{other}] instead"
            ),
        ))
    })
}
