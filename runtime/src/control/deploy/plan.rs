//! The plan: pure, so it can be shown and tested without a server.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::changes::between;
use super::coverage::cover;
use super::survey::{Retention, StreamView, View};
use super::trial::{TrialAction, TrialPlan};
use super::{Change, Problem, environments, streams};
use crate::component::Component;
use crate::config::{DeliveryMode, FunctionManifest, Manifest};
use crate::control::handlers_match;
use crate::control::nodes::Wanted;
use crate::control::progress::Guard;
use crate::event::subject::beyond;
use crate::names::{AppNames, TICK_SUBJECT};
use crate::records::{Controls, FORMAT, FunctionRecord, Input, Provenance, Target};

/// Everything that a deploy will do.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Plan {
    /// The app's name.
    pub app: String,
    /// The declared streams.
    pub streams: Vec<StreamPlan>,
    /// The functions, by name.
    pub functions: Vec<FunctionPlan>,
    /// What is worth knowing and stops nothing.
    pub notes: Vec<String>,
    /// Copies of what Pelton keeps for the app.
    pub replicas: usize,
    #[serde(skip)]
    pub(super) app_known: bool,
    /// Streams that functions of the app emit to before the deploy.
    #[serde(skip)]
    pub(super) targets_before: BTreeSet<String>,
    /// Those of them that none emits to afterwards.
    #[serde(skip)]
    pub(super) targets_gone: BTreeSet<String>,
}

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StreamAction {
    /// It is missing.
    Create,
    /// This app made it, and the manifest says otherwise now.
    Update,
    /// This app made it, and it is as it should be.
    Keep,
    /// Somebody else made it, and Pelton may add its source to it.
    Adopt,
    /// Somebody else made it: it is never altered.
    Leave,
}

/// A declared stream.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct StreamPlan {
    /// Its name.
    pub stream: String,
    /// What becomes of it.
    pub action: StreamAction,
    /// Its subjects afterwards.
    pub subjects: Vec<String>,
    /// What an update changes.
    pub changes: Vec<Change>,
    #[serde(skip)]
    pub(super) wanted: StreamView,
}

/// What becomes of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionAction {
    /// First deploy.
    New,
    /// A new version.
    Changed,
    /// Exactly what runs already.
    Unchanged,
    /// A version that was active before.
    Back,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct FunctionPlan {
    /// Its name.
    pub function: String,
    /// What becomes of it.
    pub action: FunctionAction,
    /// Its version afterwards.
    pub version: u64,
    /// The version that is active; none: the function is new.
    pub previous_version: Option<u64>,
    /// SHA-256 of the component.
    pub digest: String,
    /// Size of the component.
    pub bytes: usize,
    /// Whether the component has to be uploaded.
    pub upload: bool,
    /// What differs from the version that runs.
    pub changes: Vec<Change>,
    /// Where its events come from.
    pub inputs: Vec<InputPlan>,
    /// Streams that its events may go to.
    pub targets: Vec<String>,
    #[serde(skip)]
    pub(super) record: FunctionRecord,
    #[serde(skip)]
    pub(super) revision: Option<u64>,
    /// The version before.
    #[serde(skip)]
    pub(super) previous: Option<FunctionRecord>,
    /// The version that is tried, and what becomes of it.
    pub trial: Option<TrialPlan>,
}

impl FunctionPlan {
    /// Whether nodes are to load the new version before it is active.
    pub fn is_tried(&self) -> bool {
        matches!(self.action, FunctionAction::New | FunctionAction::Changed)
    }

    /// Whether the active version takes its events by the other engine: then the inputs are handed over when nodes have loaded the new one.
    pub fn changes_delivery(&self) -> bool {
        let other = |one: &FunctionRecord| one.settings.delivery != self.record.settings.delivery;
        let active = self.previous.as_ref().filter(|one| !one.pending);
        active.is_some_and(other)
    }

    /// What holds as long as nobody else has deployed it since.
    pub(super) fn guard<'a>(&'a self, names: &'a AppNames) -> Guard<'a> {
        Guard {
            app: names.app(),
            function: &self.function,
            revision: self.revision,
        }
    }

    /// What is to run of it.
    fn wanted(&self) -> Wanted {
        match (&self.trial, &self.previous) {
            (Some(trial), Some(previous)) if trial.action == TrialAction::GoesOn => {
                Wanted::of(previous)
            }
            _ => Wanted::of(&self.record),
        }
    }

