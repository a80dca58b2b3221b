//! A function begins elsewhere in its inputs, and one is removed: nothing is lost that was not said to be, and what is handled again has its
//! effects again.

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::json;

fn manifest(more: &str) -> Result<String> {
    manifest_of(project::keyed(
        "hostile",
        &build::component("hostile")?,
        3,
        more,
    ))
}

fn manifest_of(function: String) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += "[streams.OUT]\nsubjects = [\"out.>\"]\n";
    text += &function;
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\nemit = [\"out.>\"]\n";
    Ok(text)
}

/// Events that add one to a counter, each of another key.
async fn count(nats: &Nats, events: usize) -> Result<()> {
    let body = json!({ "do": "count", "counter": "all" }).to_string();
    for key in 0..events {
        nats.publish(&format!("hostile.act.k{key}"), body.clone())
            .await?;
    }
    Ok(())
}

async fn counted(nats: &Nats, expected: u64) -> Result<()> {
    eventually(&format!("{expected} to be counted"), || async {
        let found = nats.value("shop", "counters.all").await?;
        let found = found.and_then(|value| value.as_u64()).unwrap_or(0);
        ensure!(found == expected, "{found} counted");
        Ok(Some(()))
    })
    .await
}

async fn at_rest(scene: &Scene) -> Result<()> {
    eventually("nothing to be pending", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        ensure!(info["status"]["pending"] == 0, "{info}");
        Ok(Some(()))
    })
    .await
}

