//! The commit stream holds what is alive and nothing else, whatever a killed server brings back.

use std::time::Duration;

use anyhow::{Result, ensure};
use pelton_tests::{Scene, build, eventually, project, within};
use serde_json::{Value, json};

/// Delete markers go after some rounds of the nodes' cleaning.
const CLEANED: Duration = Duration::from_secs(150);

async fn rows() -> Result<Scene> {
    let mut text = "[streams.ROWS]\nsubjects = [\"rows.>\"]\n".to_owned();
    text += &project::keyed("rows", &build::component("rows")?, 2, "");
    Scene::start(&text).await
}

/// Does something with a row, and waits until that is committed.
async fn act(scene: &Scene, row: &str, act: Value) -> Result<Value> {
    let (subject, body) = (format!("rows.{row}"), act.to_string());
    let args = [
        "call",
        "rows",
        &body,
        "--subject",
        &subject,
        "--timeout",
        "30s",
    ];
    scene.pelton.json(&args).await
}

/// What a handler reads of a row.
async fn get(scene: &Scene, row: &str) -> Result<Value> {
    Ok(act(scene, row, json!({ "do": "get" })).await?["reply"].clone())
}

async fn count(scene: &Scene, filter: &str) -> Result<usize> {
    scene.nats.count_below("KV_shop", filter).await
}

async fn none_left(scene: &Scene, filter: &str) -> Result<()> {
    within(CLEANED, &format!("nothing under {filter}"), || async {
        let left = count(scene, filter).await?;
        ensure!(left == 0, "{left} messages");
        Ok(Some(()))
    })
    .await
}

/// Kills the server while the node stands still, so that nothing is mended before the test has
/// looked.
async fn kill_the_server(scene: &mut Scene) -> Result<()> {
    // A block that was written to is read anew.
    act(scene, "other", json!({ "do": "set", "value": 1 })).await?;
    scene.node.signal("STOP").await?;
    scene.server.kill()?;
    scene.server.restart().await
}

#[tokio::test]
async fn a_call_that_a_killed_server_brings_back_is_not_pending() -> Result<()> {
    let mut scene = rows().await?;
    for row in ["a", "b", "c"] {
        act(&scene, row, json!({ "do": "set", "value": 1 })).await?;
    }
    // As when the answers have expired, two minutes later.
    let answers = "$KV.PELTON_shop.due.rows.call.>";
    let stream = scene.nats.js.get_stream("KV_shop").await?;
    stream.purge().filter(answers).await?;

    kill_the_server(&mut scene).await?;
    let back = eventually("the stream", || async {
        Ok(Some(count(&scene, answers).await?))
    });
    ensure!(back.await? >= 3, "the server brought no call back");
    let listed = eventually("a listing", || async {
        Ok(Some(scene.pelton.json(&["function", "ls"]).await?))
    });
    let listed = listed.await?;
    assert_eq!(listed[0]["pending"], 0, "{listed}");
    scene.node.signal("CONT").await?;
    eventually("the calls to be removed", || async {
        let left = calls(&scene).await?;
        ensure!(left == 0, "{left} calls");
        Ok(Some(()))
    })
    .await
}

/// Calls that lie in the internal input; answers are none.
async fn calls(scene: &Scene) -> Result<usize> {
    let all = scene.nats.messages("KV_shop").await?;
    let calls = all.iter().filter(|one| {
        let answer = one.headers.get("Pelton-Answer").is_some();
        one.subject.contains(".due.rows.call.") && !answer
    });
    Ok(calls.count())
}

