//! The plan, case by case, without a server.

use std::collections::BTreeMap;

use time::macros::datetime;

use super::*;
use crate::component::Component;
use crate::config::{DeliveryMode, FunctionSettings, KeySource, Manifest, Start, StreamManifest};
use crate::names::AppNames;
use crate::records::Handler;

mod environments;
mod order;

fn stream(subjects: &[&str]) -> StreamManifest {
    StreamManifest {
        subjects: subjects.iter().map(ToString::to_string).collect(),
        ..StreamManifest::default()
    }
}

/// The app `shop` with one stream and one function that takes what its handlers announce.
fn manifest() -> Manifest {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pelton.toml");
    let text = "pelton = 1\napp = \"shop\"\n[streams.ORDERS]\nsubjects = [\"orders.>\"]\n\
                [functions.orders]\ncomponent = \"orders\"\ndelivery = \"at-least-once\"\n";
    std::fs::write(&file, text).unwrap();
    Manifest::load(&file, None).unwrap()
}

fn settings(manifest: &mut Manifest) -> &mut FunctionSettings {
    &mut manifest.functions.get_mut("orders").unwrap().settings
}

fn component(handlers: &[&str]) -> BTreeMap<String, Component> {
    let handler = |subject: &&str| Handler {
        handler: subject.replace(['.', '*', '>'], ""),
        subject: (*subject).into(),
    };
    let component = Component {
        bytes: vec![1, 2, 3],
        digest: "ab".repeat(32),
        contract: "0.1.0".into(),
        handlers: handlers.iter().map(handler).collect(),
        imports: Vec::new(),
    };
    BTreeMap::from([("orders".into(), component)])
}

/// A stream that somebody has.
fn existing(subjects: &[&str], made_by: Option<&str>, messages: u64) -> StreamView {
    StreamView {
        subjects: subjects.iter().map(ToString::to_string).collect(),
        made_by: made_by.map(Into::into),
        messages,
        replicas: 1,
        duplicate_window_ms: Some(120_000),
        ..StreamView::default()
    }
}

fn view(streams: &[(&str, StreamView)]) -> View {
    View {
        streams: streams
            .iter()
            .map(|(name, stream)| ((*name).into(), stream.clone()))
            .collect(),
        ..View::default()
    }
}

fn planned(
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
    view: &View,
) -> Result<Plan, Vec<Problem>> {
    plan(manifest, components, view, datetime!(2026-01-01 0:00 UTC))
}

/// What the server holds once the plan is carried out.
fn applied(plan: &Plan, mut view: View) -> View {
    for function in &plan.functions {
        let registered = Registered {
            record: function.record.clone(),
            revision: 7,
            latest: function.record.version,
        };
        view.functions.insert(function.function.clone(), registered);
        view.modules.insert(function.digest.clone());
    }
    for stream in &plan.streams {
        view.streams
            .insert(stream.stream.clone(), stream.wanted.clone());
    }
    view
}

/// The only problem, as `(entry, text)`.
fn problem(result: Result<Plan, Vec<Problem>>) -> (String, String) {
    let problems = result.unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    (problems[0].keys.join("."), problems[0].to_string())
}

#[test]
fn a_first_deploy_creates_everything() {
    let plan = planned(
        &manifest(),
        &component(&["orders.*.created"]),
        &View::default(),
    )
    .unwrap();
    assert_eq!(plan.streams[0].action, StreamAction::Create);
    let function = &plan.functions[0];
    assert_eq!(
        (function.action, function.version),
        (FunctionAction::New, 1)
    );
    assert!(function.upload && function.changes.is_empty());
    let input = &function.inputs[0];
    let consumer = AppNames::new("shop").consumer("orders", function.record.instance);
    assert_eq!(input.consumer, Some(consumer));
    assert_eq!(input.subjects, ["orders.*.created"]);
    assert_eq!(input.action, InputAction::Create);
}