    /// Whether the new version takes its events as the one before does, so that it can have a share of them; what stands in the way.
    pub fn obstacle(&self) -> Option<&'static str> {
        let Some(previous) = self.previous.as_ref().filter(|one| !one.pending) else {
            return Some("there is no version beside which it could be tried");
        };
        let (old, new) = (&previous.settings, &self.record.settings);
        let reads = |inputs: &[Input]| -> Vec<(String, Vec<String>)> {
            let inputs = inputs.iter();
            inputs
                .map(|one| (one.stream.clone(), one.subjects.clone()))
                .collect()
        };
        match () {
            () if old.delivery != new.delivery => Some("`delivery` changes"),
            () if reads(&previous.inputs) != reads(&self.record.inputs) => {
                Some("it takes other subjects")
            }
            // Another life of a stream, which the version before does not read.
            () if previous.inputs != self.record.inputs => {
                Some("a stream that it reads was recreated")
            }
            () if old.schedule != new.schedule => Some("`schedule` changes"),
            () if old.max_in_flight != new.max_in_flight => Some("`max-in-flight` changes"),
            // A queue is taken from by so many at once, whoever they are for.
            () if old.delivery == DeliveryMode::AtLeastOnce
                && previous.controls.concurrency.unwrap_or(old.concurrency) != new.concurrency =>
            {
                Some("`concurrency` changes")
            }
            () => None,
        }
    }
}

/// What becomes of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InputAction {
    /// The function did not take from this stream.
    Create,
    /// It takes other subjects now.
    Update,
    /// As it is.
    Keep,
    /// The function no longer takes from this stream.
    Remove,
}

/// An input stream of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InputPlan {
    /// The stream.
    pub stream: String,
    /// The durable consumer there; none: positions say how far the function is.
    pub consumer: Option<String>,
    /// What becomes of it.
    pub action: InputAction,
    /// The subjects taken from it.
    pub subjects: Vec<String>,
}

impl Plan {
    /// Says where the new versions come from.
    pub fn made_of(&mut self, provenance: &Provenance) {
        let new = self.functions.iter_mut();
        for function in new.filter(|one| one.action != FunctionAction::Unchanged) {
            function.record.provenance = provenance.clone();
        }
    }

    /// What is to run of everything planned, unchanged functions too.
    pub fn versions(&self) -> BTreeMap<String, Wanted> {
        let versions = self.functions.iter();
        versions
            .map(|function| (function.function.clone(), function.wanted()))
            .collect()
    }
}

/// Compares what is asked for with what there is. `components` holds the functions to deploy: others stay as they are.
///
/// # Errors
/// Everything that stands in the way.
pub fn plan(
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
    view: &View,
    now: time::OffsetDateTime,
) -> Result<Plan, Vec<Problem>> {
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    let names = AppNames::new(manifest.app.as_str());
    problems.extend(foreign_bucket(&names, view));
    let (stream_plans, after) = streams::plan(manifest, view, &mut problems, &mut notes);
    let mut functions = Vec::new();
    for (name, component) in components {
        let Some(declared) = manifest.functions.get(name) else {
            continue;
        };
        let mut planner = Planner {
            name,
            declared,
            component,
            manifest,
            names: &names,
            view,
            streams: &after,
            problems: &mut problems,
            notes: &mut notes,
        };
        functions.extend(planner.function(now));
    }
    problems.extend(shared_work(&functions, &after));
    notes.extend(environments::notes(manifest, view, &functions));
    let left = view
        .functions
        .keys()
        .filter(|name| !manifest.functions.contains_key(*name));
    notes.extend(left.map(|name| {
        format!("function {name} is deployed but not in the manifest: it goes on as it is")
    }));
    if !problems.is_empty() {
        return Err(problems);
    }
    let (targets_before, targets_gone) = targets(&functions, view);
    notes.extend(targets_gone.iter().map(|name| {
        format!("stream {name}: no function emits to it any more, so that Pelton's source is taken from it once no delayed event for it is left")
    }));
    notes.extend(streams::dead_letters(manifest, view));
    let replicas = stream_plans.iter().map(|plan| plan.wanted.replicas).max();
    Ok(Plan {
        app: manifest.app.clone(),
        streams: stream_plans,
        functions,
        notes,
        replicas: replicas.map_or(1, |replicas| replicas as usize),
        app_known: view.app_known,
        targets_before,
        targets_gone,
    })
}

/// Targets of the app before, and those of them that it will not have any more.
fn targets(functions: &[FunctionPlan], view: &View) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = |record: &FunctionRecord| {
        let targets = record.all_targets();
        targets.map(|one| one.stream.clone()).collect::<Vec<_>>()
    };
    let deployed = view.functions.values();
    let before: BTreeSet<String> = deployed.flat_map(|one| names(&one.record)).collect();
    let planned = |name: &str| functions.iter().any(|one| one.function == name);
    let stay = view.functions.iter().filter(|(name, _)| !planned(name));
    let stay = stay.flat_map(|(_, one)| names(&one.record));
    let after: BTreeSet<String> = stay
        .chain(functions.iter().flat_map(|one| one.targets.clone()))
        .collect();
    let gone = before.difference(&after).cloned().collect();
    (before, gone)
}

