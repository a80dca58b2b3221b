//! The tree to a manifest: which tables and keys there are, and what each may hold.

use std::collections::BTreeMap;

use super::function::function;
use super::reader::{Findings, Table};
use super::tree::{Entries, join};
use super::{DeadLetterLimits, FunctionManifest, StreamManifest};
use super::{canonical, values};
use crate::event::subject;

/// The format of `pelton.toml` that this release reads.
const FORMAT: u32 = 1;
/// Shortest time that the server keeps or compares messages for.
const LEAST_WINDOW_MS: u64 = 100;
/// Dead letters that go sooner could not be looked at, and one with its event must fit.
const LEAST_DEAD_MS: u64 = 60_000;
const LEAST_DEAD_BYTES: u64 = 1 << 20;
/// A hundred years: longer means for ever, which is the default.
const MOST_AGE_MS: u64 = 100 * 365 * 24 * 3_600_000;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) app: String,
    pub(super) streams: BTreeMap<String, StreamManifest>,
    pub(super) dead_letters: DeadLetterLimits,
    pub(super) functions: BTreeMap<String, FunctionManifest>,
}

/// Reads a whole file; what is wrong goes into `findings`.
pub(super) fn file(findings: &mut Findings<'_>, entries: &Entries) -> Parsed {
    let root = Table::root(entries);
    root.only(
        findings,
        &[
            "pelton",
            "app",
            "streams",
            "dead-letters",
            "functions",
            "env",
        ],
        &["triggers", "schedules"],
    );
    format(findings, &root);
    let parsed = Parsed {
        app: app(findings, &root),
        streams: root
            .tables(findings, "streams")
            .into_iter()
            .map(|(name, table)| (name.clone(), stream(findings, &name, &table)))
            .collect(),
        dead_letters: dead_letters(findings, &root),
        functions: root
            .tables(findings, "functions")
            .into_iter()
            .map(|(name, table)| (name.clone(), function(findings, &name, &table)))
            .collect(),
    };
    apart(findings, &root);
    parsed
}

fn format(findings: &mut Findings<'_>, root: &Table<'_>) {
    if root.get("pelton").is_none() {
        findings.add(
            0,
            "`pelton`, the version of the file's format, is missing",
            format!("begin the file with pelton = {FORMAT}"),
        );
        return;
    }
    let Some(format) = root.integer(findings, "pelton", 1, u32::MAX) else {
        return;
    };
    if format != FORMAT {
        let at = root.get("pelton").map_or(0, |entry| entry.value_at);
        findings.add(
            at,
            format!("the file has format {format}; this release of Pelton reads format {FORMAT}"),
            format!("upgrade Pelton, or write pelton = {FORMAT}"),
        );
    }
}

fn app(findings: &mut Findings<'_>, root: &Table<'_>) -> String {
    match root.text(findings, "app", "shop") {
        Some((name, at)) => {
            if !values::is_name(name) {
                findings.add(
                    at,
                    format!("the app's name {name:?} is not 1 to 32 characters of a-z 0-9 -"),
                    "choose a name such as \"shop\"",
                );
            }
            name.to_owned()
        }
        None if root.get("app").is_none() => {
            findings.add(0, "`app`, the app's name, is missing", "add app = \"NAME\"");
            String::new()
        }
        None => String::new(),
    }
}

