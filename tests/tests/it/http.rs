//! Outbound HTTP: to the hosts that the manifest allows, and to no other.

use anyhow::{Result, ensure};
use pelton_tests::http::HttpServer;
use pelton_tests::{NatsServer, Pelton, Project, Scene, build, eventually, project};
use serde_json::json;

fn manifest(hosts: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function(
        "hostile",
        &build::component("hostile")?,
        project::QUICK_RETRY,
    );
    text += &format!("[functions.hostile.allow]\nhttp = [{hosts}]\n");
    Ok(text)
}

#[tokio::test]
async fn allowed_hosts_answer_and_others_are_never_asked() -> Result<()> {
    let allowed = HttpServer::start().await?;
    let other = HttpServer::start().await?;
    let mut scene = Scene::start(&manifest(&format!("\"{}\"", allowed.host()))?).await?;

    let act = json!({ "do": "http", "url": allowed.url() }).to_string();
    scene.nats.publish("hostile.act.now", act).await?;
    let answer = eventually("an answer", || scene.nats.value("shop", "answers.last")).await?;
    assert_eq!(answer, "pong");
    assert_eq!(allowed.requests(), 1, "one call per attempt");

    let act = json!({ "do": "http", "url": other.url() }).to_string();
    let sequence = scene.nats.publish("hostile.act.now", act).await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    assert_eq!(other.requests(), 0, "not even a connection");
    let logs = scene.pelton.ok(&["logs"]).await?;
    let told = format!("{} {}", dead.reason(), logs.stdout);
    ensure!(told.contains(&other.host()), "says which host: {told}");

    let sequence = scene
        .nats
        .publish("hostile.act.now", r#"{"do":"fine"}"#)
        .await?;
    let key = format!("done.HOSTILE=3A{sequence}");
    eventually("the function to go on", || scene.nats.value("shop", &key)).await?;
    assert!(scene.node.alive()?);
    Ok(())
}

#[tokio::test]
async fn a_function_that_calls_out_is_not_deployed_without_leave() -> Result<()> {
    let server = NatsServer::start().await?;
    let project = Project::new(&manifest("")?)?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton
        .refused(&["deploy"], &["hostile", "wasi:http", "http"])
        .await?;
    Ok(())
}