/// One function's part of the plan.
pub(super) struct Planner<'a> {
    pub(super) name: &'a str,
    pub(super) declared: &'a FunctionManifest,
    pub(super) component: &'a Component,
    pub(super) manifest: &'a Manifest,
    pub(super) names: &'a AppNames,
    pub(super) view: &'a View,
    pub(super) streams: &'a BTreeMap<String, StreamView>,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) notes: &'a mut Vec<String>,
}

impl Planner<'_> {
    fn function(&mut self, now: time::OffsetDateTime) -> Option<FunctionPlan> {
        let previous = self.view.functions.get(self.name);
        self.check(previous.map(|one| &one.record));
        let subjects = self.subjects()?;
        self.check_token(&subjects);
        let inputs = self.inputs(&subjects);
        self.note_unhandled(&inputs);
        let targets = self.targets();
        let mut record = self.draft(previous.map(|one| &one.record), inputs, targets, now);
        let changes = previous.map_or_else(Vec::new, |one| between(&one.record, &record));
        let trial = previous.and_then(|one| TrialPlan::of(&one.record, &record, &changes));
        self.notes.extend(trial.map(|trial| trial.note(self.name)));
        let goes_on = trial.is_some_and(|one| one.action == TrialAction::GoesOn);
        let action = match previous {
            None => FunctionAction::New,
            // A first version that was tried, and whoever was to make it the active one is gone.
            Some(one) if one.record.pending => FunctionAction::New,
            Some(_) if changes.is_empty() || goes_on => FunctionAction::Unchanged,
            Some(_) => FunctionAction::Changed,
        };
        record.version = match (previous, action) {
            (Some(one), FunctionAction::Unchanged) => one.record.version,
            (Some(one), _) => one.latest.max(one.record.version) + 1,
            (None, _) => 1,
        };
        (record.generation, record.previous) = match (previous, action) {
            (Some(one), FunctionAction::Unchanged) => (one.record.generation, one.record.previous),
            (Some(one), _) => {
                let before = (!one.record.pending).then_some(one.record.version);
                (one.record.generation() + 1, before)
            }
            (None, _) => (0, None),
        };
        record.generation = record.generation().max(record.generation);
        if action == FunctionAction::Changed {
            record.controls.concurrency = None;
        }
        Some(FunctionPlan {
            function: self.name.to_owned(),
            action,
            version: record.version,
            previous_version: previous
                .filter(|one| !one.record.pending)
                .map(|one| one.record.version),
            digest: record.digest.clone(),
            bytes: self.component.bytes.len(),
            upload: !self.view.modules.contains(&record.digest),
            changes,
            inputs: self.input_plans(&record),
            targets: record
                .targets
                .iter()
                .map(|one| one.stream.clone())
                .collect(),
            revision: previous.map(|one| one.revision),
            previous: previous.map(|one| one.record.clone()),
            trial,
            record,
        })
    }

    /// The record as the manifest and the component say, not numbered yet.
    fn draft(
        &self,
        previous: Option<&FunctionRecord>,
        inputs: Vec<Input>,
        targets: Vec<Target>,
        now: time::OffsetDateTime,
    ) -> FunctionRecord {
        FunctionRecord {
            format: FORMAT,
            app: self.manifest.app.clone(),
            function: self.name.to_owned(),
            version: 1,
            generation: 0,
            previous: None,
            warm_until: String::new(),
            pending: false,
            trial: None,
            story: Vec::new(),
            controls: previous.map_or_else(Controls::default, |one| one.controls.clone()),
            provenance: Provenance {
                environment: self.manifest.environment.clone(),
                ..Provenance::default()
            },
            instance: previous.map_or_else(Uuid::new_v4, |one| one.instance),
            digest: self.component.digest.clone(),
            contract: self.component.contract.clone(),
            deployed_at: crate::records::rfc3339(now),
            activated_at: String::new(),
            handlers: self.component.handlers.clone(),
            inputs,
            targets,
            settings: self.declared.settings.clone(),
        }
    }

    pub(super) fn problem(&mut self, entry: &[&str], what: String, fix: String) {
        let keys: Vec<&str> = ["functions", self.name]
            .iter()
            .chain(entry)
            .copied()
            .collect();
        let what = format!("function {}: {what}", self.name);
        self.problems.push(Problem::new(&keys, what, fix));
    }

    fn subjects(&mut self) -> Option<Vec<String>> {
        let ticks = self.declared.settings.schedule.is_some();
        let given = self.declared.subjects.as_deref();
        let handlers = &self.component.handlers;
        if !ticks && handlers.iter().any(|one| one.subject == TICK_SUBJECT) {
            self.notes.push(format!(
                "function {}: a handler takes ticks, and pelton.toml gives the function no schedule",
                self.name
            ));
        }
        match handlers_match(given, handlers, ticks) {
            Ok(subjects) => Some(subjects),
            Err(mismatches) => {
                for mismatch in mismatches {
                    let text = mismatch.to_string();
                    let (what, fix) = text.split_once("\n  fix: ").unwrap_or((&text, ""));
                    self.problem(&["subjects"], what.to_owned(), fix.to_owned());
                }
                None
            }
        }
    }

    /// Events that come and find no handler, as far as the component says what it takes.
    fn note_unhandled(&mut self, inputs: &[Input]) {
        let handlers = &self.component.handlers;
        let taken: Vec<&str> = handlers.iter().map(|one| one.subject.as_str()).collect();
        let come = inputs.iter().flat_map(|input| &input.subjects);
        for subject in come.filter(|_| !taken.is_empty()) {
            if let Some(left) = beyond(subject, &taken) {
                self.notes.push(format!(
                    "function {}: it gets {subject}, and no handler takes {left}: such events become dead letters; there are: {}\n  \
                     fix: name in `subjects` what the handlers take, or leave `subjects` out, or add #[handler({left:?})]",
                    self.name,
                    taken.join(", ")
                ));
            }
        }
    }

    fn targets(&mut self) -> Vec<Target> {
        let mut targets: BTreeMap<String, Target> = BTreeMap::new();
        for pattern in &self.declared.settings.allow.emit {
            let covered = cover(pattern, self.streams);
            if covered.parts.is_empty() {
                self.problem(
                    &["allow", "emit"],
                    format!(
                        "no stream covers {pattern}, so what is emitted there could not be kept"
                    ),
                    format!("declare one: [streams.NAME] with subjects = [\"{pattern}\"]"),
                );
            } else if !covered.whole {
                self.notes.push(format!(
                    "function {}: only a part of allow.emit {pattern} is covered by streams; emits elsewhere are refused",
                    self.name
                ));
            }
            for (name, _) in covered.parts {
                if let Some(stream) = self.streams.get(&name) {
                    self.check_target(&name, stream);
                    targets.entry(name.clone()).or_insert_with(|| Target {
                        stream: name,
                        subjects: stream.subjects.clone(),
                        max_message_size: stream.max_message_size,
                    });
                }
            }
        }
        targets.into_values().collect()
    }

    fn check_target(&mut self, name: &str, stream: &StreamView) {
        let adopted = self.manifest.streams.get(name).is_some_and(|one| one.adopt);
        if stream.made_by.as_deref() == Some(self.names.app()) || adopted {
            return;
        }
        self.problem(
            &["allow", "emit"],
            format!("it may emit to stream {name}, which this app did not create, so Pelton may not add its source to it"),
            format!("say adopt = true in [streams.{name}] (Pelton adds one source and changes nothing else)"),
        );
    }
}

