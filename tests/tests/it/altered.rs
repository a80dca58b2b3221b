//! What others do to the streams under a living node: it says so, and passes nothing by.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream::Config;
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::{Value, json};

/// A function in order per key, with more keys of its table.
fn manifest(more: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let more = format!("{}\n{more}", project::QUICK_RETRY);
    text += &project::keyed("hostile", &build::component("hostile")?, 3, &more);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// An event that goes well, known by `id`.
async fn publish(nats: &Nats, id: &str) -> Result<u64> {
    let body = json!({ "do": "fine" }).to_string();
    let subject = format!("hostile.act.{id}");
    nats.publish_with(&subject, &[("Nats-Msg-Id", id)], body)
        .await
}

async fn handled(nats: &Nats, id: &str) -> Result<Value> {
    let key = format!("done.{id}");
    eventually(&format!("event {id} to be handled"), || {
        nats.value("shop", &key)
    })
    .await
}

/// Waits until the node says that the function does not run, and why.
async fn failed(nats: &Nats, why: &str) -> Result<()> {
    eventually(&format!("the function to fail: {why}"), || async {
        let nodes = nats.nodes().await?;
        let status = nodes.first().context("no node")?["functions"][0]["status"].clone();
        let status = status.as_str().unwrap_or_default();
        let said = status.starts_with("failed") && status.contains(why);
        ensure!(said, "{status}");
        Ok(Some(()))
    })
    .await
}

async fn config(nats: &Nats, stream: &str) -> Result<Config> {
    let stream = nats.js.get_stream(stream).await?;
    Ok(stream.cached_info().config.clone())
}

#[tokio::test]
async fn an_input_made_anew_under_a_node_is_said_and_not_passed_by() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    for n in 0..30 {
        publish(nats, &format!("old-{n}")).await?;
    }
    handled(nats, "old-29").await?;
    let config = config(nats, "HOSTILE").await?;
    nats.js.delete_stream("HOSTILE").await?;
    nats.js.create_stream(config).await?;
    for n in 0..50 {
        publish(nats, &format!("new-{n}")).await?;
    }
    failed(nats, "made anew").await?;
    for n in 0..50 {
        let done = nats.value("shop", &format!("done.new-{n}")).await?;
        ensure!(done.is_none(), "new-{n} was handled and others were not");
    }
    scene.project.change(&manifest("start = \"all\"")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    for n in 0..50 {
        handled(nats, &format!("new-{n}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_input_that_lost_its_end_is_said_and_not_passed_by() -> Result<()> {
    let mut scene = Scene::start(&manifest("")?).await?;
    for n in 0..20 {
        publish(&scene.nats, &format!("kept-{n}")).await?;
    }
    handled(&scene.nats, "kept-19").await?;
    scene.server.kill()?;
    let data = scene.server.stream_folder("HOSTILE");
    let copy = tempfile::tempdir()?;
    copy_all(&data, copy.path())?;
    scene.server.restart().await?;
    for n in 0..20 {
        publish(&scene.nats, &format!("lost-{n}")).await?;
    }
    handled(&scene.nats, "lost-19").await?;
    scene.server.kill()?;
    std::fs::remove_dir_all(&data)?;
    copy_all(copy.path(), &data)?;
    scene.server.restart().await?;
    // As many again, and more: that there are enough does not make them those that were handled.
    for n in 0..30 {
        publish(&scene.nats, &format!("after-{n}")).await?;
    }
    failed(&scene.nats, "is not what it was").await?;
    for n in 0..30 {
        let done = scene.nats.value("shop", &format!("done.after-{n}")).await?;
        ensure!(done.is_none(), "after-{n} was handled and others were not");
    }
    Ok(())
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_all(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_stream_that_was_limited_is_put_back_and_lost_positions_are_said() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    publish(nats, "before").await?;
    handled(nats, "before").await?;
    let altered = Config {
        max_age: Duration::from_secs(1),
        duplicate_window: Duration::from_secs(1),
        ..config(nats, "KV_shop").await?
    };
    nats.js.update_stream(altered).await?;
    eventually("the node to say it", || async {
        let said = scene.node.log()?;
        Ok(said.contains("max_age = 1000000000").then_some(()))
    })
    .await?;
    assert_eq!(config(nats, "KV_shop").await?.max_age, Duration::ZERO);
    publish(nats, "after").await?;
    failed(nats, "is gone, which says how far the function is").await?;
    ensure!(nats.value("shop", "done.after").await?.is_none());

    let said = ["are gone", "`start`"];
    scene.pelton.refused(&["deploy"], &said).await?;
    scene.project.change(&manifest("start = \"new\"")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    publish(nats, "anew").await?;
    handled(nats, "anew").await?;
    ensure!(
        nats.value("shop", "done.after").await?.is_none(),
        "`new` is new"
    );
    Ok(())
}

#[tokio::test]
async fn a_key_that_fits_no_subject_is_a_dead_letter_and_harms_no_other() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    let fails = json!({ "do": "fail", "how": "retry", "code": "no", "well_at": 2 }).to_string();
    let long = nats
        .publish(&format!("hostile.act.{}", "k".repeat(3500)), fails.clone())
        .await?;
    let fits = nats
        .publish(&format!("hostile.act.{}", "k".repeat(1024)), fails)
        .await?;
    publish(nats, "other").await?;
    handled(nats, "other").await?;
    let dead = nats.dead_of("shop", "HOSTILE", long).await?;
    assert_eq!(dead.code(), "pelton-key-too-long");
    handled(nats, &format!("HOSTILE=3A{fits}")).await?;
    Ok(())
}

#[tokio::test]
async fn what_waits_and_is_lost_with_its_input_is_a_dead_letter() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    // Too large to be kept beside its attempts.
    let mut body = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    body += &" ".repeat((1 << 20) - 1024 - body.len());
    let large = nats.publish("hostile.act.a", body).await?;
    eventually("it to wait", || async {
        let parked = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        Ok((parked == 1).then_some(()))
    })
    .await?;
    nats.js.get_stream("HOSTILE").await?.purge().await?;
    let dead = nats.dead_of("shop", "HOSTILE", large).await?;
    assert_eq!(dead.code(), "pelton-input-gone");
    let behind = nats.publish("hostile.act.a", r#"{"do":"fine"}"#).await?;
    handled(nats, &format!("HOSTILE=3A{behind}")).await?;
    Ok(())
}

/// The park has its copy, which nobody else could handle: the next deploy gives it up, and who wants it replays it.
#[tokio::test]
async fn what_waits_of_a_stream_made_anew_or_deleted_is_a_dead_letter() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    let old = nats.publish("hostile.act.a", waits.clone()).await?;
    nats.publish("hostile.act.b", waits.clone()).await?;
    parked(nats, 2).await?;
    nats.js.delete_stream("HOSTILE").await?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(
        said.stderr.contains("2 events of the former one"),
        "{said:#?}"
    );
    let dead = nats.dead_of("shop", "HOSTILE", old).await?;
    assert_eq!(dead.code(), "pelton-input-replaced");
    parked(nats, 0).await?;
    // Of the new stream the same sequence is another event.
    let new = nats.publish("hostile.act.c", r#"{"do":"fine"}"#).await?;
    assert_eq!(new, old);
    handled(nats, &format!("HOSTILE=3A{new}")).await?;
    let number = dead.sequence.to_string();
    scene.pelton.ok(&["dead-letter", "replay", &number]).await?;
    parked(nats, 1).await?;

    // Nor does one that is gone keep its function from another.
    nats.js.delete_stream("HOSTILE").await?;
    let other = manifest("")?.replace("HOSTILE", "OTHER");
    scene.project.change(&other)?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(
        said.stderr.contains("1 events of the former one"),
        "{said:#?}"
    );
    parked(nats, 0).await?;
    let first = nats.publish("hostile.act.d", r#"{"do":"fine"}"#).await?;
    handled(nats, &format!("OTHER=3A{first}")).await?;
    Ok(())
}

/// What positions say of a stream that is gone is nothing to a queue on the one that has its name.
#[tokio::test]
async fn a_stream_made_anew_is_new_to_a_queue_too() -> Result<()> {
    let text = manifest("start = \"all\"")?;
    let scene = Scene::start(&text).await?;
    let nats = &scene.nats;
    for n in 0..40 {
        publish(nats, &format!("old-{n}")).await?;
    }
    handled(nats, "old-39").await?;
    let config = config(nats, "HOSTILE").await?;
    nats.js.delete_stream("HOSTILE").await?;
    nats.js.create_stream(config).await?;
    for n in 0..60 {
        publish(nats, &format!("new-{n}")).await?;
    }
    let queue = text.replace("key = { token = 3 }", "delivery = \"at-least-once\"");
    scene.project.change(&queue)?;
    scene.pelton.ok(&["deploy"]).await?;
    publish(nats, "new-60").await?;
    for n in 0..=60 {
        handled(nats, &format!("new-{n}")).await?;
    }
    Ok(())
}

/// Whoever deletes what waits harms nothing that its input still has; a living node finds it out, and one that takes over.
#[tokio::test]
async fn what_waits_and_was_deleted_is_taken_from_its_input() -> Result<()> {
    let mut scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 });
    nats.publish("hostile.act.a", waits.to_string()).await?;
    parked(nats, 1).await?;
    let stream = nats.js.get_stream("KV_shop").await?;
    stream.purge().filter(PARK).await?;
    eventually("the node to find it out", || async {
        let said = scene.node.log()?;
        Ok(said
            .contains("is gone from the commit stream")
            .then_some(()))
    })
    .await?;
    parked(nats, 1).await?;

    scene.node.terminate(Duration::from_secs(20)).await?;
    let fails = json!({ "do": "fail", "how": "retry", "code": "no", "well_at": 2 }).to_string();
    let first = nats.publish("hostile.act.o-1", fails.clone()).await?;
    let behind = nats.publish("hostile.act.o-1", r#"{"do":"fine"}"#).await?;
    let lost = nats.publish("hostile.act.o-1", fails).await?;
    // The partition of o-1 says that all three wait, and the park holds none of them.
    let place = "$KV.PELTON_shop.pos.hostile.HOSTILE.34";
    let stored = stream.get_last_raw_message_by_subject(place).await?;
    let mut position: Value = serde_json::from_slice(&stored.payload)?;
    let floor = position["sequence"].as_u64().context("a floor")?;
    position["done"] = json!([first - floor, 1, 1]);
    position["parked"] = json!([first, 1, 1]);
    nats.publish(place, position.to_string()).await?;
    let input = nats.js.get_stream("HOSTILE").await?;
    input.delete_message(lost).await?;
    scene.node = scene.node()?;
    let dead = nats.dead_of("shop", "HOSTILE", lost).await?;
    assert_eq!(dead.code(), "pelton-input-gone");
    let number = dead.sequence.to_string();
    let replayed = scene
        .pelton
        .run(&["dead-letter", "replay", &number])
        .await?;
    let fix = format!("`pelton dead-letter rm {number} --app shop`");
    let told = replayed.stdout.contains("no event to put back") && replayed.stdout.contains(&fix);
    ensure!(replayed.code == Some(1) && told, "{replayed:#?}");
    handled(nats, &format!("HOSTILE=3A{first}")).await?;
    handled(nats, &format!("HOSTILE=3A{behind}")).await?;
    parked(nats, 1).await
}

/// As when another node takes an idle partition over and lets it go: its former owner finds out when it cleans up.
#[tokio::test]
async fn a_partition_lost_unseen_is_taken_back_and_cleaned_up() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let nats = &scene.nats;
    let first = nats.publish("hostile.act.o-1", r#"{"do":"fine"}"#).await?;
    handled(nats, &format!("HOSTILE=3A{first}")).await?;
    let stream = nats.js.get_stream("KV_shop").await?;
    let place = "$KV.PELTON_shop.pos.hostile.HOSTILE.34";
    let stored = stream.get_last_raw_message_by_subject(place).await?;
    let mut position: Value = serde_json::from_slice(&stored.payload)?;
    let owner = position["owner"].clone();
    position["owner"] = json!("");
    nats.publish(place, position.to_string()).await?;
    // `o-1` in Base64: what a killed server brought back.
    let left = format!("$KV.PELTON_shop.park.hostile.HOSTILE.34.by0x.{first}");
    nats.publish(&left, "left over").await?;
    parked(nats, 0).await?;
    let stored = stream.get_last_raw_message_by_subject(place).await?;
    let position: Value = serde_json::from_slice(&stored.payload)?;
    assert_eq!(position["owner"], owner);
    Ok(())
}

const PARK: &str = "$KV.PELTON_shop.park.>";

/// Waits until so many wait.
async fn parked(nats: &Nats, count: usize) -> Result<()> {
    eventually(&format!("{count} to wait"), || async {
        let found = nats.count_below("KV_shop", PARK).await?;
        ensure!(found == count, "{found} wait");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn what_waited_of_a_queue_that_was_made_anew_is_not_said_to_wait() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function("hostile", &build::component("hostile")?, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let scene = Scene::start(&text).await?;
    let nats = &scene.nats;
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    let waiting = |expected: u64| {
        let what = format!("{expected} to wait");
        let pelton = &scene.pelton;
        async move {
            eventually(&what, || async {
                let info = pelton.json(&["function", "info", "hostile"]).await?;
                let status = &info["status"];
                let waits = status["pending"] == expected && status["deferred"] == expected;
                ensure!(waits, "{info}");
                Ok(Some(()))
            })
            .await
        }
    };
    nats.publish("hostile.act.a", waits.clone()).await?;
    nats.publish("hostile.act.b", waits.clone()).await?;
    waiting(2).await?;
    let config = config(nats, "HOSTILE").await?;
    nats.js.delete_stream("HOSTILE").await?;
    nats.js.create_stream(config).await?;
    waiting(0).await?;
    // Beside one of the new stream, those of the former are still not there.
    nats.publish("hostile.act.c", waits).await?;
    waiting(1).await
}
