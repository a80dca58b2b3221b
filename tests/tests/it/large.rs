//! A backlog of large messages: a node must not ask for more than its server can hold for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::proxy::{Mode, Proxy};
use pelton_tests::{Node, Pelton, Scene, build, project};

/// Functions that read the same stream.
const FUNCTIONS: usize = 4;
/// Together with [`FUNCTIONS`], more than the 64 MiB that a server keeps for a connection.
const EVENTS: usize = 32;
/// Between two pieces of 64 KiB on the link, some 13 MB a second.
const PAUSE: Duration = Duration::from_millis(5);
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
    proxy.set(Mode::Delay(PAUSE));
    let pelton = Pelton::new(&proxy.url(), scene.project.path())?;
    scene.node = Node::start(&pelton, &[])?;
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
