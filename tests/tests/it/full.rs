//! An account whose storage is full: nothing is lost, and the node's log stays readable.

use anyhow::{Result, ensure};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, eventually, project};

/// Deliveries that cannot commit.
const EVENTS: u64 = 300;
/// Lines that a node may write about them, its start included.
const LINES: usize = 80;

fn account(storage: &str) -> String {
    format!(
        "accounts {{ APP {{ jetstream: {storage}, users: [ {{ user: node, password: node }} ] }} }}\nno_auth_user: node\n"
    )
}

async fn publish(nats: &Nats) -> Result<()> {
    for key in 0..EVENTS {
        let subject = format!("hostile.act.k{key}");
        nats.publish(&subject, r#"{"do":"fine"}"#).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_full_account_is_told_in_a_bounded_number_of_lines() -> Result<()> {
    let server = NatsServer::start_with(&account("enabled")).await?;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let component = build::component("hostile")?;
    text += &project::keyed("hostile", &component, 3, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let project = Project::new(&text)?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    let node = Node::start(&pelton, &[])?;
    nats.serving("hostile", None, 1).await?;
    publish(&nats).await?;
    pelton.idle("hostile").await?;
    // More events are stored, and not handled yet when the account becomes full.
    node.signal("STOP").await?;
    publish(&nats).await?;
    server.reconfigure(&account("{ max_file: 1K }"))?;
    server.reload().await?;
    node.signal("CONT").await?;
    // A commit, or the claim of a partition, whichever comes first.
    let is_full = "resource limits exceeded";
    eventually("the node to say that the account is full", || async {
        Ok(node.log()?.contains(is_full).then_some(()))
    })
    .await?;
    server.reconfigure(&account("enabled"))?;
    server.reload().await?;
    pelton.idle("hostile").await?;
    let log = node.log()?;
    ensure!(log.lines().count() < LINES, "{log}");
    let line = log.lines().find(|line| line.contains(is_full));
    let named = ["app=\"shop\"", "function=\"hostile\"", "stream=\"HOSTILE\""];
    ensure!(
        line.is_some_and(|line| named.iter().all(|word| line.contains(word))),
        "{line:?}"
    );
    Ok(())
}
