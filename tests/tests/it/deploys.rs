//! Many deploys while events arrive: none is lost, handled twice, or failed because of one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Scene, build, load, project, within};

const DEPLOYS: usize = 20;

fn manifest(tag: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

#[tokio::test]
async fn twenty_deploys_under_load_are_noticed_by_no_event() -> Result<()> {
    let scene = Scene::start(&manifest("v1")?).await?;
    let _second = scene.node()?;
    let nats = &scene.nats;
    nats.serving("hostile", Some(1), 2).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let deploying = async {
        for version in 2..=DEPLOYS + 1 {
            scene.project.change(&manifest(&format!("v{version}"))?)?;
            scene.pelton.ok(&["deploy"]).await?;
        }
        let _ = stop.send(());
        anyhow::Ok(())
    };
    let (sent, deployed) = tokio::join!(load::publish_counts(nats, stopped), deploying);
    deployed?;
    let sent = sent?;
    within(Duration::from_secs(120), "all to be handled", || async {
        let done = nats.count_below("KV_shop", "$KV.shop.done.>").await?;
        ensure!(done as u64 == sent, "{done} of {sent}");
        Ok(Some(()))
    })
    .await?;

    let mut counted = 0;
    for key in 0..load::KEYS {
        let value = nats.value("shop", &format!("counters.c{key}")).await?;
        counted += value.and_then(|value| value.as_u64()).context("a number")?;
    }
    assert_eq!(counted, sent, "lost or handled twice");
    ensure!(nats.dead("shop").await?.is_empty());
    for node in nats.nodes().await? {
        let counts = &node["functions"][0]["counts"];
        assert_eq!(counts["retried"], 0, "{counts}");
    }
    Ok(())
}
