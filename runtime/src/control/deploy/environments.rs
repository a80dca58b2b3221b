//! What two environments of one manifest share on one account. An account is not split by `--env`:
//! an app's name says what is one app there, and a stream's name what is one stream.

use std::collections::BTreeMap;

use super::plan::{FunctionAction, FunctionPlan};
use super::survey::View;
use crate::config::Manifest;
use crate::event::subject::overlaps;
use crate::records::{FunctionRecord, Input};

/// Notes about functions of another environment that this deploy replaces, and about events that
/// two environments handle.
pub(super) fn notes(manifest: &Manifest, view: &View, functions: &[FunctionPlan]) -> Vec<String> {
    let replaced = replaced(manifest, functions);
    replaced
        .into_iter()
        .chain(shared(manifest, view, functions))
        .collect()
}

/// The app is deployed already, from another environment of the manifest.
fn replaced(manifest: &Manifest, functions: &[FunctionPlan]) -> Option<String> {
    let environment = &manifest.environment;
    let other = functions.iter().find_map(|function| {
        let previous = function.previous.as_ref().filter(|one| !one.pending)?;
        let deployed = &previous.provenance.environment;
        let changes = function.action == FunctionAction::Changed;
        (changes && deployed != environment).then_some((function, deployed))
    });
    other.map(|(function, deployed)| {
        format!(
            "app {} is deployed on this account {}, and this deploy {} replaces function {} there: an account has one app of a name\n  \
             fix: give each environment that shares an account an app of its own (`app = …` in [env.NAME]), or deploy to another account",
            manifest.app,
            chosen(deployed.as_deref()),
            chosen(environment.as_deref()),
            function.function,
        )
    })
}

/// Apps of the manifest's other environments are deployed on this account and read the same events.
fn shared(manifest: &Manifest, view: &View, functions: &[FunctionPlan]) -> Vec<String> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let ours = functions.iter().flat_map(|one| &one.record.inputs);
    for input in ours {
        let others = view.siblings.iter();
        for other in others.filter(|other| reads(other, input)) {
            let streams = found.entry(other.app.as_str()).or_default();
            if !streams.contains(&input.stream) {
                streams.push(input.stream.clone());
            }
        }
    }
    let notes = found.into_iter().map(|(app, streams)| {
        let environment = manifest.siblings.get(app).cloned().flatten();
        format!(
            "app {app}, deployed on this account {}, reads the same events of {}: each of them is handled by both apps\n  \
             fix: give each environment that shares an account streams and subjects of its own ([env.NAME.streams.…]), or deploy \
             to another account",
            chosen(environment.as_deref()),
            streams.join(", "),
        )
    });
    notes.collect()
}

fn reads(record: &FunctionRecord, input: &Input) -> bool {
    let same = record.inputs.iter();
    let mut same = same.filter(|one| one.stream == input.stream);
    same.any(|one| {
        let mut pairs = one
            .subjects
            .iter()
            .flat_map(|theirs| input.subjects.iter().map(move |ours| (theirs, ours)));
        pairs.any(|(theirs, ours)| overlaps(theirs, ours))
    })
}

/// How a command line chooses an environment.
fn chosen(environment: Option<&str>) -> String {
    environment.map_or_else(
        || "without --env".to_owned(),
        |name| format!("with --env {name}"),
    )
}