fn stream(findings: &mut Findings<'_>, name: &str, table: &Table<'_>) -> StreamManifest {
    table.only(
        findings,
        &[
            "subjects",
            "replicas",
            "max-age",
            "max-bytes",
            "max-msg-size",
            "duplicate-window",
            "retention",
            "adopt",
        ],
        &[],
    );
    if let Err(rule) = values::stream_name(name) {
        findings.add(
            table.at,
            format!("stream name {name:?}: a stream's name {rule}"),
            "choose a name such as ORDERS",
        );
    }
    if table.get("subjects").is_none() {
        findings.add(
            table.at,
            format!("stream {name} has no subjects"),
            "add subjects = [\"orders.>\"]",
        );
    }
    table.choice(findings, "retention", &[("limits", ())]);
    let max_age_ms = table.duration(findings, "max-age", LEAST_WINDOW_MS, MOST_AGE_MS);
    let duplicate_window_ms =
        table.duration(findings, "duplicate-window", LEAST_WINDOW_MS, MOST_AGE_MS);
    if let (Some(age), Some(window)) = (max_age_ms, duplicate_window_ms)
        && window > age
    {
        let at = table
            .get("duplicate-window")
            .map_or(table.at, |entry| entry.value_at);
        findings.add(
            at,
            format!(
                "`{}` is longer than max-age",
                join(&table.path, "duplicate-window")
            ),
            format!("choose at most {}", values::show_duration(age)),
        );
    }
    let largest = u64::try_from(i32::MAX).unwrap_or_default();
    StreamManifest {
        subjects: subjects(findings, table, "subjects", values::reserved).unwrap_or_default(),
        replicas: table.integer(findings, "replicas", 1, 5),
        max_age_ms,
        max_bytes: table.size(findings, "max-bytes", 1, 1 << 60),
        max_msg_size: table
            .size(findings, "max-msg-size", 1, largest)
            .and_then(|bytes| u32::try_from(bytes).ok()),
        duplicate_window_ms,
        adopt: table.boolean(findings, "adopt").unwrap_or_default(),
    }
}

fn dead_letters(findings: &mut Findings<'_>, root: &Table<'_>) -> DeadLetterLimits {
    let default = DeadLetterLimits::default();
    let Some(table) = root.table(findings, "dead-letters") else {
        return default;
    };
    table.only(findings, &["max-age", "max-bytes"], &[]);
    let age = table.duration(findings, "max-age", LEAST_DEAD_MS, MOST_AGE_MS);
    let bytes = table.size(findings, "max-bytes", LEAST_DEAD_BYTES, 1 << 60);
    DeadLetterLimits {
        max_age_ms: age.unwrap_or(default.max_age_ms),
        max_bytes: bytes.unwrap_or(default.max_bytes),
    }
}

/// A list of patterns that do not overlap and do not reach what belongs to others.
pub(super) fn subjects(
    findings: &mut Findings<'_>,
    table: &Table<'_>,
    key: &str,
    reserved: fn(&str) -> Option<&'static str>,
) -> Option<Vec<String>> {
    let given = table.texts(findings, key, "orders.>")?;
    if given.is_empty()
        && let Some(entry) = table.get(key)
    {
        findings.add(
            entry.value_at,
            format!("`{}` is empty", join(&table.path, key)),
            format!("write {key} = [\"orders.>\"]"),
        );
    }
    let mut taken: Vec<String> = Vec::new();
    for (pattern, at) in given {
        if let Err(rule) = values::pattern(pattern) {
            findings.add(
                at,
                format!("{pattern:?} is no valid subject: {rule}"),
                "write it like \"orders.*.paid\" or \"orders.>\"",
            );
            continue;
        }
        if let Some(theirs) = reserved(pattern) {
            findings.add(
                at,
                format!("subject {pattern:?} reaches {theirs:?}, which belongs to NATS or Pelton"),
                "name subjects of your own, such as \"orders.>\"",
            );
        }
        if let Some(other) = taken.iter().find(|other| subject::overlaps(other, pattern)) {
            findings.add(
                at,
                format!("subject {pattern:?} overlaps {other:?} of the same list"),
                "keep one of them, or make them disjoint",
            );
        }
        taken.push(pattern.to_owned());
    }
    Some(canonical(taken))
}

/// No subject may be stored twice: the server refuses two streams that share one.
fn apart(findings: &mut Findings<'_>, root: &Table<'_>) {
    // The lists were read before; here it is their places that count, and nothing is noted a second time.
    let mut quiet = Findings::none();
    let mut all: Vec<(String, &str, usize)> = Vec::new();
    for (name, table) in root.tables(&mut quiet, "streams") {
        for (pattern, at) in table.texts(&mut quiet, "subjects", "").unwrap_or_default() {
            all.push((name.clone(), pattern, at));
        }
    }
    all.sort_by_key(|(_, _, at)| *at);
    for (index, (name, pattern, at)) in all.iter().enumerate() {
        let earlier = all
            .iter()
            .take(index)
            .find(|(other_name, other, _)| other_name != name && subject::overlaps(other, pattern));
        if let Some((other_name, other, _)) = earlier {
            findings.add(
                *at,
                format!(
                    "subject {pattern:?} of stream {name} overlaps {other:?} of stream {other_name}"
                ),
                "let each subject be in one stream only",
            );
        }
    }
}
