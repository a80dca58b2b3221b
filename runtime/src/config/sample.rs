//! `sample`: an event that a new version has to handle, on state that is thrown away, before any other goes to it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reader::{Findings, Table};
use super::tree::join;
use crate::event::subject::is_subject;

/// Largest body, bytes: it is kept with every version.
const MAX_DATA: usize = 64 << 10;

/// An event to try a version with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// The subject that its handler sees.
    pub subject: String,
    /// Its data.
    pub data: String,
}

/// Reads `sample = { subject = "orders.o-1.created", data = '{"order_id":"o-1"}' }`.
pub(super) fn read(findings: &mut Findings<'_>, table: &Table<'_>) -> Option<Sample> {
    let entry = table.get("sample")?;
    let inner = table.table(findings, "sample")?;
    inner.only(findings, &["subject", "data"], &[]);
    let path = join(&table.path, "sample");
    if inner.get("subject").is_none() {
        findings.add(
            entry.value_at,
            format!("`{path}` has no subject"),
            "say which handler it is for: sample = { subject = \"orders.o-1.created\", data = '{}' }",
        );
    }
    let (subject, subject_at) = inner.text(findings, "subject", "orders.o-1.created")?;
    let (data, data_at) = inner
        .text(findings, "data", "{}")
        .unwrap_or(("", subject_at));
    if !is_subject(subject) {
        findings.add(
            subject_at,
            format!("{subject:?} is no subject"),
            "write one without wildcards, such as \"orders.o-1.created\"",
        );
    }
    if data.len() > MAX_DATA {
        findings.add(
            data_at,
            format!("`{path}.data` has {} bytes, {MAX_DATA} at most", data.len()),
            "a small event will do",
        );
    }
    Some(Sample {
        subject: subject.to_owned(),
        data: data.to_owned(),
    })
}