#[test]
fn a_second_deploy_of_the_same_changes_nothing() {
    let (manifest, components) = (manifest(), component(&["orders.*.created"]));
    let first = planned(&manifest, &components, &View::default()).unwrap();
    let mut after = applied(&first, View::default());
    // Messages that came meanwhile are no reason to ask where to start.
    after.streams.get_mut("ORDERS").unwrap().messages = 5;
    let second = planned(&manifest, &components, &after).unwrap();
    assert_eq!(second.streams[0].action, StreamAction::Keep);
    let function = &second.functions[0];
    assert_eq!(
        (function.action, function.version),
        (FunctionAction::Unchanged, 1)
    );
    assert!(!function.upload);
}

#[test]
fn a_changed_setting_makes_a_version_and_is_named() {
    let (mut manifest, components) = (manifest(), component(&["orders.*.created"]));
    let first = planned(&manifest, &components, &View::default()).unwrap();
    let view = applied(&first, View::default());
    settings(&mut manifest).retry.max_attempts = 9;
    let second = planned(&manifest, &components, &view).unwrap();
    let function = &second.functions[0];
    assert_eq!(
        (function.action, function.version),
        (FunctionAction::Changed, 2)
    );
    assert_eq!(function.record.instance, first.functions[0].record.instance);
    assert_eq!(function.revision, Some(7));
    let change = &function.changes[0];
    assert_eq!(function.changes.len(), 1);
    assert_eq!(change.what, "retry.max_attempts");
    assert_eq!(
        (change.from.as_deref(), change.to.as_deref()),
        (Some("5"), Some("9"))
    );
}

#[test]
fn subjects_and_handlers_must_belong_together() {
    let mut manifest = manifest();
    let given = |manifest: &mut Manifest, subjects: &[&str]| {
        let subjects = subjects.iter().map(ToString::to_string).collect();
        manifest.functions.get_mut("orders").unwrap().subjects = Some(subjects);
    };
    given(&mut manifest, &["orders.*.paid"]);
    let problems = planned(
        &manifest,
        &component(&["orders.*.created"]),
        &View::default(),
    )
    .unwrap_err();
    assert_eq!(
        problems.len(),
        2,
        "no handler for the one, no subject for the other"
    );
    assert!(
        problems
            .iter()
            .all(|one| one.keys == ["functions", "orders", "subjects"])
    );
    given(&mut manifest, &["orders.eu.>"]);
    let plan = planned(&manifest, &component(&["orders.>"]), &View::default()).unwrap();
    assert_eq!(plan.functions[0].inputs[0].subjects, ["orders.eu.>"]);
}

#[test]
fn events_that_no_handler_takes_are_told() {
    let mut manifest = manifest();
    let some = component(&["orders.*.paid", "orders.*.created"]);
    let notes = |manifest: &Manifest, components: &BTreeMap<String, Component>| {
        planned(manifest, components, &View::default())
            .unwrap()
            .notes
    };
    assert!(notes(&manifest, &some).is_empty(), "no subjects are given");
    let function = manifest.functions.get_mut("orders").unwrap();
    function.subjects = Some(vec!["orders.>".into()]);
    let told = notes(&manifest, &some);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("it gets orders.>, and no handler takes orders.*:"),
        "{told:?}"
    );
    assert!(notes(&manifest, &component(&["orders.>"])).is_empty());
    assert!(
        notes(&manifest, &component(&[])).is_empty(),
        "a component that announces nothing is taken at the manifest's word"
    );
}

#[test]
fn a_subject_that_no_stream_covers_is_refused() {
    let (at, text) = problem(planned(
        &manifest(),
        &component(&["payments.*"]),
        &View::default(),
    ));
    assert_eq!(at, "functions.orders.subjects");
    assert!(text.contains("no stream covers payments.*"), "{text}");
    let problems = planned(&manifest(), &component(&["payments.*"]), &View::default());
    let located = problems.unwrap_err()[0].located(&manifest());
    assert_eq!(
        located.line, 5,
        "the function's table, since the file says no subjects"
    );
    let elsewhere = view(&[("PAY", existing(&["payments.>"], None, 0))]);
    let plan = planned(&manifest(), &component(&["payments.*"]), &elsewhere).unwrap();
    assert_eq!(
        plan.functions[0].inputs[0].stream, "PAY",
        "a stream of somebody else is an input all the same"
    );
}

