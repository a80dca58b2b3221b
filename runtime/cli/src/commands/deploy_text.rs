//! A deploy's plan and outcome as a person reads them.

use pelton_runtime::control::deploy::{
    Change, FunctionAction, FunctionPlan, InputAction, Plan, StreamAction,
};
use pelton_runtime::control::nodes::Rollout;

use super::strategy::Outcome;
use crate::output::{Output, percent};

/// Digits of a digest that a person compares.
const SHORT: usize = 12;

/// The plan: streams, functions with what differs, notes.
pub fn plan(output: &Output, plan: &Plan) -> String {
    let mut parts = vec![format!("app {}", plan.app)];
    if !plan.streams.is_empty() {
        let rows = plan.streams.iter().map(|stream| {
            let changes = stream.changes.iter().map(change).collect::<Vec<_>>();
            vec![
                stream.stream.clone(),
                stream_action(stream.action).to_owned(),
                stream.subjects.join(", "),
                changes.join("; "),
            ]
        });
        parts.push(output.table(&["STREAM", "", "SUBJECTS", "CHANGES"], rows.collect()));
    }
    let rows = plan.functions.iter().map(|function| {
        vec![
            function.function.clone(),
            function_action(function.action).to_owned(),
            function.version.to_string(),
            component(function),
            inputs(function),
            function.targets.join(", "),
        ]
    });
    let header = ["FUNCTION", "", "VERSION", "COMPONENT", "INPUTS", "EMITS TO"];
    parts.push(output.table(&header, rows.collect()));
    for function in &plan.functions {
        let changes = function.changes.iter();
        parts.extend(changes.map(|one| format!("  {}: {}", function.function, change(one))));
    }
    parts.extend(plan.notes.iter().map(|note| format!("note: {note}")));
    parts.join("\n")
}

/// What the nodes made of it.
pub fn rollout(rollout: Option<&Rollout>) -> String {
    match rollout {
        None => "registered; nodes take it over by themselves".into(),
        Some(rollout) if rollout.nodes == 0 && rollout.draining > 0 => format!(
            "registered; the {} nodes that are alive drain, and take no events: `pelton node drain NODE --undo`",
            rollout.draining
        ),
        Some(rollout) if rollout.nodes == 0 => {
            "registered; no node is alive to run it: start one with `pelton run`".into()
        }
        Some(rollout) => {
            let plural = if rollout.nodes == 1 { "" } else { "s" };
            let running = if rollout.running.is_empty() {
                "nothing".into()
            } else {
                rollout.running.join(", ")
            };
            let gone = rollout.gone.iter();
            let gone = gone.map(|node| format!("\nnot heard from any more: {node}"));
            let gone: String = gone.collect();
            format!("running on {} node{plural}: {running}{gone}", rollout.nodes)
        }
    }
}

/// A version that has a share.
pub fn canary(function: &str, outcome: &Outcome) -> String {
    format!(
        "{function}: version {} gets {} of the keys; follow it with `pelton rollout {function} status -f`",
        outcome.version,
        percent(outcome.share)
    )
}

/// One setting that differs.
pub fn change(change: &Change) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    format!(
        "{} {} → {}",
        change.what,
        value(&change.from),
        value(&change.to)
    )
}

fn component(function: &FunctionPlan) -> String {
    let digest: String = function.digest.chars().take(SHORT).collect();
    let kib = function.bytes.div_ceil(1024);
    let upload = if function.upload { "" } else { ", stored" };
    format!("{digest} ({kib} KiB{upload})")
}

fn inputs(function: &FunctionPlan) -> String {
    let inputs = function.inputs.iter().map(|input| {
        let action = match input.action {
            InputAction::Create => " (new)",
            InputAction::Update => " (changed)",
            InputAction::Keep => "",
            InputAction::Remove => " (removed)",
        };
        format!("{}: {}{action}", input.stream, input.subjects.join(", "))
    });
    inputs.collect::<Vec<_>>().join("; ")
}

fn stream_action(action: StreamAction) -> &'static str {
    match action {
        StreamAction::Create => "create",
        StreamAction::Update => "update",
        StreamAction::Keep => "keep",
        StreamAction::Adopt => "adopt",
        StreamAction::Leave => "leave as it is",
    }
}

fn function_action(action: FunctionAction) -> &'static str {
    match action {
        FunctionAction::New => "new",
        FunctionAction::Changed => "changed",
        FunctionAction::Unchanged => "unchanged",
        FunctionAction::Back => "back",
    }
}
