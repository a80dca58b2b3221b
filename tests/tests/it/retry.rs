//! Failures: tried again with growing delays, then kept as a dead letter, which can be put back.

use anyhow::{Context, Result, ensure};
use pelton_tests::{Scene, build, eventually, project};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn manifest(config: &str, retry: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    for name in ["hostile", "bystander"] {
        text += &project::function(name, &build::component("hostile")?, retry);
        text += &format!("[functions.{name}.config]\n{config}\n");
        text += &format!("[functions.{name}.allow]\nhttp = [\"127.0.0.1:9\"]\n");
    }
    Ok(text)
}

async fn done(scene: &Scene, sequence: u64) -> Result<serde_json::Value> {
    let key = format!("done.HOSTILE=3A{sequence}");
    eventually("the event to be handled", || scene.nats.value("shop", &key)).await
}

#[tokio::test]
async fn a_failure_that_passes_is_only_a_delay() -> Result<()> {
    let scene = Scene::start(&manifest("", project::QUICK_RETRY)?).await?;
    for how in ["retry", "retry-after"] {
        let act = json!({ "do": "fail", "how": how, "code": "not-yet", "well_at": 3 });
        let sequence = scene
            .nats
            .publish("hostile.act.now", act.to_string())
            .await?;
        assert_eq!(done(&scene, sequence).await?["attempt"], 3);
    }
    for function in ["hostile", "bystander"] {
        scene.nats.drained("shop", function, "HOSTILE").await?;
    }
    assert!(scene.nats.dead("shop").await?.is_empty());
    eventually("what is kept of attempts to be gone", || async {
        let kept = scene.nats.count_below("KV_shop", "$KV.PELTON_shop.park.>");
        let kept = kept.await?;
        ensure!(kept == 0, "{kept} records");
        Ok(Some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn delays_are_kept_and_the_last_failure_is_the_reason() -> Result<()> {
    let retry = "retry = { max-attempts = 4, initial-delay = \"50ms\", max-delay = \"100ms\" }";
    let scene = Scene::start(&manifest("", retry)?).await?;
    let act = json!({ "do": "fail", "how": "retry-after", "code": "busy", "well_at": 0 });
    let sequence = scene
        .nats
        .publish("hostile.act.now", act.to_string())
        .await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    let attempts = dead.attempts()?;
    assert_eq!(attempts.len(), 4, "{attempts:?}");
    let mut times = Vec::new();
    for (n, attempt) in attempts.iter().enumerate() {
        assert_eq!(attempt["code"], "busy");
        let told = format!("attempt {} failed", n + 1);
        ensure!(
            attempt["message"].as_str().unwrap_or("").contains(&told),
            "{attempts:?}"
        );
        times.push(OffsetDateTime::parse(
            attempt["at"].as_str().unwrap_or(""),
            &Rfc3339,
        )?);
    }
    // The handler asked for at least 300 ms each time; a few are allowed for two clocks' rounding.
    for pair in times.windows(2) {
        let [before, after] = pair else { continue };
        let gap = (*after - *before).whole_milliseconds();
        ensure!(gap >= 290, "tried again after {gap} ms: {attempts:?}");
    }
    ensure!(
        dead.reason().contains("attempt 4 failed"),
        "{}",
        dead.reason()
    );
    Ok(())
}

/// The node that takes over what waits knows from the park until when.
#[tokio::test]
async fn a_node_that_takes_over_keeps_the_delays() -> Result<()> {
    let retry = "retry = { max-attempts = 2, initial-delay = \"8s\", max-delay = \"8s\" }";
    let text = project::keyed("hostile", &build::component("hostile")?, 3, retry);
    let allow = "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let text = format!("[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n{text}{allow}");
    let mut scene = Scene::start(&text).await?;
    let act = json!({ "do": "fail", "how": "retry", "code": "not-yet", "well_at": 2 }).to_string();
    let mut sequences = Vec::new();
    for key in 0..12 {
        let subject = format!("hostile.act.k{key}");
        sequences.push(scene.nats.publish(&subject, act.clone()).await?);
    }
    // By sequence, when it is due.
    let mut due = std::collections::BTreeMap::new();
    eventually("all to have failed once", || async {
        let left = scene.nats.count_below("KV_shop", "$KV.PELTON_shop.park.>");
        let (left, done) = (
            left.await?,
            scene.nats.count_below("KV_shop", "$KV.shop.done.>"),
        );
        let all = left + done.await?;
        ensure!(all == 12, "{all}");
        Ok(Some(()))
    })
    .await?;
    scene.node.kill().await?;
    for message in scene.nats.messages("KV_shop").await? {
        let attempts = message.headers.get("Pelton-Attempts");
        if let Some(attempts) = attempts {
            let attempts: serde_json::Value = serde_json::from_str(attempts.as_str())?;
            let sequence: u64 = message.subject.rsplit('.').next().context("one")?.parse()?;
            due.insert(
                sequence,
                attempts["not_before_ms"].as_i64().context("a time")?,
            );
        }
    }
    ensure!(due.len() > 3, "too few wait: {due:?}");
    let _other = scene.node()?;
    for sequence in &sequences {
        assert_eq!(done(&scene, *sequence).await?["attempt"], 2);
    }
    let mut seen = 0;
    for message in scene.nats.messages("KV_shop").await? {
        let id = message.subject.strip_prefix("$KV.shop.done.HOSTILE=3A");
        let Some(at) = id.and_then(|id| due.get(&id.parse().ok()?)) else {
            continue;
        };
        let early = i128::from(*at) - message.time.unix_timestamp_nanos() / 1_000_000;
        ensure!(early <= 0, "{early} ms early: {}", message.subject);
        seen += 1;
    }
    ensure!(seen == due.len(), "{seen} of {}", due.len());
    Ok(())
}

#[tokio::test]
async fn waiting_costs_no_attempt_and_has_an_end() -> Result<()> {
    let retry = "retry = { max-attempts = 2, initial-delay = \"20ms\", max-delay = \"100ms\", max-defer = \"2s\" }";
    let scene = Scene::start(&manifest("", retry)?).await?;
    let act = json!({ "do": "fail", "how": "defer", "code": "waits-for-godot", "well_at": 0 });
    let sequence = scene
        .nats
        .publish("hostile.act.now", act.to_string())
        .await?;
    // Later events go first.
    let later = scene
        .nats
        .publish("hostile.act.now", r#"{"do":"fine"}"#)
        .await?;
    assert_eq!(done(&scene, later).await?["attempt"], 1);
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    assert_eq!(dead.code(), "pelton-defer-expired");
    ensure!(
        dead.reason().contains("waits-for-godot"),
        "{}",
        dead.reason()
    );
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_is_replayed_after_the_cause_is_mended() -> Result<()> {
    let scene = Scene::start(&manifest("mended = \"no\"", project::QUICK_RETRY)?).await?;
    let act = json!({ "do": "needs-mending" }).to_string();
    let headers = [("x-kept", "as it was"), ("Nats-Msg-Id", "m-1")];
    let sequence = scene
        .nats
        .publish_with("hostile.act.now", &headers, act)
        .await?;
    eventually("both functions to give up", || async {
        Ok((scene.nats.dead("shop").await?.len() == 2).then_some(()))
    })
    .await?;

    let listed = scene.pelton.json(&["dead-letter", "ls"]).await?;
    let text = listed.to_string();
    ensure!(text.contains("not-mended"), "{text}");

    // Mended, and only `hostile` gets its event again.
    scene
        .project
        .change(&manifest("mended = \"yes\"", project::QUICK_RETRY)?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(2), 1).await?;
    let all = scene.nats.dead("shop").await?;
    let ours = all
        .iter()
        .find(|dead| dead.header("Pelton-Function") == "hostile");
    let ours = ours
        .map(|dead| dead.sequence.to_string())
        .unwrap_or_default();
    scene.pelton.ok(&["dead-letter", "replay", &ours]).await?;

    // The replayed event is the same one: its id is what it was.
    eventually("the replayed event to be handled", || {
        scene.nats.value("shop", "done.m-1")
    })
    .await?;
    for function in ["hostile", "bystander"] {
        scene.nats.drained("shop", function, "HOSTILE").await?;
    }
    let left = scene.nats.dead("shop").await?;
    assert_eq!(left.len(), 1, "the replayed one is gone, the other stays");
    ensure!(
        left.iter()
            .all(|dead| dead.header("Pelton-Function") == "bystander")
    );
    assert_eq!(left[0].header("Pelton-Sequence"), sequence.to_string());
    let replayed = scene.nats.messages("HOSTILE").await?;
    let last = replayed.last().map(|message| message.headers.clone());
    let last = last.unwrap_or_default();
    assert_eq!(
        last.get("x-kept").map(|value| value.as_str()),
        Some("as it was")
    );
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_its_function_would_not_get_stays() -> Result<()> {
    let new = format!("start = \"new\"\n{}", project::QUICK_RETRY);
    let scene = Scene::start(&manifest("mended = \"no\"", &new)?).await?;
    let nats = &scene.nats;
    let act = json!({ "do": "needs-mending" }).to_string();
    let (subject, mended) = ("hostile.act.now", "mended = \"yes\"");
    let event = nats.publish(subject, act.clone()).await?;
    let call = [
        "call",
        "hostile",
        &act,
        "--subject",
        subject,
        "--id",
        "call-1",
    ];
    scene.pelton.refused(&call, &["not-mended"]).await?;
    let letters = |expected: usize| async move {
        eventually(&format!("{expected} dead letters"), || async {
            let dead = nats.dead("shop").await?;
            let ours = dead
                .iter()
                .filter(|dead| dead.header("Pelton-Function") == "hostile");
            Ok((ours.count() == expected).then_some(()))
        })
        .await
    };
    letters(2).await?;

    // It does not take the event any more; a call goes to it whatever it takes.
    let narrow =
        format!("subjects = [\"hostile.raw\", \"hostile.look\", \"hostile.act.other\"]\n{new}");
    scene.project.change(&manifest(mended, &narrow)?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(2), 1).await?;
    let replay = ["dead-letter", "replay", "--all", "--function", "hostile"];
    let one = ["1 dead letter could not be replayed"];
    let said = scene.pelton.refused(&replay, &one).await?.stdout;
    let why = "does not take hostile.act.now any more; it takes hostile.";
    ensure!(said.contains(why), "{said}");
    let handled = eventually("the call to be handled", || {
        nats.value("shop", "done.call-1")
    });
    handled.await?;
    letters(1).await?;

    let remove = ["function", "rm", "hostile", "--yes"];
    scene.pelton.ok(&remove).await?;
    let said = scene.pelton.refused(&replay, &one).await?.stdout;
    ensure!(said.contains("deploy it again, then replay"), "{said}");
    letters(1).await?;

    scene.project.change(&manifest(mended, &new)?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.pelton.ok(&replay).await?;
    done(&scene, event).await?;
    letters(0).await
}