#[test]
fn where_to_start_must_be_said_when_there_are_messages() {
    let mut manifest = manifest();
    let full = view(&[("ORDERS", existing(&["orders.>"], Some("shop"), 3))]);
    let components = component(&["orders.>"]);
    let (at, text) = problem(planned(&manifest, &components, &full));
    assert_eq!(at, "functions.orders.start");
    assert!(text.contains("holds 3 messages"), "{text}");
    settings(&mut manifest).start = Some(Start::All);
    assert!(planned(&manifest, &components, &full).is_ok());
}

#[test]
fn a_work_queue_starts_with_what_waits_in_it() {
    let mut manifest = manifest();
    let mut queue = existing(&["orders.>"], None, 3);
    queue.retention = Retention::WorkQueue;
    let view = view(&[("ORDERS", queue)]);
    assert!(planned(&manifest, &component(&["orders.>"]), &view).is_ok());
    settings(&mut manifest).start = Some(Start::New);
    let (at, _) = problem(planned(&manifest, &component(&["orders.>"]), &view));
    assert_eq!(at, "functions.orders.start");
}

#[test]
fn a_foreign_stream_is_a_target_only_when_adopted() {
    let mut manifest = manifest();
    settings(&mut manifest).allow.emit = vec!["mail.out".into()];
    let components = component(&["orders.>"]);
    let (at, text) = problem(planned(&manifest, &components, &View::default()));
    assert_eq!(at, "functions.orders.allow.emit");
    assert!(text.contains("no stream covers mail.out"), "{text}");
    let foreign = view(&[("MAIL", existing(&["mail.>"], None, 0))]);
    let (_, text) = problem(planned(&manifest, &components, &foreign));
    assert!(text.contains("adopt = true in [streams.MAIL]"), "{text}");
    let adopted = StreamManifest {
        adopt: true,
        ..stream(&["mail.>"])
    };
    manifest.streams.insert("MAIL".into(), adopted);
    let plan = planned(&manifest, &components, &foreign).unwrap();
    assert_eq!(plan.streams[0].action, StreamAction::Adopt);
    assert_eq!(plan.functions[0].targets, ["MAIL"]);
}

#[test]
fn a_stream_of_somebody_else_is_left_as_it_is() {
    let foreign = view(&[("ORDERS", existing(&["orders.eu.>"], None, 0))]);
    let plan = planned(&manifest(), &component(&["orders.eu.*"]), &foreign).unwrap();
    assert_eq!(plan.streams[0].action, StreamAction::Leave);
    assert_eq!(plan.streams[0].subjects, ["orders.eu.>"]);
    assert!(
        plan.notes[0].contains("was not created by this app"),
        "{:?}",
        plan.notes
    );
    let taken = view(&[("OLD", existing(&["orders.eu.>"], None, 0))]);
    let (at, text) = problem(planned(&manifest(), &component(&["orders.eu.*"]), &taken));
    assert_eq!(at, "streams.ORDERS.subjects");
    assert!(text.contains("OLD"), "{text}");
}

#[test]
fn a_bucket_of_somebody_else_is_not_taken() {
    let foreign = view(&[("KV_shop", existing(&["$KV.shop.>"], None, 1))]);
    let (at, _) = problem(planned(&manifest(), &component(&["orders.>"]), &foreign));
    assert_eq!(at, "app");
}

#[test]
fn a_key_wants_positions_and_positions_want_a_stream_that_keeps() {
    let mut manifest = manifest();
    let components = component(&["orders.>"]);
    settings(&mut manifest).key = Some(KeySource::Token(2));
    let (at, text) = problem(planned(&manifest, &components, &View::default()));
    assert_eq!(at, "functions.orders.key");
    assert!(text.contains("fix: remove `key`, or `delivery`"), "{text}");
    settings(&mut manifest).delivery = DeliveryMode::ExactlyOnce;
    let plan = planned(&manifest, &components, &View::default()).unwrap();
    assert_eq!(plan.functions[0].inputs[0].consumer, None);
    settings(&mut manifest).key = Some(KeySource::Token(4));
    let (at, text) = problem(planned(
        &manifest,
        &component(&["orders.*.paid"]),
        &View::default(),
    ));
    assert_eq!(at, "functions.orders.key");
    assert!(text.contains("orders.*.paid has no token 4"), "{text}");
    assert!(planned(&manifest, &components, &View::default()).is_ok());
    for retention in [Retention::WorkQueue, Retention::Interest] {
        let mut stream = existing(&["orders.>"], None, 3);
        stream.retention = retention;
        let view = view(&[("ORDERS", stream)]);
        let (at, text) = problem(planned(&manifest, &components, &view));
        assert_eq!(at, "functions.orders.delivery");
        assert!(text.contains("say delivery = \"at-least-once\""), "{text}");
    }
}

