//! `[functions.NAME]`: the limits and policies of one function.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::parse::subjects;
use super::reader::{Findings, Table};
use super::tree::{Value, join};
use super::{
    Allow, DeliveryMode, FunctionManifest, FunctionSettings, InstanceMode, KeySource,
    MAX_CONCURRENCY, OnExhausted, RetryPolicy, Start,
};
use super::{canonical, sample, schedule, values};
use crate::event::timestamp;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// A page of WebAssembly memory.
const PAGE: u64 = 64 << 10;

/// Reads a function's table.
pub(super) fn function(
    findings: &mut Findings<'_>,
    name: &str,
    table: &Table<'_>,
) -> FunctionManifest {
    table.only(
        findings,
        &[
            "component",
            "subjects",
            "key",
            "delivery",
            "start",
            "concurrency",
            "max-in-flight",
            "timeout",
            "memory",
            "instance",
            "secrets",
            "config",
            "retry",
            "allow",
            "schedule",
            "sample",
        ],
        &["rollout"],
    );
    if !values::is_name(name) {
        findings.add(
            table.at,
            format!("function name {name:?} is not 1 to 32 characters of a-z 0-9 -"),
            "choose a name such as [functions.orders]",
        );
    }
    FunctionManifest {
        component: component(findings, name, table),
        subjects: subjects(findings, table, "subjects", values::reserved_input),
        settings: settings(findings, table),
    }
}

fn component(findings: &mut Findings<'_>, name: &str, table: &Table<'_>) -> PathBuf {
    let example = format!("functions/{name}");
    match table.text(findings, "component", &example) {
        Some(("", at)) => findings.add(
            at,
            format!("`{}` is empty", join(&table.path, "component")),
            format!("name a crate's folder such as {example:?}, or a .wasm file"),
        ),
        Some((path, _)) => return path.into(),
        None if table.get("component").is_none() => findings.add(
            table.at,
            format!("function {name} has no component"),
            format!("add component = {example:?}: a crate's folder, or a .wasm file"),
        ),
        None => {}
    }
    PathBuf::new()
}

fn settings(findings: &mut Findings<'_>, table: &Table<'_>) -> FunctionSettings {
    let default = FunctionSettings::default();
    FunctionSettings {
        delivery: table
            .choice(
                findings,
                "delivery",
                &[
                    ("exactly-once", DeliveryMode::ExactlyOnce),
                    ("at-least-once", DeliveryMode::AtLeastOnce),
                ],
            )
            .unwrap_or_default(),
        key: key(findings, table),
        start: start(findings, table),
        concurrency: table
            .integer(findings, "concurrency", 1, MAX_CONCURRENCY)
            .unwrap_or(default.concurrency),
        max_in_flight: table.integer(findings, "max-in-flight", 1, 1_000_000),
        timeout_ms: table
            .duration(findings, "timeout", 1, HOUR)
            .unwrap_or(default.timeout_ms),
        memory_bytes: table
            .size(findings, "memory", 1 << 20, 4 << 30)
            .map_or(default.memory_bytes, |bytes| bytes.next_multiple_of(PAGE)),
        instance: table
            .choice(
                findings,
                "instance",
                &[
                    ("reuse", InstanceMode::Reuse),
                    ("fresh", InstanceMode::Fresh),
                ],
            )
            .unwrap_or_default(),
        secrets: secrets(findings, table),
        config: config(findings, table),
        retry: retry(findings, table),
        allow: allow(findings, table),
        schedule: schedule::read(findings, table),
        sample: sample::read(findings, table),
    }
}

fn key(findings: &mut Findings<'_>, table: &Table<'_>) -> Option<KeySource> {
    let key = table.table(findings, "key")?;
    key.only(findings, &["token", "attribute", "data"], &[]);
    let given = ["token", "attribute", "data"]
        .into_iter()
        .filter(|name| key.get(name).is_some())
        .count();
    if given != 1 {
        let at = table.get("key").map_or(table.at, |entry| entry.value_at);
        findings.add(
            at,
            format!("`{}` must hold exactly one of token, attribute and data", key.path),
            "write key = { token = 2 }, key = { attribute = \"subject\" } or key = { data = \"/order_id\" }",
        );
        return None;
    }
    if let Some(token) = key.integer(findings, "token", 1, 64) {
        return Some(KeySource::Token(token));
    }
    if let Some((name, at)) = key.text(findings, "attribute", "subject") {
        let fits = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !fits {
            findings.add(
                at,
                format!("{name:?} is no name of a CloudEvents attribute"),
                "write a name of a-z 0-9, such as \"subject\"",
            );
        } else if ["time", "specversion", "data"].contains(&name) {
            findings.add(
                at,
                format!("{name:?} is nothing by which events could be kept in order"),
                "name an attribute that says what an event is about, such as \"subject\"; a field of the data is { data = \"/order_id\" }",
            );
        }
        return Some(KeySource::Attribute(name.to_owned()));
    }
    let (pointer, at) = key.text(findings, "data", "/order_id")?;
    if !pointer.starts_with('/') {
        findings.add(
            at,
            format!("{pointer:?} is no JSON pointer to a field"),
            format!("begin it with a slash: \"/{pointer}\""),
        );
    }
    Some(KeySource::Data(pointer.to_owned()))
}

