//! The outbox: what keeps emitted events from their target is told, and a target goes only when nothing waits for it.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::json;

const STREAMS: &str =
    "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n[streams.OUT]\nsubjects = [\"out.>\"]\n";

fn emitting(to: &str) -> Result<String> {
    let more = format!("start = \"all\"\nallow = {{ http = [\"127.0.0.1:9\"], emit = [{to}] }}");
    let function = project::keyed("hostile", &build::component("hostile")?, 3, &more);
    Ok(format!("{STREAMS}{function}"))
}

async fn emit(nats: &Nats, count: usize) -> Result<()> {
    let act = json!({ "do": "emit", "subject": "out.a", "count": count, "bytes": 10 });
    nats.publish("hostile.act.a", act.to_string()).await?;
    Ok(())
}

async fn arrived(nats: &Nats, count: u64) -> Result<()> {
    eventually(&format!("{count} events to arrive"), || async {
        let found = nats.count("OUT").await?;
        ensure!(found == count, "{found} arrived");
        Ok(Some(()))
    })
    .await
}

/// Lets the stream OUT hold so many messages and refuse others.
async fn bound(nats: &Nats, messages: i64) -> Result<()> {
    let stream = nats.js.get_stream("OUT").await?;
    let config = Config {
        max_messages: messages,
        discard: DiscardPolicy::New,
        ..stream.cached_info().config.clone()
    };
    nats.js.update_stream(config).await?;
    Ok(())
}

#[tokio::test]
async fn a_full_target_is_told_and_keeps_its_source_until_all_has_arrived() -> Result<()> {
    let scene = Scene::start(&emitting("\"out.>\"")?).await?;
    let nats = &scene.nats;
    emit(nats, 2).await?;
    arrived(nats, 2).await?;
    bound(nats, 3).await?;
    emit(nats, 4).await?;
    arrived(nats, 3).await?;

    let target = eventually("the target to be told blocked", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let target = info["status"]["targets"][0].clone();
        ensure!(!target["blocked"].is_null(), "{info}");
        Ok(Some(target))
    })
    .await?;
    let why = target["blocked"].as_str().unwrap_or_default();
    ensure!(why.contains("OUT is full"), "{target}");
    let people = scene.pelton.ok(&["function", "info", "hostile"]).await?;
    ensure!(
        people.stdout.contains("nats stream purge OUT"),
        "{people:#?}"
    );
    eventually("the node to warn", || async {
        let said = scene.node.log()?;
        Ok(said.contains("do not reach their stream").then_some(()))
    })
    .await?;

    scene.project.change(&emitting("")?)?;
    let said = ["OUT is no target of app shop any more", "OUT is full"];
    scene.pelton.refused(&["deploy"], &said).await?;
    nats.serving("hostile", Some(1), 1).await?;

    bound(nats, -1).await?;
    arrived(nats, 6).await?;
    scene.pelton.ok(&["deploy"]).await?;
    let sources = nats
        .js
        .get_stream("OUT")
        .await?
        .cached_info()
        .config
        .sources
        .clone();
    ensure!(sources.is_none_or(|all| all.is_empty()), "a source is left");

    // A target again: what lies there of its earlier life does not arrive a second time.
    let leftover = "$KV.PELTON_shop.out.OUT.0123456789abcdef0123456789abcdef.0.out.old";
    nats.publish(leftover, "old").await?;
    scene.project.change(&emitting("\"out.>\"")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    emit(nats, 1).await?;
    arrived(nats, 7).await?;
    let last = nats.messages("OUT").await?.pop().context("no message")?;
    assert_eq!(last.subject.as_str(), "out.a");
    Ok(())
}

#[tokio::test]
async fn a_target_that_takes_no_more_of_a_subject_is_told() -> Result<()> {
    let scene = Scene::start(&emitting("\"out.>\"")?).await?;
    let nats = &scene.nats;
    let stream = nats.js.get_stream("OUT").await?;
    let mut config = stream.cached_info().config.clone();
    config.discard = DiscardPolicy::New;
    config.discard_new_per_subject = true;
    config.max_messages_per_subject = 2;
    nats.js.update_stream(config).await?;
    emit(nats, 3).await?;
    eventually("the target to be told blocked", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let why = info["status"]["targets"][0]["blocked"].as_str();
        let told = why.is_some_and(|why| why.contains("OUT holds 2 messages of out.a"));
        ensure!(told, "{info}");
        Ok(Some(()))
    })
    .await
}

