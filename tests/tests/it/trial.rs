//! A version that is tried beside the active one, and what is done to the function meanwhile: deploys, rollbacks, pauses, other settings, nodes
//! that come, handlers that hang.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pelton_tests::http::HttpServer;
use pelton_tests::{Node, Pelton, Scene, build, eventually, project, wait, within};
use serde_json::{Value, json};

/// A function in order per key; `more` are keys of its own.
fn manifest(tag: &str, mended: &str, http: &str, more: &str) -> Result<String> {
    let component = build::component("hostile")?;
    Ok(of(
        &project::keyed("hostile", &component, 3, more),
        tag,
        mended,
        http,
    ))
}

fn of(function: &str, tag: &str, mended: &str, http: &str) -> String {
    format!(
        "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n{function}[functions.hostile.config]\ntag = {tag:?}\nmended = {mended:?}\n\
         [functions.hostile.allow]\nhttp = [{http:?}]\n"
    )
}

const NOBODY: &str = "127.0.0.1:9";
const LONG_RETRY: &str =
    "retry = { max-attempts = 50, initial-delay = \"1h\", max-delay = \"2h\" }";

async fn status(scene: &Scene) -> Result<Value> {
    scene.pelton.json(&["rollout", "hostile", "status"]).await
}

/// What became of which version last, and which one is active alone.
async fn ended(scene: &Scene, what: &str, version: u64, active: u64) -> Result<()> {
    let status = status(scene).await?;
    let last = status["story"].as_array().and_then(|all| all.last());
    let last = last.context("a story")?;
    let found = (&last["what"], &last["version"], &status["version"]);
    assert_eq!(found, (&json!(what), &json!(version), &json!(active)));
    assert!(status["trial"].is_null(), "{status}");
    scene.nats.serving("hostile", Some(active), 1).await
}

#[tokio::test]
async fn what_is_deployed_while_a_version_is_tried() -> Result<()> {
    let text = |tag: &str| manifest(tag, "yes", NOBODY, "");
    let scene = Scene::start(&text("v1")?).await?;
    let canary = ["deploy", "--canary", "30%", "--no-judge"];
    scene.project.change(&text("v2")?)?;
    scene.pelton.ok(&canary).await?;
    // The same once more, in either way: it goes on.
    for deploy in [&canary[..], &["deploy"]] {
        let said = scene.pelton.ok(deploy).await?;
        ensure!(
            said.stdout.contains("is tried already and goes on"),
            "{said:#?}"
        );
        let status = status(&scene).await?;
        let trial = (&status["trial"]["version"], &status["trial"]["share"]);
        assert_eq!(trial, (&json!(2), &json!(3000)), "{status}");
    }
    let versions = scene
        .pelton
        .json(&["function", "versions", "hostile"])
        .await?;
    assert_eq!(
        versions[0]["nodes"], 1,
        "one node runs the canary: {versions}"
    );
    // What is active already.
    scene.project.change(&text("v1")?)?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(said.stdout.contains("is taken back"), "{said:#?}");
    ended(&scene, "aborted", 2, 1).await?;
    // Going back means from the canary, if there is one.
    scene.project.change(&text("v3")?)?;
    scene.pelton.ok(&canary).await?;
    let back = ["rollback", "hostile"];
    let dry = scene
        .pelton
        .ok(&[&back[..], &["--dry-run"]].concat())
        .await?;
    ensure!(
        dry.stdout.contains("version 3, which is tried, would be"),
        "{dry:#?}"
    );
    ensure!(!status(&scene).await?["trial"].is_null());
    let said = scene.pelton.ok(&back).await?;
    ensure!(said.stdout.contains("version 1 has all keys"), "{said:#?}");
    ended(&scene, "aborted", 3, 1).await?;
    // Another one takes its place, and the story says so.
    scene.project.change(&text("v4")?)?;
    scene.pelton.ok(&canary).await?;
    scene.project.change(&text("v5")?)?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(said.stdout.contains("gives way to this one"), "{said:#?}");
    ended(&scene, "promoted", 5, 5).await?;
    let status = status(&scene).await?;
    let story = status["story"].as_array().context("a story")?.iter();
    let aborted = story.filter(|one| one["what"] == "aborted" && one["version"] == 4);
    assert_eq!(aborted.count(), 1, "{status}");
    // Back to what was active, and no further by the same words.
    let never = ["rollback", "hostile", "--to", "3"];
    scene
        .pelton
        .refused(&never, &["was never active", "name one of 1"])
        .await?;
    scene.pelton.ok(&back).await?;
    ended(&scene, "rolled-back", 1, 1).await?;
    let said = [
        "was rolled back to version 1 from version 5",
        "name one of 5 with --to",
    ];
    scene.pelton.refused(&back, &said).await?;
    Ok(())
}

