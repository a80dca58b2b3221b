//! Inputs that a function reads no more, and reads again: what is done of them stays done, and what waits is not forgotten.

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, eventually, project};
use serde_json::{Value, json};

/// The function that counts what it gets, of these subjects; what failed waits so long.
fn manifest(subjects: &str, delay: &str) -> Result<String> {
    let mut text = "[streams.IN]\nsubjects = [\"in.>\"]\n[streams.IN2]\nsubjects = [\"in2.>\"]\n\
        [streams.AUDIT]\nsubjects = [\"audit.>\"]\n"
        .to_owned();
    let more = format!(
        "subjects = [{subjects}]\nstart = \"all\"\n\
         retry = {{ max-attempts = 3, initial-delay = {delay:?}, max-delay = {delay:?} }}"
    );
    text += &project::keyed("ledger", &build::component("ledger")?, 2, &more);
    Ok(text + "[functions.ledger.allow]\nemit = [\"audit.*\"]\n")
}

const BOTH: &str = "\"in.*.*\", \"in2.*.*\"";
const OTHER: &str = "\"in2.*.*\"";

async fn count(nats: &Nats, fail: Value) -> Result<u64> {
    let body = json!({ "act": { "do": "count", "id": "c" }, "fail": fail });
    nats.publish("in.a.x", body.to_string()).await
}

async fn counted(nats: &Nats, expected: u64) -> Result<()> {
    eventually(&format!("{expected} to be counted"), || async {
        let found = nats.value("shop", "v.c").await?;
        let found = found.and_then(|value| value.as_u64()).unwrap_or(0);
        ensure!(found <= expected, "{found} were counted");
        Ok((found == expected).then_some(()))
    })
    .await
}

#[tokio::test]
async fn an_input_that_comes_back_goes_on_where_it_was() -> Result<()> {
    let scene = Scene::start(&manifest(BOTH, "200ms")?).await?;
    let nats = &scene.nats;
    for _ in 0..10 {
        count(nats, Value::Null).await?;
    }
    counted(nats, 10).await?;
    scene.project.change(&manifest(OTHER, "200ms")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("ledger", Some(2), 1).await?;
    // It comes while nobody reads it.
    count(nats, Value::Null).await?;
    scene.project.change(&manifest(BOTH, "200ms")?)?;
    let said = scene.pelton.ok(&["deploy"]).await?;
    ensure!(said.stderr.contains("goes on where it was"), "{said:#?}");
    nats.serving("ledger", Some(3), 1).await?;
    count(nats, Value::Null).await?;
    counted(nats, 12).await?;
    eventually("nothing to be left", || async {
        let info = scene.pelton.json(&["function", "info", "ledger"]).await?;
        Ok((info["status"]["pending"] == 0).then_some(()))
    })
    .await
}

#[tokio::test]
async fn an_input_of_which_events_wait_is_not_taken_away() -> Result<()> {
    let scene = Scene::start(&manifest(BOTH, "1h")?).await?;
    let nats = &scene.nats;
    count(nats, json!({ "how": "retry", "until": 2 })).await?;
    eventually("it to wait", || async {
        let info = scene.pelton.json(&["function", "info", "ledger"]).await?;
        Ok((info["status"]["retrying"] == 1).then_some(()))
    })
    .await?;
    scene.project.change(&manifest(OTHER, "1h")?)?;
    let words = ["1 events of it wait", "keep the input"];
    scene.pelton.refused(&["deploy"], &words).await?;
    let listed = scene.pelton.json(&["function", "ls"]).await?;
    let version = listed[0]["version"].as_u64().context("a version")?;
    assert_eq!(version, 1, "{listed}");
    Ok(())
}
