//! Deploying a new version while events flow: nodes change over without a stop.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::json;

fn manifest(tag: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function(
        "hostile",
        &build::component("hostile")?,
        project::QUICK_RETRY,
    );
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

#[tokio::test]
async fn a_new_version_takes_over_while_events_flow() -> Result<()> {
    let scene = Scene::start(&manifest("v1")?).await?;
    let mut published: u64 = 0;
    let publish = async |count: u64| -> Result<()> {
        for _ in 0..count {
            scene
                .nats
                .publish("hostile.act.now", r#"{"do":"fine"}"#)
                .await?;
        }
        Ok(())
    };
    publish(100).await?;
    published += 100;
    for version in 2..=4 {
        scene.project.change(&manifest(&format!("v{version}"))?)?;
        let (deployed, sent) = tokio::join!(scene.pelton.ok(&["deploy"]), publish(100));
        deployed?;
        sent?;
        scene.nats.serving("hostile", Some(version), 1).await?;
        publish(20).await?;
        published += 120;
    }
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    ensure!(scene.nats.dead("shop").await?.is_empty());

    let bucket = scene.nats.state("shop").await?;
    let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
    assert_eq!(keys.len() as u64, published, "every event was handled");
    let mut tags = BTreeSet::new();
    for key in &keys {
        let done = scene.nats.value("shop", key).await?.unwrap_or_default();
        tags.extend(done["tag"].as_str().map(str::to_owned));
    }
    ensure!(tags.contains("v1") && tags.contains("v4"), "{tags:?}");
    let key = format!("done.HOSTILE=3A{published}");
    let last = scene.nats.value("shop", &key).await?;
    assert_eq!(last.unwrap_or_default()["tag"], "v4");
    Ok(())
}

#[tokio::test]
async fn a_plan_changes_nothing_and_an_unchanged_function_keeps_its_version() -> Result<()> {
    let scene = Scene::start(&manifest("v1")?).await?;
    scene.project.change(&manifest("v2")?)?;
    let plan = scene.pelton.ok(&["deploy", "--dry-run"]).await?;
    ensure!(plan.stdout.contains("hostile"), "{plan:#?}");
    let record = scene.nats.js.get_key_value("PELTON_REGISTRY").await?;
    let before = record.entry("function.shop.hostile").await?;
    ensure!(
        before.is_some_and(|entry| {
            String::from_utf8_lossy(&entry.value).contains("\"version\":1")
        })
    );
    scene.project.change(&manifest("v1")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    let after = record
        .get("function.shop.hostile")
        .await?
        .unwrap_or_default();
    let after: serde_json::Value = serde_json::from_slice(&after)?;
    assert_eq!(
        after["version"], 1,
        "deploying the same again is no new version"
    );
    Ok(())
}

/// A function in order per key, with delayed events and a schedule.
fn timed(tag: &str, schedule: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += "[streams.LATER]\nsubjects = [\"later.>\"]\n";
    let more = format!("start = \"new\"\nschedule = {schedule:?}");
    text += &project::keyed("hostile", &build::component("hostile")?, 3, &more);
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += "[functions.hostile.allow]\nemit = [\"later.>\"]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

async fn act(nats: &Nats, key: &str, act: serde_json::Value) -> Result<u64> {
    let subject = format!("hostile.act.{key}");
    nats.publish(&subject, act.to_string()).await
}

async fn handled(nats: &Nats, sequence: u64) -> Result<serde_json::Value> {
    eventually(&format!("event {sequence} to be handled"), || async {
        nats.value("shop", &format!("done.HOSTILE=3A{sequence}"))
            .await
    })
    .await
}

/// What lies in the commit stream and could make a function do something.
async fn alive(nats: &Nats) -> Result<Vec<String>> {
    let mut alive = Vec::new();
    for message in nats.messages("KV_shop").await? {
        let Some(rest) = message.subject.strip_prefix("$KV.PELTON_shop.") else {
            continue;
        };
        let kind = rest.split('.').next().unwrap_or_default();
        let body = String::from_utf8_lossy(&message.payload);
        let counts = match kind {
            // Says that the name holds no timer.
            "timer" | "tick" => message.headers.get("KV-Operation").is_none(),
            "pos" => body.contains("\"parked\"") || !body.contains("\"owner\":\"\""),
            "out" => false,
            _ => true,
        };
        if counts {
            alive.push(message.subject.to_string());
        }
    }
    Ok(alive)
}

#[tokio::test]
async fn a_function_made_anew_wakes_nothing_of_one_that_was_deleted() -> Result<()> {
    const YEARLY: &str = "0 0 0 1 1 *";
    let mut scene = Scene::start(&timed("old", YEARLY)?).await?;
    // Its ticks are of a later version than the new function's will be.
    scene.project.change(&timed("old-two", YEARLY)?)?;
    scene.pelton.ok(&["deploy"]).await?;
    let nats = scene.nats.clone();
    nats.serving("hostile", Some(2), 1).await?;
    let at_ms = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())? + 5000;
    let later = json!({ "do": "later", "name": "old", "at_ms": at_ms, "subject": "later.old" });
    let set = act(&nats, "a", later).await?;
    handled(&nats, set).await?;
    // It would be handled with the next event of its key.
    let waits = json!({ "do": "fail", "how": "defer", "code": "early", "well_at": 2 });
    let parked = act(&nats, "b", waits).await?;
    eventually("the event to be parked", || async {
        let parked = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        Ok((parked == 1).then_some(()))
    })
    .await?;
    scene.node.kill().await?;
    let unseen = act(&nats, "c", json!({ "do": "fine" })).await?;
    let headers = [("Pelton-Subject", "hostile.act.d"), ("Nats-Msg-Id", "call")];
    nats.publish_with(
        "$KV.PELTON_shop.due.hostile.call",
        &headers,
        r#"{"do":"fine"}"#,
    )
    .await?;
    let before = alive(&nats).await?;
    for kind in ["at", "timer", "tick", "park", "due", "pos"] {
        let prefix = format!("$KV.PELTON_shop.{kind}.");
        ensure!(
            before.iter().any(|one| one.starts_with(&prefix)),
            "{before:?}"
        );
    }

    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    registry.delete("function.shop.hostile").await?;
    scene.project.change(&timed("new", "* * * * * *")?)?;
    let deployed = scene.pelton.ok(&["deploy"]).await?;
    let said = "taking back 2 timers of an earlier function hostile";
    ensure!(deployed.stderr.contains(said), "{deployed:#?}");
    let left = alive(&nats).await?;
    ensure!(left.is_empty(), "{left:?}");

    let _node = scene.node()?;
    let follows = act(&nats, "b", json!({ "do": "fine" })).await?;
    assert_eq!(handled(&nats, follows).await?["tag"], "new");
    eventually("ticks beyond the old timer's time", || async {
        let last = format!("ticks.{}", at_ms / 1000 + 2);
        nats.value("shop", &last).await
    })
    .await?;
    for sequence in [parked, unseen] {
        let key = format!("done.HOSTILE=3A{sequence}");
        assert_eq!(nats.value("shop", &key).await?, None, "event {sequence}");
    }
    assert_eq!(nats.value("shop", "done.call").await?, None);
    assert_eq!(nats.messages("LATER").await?.len(), 0);
    ensure!(nats.dead("shop").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_queue_made_anew_does_not_go_on_where_a_deleted_one_was() -> Result<()> {
    let text = |start: &str| {
        Ok::<_, anyhow::Error>(
            manifest("v1")?.replace("\nretry", &format!("\nstart = {start:?}\nretry")),
        )
    };
    let mut scene = Scene::start(&text("all")?).await?;
    let nats = scene.nats.clone();
    let first = act(&nats, "a", json!({ "do": "fine" })).await?;
    handled(&nats, first).await?;
    scene.node.kill().await?;
    let unseen = act(&nats, "a", json!({ "do": "fine" })).await?;
    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    registry.delete("function.shop.hostile").await?;
    scene.project.change(&text("new")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    assert_eq!(nats.pending("shop", "hostile", "HOSTILE").await?, 0);
    let _node = scene.node()?;
    let last = act(&nats, "a", json!({ "do": "fine" })).await?;
    handled(&nats, last).await?;
    let key = format!("done.HOSTILE=3A{unseen}");
    assert_eq!(nats.value("shop", &key).await?, None);
    Ok(())
}

/// A node may be reading it when the second function's turn comes, and what is stored anew takes the former chunks away.
#[tokio::test]
async fn a_component_of_two_functions_is_stored_once() -> Result<()> {
    let component = build::component("hostile")?;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    for name in ["one", "two"] {
        let more = format!("[functions.{name}.allow]\nhttp = [\"127.0.0.1:9\"]\n");
        text += &project::keyed(name, &component, 3, &more);
    }
    let scene = Scene::start(&text).await?;
    let stream = scene.nats.js.get_stream("KV_PELTON_MODULES").await?;
    let state = &stream.cached_info().state;
    ensure!(state.messages > 0, "nothing is stored");
    assert_eq!(state.last_sequence, state.messages, "stored again");
    Ok(())
}
