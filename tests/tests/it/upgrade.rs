//! Two releases at once: what an earlier one stored goes on with this one, and a node of the earlier one is still there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

const FUNCTION: &str = include_str!("../../fixtures/0.1.0/function.json");
const NODE: &str = include_str!("../../fixtures/0.1.0/node.json");
/// Key of the function's record.
const KEY: &str = "function.shop.hostile";

fn manifest(tag: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// Writes the record as the earlier release would have: of its own fields nothing else, with the component and the input of here.
async fn as_before(nats: &Nats) -> Result<()> {
    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    let now = registry.get(KEY).await?.context("it is deployed")?;
    let now: Value = serde_json::from_slice(&now)?;
    let mut before: Map<String, Value> = serde_json::from_str(FUNCTION)?;
    for (name, value) in &mut before {
        *value = now[name].clone();
    }
    registry
        .put(KEY, serde_json::to_vec(&before)?.into())
        .await?;
    // It kept no versions.
    registry.purge("version.shop.hostile.1").await?;
    Ok(())
}

/// A node of the earlier release that runs what `version` says, as its heartbeats tell.
async fn beat(nats: Nats, version: watch::Receiver<u64>) -> Result<()> {
    let mut node: Value = serde_json::from_str(NODE)?;
    let id = node["node"].as_str().context("an id")?.to_owned();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        let version = *version.borrow();
        let functions = node["functions"].as_array_mut().context("a list")?;
        functions.retain(|one| one["function"] == "hostile");
        for function in functions {
            function["version"] = json!(version);
            function["deployed"] = json!(version);
        }
        let body = serde_json::to_vec(&node)?;
        let subject = format!("$KV.PELTON_NODES.{id}");
        nats.core.publish(subject, body.into()).await?;
    }
}

/// Publishes an event and waits until it was handled; the tag of the version that did.
async fn handled(nats: &Nats, key: u64) -> Result<String> {
    let subject = format!("hostile.act.k{key}");
    let sequence = nats.publish(&subject, r#"{"do":"fine"}"#).await?;
    let done = eventually(&format!("event {sequence} to be handled"), || async {
        nats.value("shop", &format!("done.HOSTILE=3A{sequence}"))
            .await
    })
    .await?;
    Ok(done["tag"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_an_earlier_release_deployed_goes_on_beside_a_node_of_it() -> Result<()> {
    let mut scene = Scene::start(&manifest("v1")?).await?;
    for key in 0..8 {
        assert_eq!(handled(&scene.nats, key).await?, "v1");
    }
    scene.node.terminate(Duration::from_secs(20)).await?;
    as_before(&scene.nats).await?;
    scene.node = scene.node()?;
    scene.nats.serving("hostile", Some(1), 1).await?;
    for key in 0..8 {
        assert_eq!(handled(&scene.nats, key).await?, "v1");
    }
    assert_eq!(
        scene.nats.count_below("KV_shop", "$KV.shop.done.>").await?,
        16
    );

    let (runs, version) = watch::channel(1);
    let beats = tokio::spawn(beat(scene.nats.clone(), version));
    scene.nats.serving("hostile", Some(1), 2).await?;
    scene.project.change(&manifest("v2")?)?;
    // It tries no version, and is waited for until it runs what became the active one.
    let lags = ["node-1", "does not run hostile yet"];
    let deploy: &[&str] = &["deploy", "--wait", "4s"];
    scene.pelton.refused(deploy, &lags).await?;
    runs.send(2)?;
    scene.pelton.ok(&["deploy"]).await?;
    let nodes = scene.pelton.ok(&["node", "ls"]).await?;
    ensure!(nodes.stdout.contains("node-1"), "{nodes:#?}");
    // It is gone, and what it had is the new one's.
    beats.abort();
    assert_eq!(handled(&scene.nats, 1).await?, "v2");
    // The version that it deployed was kept by the deploy that followed.
    scene.pelton.ok(&["rollback", "hostile"]).await?;
    assert_eq!(handled(&scene.nats, 2).await?, "v1");
    Ok(())
}
