//! Older versions: kept as they were deployed, listed, and made active again while events flow.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, eventually, project, wait};

/// A function in order per key that panics unless it is `mended`, and then tries again for a long time.
fn manifest(tag: &str, mended: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let retry = "retry = { max-attempts = 50, initial-delay = \"1h\", max-delay = \"2h\" }";
    text += &project::keyed("hostile", &build::component("hostile")?, 3, retry);
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\nmended = {mended:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// `count` events over as many keys; sequences of the stream.
async fn publish(nats: &Nats, count: u64) -> Result<Vec<u64>> {
    let mut sequences = Vec::new();
    for n in 0..count {
        let subject = format!("hostile.act.k{n}");
        sequences.push(
            nats.publish(&subject, r#"{"do":"crash-unless-mended"}"#)
                .await?,
        );
    }
    Ok(sequences)
}

/// Under which tag an event was handled, once it is.
async fn handled(nats: &Nats, sequence: u64) -> Result<String> {
    let done = eventually(&format!("event {sequence} to be handled"), || async {
        nats.value("shop", &format!("done.HOSTILE=3A{sequence}"))
            .await
    })
    .await?;
    Ok(done["tag"].as_str().unwrap_or_default().to_owned())
}

async fn retried(nats: &Nats) -> Result<u64> {
    let mut retried = 0;
    for node in nats.nodes().await? {
        for function in node["functions"].as_array().into_iter().flatten() {
            retried += function["counts"]["retried"].as_u64().unwrap_or(0);
        }
    }
    Ok(retried)
}

#[tokio::test]
async fn a_rollback_ends_a_crash_loop_on_every_node_at_once() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes")?).await?;
    let _second = scene.node()?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    for sequence in publish(&scene.nats, 20).await? {
        assert_eq!(handled(&scene.nats, sequence).await?, "v1");
    }
    scene.project.change(&manifest("v2", "no")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(2), 2).await?;
    let waiting = publish(&scene.nats, 40).await?;
    eventually("all of them to have failed", || async {
        Ok((retried(&scene.nats).await? >= 40).then_some(()))
    })
    .await?;

    let began = Instant::now();
    let rolled = scene.pelton.json(&["rollback", "hostile"]).await?;
    assert_eq!(
        (&rolled["rollback"]["from"], &rolled["rollback"]["to"]),
        (&2.into(), &1.into())
    );
    assert_eq!(rolled["rollout"]["running"][0], "hostile");
    // Their next attempt was up to an hour away: the version that is active again makes it at once.
    for sequence in waiting {
        assert_eq!(handled(&scene.nats, sequence).await?, "v1");
    }
    ensure!(
        began.elapsed() < wait::PROMPT,
        "not before their pause was over: {:?}",
        began.elapsed()
    );
    ensure!(scene.nats.dead("shop").await?.is_empty());
    scene.nats.serving("hostile", Some(1), 2).await?;

    let versions = scene
        .pelton
        .json(&["function", "versions", "hostile"])
        .await?;
    let versions = versions.as_array().context("a list")?.iter();
    let listed: Vec<(Option<u64>, Option<bool>, Option<u64>)> = versions
        .map(|one| {
            (
                one["version"].as_u64(),
                one["active"].as_bool(),
                one["nodes"].as_u64(),
            )
        })
        .collect();
    assert_eq!(
        listed,
        [
            (Some(2), Some(false), Some(0)),
            (Some(1), Some(true), Some(2))
        ]
    );
    // What is deployed next has a number of its own.
    scene.project.change(&manifest("v3", "yes")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(3), 2).await?;
    let last = publish(&scene.nats, 1).await?;
    let last = last.first().context("one was published")?;
    assert_eq!(handled(&scene.nats, *last).await?, "v3");
    scene
        .pelton
        .ok(&["rollback", "hostile", "--to", "1"])
        .await?;
    scene.nats.serving("hostile", Some(1), 2).await?;
    Ok(())
}

#[tokio::test]
async fn a_rollback_to_nothing_says_what_there_is() -> Result<()> {
    let scene = Scene::start(&manifest("v1", "yes")?).await?;
    let words = ["active before version 1", "deploy another one first"];
    scene
        .pelton
        .refused(&["rollback", "hostile"], &words)
        .await?;
    scene.project.change(&manifest("v2", "yes")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    for (to, why) in [("2", "is the active one"), ("7", "has no version 7")] {
        let words = [why, "name one of 1 with --to"];
        scene
            .pelton
            .refused(&["rollback", "hostile", "--to", to], &words)
            .await?;
    }
    let dry = scene
        .pelton
        .ok(&["rollback", "hostile", "--dry-run"])
        .await?;
    ensure!(dry.stdout.contains("config.tag v2 → v1"), "{dry:#?}");
    scene.nats.serving("hostile", Some(2), 1).await?;
    Ok(())
}
