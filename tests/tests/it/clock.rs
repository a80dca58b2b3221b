//! What a component does not have or does not allow, a clock and integers that wrap, and what it
//! has instead.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Scene, build, project, within};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const LONG: Duration = Duration::from_secs(60);
const GUEST: &str = "tests/guests/hostile/src/lib.rs";

async fn hostile(delivery: &str) -> Result<Scene> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += "[streams.LATER]\nsubjects = [\"later.>\"]\n";
    let component = build::component("hostile")?;
    let function = project::function("hostile", &component, project::QUICK_RETRY);
    text += &function.replace("at-least-once", delivery);
    text += "[functions.hostile.allow]\nemit = [\"later.>\"]\nhttp = [\"127.0.0.1:9\"]\n";
    Scene::start(&text).await
}

/// An event whose producer lives in another century.
async fn publish(scene: &Scene, act: &Value) -> Result<u64> {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e-1"),
        ("ce-source", "/tests"),
        ("ce-type", "act"),
        ("ce-time", "2124-01-01T00:00:00Z"),
    ];
    let nats = &scene.nats;
    nats.publish_with("hostile.act.a", &headers, act.to_string())
        .await
}

/// When the server stored a message of the input.
async fn stored(scene: &Scene, sequence: u64) -> Result<i128> {
    let messages = scene.nats.messages("HOSTILE").await?;
    let found = messages.iter().find(|one| one.sequence == sequence);
    let found = found.context("no such message")?;
    Ok(found.time.unix_timestamp_nanos())
}

/// `FILE:LINE` of the guest's only line that holds `text`.
fn line_of(text: &str) -> Result<String> {
    let source = std::fs::read_to_string(build::root()?.join(GUEST))?;
    let found = source.lines().position(|line| line.contains(text));
    Ok(format!("{GUEST}:{}", found.context("no such line")? + 1))
}

#[tokio::test]
async fn a_trap_names_the_line_of_the_handler() -> Result<()> {
    let scene = hostile("exactly-once").await?;
    let overflow = publish(&scene, &json!({ "do": "overflow" })).await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", overflow).await?;
    assert_eq!(dead.code(), "pelton-trap");
    let expected = format!(
        "attempt to add with overflow ({})",
        line_of("black_box(u32::MAX) + 1")?
    );
    ensure!(dead.reason().starts_with(&expected), "{}", dead.reason());

    let clock = publish(&scene, &json!({ "do": "std-clock" })).await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", clock).await?;
    assert_eq!(dead.code(), "pelton-trap");
    // The panic itself is in the standard library.
    let handler = format!("in handler `act` ({})", line_of("pub fn act(")?);
    for word in [&handler, "use ctx.now() instead of SystemTime::now()"] {
        ensure!(dead.reason().contains(word), "{word}: {}", dead.reason());
    }
    Ok(())
}

#[tokio::test]
async fn the_time_is_the_servers_and_the_same_in_every_attempt() -> Result<()> {
    for delivery in ["exactly-once", "at-least-once"] {
        let scene = hostile(delivery).await?;
        let never = json!({ "do": "after", "name": "n", "delay_ms": 0, "subject": "later.n", "well_at": 0 });
        let sequence = publish(&scene, &never).await?;
        let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
        let expected = stored(&scene, sequence).await?.to_string();
        let attempts = dead.attempts()?;
        assert_eq!(attempts.len(), 3, "{attempts:?}");
        for attempt in &attempts {
            assert_eq!(attempt["message"], expected, "{delivery}: {attempts:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_delay_counts_from_when_the_event_was_stored() -> Result<()> {
    for delivery in ["exactly-once", "at-least-once"] {
        let scene = hostile(delivery).await?;
        let later = json!({ "do": "after", "name": "n", "delay_ms": 2500, "subject": "later.n", "well_at": 3 });
        let sequence = publish(&scene, &later).await?;
        let due = stored(&scene, sequence).await? + 2_500_000_000;
        within(LONG, "the delayed event", || async {
            let messages = scene.nats.messages("LATER").await?;
            let Some(event) = messages.first() else {
                return Ok(None);
            };
            let time = event.headers.get("ce-time").context("no ce-time")?;
            let time = OffsetDateTime::parse(time.as_str(), &Rfc3339)?;
            assert_eq!(time.unix_timestamp_nanos(), due, "{delivery}: its own time");
            ensure!(
                event.time.unix_timestamp_nanos() >= due,
                "{delivery}: early"
            );
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_time_of_a_call_is_when_it_was_taken_in() -> Result<()> {
    let scene = hostile("exactly-once").await?;
    let call =
        json!({ "do": "after", "name": "n", "delay_ms": 0, "subject": "later.n", "well_at": 2 });
    let before = OffsetDateTime::now_utc().unix_timestamp_nanos();
    let body = call.to_string();
    let args = [
        "call",
        "hostile",
        body.as_str(),
        "--subject",
        "hostile.act.a",
    ];
    let called = scene.pelton.json(&args).await?;
    let after = OffsetDateTime::now_utc().unix_timestamp_nanos();
    let now = i128::from(called["reply"].as_i64().context("no time")?);
    ensure!((before..=after).contains(&now), "{before} {now} {after}");
    Ok(())
}

#[tokio::test]
async fn a_caller_gets_an_error_and_nothing_is_dead() -> Result<()> {
    let scene = hostile("exactly-once").await?;
    let act = json!({ "do": "count-and-reply-error", "counter": "c", "code": "quote-unknown" });
    let body = act.to_string();
    let args = [
        "call",
        "hostile",
        body.as_str(),
        "--subject",
        "hostile.act.a",
        "--id",
        "c-1",
    ];
    // Done once: whoever asks again with its id gets the same answer.
    for _ in 0..2 {
        let refused = scene
            .pelton
            .refused(&args, &["quote-unknown: counted to 1"])
            .await?;
        ensure!(refused.stdout.is_empty(), "{refused:?}");
    }
    assert_eq!(
        scene.nats.value("shop", "counters.c").await?,
        Some(json!(1))
    );
    ensure!(scene.nats.dead("shop").await?.is_empty(), "a dead letter");
    Ok(())
}
