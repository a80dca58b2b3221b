//! Dead letters: how long they are kept, and what is done with them.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream::Config;
use pelton_tests::{Scene, build, eventually, project};
use serde_json::{Value, json};

fn manifest(more: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed(
        "hostile",
        &build::component("hostile")?,
        2,
        project::QUICK_RETRY,
    );
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text + more)
}

async fn config(scene: &Scene) -> Result<Config> {
    let stream = scene.nats.js.get_stream("PELTON_DEAD_shop").await?;
    Ok(stream.cached_info().config.clone())
}

/// An event that its handler rejects, and the sequence of its dead letter.
async fn give_up(scene: &Scene, subject: &str) -> Result<u64> {
    let act = json!({ "do": "fail", "how": "reject", "code": "told-to", "well_at": 99 });
    let sequence = scene.nats.publish(subject, act.to_string()).await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    Ok(dead.sequence)
}

#[tokio::test]
async fn dead_letters_are_kept_for_a_time_and_up_to_a_size() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let found = config(&scene).await?;
    assert_eq!(found.max_age.as_secs(), 30 * 24 * 3600);
    assert_eq!(found.max_bytes, 256 << 20);

    // A stream of an earlier release has no limits; the next deploy gives it some.
    let unlimited = Config {
        max_age: std::time::Duration::ZERO,
        max_bytes: -1,
        ..found
    };
    scene.nats.js.update_stream(unlimited).await?;
    let more = "[dead-letters]\nmax-age = \"7d\"\nmax-bytes = \"10MiB\"\n";
    scene.project.change(&manifest(more)?)?;
    let plan = scene.pelton.json(&["deploy", "--dry-run"]).await?;
    ensure!(plan.to_string().contains("no longer for ever"), "{plan}");
    scene.pelton.ok(&["deploy"]).await?;
    let found = config(&scene).await?;
    assert_eq!(found.max_age.as_secs(), 7 * 24 * 3600);
    assert_eq!(found.max_bytes, 10 << 20);
    let plan = scene.pelton.json(&["deploy", "--dry-run"]).await?;
    ensure!(!plan.to_string().contains("no longer for ever"), "{plan}");
    Ok(())
}

fn rm<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["dead-letter", "rm"], args].concat()
}

#[tokio::test]
async fn dead_letters_are_removed_by_sequence_by_function_and_all() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let mut letters = Vec::new();
    for n in 0..4 {
        letters.push(
            give_up(&scene, &format!("hostile.act.{n}"))
                .await?
                .to_string(),
        );
    }
    let first = letters.first().context("a letter")?.as_str();
    scene
        .pelton
        .refused(&rm(&[first]), &["no terminal", "--yes"])
        .await?;
    let dry = scene.pelton.json(&rm(&["--all", "--dry-run"])).await?;
    assert_eq!(
        dry["would_remove"].as_array().map(Vec::len),
        Some(4),
        "{dry}"
    );
    assert_eq!(scene.nats.dead("shop").await?.len(), 4);

    scene
        .pelton
        .refused(&rm(&["9999", "--yes"]), &["no dead letter 9999"])
        .await?;
    let removed = scene.pelton.json(&rm(&[first, "--yes"])).await?;
    assert_eq!(removed["removed"][0]["code"], "told-to", "{removed}");
    assert_eq!(scene.nats.dead("shop").await?.len(), 3);
    scene
        .pelton
        .ok(&rm(&["--function", "other", "--yes"]))
        .await?;
    assert_eq!(scene.nats.dead("shop").await?.len(), 3);
    scene
        .pelton
        .ok(&rm(&["--function", "hostile", "--yes"]))
        .await?;
    assert!(scene.nats.dead("shop").await?.is_empty());
    let none = scene.pelton.json(&rm(&["--all", "--yes"])).await?;
    assert_eq!(none["removed"], Value::Array(Vec::new()));
    Ok(())
}

#[tokio::test]
async fn an_event_with_a_long_subject_is_replayed() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let subject = format!("hostile.act.{}", "x".repeat(2000));
    let letter = give_up(&scene, &subject).await?;
    let listed = scene.pelton.ok(&["dead-letter", "ls"]).await?;
    ensure!(listed.stdout.contains(&subject), "a script gets all of it");
    let replayed = scene
        .pelton
        .json(&["dead-letter", "replay", &letter.to_string()])
        .await?;
    assert_eq!(replayed["replayed"][0]["subject"], subject);
    // It is rejected once more.
    eventually("the event to be handled again", || async {
        let dead = scene.nats.dead("shop").await?;
        let again = dead.iter().any(|one| one.sequence > letter);
        Ok((dead.len() == 1 && again).then_some(()))
    })
    .await
}