fn start(findings: &mut Findings<'_>, table: &Table<'_>) -> Option<Start> {
    let entry = table.get("start")?;
    let text = match &entry.value {
        // A TOML date stands without quotes.
        Value::Time(text) => text.as_str(),
        _ => table.text(findings, "start", "all")?.0,
    };
    match text {
        "new" => Some(Start::New),
        "all" => Some(Start::All),
        time if timestamp::parse(time).is_some() => Some(Start::Time(time.to_owned())),
        other => {
            findings.add(
                entry.value_at,
                format!("`{}` is {other:?}", join(&table.path, "start")),
                "write \"new\", \"all\" or a time with its zone such as \"2026-01-31T12:00:00Z\"",
            );
            None
        }
    }
}

fn secrets(findings: &mut Findings<'_>, table: &Table<'_>) -> Vec<String> {
    let mut taken: Vec<String> = Vec::new();
    for (name, at) in table
        .texts(findings, "secrets", "PAYMENT_API_KEY")
        .unwrap_or_default()
    {
        if !values::is_secret(name) {
            findings.add(
                at,
                format!("secret {name:?} is not 1 to 64 characters of A-Z a-z 0-9 _ that begin with no digit"),
                "choose a name such as \"PAYMENT_API_KEY\"",
            );
        } else if taken.iter().any(|other| other == name) {
            findings.add(
                at,
                format!("secret {name:?} is listed twice"),
                "remove one of them",
            );
        } else {
            taken.push(name.to_owned());
        }
    }
    canonical(taken)
}

fn config(findings: &mut Findings<'_>, table: &Table<'_>) -> BTreeMap<String, String> {
    let Some(config) = table.table(findings, "config") else {
        return BTreeMap::new();
    };
    let mut values = BTreeMap::new();
    for (name, entry) in config.entries {
        let value = match &entry.value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(value) => value.to_string(),
            other => {
                findings.add(
                    entry.value_at,
                    format!(
                        "`{}` must be a string, a number or a boolean, not {}",
                        join(&config.path, name),
                        other.kind()
                    ),
                    "handlers read strings; write structured values as JSON text",
                );
                continue;
            }
        };
        values.insert(name.clone(), value);
    }
    values
}

fn retry(findings: &mut Findings<'_>, table: &Table<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let Some(retry) = table.table(findings, "retry") else {
        return default;
    };
    retry.only(
        findings,
        &[
            "max-attempts",
            "initial-delay",
            "multiplier",
            "max-delay",
            "on-exhausted",
            "max-defer",
        ],
        &[],
    );
    let policy = RetryPolicy {
        max_attempts: retry
            .integer(findings, "max-attempts", 0, 1000)
            .unwrap_or(default.max_attempts),
        initial_delay_ms: retry
            .duration(findings, "initial-delay", 1, DAY)
            .unwrap_or(default.initial_delay_ms),
        multiplier: retry
            .number(findings, "multiplier", 1.0, 10.0)
            .unwrap_or(default.multiplier),
        max_delay_ms: retry
            .duration(findings, "max-delay", 1, DAY)
            .unwrap_or(default.max_delay_ms),
        on_exhausted: retry
            .choice(
                findings,
                "on-exhausted",
                &[
                    ("dead-letter", OnExhausted::DeadLetter),
                    ("pause", OnExhausted::Pause),
                ],
            )
            .unwrap_or_default(),
        max_defer_ms: retry
            .duration(findings, "max-defer", 1000, 30 * DAY)
            .unwrap_or(default.max_defer_ms),
    };
    if policy.max_delay_ms < policy.initial_delay_ms {
        let place = retry
            .get("max-delay")
            .or_else(|| retry.get("initial-delay"));
        findings.add(
            place.map_or(retry.at, |entry| entry.value_at),
            format!(
                "`{}` ({}) is shorter than initial-delay ({})",
                join(&retry.path, "max-delay"),
                values::show_duration(policy.max_delay_ms),
                values::show_duration(policy.initial_delay_ms)
            ),
            "let max-delay be at least initial-delay",
        );
    }
    policy
}

fn allow(findings: &mut Findings<'_>, table: &Table<'_>) -> Allow {
    let Some(allow) = table.table(findings, "allow") else {
        return Allow::default();
    };
    allow.only(findings, &["emit", "http"], &[]);
    Allow {
        emit: emit(findings, &allow),
        http: hosts(findings, &allow),
    }
}

fn emit(findings: &mut Findings<'_>, allow: &Table<'_>) -> Vec<String> {
    let mut patterns = Vec::new();
    for (pattern, at) in allow
        .texts(findings, "emit", "notifications.email")
        .unwrap_or_default()
    {
        if let Err(rule) = values::pattern(pattern) {
            findings.add(
                at,
                format!("{pattern:?} is no valid subject: {rule}"),
                "write it like \"orders.*.paid\" or \"orders.>\"",
            );
        } else if pattern.starts_with('$') {
            findings.add(
                at,
                format!("subject {pattern:?} belongs to NATS or Pelton"),
                "name subjects of your own; state is written through the state interface",
            );
        } else {
            patterns.push(pattern.to_owned());
        }
    }
    canonical(patterns)
}

fn hosts(findings: &mut Findings<'_>, allow: &Table<'_>) -> Vec<String> {
    let mut hosts = Vec::new();
    for (text, at) in allow
        .texts(findings, "http", "api.example.com")
        .unwrap_or_default()
    {
        match values::host(text) {
            Ok(host) => hosts.push(host),
            Err(why) => findings.add(
                at,
                format!("{text:?} is no host: {why}"),
                "write \"api.example.com\" or \"api.example.com:8443\"",
            ),
        }
    }
    canonical(hosts)
}