#[tokio::test]
async fn a_deleted_row_leaves_nothing_and_does_not_come_back_with_a_killed_server() -> Result<()> {
    let mut scene = rows().await?;
    act(&scene, "stays", json!({ "do": "set", "value": 7 })).await?;
    for row in ["a", "b", "c"] {
        for value in [1, 2] {
            act(&scene, row, json!({ "do": "set", "value": value })).await?;
        }
        act(&scene, row, json!({ "do": "delete" })).await?;
    }
    // What was never there leaves nothing to begin with.
    within(CLEANED, "nothing but the row that stays", || async {
        let left = count(&scene, "$KV.shop.>").await?;
        ensure!(left == 1, "{left} messages");
        Ok(Some(()))
    })
    .await?;

    kill_the_server(&mut scene).await?;
    let back = eventually("the stream", || async {
        Ok(Some(count(&scene, "$KV.shop.rows.>").await?))
    });
    ensure!(back.await? > 2, "the server brought no row back");
    let listed = scene.pelton.json(&["state", "ls"]).await?;
    let keys: Vec<&Value> = listed.as_array().into_iter().flatten().collect();
    let keys: Vec<&Value> = keys.iter().map(|one| &one["key"]).collect();
    assert_eq!(keys, ["rows.other", "rows.stays"]);
    scene.node.signal("CONT").await?;
    for (row, value) in [("a", Value::Null), ("c", Value::Null), ("stays", json!(7))] {
        let read = eventually("an answer", || async { Ok(Some(get(&scene, row).await?)) });
        assert_eq!(read.await?, value, "{row}");
    }
    within(CLEANED, "nothing but two rows", || async {
        let left = count(&scene, "$KV.shop.>").await?;
        ensure!(left == 2, "{left} messages");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_row_expires_and_does_not_come_back_with_a_killed_server() -> Result<()> {
    let mut scene = rows().await?;
    let short = json!({ "do": "set", "value": 2, "ttl_ms": 1500 });
    let long = json!({ "do": "set", "value": 2, "ttl_ms": 3_600_000 });
    // One that replaces a value which would stay, one that is made anew, one that is kept after
    // all, and one that lives on.
    act(&scene, "over", json!({ "do": "set", "value": 1 })).await?;
    for row in ["over", "new", "kept"] {
        act(&scene, row, short.clone()).await?;
    }
    act(&scene, "kept", json!({ "do": "set", "value": 3 })).await?;
    act(&scene, "long", long).await?;
    assert_eq!(get(&scene, "long").await?, 2);
    let shown = scene.pelton.json(&["state", "get", "rows.long"]).await?;
    ensure!(shown["expires_at"].is_string(), "{shown}");
    for row in ["over", "new"] {
        eventually("the row to expire", || async {
            let value = get(&scene, row).await?;
            Ok((value == Value::Null).then_some(()))
        })
        .await?;
    }
    eventually("the server to have removed the new one", || async {
        let left = count(&scene, "$KV.shop.rows.new").await?;
        Ok((left == 0).then_some(()))
    })
    .await?;

    kill_the_server(&mut scene).await?;
    scene.node.signal("CONT").await?;
    let expected = [
        ("over", Value::Null),
        ("new", Value::Null),
        ("kept", json!(3)),
        ("long", json!(2)),
    ];
    for (row, value) in expected {
        let read = eventually("an answer", || async { Ok(Some(get(&scene, row).await?)) });
        assert_eq!(read.await?, value, "{row}");
    }
    let listed = scene.pelton.json(&["state", "ls", "rows"]).await?;
    let keys = listed.as_array().map_or(0, Vec::len);
    assert_eq!(keys, 3, "{listed}");
    Ok(())
}

#[tokio::test]
async fn a_row_that_expired_may_be_created_again_by_what_rests_on_that() -> Result<()> {
    let scene = rows().await?;
    for round in 0..3 {
        let toggled = act(&scene, "lock", json!({ "do": "toggle" })).await;
        toggled?;
        act(
            &scene,
            "lock",
            json!({ "do": "set", "value": round, "ttl_ms": 1000 }),
        )
        .await?;
        eventually("the row to expire", || async {
            let value = get(&scene, "lock").await?;
            Ok((value == Value::Null).then_some(()))
        })
        .await?;
    }
    assert!(scene.nats.dead("shop").await?.is_empty());
    none_left(&scene, "$KV.shop.rows.lock").await
}