/// What an attempt may emit is what its target can store, with all that is added on the way.
#[tokio::test]
async fn the_largest_event_that_may_be_emitted_arrives() -> Result<()> {
    let text = emitting("\"out.>\"")?.replace(
        "subjects = [\"out.>\"]",
        "subjects = [\"out.>\"]\nmax-msg-size = \"10KiB\"",
    );
    let scene = Scene::start(&text).await?;
    let nats = &scene.nats;
    let subject = format!("out.{}", "s".repeat(1000));
    let mut sent: u64 = 0;
    for bytes in (6200..7800).step_by(40) {
        let act = json!({ "do": "emit", "subject": subject, "count": 1, "bytes": bytes });
        nats.publish("hostile.act.now", act.to_string()).await?;
        sent += 1;
    }
    let dead = eventually("each to have arrived or to be refused", || async {
        let (dead, arrived) = (nats.dead("shop").await?, nats.count("OUT").await?);
        let all = dead.len() as u64 + arrived;
        ensure!(all == sent, "{all} of {sent}");
        Ok(Some(dead))
    })
    .await?;
    let limited = dead.iter().filter(|one| one.code() == "pelton-limit");
    let limited = limited.count() as u64;
    let all = limited == dead.len() as u64;
    ensure!(all && limited > 0 && limited < sent, "{limited}: {dead:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_its_target_does_not_take_is_told() -> Result<()> {
    let scene = Scene::start(&emitting("\"out.>\"")?).await?;
    let nats = &scene.nats;
    emit(nats, 1).await?;
    arrived(nats, 1).await?;
    let stream = nats.js.get_stream("OUT").await?;
    let config = Config {
        max_message_size: 8,
        ..stream.cached_info().config.clone()
    };
    nats.js.update_stream(config).await?;
    emit(nats, 1).await?;
    eventually("the target to be told blocked", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let why = info["status"]["targets"][0]["blocked"].clone();
        let why = why.as_str().unwrap_or_default();
        ensure!(why.contains("takes 8 (max-msg-size)"), "{info}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn what_has_arrived_is_not_taken_for_stuck_after_a_restart() -> Result<()> {
    let mut scene = Scene::start(&emitting("\"out.>\"")?).await?;
    scene.node.kill().await?;
    // Nobody clears it: it has arrived, and lies in the outbox still.
    let outbox = "$KV.PELTON_shop.out.OUT.0123456789abcdef0123456789abcdef.0.out.b.c";
    scene.nats.publish(outbox, "x").await?;
    arrived(&scene.nats, 1).await?;
    scene.server.kill()?;
    scene.server.restart().await?;
    eventually("the server to answer", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let target = &info["status"]["targets"][0];
        assert!(target["oldest_waiting_ms"].is_null(), "{target}");
        Ok(Some(()))
    })
    .await?;
    let left = scene
        .nats
        .count_below("KV_shop", "$KV.PELTON_shop.out.>")
        .await?;
    assert_eq!(left, 1);
    Ok(())
}

/// Sets a timer whose event goes to `out.late`, and waits until that is committed.
async fn set(nats: &Nats, name: &str, ahead_ms: i64) -> Result<()> {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_millis())?;
    let later =
        json!({ "do": "later", "name": name, "at_ms": now + ahead_ms, "subject": "out.late" });
    let sequence = nats.publish("hostile.act.a", later.to_string()).await?;
    let done = format!("done.HOSTILE=3A{sequence}");
    eventually("the timer to be set", || nats.value("shop", &done)).await?;
    Ok(())
}

async fn sources(nats: &Nats) -> Result<usize> {
    let stream = nats.js.get_stream("OUT").await?;
    let sources = stream.cached_info().config.sources.as_ref();
    Ok(sources.map_or(0, Vec::len))
}

#[tokio::test]
async fn a_delayed_event_leaves_for_a_stream_that_is_no_target_any_more() -> Result<()> {
    let scene = Scene::start(&emitting("\"out.>\"")?).await?;
    let nats = &scene.nats;
    set(nats, "late", 6000).await?;
    scene.project.change(&emitting("")?)?;
    for _ in 0..2 {
        scene.pelton.ok(&["deploy"]).await?;
        assert_eq!(sources(nats).await?, 1, "an event is to come");
    }
    nats.serving("hostile", Some(2), 1).await?;
    ensure!(nats.messages("OUT").await?.is_empty(), "it came too early");
    arrived(nats, 1).await?;
    eventually("the timer to be removed", || async {
        let left = nats.count_below("KV_shop", "$KV.PELTON_shop.due.>").await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    scene.pelton.ok(&["deploy"]).await?;
    assert_eq!(sources(nats).await?, 0);
    let left = nats.count_below("KV_shop", "$KV.PELTON_shop.out.>").await?;
    assert_eq!(left, 0, "what has arrived is cleared");
    Ok(())
}

#[tokio::test]
async fn a_target_keeps_its_source_while_an_old_version_may_emit() -> Result<()> {
    let slow = |to: &str| Ok::<_, anyhow::Error>(format!("{}timeout = \"8s\"\n", emitting(to)?));
    let scene = Scene::start(&slow("\"out.>\"")?).await?;
    let nats = &scene.nats;
    let retiring = async |wanted: bool| {
        let nodes = nats.nodes().await?;
        let any = nodes.iter().any(|node| node["retiring"] == json!(["shop"]));
        Ok((any == wanted).then_some(()))
    };
    nats.publish("hostile.act.a", r#"{"do":"loop"}"#).await?;
    eventually("the attempt to begin", || async {
        let node = nats.nodes().await?.pop().context("no node")?;
        let delivered = &node["functions"][0]["counts"]["delivered"];
        Ok((delivered == &json!(1)).then_some(()))
    })
    .await?;
    scene.project.change(&slow("")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("hostile", Some(2), 1).await?;
    retiring(true).await?.context("the attempt has ended")?;
    assert_eq!(sources(nats).await?, 1, "it may emit");
    eventually("the attempt to end", || retiring(false)).await?;
    scene.pelton.ok(&["deploy"]).await?;
    assert_eq!(sources(nats).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_delayed_event_whose_stream_does_not_take_it_any_more_is_a_dead_letter() -> Result<()> {
    let scene = Scene::start(&emitting("\"out.>\"")?).await?;
    let nats = &scene.nats;
    set(nats, "late", 5000).await?;
    scene.project.change(&emitting("")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("hostile", Some(2), 1).await?;
    let config = Config {
        sources: None,
        ..nats
            .js
            .get_stream("OUT")
            .await?
            .cached_info()
            .config
            .clone()
    };
    nats.js.update_stream(config).await?;
    let dead = eventually("the dead letter", || async {
        Ok(nats.dead("shop").await?.pop())
    })
    .await?;
    assert_eq!(dead.code(), "pelton-not-allowed");
    let why = dead.reason();
    ensure!(
        why.contains("stream OUT takes no events of app shop"),
        "{why}"
    );
    for kind in ["due", "at", "out"] {
        let lies = format!("$KV.PELTON_shop.{kind}.>");
        eventually(&format!("nothing under {kind}"), || async {
            let left = nats.count_below("KV_shop", &lies).await?;
            Ok((left == 0).then_some(()))
        })
        .await?;
    }

    scene.project.change(&emitting("\"out.>\"")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    let sequence = dead.sequence.to_string();
    scene
        .pelton
        .ok(&["dead-letter", "replay", &sequence])
        .await?;
    arrived(nats, 1).await?;
    let event = nats.messages("OUT").await?.pop().context("no message")?;
    assert_eq!(event.subject.as_str(), "out.late");
    ensure!(event.headers.get("Pelton-Only").is_none(), "{event:?}");
    Ok(())
}
