//! Deploying a new version while events flow: nodes change over without a stop.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use pelton_tests::{Scene, build, project};

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
