//! A function that does harm: what it did is visible afterwards, everybody else is served, and the node lives.

use anyhow::{Result, ensure};
use pelton_tests::{Scene, build, project};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A node that runs wild functions may hold this much at its peak: caches and pools, but no bomb.
const MEMORY: u64 = 700 << 20;

/// Attempts that [`project::QUICK_RETRY`] grants.
const ATTEMPTS: usize = 3;

/// What is asked for, and what must become of it.
struct Case {
    act: Value,
    code: &'static str,
    /// What the reason must hold.
    word: &'static str,
    attempts: usize,
}

fn case(act: Value, code: &'static str, word: &'static str, attempts: usize) -> Case {
    Case {
        act,
        code,
        word,
        attempts,
    }
}

fn cases() -> Vec<Case> {
    let emit = |subject: &str, count: usize, bytes: usize| json!({ "do": "emit", "subject": subject, "count": count, "bytes": bytes });
    vec![
        case(json!({ "do": "loop" }), "pelton-timeout", "400", ATTEMPTS),
        case(json!({ "do": "bomb" }), "pelton-trap", "", ATTEMPTS),
        case(json!({ "do": "recurse" }), "pelton-trap", "", ATTEMPTS),
        case(
            json!({ "do": "panic", "text": "the sky is falling" }),
            "pelton-trap",
            "the sky is falling",
            ATTEMPTS,
        ),
        case(emit("out.covered", 1, 2 << 20), "pelton-limit", "", 1),
        case(emit("out.covered", 300, 10), "pelton-limit", "256", 1),
        case(emit("out.covered", 20, 900_000), "pelton-limit", "", 1),
        case(
            emit("orders.o-9.created", 1, 2),
            "pelton-not-allowed",
            "orders.o-9.created",
            1,
        ),
        case(
            emit("out.uncovered", 1, 2),
            "pelton-not-allowed",
            "out.uncovered",
            1,
        ),
        case(emit("out.*", 1, 2), "pelton-event-invalid", "out.*", 1),
        case(
            json!({ "do": "write", "id": "x".repeat(300), "bytes": 1 }),
            "pelton-key-invalid",
            "",
            1,
        ),
        case(
            json!({ "do": "write", "id": "w", "bytes": 2 << 20 }),
            "pelton-limit",
            "",
            1,
        ),
        case(
            json!({ "do": "fail", "how": "reject", "code": "no-thanks", "well_at": 0 }),
            "no-thanks",
            "attempt 1 failed",
            1,
        ),
        case(
            json!({ "do": "fail", "how": "retry", "code": "try-again", "well_at": 0 }),
            "try-again",
            "attempt 3 failed",
            ATTEMPTS,
        ),
        case(
            json!({ "do": "fail", "how": "retry-after", "code": "later", "well_at": 0 }),
            "later",
            "attempt 3 failed",
            ATTEMPTS,
        ),
    ]
}

/// `hostile` beside `orders`. `OUT` covers only one of the subjects that `hostile` may emit to.
fn manifest(more: &str) -> Result<String> {
    let mut text = project::SHOP_STREAMS.to_owned();
    text += "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n";
    text += "[streams.OUT]\nsubjects = [\"out.covered\"]\n";
    text += &project::function(
        "hostile",
        &build::component("hostile")?,
        &format!(
            "timeout = \"400ms\"\nmemory = \"16MiB\"\n{more}\n{}",
            project::QUICK_RETRY
        ),
    );
    text += "[functions.hostile.allow]\nemit = [\"out.*\"]\nhttp = [\"127.0.0.1:9\"]\n";
    text += &project::function("orders", &build::component("orders")?, "");
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    Ok(text)
}

async fn all_of_it(more: &str) -> Result<()> {
    let mut scene = Scene::start(&manifest(more)?).await?;
    let mut published = Vec::new();
    for case in cases() {
        let body = case.act.to_string();
        let sequence = scene.nats.publish("hostile.act.now", body).await?;
        published.push((sequence, case));
    }
    // While all that goes on, others are served.
    scene.nats.life("o-1").await?;
    for (sequence, case) in published {
        check(&scene, sequence, &case).await?;
    }
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    assert_eq!(scene.nats.count("OUT").await?, 0, "no effect of a failure");

    // Afterwards the node is the same process, serves both functions, and has kept its memory together.
    assert!(scene.node.alive()?, "the node died");
    scene.nats.life("o-2").await?;
    let sequence = scene
        .nats
        .publish("hostile.act.now", r#"{"do":"fine"}"#)
        .await?;
    let key = format!("done.HOSTILE=3A{sequence}");
    pelton_tests::eventually("a harmless event to be handled", || async {
        scene.nats.value("shop", &key).await
    })
    .await?;
    let peak = scene.node.peak_memory()?;
    ensure!(peak < MEMORY, "the node held {} MiB", peak >> 20);
    Ok(())
}

async fn check(scene: &Scene, sequence: u64, case: &Case) -> Result<()> {
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    let (act, reason) = (&case.act, dead.reason());
    ensure!(dead.code() == case.code, "{act}: {}: {reason}", dead.code());
    ensure!(reason.contains(case.word), "{act}: {reason}");
    ensure!(
        !reason.is_empty() && !reason.contains('\n'),
        "{act}: {reason:?}"
    );
    ensure!(dead.payload == act.to_string(), "{act}: other payload");
    ensure!(dead.header("Pelton-Function") == "hostile", "{act}");
    let attempts = dead.attempts()?;
    ensure!(attempts.len() == case.attempts, "{act}: {attempts:?}");
    let mut last: Option<OffsetDateTime> = None;
    for (n, attempt) in attempts.iter().enumerate() {
        ensure!(attempt["attempt"] == n + 1, "{act}: {attempts:?}");
        ensure!(attempt["code"] == case.code, "{act}: {attempts:?}");
        ensure!(attempt["version"] == 1, "{act}: {attempts:?}");
        let at = OffsetDateTime::parse(attempt["at"].as_str().unwrap_or(""), &Rfc3339)?;
        ensure!(last.is_none_or(|last| last <= at), "{act}: {attempts:?}");
        last = Some(at);
    }
    Ok(())
}

#[tokio::test]
async fn harm_has_a_visible_end_and_no_victims() -> Result<()> {
    all_of_it("").await
}

#[tokio::test]
async fn harm_to_fresh_instances_is_no_different() -> Result<()> {
    all_of_it("instance = \"fresh\"").await
}

#[tokio::test]
async fn the_panic_is_in_the_logs_and_in_the_commands() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let act = json!({ "do": "panic", "text": "look at me" });
    let sequence = scene
        .nats
        .publish("hostile.act.now", act.to_string())
        .await?;
    scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    let listed = scene.pelton.ok(&["dead-letter", "ls"]).await?;
    ensure!(listed.stdout.contains("pelton-trap"), "{listed:#?}");
    let logs = scene.pelton.ok(&["logs"]).await?;
    ensure!(logs.stdout.contains("look at me"), "{logs:#?}");
    Ok(())
}
