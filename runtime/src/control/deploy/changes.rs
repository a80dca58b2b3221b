//! Differences between two versions of a function, setting by setting, for a person to read before saying yes.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::records::{FunctionRecord, rfc3339};

/// One setting that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// Which, such as `retry.max_attempts`.
    pub what: String,
    /// Before; none: it was not set.
    pub from: Option<String>,
    /// After; none: no longer set.
    pub to: Option<String>,
}

/// Digits of a digest that a person compares.
const SHORT: usize = 12;

/// What differs between a registered version and the one to be, apart from version and time.
pub(super) fn between(old: &FunctionRecord, new: &FunctionRecord) -> Vec<Change> {
    let mut changes = Vec::new();
    let short = |digest: &str| Value::from(digest.chars().take(SHORT).collect::<String>());
    compare(
        "component",
        &short(&old.digest),
        &short(&new.digest),
        &mut changes,
    );
    let values = |record: &FunctionRecord| {
        serde_json::json!({
            "contract": record.contract,
            "handlers": record.handlers.iter().map(|one| format!("{} {}", one.handler, one.subject)).collect::<Vec<_>>(),
            "inputs": record.inputs.iter().map(|one| (one.stream.clone(), Value::from(one.subjects.clone()))).collect::<serde_json::Map<_, _>>(),
            "input": record.inputs.iter().filter(|one| one.created != 0).map(|one| (one.stream.clone(), Value::from(format!("made at {}", made(one.created))))).collect::<serde_json::Map<_, _>>(),
            "targets": record.targets.iter().map(|one| one.stream.clone()).collect::<Vec<_>>(),
            "target": record.targets.iter().map(|one| (one.stream.clone(), serde_json::json!({
                "subjects": one.subjects, "max_message_size": one.max_message_size,
            }))).collect::<serde_json::Map<_, _>>(),
        })
    };
    compare("", &values(old), &values(new), &mut changes);
    let settings = |record: &FunctionRecord| serde_json::to_value(&record.settings);
    if let (Ok(old), Ok(new)) = (settings(old), settings(new)) {
        compare("", &old, &new, &mut changes);
    }
    changes
}

/// Walks two values down to where they differ.
fn compare(what: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        if old != new {
            changes.push(Change {
                what: what.to_owned(),
                from: shown(old),
                to: shown(new),
            });
        }
        return;
    };
    let added = after.keys().filter(|key| !before.contains_key(*key));
    for key in before.keys().chain(added) {
        let path = if what.is_empty() {
            key.clone()
        } else {
            format!("{what}.{key}")
        };
        let none = Value::Null;
        compare(
            &path,
            before.get(key).unwrap_or(&none),
            after.get(key).unwrap_or(&none),
            changes,
        );
    }
}

/// When a stream was made, as people read it.
fn made(nanoseconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds))
        .map_or_else(|_| nanoseconds.to_string(), rfc3339)
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