#[tokio::test]
async fn what_no_canary_can_be_is_refused() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", NOBODY, "")?).await?;
    scene.project.change(&manifest("v2", "yes", NOBODY, "")?)?;
    for (flag, value, said) in [
        ("--steps", "50,25,100", "do not ascend"),
        ("--max-p99", "nan", "from 1 to 1000"),
        ("--max-p99", "inf", "from 1 to 1000"),
        ("--max-failures", "nan", "from 0% to 100%"),
        ("--min-attempts", "0", "not in 1.."),
    ] {
        let deploy = ["deploy", "--canary", "10%", flag, value];
        scene.pelton.refused(&deploy, &[said]).await?;
    }
    let component = build::component("hostile")?;
    let queue = of(
        &project::function("hostile", &component, ""),
        "v2",
        "yes",
        NOBODY,
    );
    scene.project.change(&queue)?;
    for way in [&["--canary", "10%"][..], &["--blue-green"]] {
        let deploy = [&["deploy"], way].concat();
        scene
            .pelton
            .refused(&deploy, &["`delivery` changes"])
            .await?;
    }
    scene.nats.serving("hostile", Some(1), 1).await?;
    // An entry that somebody spoilt is none that is not there.
    let registry = scene.nats.js.get_key_value("PELTON_REGISTRY").await?;
    registry.put("function.shop.hostile", "{".into()).await?;
    let rm = ["function", "rm", "hostile", "--yes", "--app", "shop"];
    scene
        .pelton
        .refused(&rm, &["cannot be read", "put back what it was"])
        .await?;
    Ok(())
}

/// Attempts that hang are in no figures, and hold what the active version needs.
#[tokio::test]
async fn a_canary_whose_attempts_hang_is_taken_back_before_they_end() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let more = "timeout = \"60s\"\nconcurrency = 8";
    let scene = Scene::start(&manifest("v1", "yes", &gate.host(), more)?).await?;
    scene
        .project
        .change(&manifest("v2", "no", &gate.host(), more)?)?;
    scene.pelton.ok(&["deploy", "--canary", "50%"]).await?;
    for key in 0..40 {
        let body = json!({ "do": "wait-unless-mended", "url": gate.url() });
        let subject = format!("hostile.act.k{key}");
        scene.nats.publish(&subject, body.to_string()).await?;
    }
    let taken_back = within(Duration::from_secs(20), "it to be taken back", || async {
        let status = status(&scene).await?;
        Ok(status["trial"].is_null().then_some(status))
    });
    let status = taken_back.await?;
    let last = status["story"].as_array().and_then(|all| all.last());
    let last = last.context("a story")?;
    assert_eq!(last["what"], "taken-back", "{last}");
    ensure!(
        last["why"]
            .as_str()
            .is_some_and(|why| why.contains("do not end")),
        "{last}"
    );
    assert_eq!(
        gate.requests(),
        8,
        "all that there may be at once, and none of them has ended"
    );
    gate.open();
    eventually("all to be handled by the version before", || async {
        let done = scene.nats.count_below("KV_shop", "$KV.shop.done.>").await?;
        ensure!(done == 40, "{done}");
        Ok(Some(()))
    })
    .await
}

/// An attempt that is under way at a rollback ends after it: its next one is due at once all the same.
#[tokio::test]
async fn what_fails_after_a_rollback_does_not_wait_for_its_pause() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let more = format!("timeout = \"60s\"\n{LONG_RETRY}");
    let scene = Scene::start(&manifest("v1", "yes", &gate.host(), &more)?).await?;
    scene
        .project
        .change(&manifest("v2", "no", &gate.host(), &more)?)?;
    scene.pelton.ok(&["deploy"]).await?;
    let body = json!({ "do": "wait-unless-mended", "url": gate.url() }).to_string();
    let sequence = scene.nats.publish("hostile.act.a", body).await?;
    gate.asked(1).await?;
    scene.pelton.ok(&["rollback", "hostile"]).await?;
    let began = Instant::now();
    gate.open();
    let key = format!("done.HOSTILE=3A{sequence}");
    let done = eventually("it to be handled", || scene.nats.value("shop", &key)).await?;
    assert_eq!((&done["tag"], &done["attempt"]), (&json!("v1"), &json!(2)));
    ensure!(began.elapsed() < wait::PROMPT, "{:?}", began.elapsed());
    Ok(())
}

