//! A backlog of large messages: a node must not ask for more than its server can hold for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use pelton_tests::proxy::{Mode, Proxy};
use pelton_tests::{Node, Pelton, Scene, build, eventually, project};

/// Functions that read the same stream.
const FUNCTIONS: usize = 4;
/// Together with [`FUNCTIONS`], more than the 64 MiB that a server keeps for a connection.
const EVENTS: usize = 24;
const BYTES: usize = 900_000;

fn manifest() -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let component = build::component("hostile")?;
    for number in 0..FUNCTIONS {
        text += &project::keyed(&format!("hostile-{number}"), &component, 3, "");
        text += &format!("[functions.hostile-{number}.allow]\nhttp = [\"127.0.0.1:9\"]\n");
    }
    Ok(text)
}

#[tokio::test]
async fn a_backlog_of_large_messages_on_a_slow_link_breaks_no_connection() -> Result<()> {
    let mut scene = Scene::start(&manifest()?).await?;
    scene.node.terminate(Duration::from_secs(20)).await?;
    let padding = "x".repeat(BYTES);
    let body = format!(r#"{{"do":"fine","padding":"{padding}"}}"#);
    for key in 0..EVENTS {
        let subject = format!("hostile.act.k{key}");
        scene.nats.publish(&subject, body.clone()).await?;
    }
    let url = scene.server.url();
    let port = url.rsplit(':').next().context("no port")?.parse()?;
    let proxy = Proxy::start(port).await?;
    let pelton = Pelton::new(&proxy.url(), scene.project.path())?;
    scene.node = Node::start(&pelton, &[])?;
    let stream = scene.nats.js.get_stream("HOSTILE").await?;
    let sent = || async {
        let readers: Vec<_> = stream.consumers().try_collect().await?;
        let begun = readers
            .iter()
            .filter(|one| one.delivered.consumer_sequence > 0);
        anyhow::Ok(begun.count())
    };
    eventually("a reader to begin", || async {
        Ok((sent().await? > 0).then_some(()))
    })
    .await?;
    // The link stands still while all readers begin.
    proxy.set(Mode::HoldAnswers);
    eventually(
        "all readers to begin, or the link to be used up",
        || async {
            let log = scene.node.log()?;
            let server = scene.server.log();
            let over = log.contains("connection to NATS lost") || server.contains("Slow Consumer");
            Ok((over || sent().await? >= FUNCTIONS).then_some(()))
        },
    )
    .await?;
    proxy.set(Mode::Open);
    for number in 0..FUNCTIONS {
        let function = format!("hostile-{number}");
        scene.pelton.idle(&function).await?;
    }
    let server = scene.server.log();
    ensure!(!server.contains("Slow Consumer"), "{server}");
    let log = scene.node.log()?;
    ensure!(!log.contains("connection to NATS lost"), "{log}");
    ensure!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}

/// More functions than shares that hold such a message.
const MANY: usize = 24;

#[tokio::test]
async fn messages_larger_than_an_inputs_share_are_read_one_by_one() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let component = build::component("hostile")?;
    for number in 0..MANY {
        text += &project::keyed(&format!("hostile-{number}"), &component, 3, "");
        text += &format!("[functions.hostile-{number}.allow]\nhttp = [\"127.0.0.1:9\"]\n");
    }
    let scene = Scene::start(&text).await?;
    let body = |bytes: usize| {
        let padding = "x".repeat(bytes);
        format!(r#"{{"do":"fine","padding":"{padding}"}}"#)
    };
    for (key, bytes) in [10, BYTES, BYTES, 10, BYTES].into_iter().enumerate() {
        let subject = format!("hostile.act.k{key}");
        scene.nats.publish(&subject, body(bytes)).await?;
    }
    for number in 0..MANY {
        let function = format!("hostile-{number}");
        scene.pelton.idle(&function).await?;
    }
    ensure!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}
