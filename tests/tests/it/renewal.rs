//! Logins that are renewed while a node runs: it reads them again whenever it connects.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use pelton_tests::orders::{body, subject};
use pelton_tests::{NatsServer, Node, Operator, Pelton, Project, build, eventually, project};

/// How long a user's JWT is valid, whole seconds.
const VALID: Duration = Duration::from_secs(4);
/// How often its file is replaced.
const RENEWED: Duration = Duration::from_secs(1);
/// Between two events.
const PACE: Duration = Duration::from_millis(20);
/// So many times both connections of the node are lost before the test ends.
const LOSSES: usize = 4;

fn shop(delivery: &str) -> Result<Project> {
    let orders = build::component("orders")?;
    let mut text = project::SHOP_STREAMS.to_owned();
    text += &project::keyed("orders", &orders, 2, delivery);
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    Project::new(&text)
}

/// Replaces the credentials for ever; each time they are half written for a moment.
async fn renew(operator: &Operator, path: &Path) -> Result<()> {
    loop {
        let creds = operator.user_for(Some(VALID))?.creds();
        let half = creds.get(..creds.len() / 2).context("no half")?;
        std::fs::write(path, half)?;
        tokio::task::yield_now().await;
        std::fs::write(path, creds)?;
        tokio::time::sleep(RENEWED).await;
    }
}

/// Publishes orders until it is dropped.
async fn load(js: &jetstream::Context, published: &mut usize) -> Result<()> {
    loop {
        let id = format!("o-{published}");
        let body = body(&id, "created").to_string();
        js.publish(subject(&id, "created"), body.into())
            .await?
            .await?;
        *published += 1;
        tokio::time::sleep(PACE).await;
    }
}

#[tokio::test]
async fn renewed_credentials_are_used_when_the_old_ones_expire() -> Result<()> {
    let operator = Operator::new();
    let server = NatsServer::start_with(&operator.server_config()?).await?;
    let project = shop("")?;
    let lasting = project.file("lasting.creds", operator.user()?.creds().as_bytes())?;
    let expiring = operator.user_for(Some(VALID))?.creds();
    let expiring = project.file("node.creds", expiring.as_bytes())?;
    let mut pelton = Pelton::new(&server.url(), project.path())?;
    pelton.set_env("NATS_CREDS", lasting.display().to_string());
    pelton.ok(&["deploy"]).await?;
    pelton.set_env("NATS_CREDS", expiring.display().to_string());
    let mut node = Node::start(&pelton, &[])?;
    says(&node, "serving").await?;

    let client = async_nats::ConnectOptions::with_credentials_file(&lasting).await?;
    let js = jetstream::new(client.connect(server.url()).await?);
    let mut published = 0;
    let reconnected = eventually("the node to log in again and again", || async {
        let log = node.log()?;
        let times = log.matches("connected to NATS again").count();
        Ok((times >= LOSSES).then_some(()))
    });
    tokio::select! {
        reconnected = reconnected => reconnected?,
        renewed = renew(&operator, &expiring) => renewed?,
        loaded = load(&js, &mut published) => loaded?,
    }
    ensure!(published > 0 && node.alive()?, "{}", node.log()?);
    std::fs::write(&expiring, operator.user()?.creds())?;
    let state = js.get_key_value("shop").await?;
    eventually("all orders to be handled", || async {
        let keys = futures::TryStreamExt::try_fold(state.keys().await?, 0, |count, _| async move {
            Ok(count + 1)
        });
        let handled: usize = keys.await?;
        ensure!(handled == published, "{handled} of {published}");
        Ok(Some(()))
    })
    .await
}

async fn says(node: &Node, words: &str) -> Result<()> {
    eventually(words, || async {
        Ok(node.log()?.contains(words).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_password_renewed_in_the_nodes_file_is_used_at_the_next_connection() -> Result<()> {
    let config = |password: &str| format!("authorization {{ user: node, password: {password} }}\n");
    let mut server = NatsServer::start_with(&config("first-of-two")).await?;
    let project = shop("")?;
    let settings = |password: &str| format!("[nats]\nuser = \"node\"\npassword = \"{password}\"\n");
    let path = project.file("node.toml", settings("first-of-two").as_bytes())?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    let config_flag = path.display().to_string();
    let mut node = Node::start(&pelton, &["--config", &config_flag])?;
    says(&node, "serving").await?;
    std::fs::write(&path, settings("second-of-two"))?;
    server.reconfigure(&config("second-of-two"))?;
    server.restart().await?;
    says(&node, "connected to NATS again").await?;
    ensure!(node.alive()?, "{}", node.log()?);
    let log = node.log()?;
    ensure!(!log.contains("of-two"), "a secret is shown: {log}");
    Ok(())
}