/// Another node may have another secret: where the sample fails no event goes to the version, whoever made it active.
#[tokio::test]
async fn a_node_on_which_the_sample_fails_goes_on_with_the_version_before() -> Result<()> {
    let sample = "sample = { subject = \"hostile.act.sample\", data = '{\"do\":\"needs-word\"}' }";
    let more = "secrets = [\"WORD\"]";
    let text = manifest("v1", "yes", NOBODY, more)?;
    let scene = Scene::start_with(&text, &[("PELTON_SECRET_WORD", "yes")]).await?;
    let mut other = Pelton::new(&scene.server.url(), scene.project.path())?;
    other.set_env("PELTON_SECRET_WORD", "no");
    let second = Node::start(&other, &[])?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    let both = format!("{more}\n{sample}");
    scene
        .project
        .change(&manifest("v2", "yes", NOBODY, &both)?)?;
    let said = ["not running everywhere", "its sample event: no-word"];
    scene.pelton.refused(&["deploy"], &said).await?;
    let pid = u64::from(second.pid());
    let nodes = scene.nats.nodes().await?;
    for node in &nodes {
        let version = if node["pid"] == pid { 1 } else { 2 };
        assert_eq!(node["functions"][0]["version"], version, "{node}");
    }
    // One that starts later tries it first, too, and takes no event.
    let third = Node::start(&other, &[])?;
    eventually("it to say why it runs nothing", || async {
        let nodes = scene.nats.nodes().await?;
        let third = nodes
            .iter()
            .find(|node| node["pid"] == u64::from(third.pid()));
        let Some(function) = third.map(|node| &node["functions"][0]) else {
            return Ok(None);
        };
        ensure!(function["version"] == 0, "{function}");
        let failed = function["status"].as_str().unwrap_or_default();
        Ok(failed.starts_with("failed").then_some(()))
    })
    .await
}

/// A queue is opened anew for another concurrency, and the version that is tried with it.
#[tokio::test]
async fn a_canary_of_a_queue_outlives_another_concurrency() -> Result<()> {
    let component = build::component("hostile")?;
    let text = |tag: &str| {
        of(
            &project::function("hostile", &component, ""),
            tag,
            "yes",
            NOBODY,
        )
    };
    let scene = Scene::start(&text("v1")).await?;
    scene.project.change(&text("v2"))?;
    scene
        .pelton
        .ok(&["deploy", "--canary", "50%", "--no-judge"])
        .await?;
    let set = ["function", "set", "hostile", "--concurrency", "8"];
    scene.pelton.ok(&set).await?;
    let info = scene.pelton.ok(&["function", "info", "hostile"]).await?;
    ensure!(info.stdout.contains("8 at once per node"), "{info:#?}");
    let mut sequences = Vec::new();
    for key in 0..40 {
        let subject = format!("hostile.act.k{key}");
        sequences.push(
            scene
                .nats
                .publish(&subject, json!({ "do": "fine" }).to_string())
                .await?,
        );
    }
    let mut tags = Vec::new();
    for sequence in sequences {
        let key = format!("done.HOSTILE=3A{sequence}");
        let done = eventually("it to be handled", || scene.nats.value("shop", &key)).await?;
        tags.push(done["tag"].as_str().unwrap_or_default().to_owned());
    }
    for tag in ["v1", "v2"] {
        ensure!(tags.iter().any(|one| one == tag), "none by {tag}");
    }
    Ok(())
}

/// As after a first deploy that was killed while nodes loaded the version: it can be looked at and removed.
#[tokio::test]
async fn a_first_version_that_was_cut_off_is_removed() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", NOBODY, "")?).await?;
    let registry = scene.nats.js.get_key_value("PELTON_REGISTRY").await?;
    let key = "function.shop.hostile";
    let record = registry.get(key).await?.context("it is deployed")?;
    let mut record: Value = serde_json::from_slice(&record)?;
    registry.delete(key).await?;
    let mut nodes = eventually("nobody to serve it", || async {
        let nodes = scene.nats.nodes().await?;
        let none = nodes
            .iter()
            .all(|node| node["functions"].as_array().is_some_and(Vec::is_empty));
        Ok(none.then_some(nodes))
    })
    .await?;
    record["pending"] = json!(true);
    registry
        .put(key, serde_json::to_vec(&record)?.into())
        .await?;
    let said = scene.pelton.ok(&["rollout", "hostile", "status"]).await?;
    ensure!(said.stdout.contains("no event goes to it"), "{said:#?}");
    let abort = ["rollout", "hostile", "abort"];
    scene
        .pelton
        .refused(&abort, &["is its first", "function rm hostile"])
        .await?;
    // A node that drains has nothing of it, either.
    let node = nodes.remove(0)["node"].take();
    let node = node.as_str().context("an id")?;
    scene.pelton.ok(&["node", "drain", node]).await?;
    scene.pelton.ok(&["node", "drain", node, "--undo"]).await?;
    let rm = ["function", "rm", "hostile", "--yes"];
    scene.pelton.ok(&rm).await?;
    scene.pelton.refused(&rm, &["no function hostile"]).await?;
    Ok(())
}