/// A KV bucket with the app's name that Pelton did not make holds somebody's data.
fn foreign_bucket(names: &AppNames, view: &View) -> Option<Problem> {
    let stream = view.streams.get(&names.commit_stream())?;
    if stream.made_by.as_deref() == Some(names.app()) {
        return None;
    }
    Some(Problem::new(
        &["app"],
        format!(
            "the KV bucket {:?} exists and was not made by Pelton",
            names.bucket()
        ),
        "choose another app name, or delete that bucket",
    ))
}

/// A work queue gives each message to one consumer: the server refuses filters that overlap.
fn shared_work(
    functions: &[FunctionPlan],
    streams: &BTreeMap<String, StreamView>,
) -> Option<Problem> {
    let queue = |name: &str| {
        streams
            .get(name)
            .is_some_and(|stream| stream.retention == Retention::WorkQueue)
    };
    let mut taken: Vec<(&FunctionPlan, &Input)> = Vec::new();
    for function in functions {
        for input in function
            .record
            .inputs
            .iter()
            .filter(|input| queue(&input.stream))
        {
            let same = taken.iter().find(|(_, other)| {
                let mut pairs = other
                    .subjects
                    .iter()
                    .flat_map(|a| input.subjects.iter().map(move |b| (a, b)));
                other.stream == input.stream
                    && pairs.any(|(a, b)| crate::event::subject::overlaps(a, b))
            });
            if let Some((other, _)) = same {
                return Some(Problem::new(
                    &["functions", &function.function, "subjects"],
                    format!(
                        "functions {} and {} both take the same subjects of {}, a work queue, which gives each message to one",
                        other.function, function.function, input.stream
                    ),
                    "give them subjects that do not overlap, or use a stream with another retention",
                ));
            }
            taken.push((function, input));
        }
    }
    None
}