async fn resets(manifest: &str) -> Result<()> {
    let scene = Scene::start(manifest).await?;
    let _second = scene.node()?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    let nats = &scene.nats;
    count(nats, 40).await?;
    let emit = json!({ "do": "emit", "subject": "out.a", "count": 1, "bytes": 10 });
    nats.publish("hostile.act.emit", emit.to_string()).await?;
    counted(nats, 40).await?;
    at_rest(&scene).await?;

    let again = ["function", "reset", "hostile", "--to", "start"];
    let said = scene
        .pelton
        .json(&[again.as_slice(), &["--dry-run"]].concat())
        .await?;
    let input = &said["reset"]["inputs"][0];
    assert_eq!(
        (&input["to"], &input["again"]),
        (&json!(0), &json!(41)),
        "{said}"
    );
    assert_eq!(said["applied"], false);
    scene
        .pelton
        .refused(&again, &["no terminal to ask on", "--yes"])
        .await?;
    counted(nats, 40).await?;
    scene
        .pelton
        .ok(&[again.as_slice(), &["--yes"]].concat())
        .await?;
    counted(nats, 80).await?;
    eventually("the event to be emitted again", || async {
        let arrived = nats.count("OUT").await?;
        ensure!(arrived == 2, "{arrived} arrived");
        Ok(Some(()))
    })
    .await?;
    at_rest(&scene).await?;
    // The last ten, by their sequence.
    let from = ["function", "reset", "hostile", "--to", "32", "--yes"];
    scene.pelton.ok(&from).await?;
    counted(nats, 89).await?;
    at_rest(&scene).await?;

    // One that is paused stays so, and what is passed by stays unhandled.
    scene.pelton.ok(&["function", "pause", "hostile"]).await?;
    count(nats, 10).await?;
    let new = ["function", "reset", "hostile", "--to", "new", "--yes"];
    let said = scene.pelton.json(&new).await?;
    assert_eq!(said["reset"]["inputs"][0]["passed_by"], 10, "{said}");
    scene.pelton.ok(&["function", "resume", "hostile"]).await?;
    count(nats, 5).await?;
    counted(nats, 94).await?;
    at_rest(&scene).await?;
    ensure!(nats.dead("shop").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_function_of_positions_begins_elsewhere() -> Result<()> {
    resets(&manifest("")?).await
}

#[tokio::test]
async fn a_function_of_the_queue_begins_elsewhere() -> Result<()> {
    let function = project::function("hostile", &build::component("hostile")?, "");
    resets(&manifest_of(function)?).await
}

#[tokio::test]
async fn what_waits_goes_on_waiting_or_is_begun_anew() -> Result<()> {
    // Delays are random: of nine attempts some are still to come at the reset.
    let retry = "retry = { max-attempts = 50, initial-delay = \"1s\", max-delay = \"1s\" }";
    let scene = Scene::start(&manifest(retry)?).await?;
    let nats = &scene.nats;
    let fails = json!({ "do": "fail", "how": "retry", "code": "no", "well_at": 9 }).to_string();
    let before = nats.publish("hostile.act.a", fails.clone()).await?;
    count(nats, 3).await?;
    let beyond = nats.publish("hostile.act.b", fails).await?;
    eventually("both to wait", || async {
        let parked = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        Ok((parked == 2).then_some(()))
    })
    .await?;
    counted(nats, 3).await?;
    let reset = ["function", "reset", "hostile", "--to", "3", "--yes"];
    let said = scene.pelton.json(&reset).await?;
    let input = &said["reset"]["inputs"][0];
    assert_eq!(input["begun_anew"], 1, "{said}");
    for sequence in [before, beyond] {
        let key = format!("done.HOSTILE=3A{sequence}");
        let done = eventually("it to be handled", || nats.value("shop", &key)).await?;
        assert_eq!(done["attempt"], 9, "{sequence}");
    }
    counted(nats, 5).await?;
    let wrong = ["function", "reset", "hostile", "--to", "99", "--yes"];
    scene.pelton.refused(&wrong, &["ends at 5"]).await?;
    let other = [
        "function", "reset", "hostile", "--to", "new", "--stream", "OUT", "--yes",
    ];
    scene
        .pelton
        .refused(
            &other,
            &["does not read stream OUT", "choose one of HOSTILE"],
        )
        .await?;
    Ok(())
}

#[tokio::test]
async fn what_waits_on_a_queue_is_passed_by_and_counted() -> Result<()> {
    let function = project::function("hostile", &build::component("hostile")?, "");
    let scene = Scene::start(&manifest_of(function)?).await?;
    let nats = &scene.nats;
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    nats.publish("hostile.act.a", waits).await?;
    count(nats, 3).await?;
    counted(nats, 3).await?;
    eventually("one to wait and no other", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let status = &info["status"];
        ensure!(status["pending"] == 1 && status["deferred"] == 1, "{info}");
        Ok(Some(()))
    })
    .await?;
    for (to, again, passed_by) in [("start", 4, 0), ("1", 4, 0), ("3", 2, 1), ("new", 0, 1)] {
        let dry = ["function", "reset", "hostile", "--to", to, "--dry-run"];
        let said = scene.pelton.json(&dry).await?;
        let input = &said["reset"]["inputs"][0];
        assert_eq!(
            (&input["again"], &input["passed_by"]),
            (&json!(again), &json!(passed_by)),
            "{said}"
        );
    }
    let reset = ["function", "reset", "hostile", "--to", "new", "--yes"];
    let said = scene.pelton.json(&reset).await?;
    assert_eq!(said["reset"]["inputs"][0]["passed_by"], 1, "{said}");
    at_rest(&scene).await?;
    count(nats, 1).await?;
    counted(nats, 4).await
}

#[tokio::test]
async fn a_function_is_removed_and_what_stays_is_said() -> Result<()> {
    let scene = Scene::start(&manifest("start = \"new\"\nschedule = \"* * * * * *\"")?).await?;
    let nats = &scene.nats;
    count(nats, 10).await?;
    counted(nats, 10).await?;
    let fails = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    nats.publish("hostile.act.a", fails).await?;
    eventually("it to wait", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        Ok((info["status"]["deferred"] == 1).then_some(()))
    })
    .await?;
    let rm = ["function", "rm", "hostile"];
    let dry = scene
        .pelton
        .json(&[rm.as_slice(), &["--dry-run"]].concat())
        .await?;
    assert_eq!(
        (&dry["removal"]["waiting"], &dry["applied"]),
        (&json!(1), &json!(false))
    );
    scene
        .pelton
        .refused(&rm, &["no terminal to ask on"])
        .await?;
    let said = scene
        .pelton
        .ok(&[rm.as_slice(), &["--yes"]].concat())
        .await?;
    ensure!(said.stdout.contains("state of app shop stays"), "{said:#?}");
    let listed = scene.pelton.json(&["function", "ls"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    counted(nats, 10).await?;
    for (what, stream) in [
        ("$KV.PELTON_shop.pos.hostile.HOSTILE.>", "KV_shop"),
        ("$KV.PELTON_shop.park.>", "KV_shop"),
        ("$KV.PELTON_shop.at.>", "KV_shop"),
        ("$KV.PELTON_REGISTRY.version.shop.>", "KV_PELTON_REGISTRY"),
    ] {
        let left = nats.count_below(stream, what).await.context(what)?;
        // A key that was purged leaves its marker.
        ensure!(left == 0 || what.contains("REGISTRY"), "{left} of {what}");
    }
    // Another function of its name, from version 1 on.
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("hostile", Some(1), 1).await?;
    count(nats, 5).await?;
    counted(nats, 15).await?;
    Ok(())
}

#[tokio::test]
async fn a_call_that_waits_is_seen_and_goes_with_its_function() -> Result<()> {
    let function = project::function("hostile", &build::component("hostile")?, "");
    let scene = Scene::start(&manifest_of(function)?).await?;
    let (nats, pelton) = (&scene.nats, &scene.pelton);
    let look = ["function", "info", "hostile"];
    let before = pelton.json(&look).await?;
    ensure!(before["status"]["internal"].is_null(), "{before}");
    let shown = pelton.ok(&look).await?.stdout;
    ensure!(!shown.contains("calls and timers"), "{shown}");
    // One with an id lies where it was stored, and in the park, too.
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    let call = ["call", "hostile", &waits, "--subject", "hostile.act.a"];
    let late = [call.as_slice(), &["--id", "late", "--timeout", "2s"]].concat();
    pelton.refused(&late, &["did not reply"]).await?;
    eventually("one call to wait", || async {
        let info = pelton.json(&look).await?;
        let (all, due) = (&info["status"], &info["status"]["internal"]);
        ensure!(due["pending"] == 1 && due["deferred"] == 1, "{info}");
        ensure!(all["pending"] == 1 && all["deferred"] == 1, "{info}");
        Ok(Some(()))
    })
    .await?;
    let shown = pelton.ok(&look).await?.stdout;
    ensure!(shown.contains("calls and timers"), "{shown}");
    let listed = pelton.json(&["function", "ls"]).await?;
    assert_eq!(listed[0]["pending"], 1, "{listed}");
    let dry = ["function", "rm", "hostile", "--dry-run"];
    let removal = pelton.json(&dry).await?["removal"].clone();
    assert_eq!(
        (&removal["calls"], &removal["unhandled"]),
        (&json!(1), &json!(0))
    );
    pelton.ok(&["function", "rm", "hostile", "--yes"]).await?;
    for kind in ["due", "park"] {
        let lies = format!("$KV.PELTON_shop.{kind}.>");
        assert_eq!(nats.count_below("KV_shop", &lies).await?, 0, "{kind}");
    }
    Ok(())
}

/// As after a removal that was killed when the function was out of the registry, and nothing else was done yet.
#[tokio::test]
async fn a_removal_that_was_cut_off_goes_on() -> Result<()> {
    let scene = Scene::start(&manifest("start = \"all\"")?).await?;
    let nats = &scene.nats;
    count(nats, 3).await?;
    counted(nats, 3).await?;
    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    registry.delete("function.shop.hostile").await?;
    // It writes its positions once more as it gives them back.
    nats.serving("hostile", None, 0).await?;
    let positions = "$KV.PELTON_shop.pos.hostile.HOSTILE.>";
    ensure!(
        nats.count_below("KV_shop", positions).await? > 0,
        "positions"
    );
    let rm = ["function", "rm", "hostile", "--yes", "--app", "shop"];
    scene.pelton.ok(&rm).await?;
    assert_eq!(nats.count_below("KV_shop", positions).await?, 0);
    let gone = ["no function hostile"];
    scene.pelton.refused(&rm, &gone).await?;
    Ok(())
}

/// A reset that was killed leaves its own pause behind, and the next one ends it; somebody else's pause it does not end.
#[tokio::test]
async fn a_reset_ends_its_own_pause_and_no_other() -> Result<()> {
    let scene = Scene::start(&manifest("start = \"all\"")?).await?;
    let nats = &scene.nats;
    count(nats, 3).await?;
    counted(nats, 3).await?;
    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    let key = "function.shop.hostile";
    let record = registry.get(key).await?.context("it is deployed")?;
    let mut record: serde_json::Value = serde_json::from_slice(&record)?;
    record["controls"] =
        json!({ "paused": { "at": "2026-01-01T00:00:00Z", "by": "a@b", "passing": true } });
    record["generation"] = json!(record["generation"].as_u64().unwrap_or(1) + 1);
    registry
        .put(key, serde_json::to_vec(&record)?.into())
        .await?;
    let reset = ["function", "reset", "hostile", "--to", "start", "--yes"];
    scene.pelton.ok(&reset).await?;
    counted(nats, 6).await?;
    // One that somebody else began a moment ago is not to be disturbed.
    let now = time::OffsetDateTime::now_utc();
    let now = now.format(&time::format_description::well_known::Rfc3339)?;
    let read = registry.get(key).await?.context("it is deployed")?;
    let mut record: serde_json::Value = serde_json::from_slice(&read)?;
    record["controls"] = json!({ "paused": { "at": now, "by": "a@b", "passing": true } });
    record["generation"] = json!(record["generation"].as_u64().unwrap_or(1) + 1);
    registry
        .put(key, serde_json::to_vec(&record)?.into())
        .await?;
    let said = ["a@b resets or removes function hostile", "function resume"];
    scene.pelton.refused(&reset, &said).await?;
    let rm = ["function", "rm", "hostile", "--yes"];
    scene.pelton.refused(&rm, &said).await?;
    scene.pelton.ok(&["function", "resume", "hostile"]).await?;
    scene.pelton.ok(&["function", "pause", "hostile"]).await?;
    scene.pelton.ok(&reset).await?;
    let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
    ensure!(info["record"]["controls"]["paused"].is_object(), "{info}");
    scene.pelton.ok(&["function", "resume", "hostile"]).await?;
    counted(nats, 9).await?;
    Ok(())
}