#[test]
fn a_start_is_kept_until_the_stream_is_another_one() {
    let mut manifest = manifest();
    settings(&mut manifest).delivery = DeliveryMode::ExactlyOnce;
    let components = component(&["orders.>"]);
    let mut first = planned(&manifest, &components, &View::default()).unwrap();
    let input = &mut first.functions[0].record.inputs[0];
    (input.start, input.created) = (42, 7);
    let mut view = applied(&first, View::default());
    let stream = view.streams.get_mut("ORDERS").unwrap();
    (stream.created, stream.messages) = (7, 50);
    let again = planned(&manifest, &components, &view).unwrap();
    assert_eq!(again.functions[0].action, FunctionAction::Unchanged);
    assert_eq!(again.functions[0].record.inputs[0].start, 42);

    view.streams.get_mut("ORDERS").unwrap().created = 8;
    let (at, _) = problem(planned(&manifest, &components, &view));
    assert_eq!(at, "functions.orders.start");
    settings(&mut manifest).start = Some(Start::All);
    let anew = planned(&manifest, &components, &view).unwrap();
    assert_eq!(anew.functions[0].action, FunctionAction::Changed);
    let input = &anew.functions[0].record.inputs[0];
    assert_eq!((input.start, input.created), (0, 8));
}

#[test]
fn an_import_of_http_needs_a_host() {
    let mut components = component(&["orders.>"]);
    let imports = &mut components.get_mut("orders").unwrap().imports;
    imports.push("wasi:http/outgoing-handler@0.2.6".into());
    let mut manifest = manifest();
    let (at, _) = problem(planned(&manifest, &components, &View::default()));
    assert_eq!(at, "functions.orders.allow.http");
    settings(&mut manifest).allow.http = vec!["example.com".into()];
    assert!(planned(&manifest, &components, &View::default()).is_ok());
}

#[test]
fn an_input_that_is_no_longer_read_loses_its_consumer() {
    let mut manifest = manifest();
    manifest.streams.insert("MAIL".into(), stream(&["mail.>"]));
    let first = planned(
        &manifest,
        &component(&["orders.>", "mail.in"]),
        &View::default(),
    )
    .unwrap();
    let view = applied(&first, View::default());
    let second = planned(&manifest, &component(&["orders.*"]), &view).unwrap();
    let actions: Vec<_> = second.functions[0]
        .inputs
        .iter()
        .map(|one| (one.stream.as_str(), one.action))
        .collect();
    assert_eq!(
        actions,
        [
            ("ORDERS", InputAction::Update),
            ("MAIL", InputAction::Remove)
        ]
    );
}

#[test]
fn a_key_that_positions_rest_on_does_not_change() {
    let (mut manifest, components) = (manifest(), component(&["orders.*.created"]));
    settings(&mut manifest).delivery = DeliveryMode::ExactlyOnce;
    settings(&mut manifest).key = Some(KeySource::Token(2));
    let first = planned(&manifest, &components, &View::default()).unwrap();
    let view = applied(&first, View::default());
    settings(&mut manifest).key = None;
    let problems = planned(&manifest, &components, &view).unwrap_err();
    assert!(problems[0].what.contains("`key` differs"), "{problems:?}");
    // By way of the queue it may: that hands over what is done.
    settings(&mut manifest).delivery = DeliveryMode::AtLeastOnce;
    planned(&manifest, &components, &view).unwrap();
}
