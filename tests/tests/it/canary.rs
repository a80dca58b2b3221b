//! A new version that is tried: on no event first, then on a share of the keys, and taken back when it is worse.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Node, Scene, build, eventually, project, within};
use serde_json::{Value, json};

/// Keys that events come for.
const KEYS: u64 = 400;
/// From the decision to take a version back until the one before has done all that came.
const SERVED: Duration = Duration::from_secs(5);

/// A function in order per key that panics unless it is `mended`, and then tries again for a long time.
fn manifest(tag: &str, mended: &str, more: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let retry = "retry = { max-attempts = 50, initial-delay = \"20s\", max-delay = \"60s\" }";
    let more = format!("{retry}\n{more}");
    text += &project::keyed("hostile", &build::component("hostile")?, 3, &more);
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\nmended = {mended:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// One event for each key; sequences by key.
async fn round(nats: &Nats) -> Result<Vec<u64>> {
    let mut sequences = Vec::new();
    for key in 0..KEYS {
        let subject = format!("hostile.act.k{key}");
        let body = r#"{"do":"crash-unless-mended"}"#;
        sequences.push(nats.publish(&subject, body).await?);
    }
    Ok(sequences)
}

async fn done(nats: &Nats, sequence: u64) -> Result<Value> {
    eventually(&format!("event {sequence} to be handled"), || async {
        nats.value("shop", &format!("done.HOSTILE=3A{sequence}"))
            .await
    })
    .await
}

async fn status(scene: &Scene) -> Result<Value> {
    scene.pelton.json(&["rollout", "hostile", "status"]).await
}

#[tokio::test]
async fn a_bad_canary_meets_its_share_of_keys_and_is_taken_back() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    let _second = scene.node()?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    let mut rounds = vec![round(&scene.nats).await?];
    scene.project.change(&manifest("v2", "no", "")?)?;
    let canary = ["deploy", "--canary", "20%", "--min-attempts", "40"];
    let said = scene.pelton.ok(&canary).await?;
    ensure!(
        said.stdout.contains("version 2 gets 20 % of the keys"),
        "{said:#?}"
    );
    // Until it is taken back, and a little longer.
    let taken_back = async {
        eventually("it to be taken back", || async {
            let status = status(&scene).await?;
            Ok(status["trial"].is_null().then_some(status))
        })
        .await
    };
    let publishing = async {
        let mut rounds = Vec::new();
        loop {
            rounds.push(round(&scene.nats).await?);
            if status(&scene).await?["trial"].is_null() {
                return anyhow::Ok(rounds);
            }
        }
    };
    let (taken_back, more) = tokio::join!(taken_back, publishing);
    let story = taken_back?;
    rounds.extend(more?);
    // What it failed at would have waited twenty seconds for its next attempt, had nobody taken it back.
    within(SERVED, "the version before to have done all", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        ensure!(info["status"]["pending"] == 0, "{}", info["status"]);
        Ok(Some(()))
    })
    .await?;
    rounds.push(round(&scene.nats).await?);

    let last = story["story"]
        .as_array()
        .and_then(|all| all.last())
        .context("a story")?;
    assert_eq!(
        (&last["what"], &last["version"]),
        (&json!("taken-back"), &json!(2))
    );
    ensure!(last["new"]["failure_rate"] == 1.0, "{last}");
    ensure!(last["old"]["failure_rate"] == 0.0, "{last}");

    let mut met = BTreeSet::new();
    for sequences in &rounds {
        for (key, sequence) in sequences.iter().enumerate() {
            let done = done(&scene.nats, *sequence).await?;
            assert_eq!(done["tag"], "v1");
            if done["attempt"].as_u64() > Some(1) {
                met.insert(key);
            }
        }
    }
    let share = met.len() as f64 * 100.0 / KEYS as f64;
    ensure!((15.0..=25.0).contains(&share), "{share} % of keys met it");
    ensure!(scene.nats.dead("shop").await?.is_empty());
    eventually("the log to say so", || async {
        let args = ["logs", "--function", "hostile", "-n", "2000"];
        let log = scene.pelton.ok(&args).await?;
        Ok(log.stdout.contains("version 2 taken-back").then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_good_canary_goes_up_its_steps() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    scene.project.change(&manifest("v2", "yes", "")?)?;
    let canary = [
        "deploy",
        "--canary",
        "10%",
        "--steps",
        "50,100",
        "--every",
        "1s",
        "--min-attempts",
        "20",
        "--max-p99",
        "50",
    ];
    scene.pelton.ok(&canary).await?;
    let mut rounds = Vec::new();
    while !status(&scene).await?["trial"].is_null() {
        rounds.push(round(&scene.nats).await?);
    }
    let status = status(&scene).await?;
    assert_eq!(status["version"], 2);
    let told = status["story"].as_array().context("a story")?.iter();
    let told: Vec<(&str, u64)> = told
        .filter_map(|one| Some((one["what"].as_str()?, one["share"].as_u64()?)))
        .collect();
    assert_eq!(
        told,
        [
            ("begun", 0),
            ("step", 1000),
            ("step", 5000),
            ("promoted", 10000)
        ]
    );
    scene.nats.serving("hostile", Some(2), 1).await?;
    let last = round(&scene.nats).await?;
    for sequences in rounds.iter().chain([&last]) {
        for sequence in sequences {
            assert_eq!(done(&scene.nats, *sequence).await?["attempt"], 1);
        }
    }
    // A key does not flip between versions: once it had the new one it keeps it.
    for key in 0..KEYS as usize {
        let mut before = "v1".to_owned();
        for sequences in &rounds {
            let sequence = sequences.get(key).context("one of each key")?;
            let tag = done(&scene.nats, *sequence).await?["tag"].clone();
            let tag = tag.as_str().unwrap_or_default().to_owned();
            ensure!(before == "v1" || tag == "v2", "key {key} went back");
            before = tag;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_no_node_can_load_never_becomes_active() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    scene
        .project
        .change(&manifest("v2", "yes", "secrets = [\"NOT_THERE\"]")?)?;
    let said = ["not deployed", "no node can load it", "NOT_THERE"];
    scene.pelton.refused(&["deploy"], &said).await?;
    scene.nats.serving("hostile", Some(1), 1).await?;
    let status = status(&scene).await?;
    assert_eq!(
        (&status["version"], &status["trial"]),
        (&json!(1), &Value::Null)
    );
    let sequence = round(&scene.nats).await?.first().copied().context("one")?;
    assert_eq!(done(&scene.nats, sequence).await?["tag"], "v1");
    // The number is used up; what comes next is loaded and active.
    scene.project.change(&manifest("v3", "yes", "")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(3), 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_first_version_that_no_node_can_load_is_no_function() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    let other = |secret: &str| -> Result<String> {
        let mut text = manifest("v1", "yes", "")?;
        text += &project::function("second", &build::component("hostile")?, secret);
        Ok(text + "[functions.second.allow]\nhttp = [\"127.0.0.1:9\"]\n")
    };
    scene
        .project
        .change(&other("secrets = [\"NOT_THERE\"]\nstart = \"new\"")?)?;
    scene
        .pelton
        .refused(
            &["deploy"],
            &["not deployed: second version 1", "NOT_THERE"],
        )
        .await?;
    let listed = scene.pelton.json(&["function", "ls"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    scene.project.change(&other("start = \"new\"")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("second", Some(1), 1).await?;
    Ok(())
}

#[tokio::test]
async fn a_canary_is_promoted_or_aborted_by_hand() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    let none = scene
        .pelton
        .refused(&["rollout", "hostile", "promote"], &["is being tried"]);
    none.await?;
    let canary = ["deploy", "--canary", "30%", "--no-judge"];
    for (tag, command, version) in [("v2", "abort", 1), ("v3", "promote", 3)] {
        scene.project.change(&manifest(tag, "yes", "")?)?;
        scene.pelton.ok(&canary).await?;
        assert_eq!(status(&scene).await?["trial"]["share"], 3000);
        scene.pelton.ok(&["rollout", "hostile", command]).await?;
        scene.nats.serving("hostile", Some(version), 1).await?;
        ensure!(status(&scene).await?["trial"].is_null());
    }
    // What takes its events in another way cannot have a share of them.
    scene
        .project
        .change(&manifest("v4", "yes", "schedule = \"0 0 0 1 1 *\"")?)?;
    scene
        .pelton
        .refused(&canary, &["`schedule` changes", "without --canary"])
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_version_that_fails_at_its_sample_never_gets_an_event() -> Result<()> {
    let sample =
        "sample = { subject = \"hostile.act.sample\", data = '{\"do\":\"crash-unless-mended\"}' }";
    let scene = Scene::start(&manifest("v1", "yes", sample)?).await?;
    // It was handled on state that was thrown away.
    let handled = scene.pelton.json(&["state", "ls"]).await?;
    assert_eq!(handled.as_array().map(Vec::len), Some(0), "{handled}");
    scene.project.change(&manifest("v2", "no", sample)?)?;
    let said = ["not deployed", "its sample event: pelton-trap", "mended"];
    scene.pelton.refused(&["deploy"], &said).await?;
    scene.nats.serving("hostile", Some(1), 1).await?;
    let other = sample.replace("hostile.act.sample", "orders.x");
    scene.project.change(&manifest("v2", "yes", &other)?)?;
    scene
        .pelton
        .refused(
            &["deploy"],
            &["no handler takes the sample's subject orders.x"],
        )
        .await?;
    let sequence = round(&scene.nats).await?.first().copied().context("one")?;
    assert_eq!(done(&scene.nats, sequence).await?["tag"], "v1");
    Ok(())
}

#[tokio::test]
async fn blue_and_green_are_switched_when_all_nodes_are_ready() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    let small = ["--max-memory", "64MiB"];
    let mut second = Node::start(&scene.pelton, &small)?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    scene
        .project
        .change(&manifest("v2", "yes", "memory = \"128MiB\"")?)?;
    let deploy = ["deploy", "--blue-green"];
    let said = ["not deployed", "1 of 2 nodes can load it", "--max-memory"];
    scene.pelton.refused(&deploy, &said).await?;
    assert_eq!(status(&scene).await?["version"], 1);
    second.kill().await?;
    let _large = scene.node()?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    scene
        .pelton
        .ok(&[deploy.as_slice(), &["--keep-warm", "1h"]].concat())
        .await?;
    // The number of what was withdrawn is used up.
    scene.nats.serving("hostile", Some(3), 2).await?;
    let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
    ensure!(info["record"]["warm_until"].is_string(), "{info}");
    scene.pelton.ok(&["rollback", "hostile"]).await?;
    scene.nats.serving("hostile", Some(1), 2).await
}

/// As after a first deploy that was killed while nodes loaded the version.
#[tokio::test]
async fn a_first_deploy_that_was_cut_off_is_done_anew() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes", "")?).await?;
    let mut text = manifest("v1", "yes", "")?;
    let second = "start = \"new\"";
    text += &project::function("second", &build::component("hostile")?, second);
    text += "[functions.second.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    scene.project.change(&text)?;
    let registry = scene.nats.js.get_key_value("PELTON_REGISTRY").await?;
    let key = "function.shop.second";
    scene.pelton.ok(&["deploy"]).await?;
    let record = registry.get(key).await?.context("it is deployed")?;
    let mut record: Value = serde_json::from_slice(&record)?;
    registry.delete(key).await?;
    let gone = eventually("nobody to serve it", || async {
        let nodes = scene.nats.nodes().await?;
        let functions = nodes[0]["functions"].as_array().map(Vec::len);
        Ok((functions == Some(1)).then_some(()))
    });
    gone.await?;
    record["pending"] = json!(true);
    registry
        .put(key, serde_json::to_vec(&record)?.into())
        .await?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("second", Some(2), 1).await?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(!said.stdout.contains("version 3"), "{said:#?}");
    Ok(())
}
