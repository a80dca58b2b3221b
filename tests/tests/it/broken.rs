//! The network breaks connections, with messages on them: nothing is lost, and no later event is
//! needed to find out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use pelton_tests::proxy::{Mode, Proxy};
use pelton_tests::scrape::scrape;
use pelton_tests::{Nats, Node, Pelton, Scene, build, eventually, project};

const EVENTS: u64 = 20;

fn manifest() -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let component = build::component("hostile")?;
    text += &project::keyed("hostile", &component, 3, project::QUICK_RETRY);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

fn port(url: &str) -> Result<u16> {
    Ok(url.rsplit(':').next().context("a port")?.parse()?)
}

/// A scene whose node reaches the server through a proxy.
async fn behind_proxy(text: &str) -> Result<(Scene, Proxy)> {
    let mut scene = Scene::start(text).await?;
    scene.node.terminate(Duration::from_secs(20)).await?;
    let proxy = Proxy::start(port(&scene.server.url())?).await?;
    let pelton = Pelton::new(&proxy.url(), scene.project.path())?;
    scene.node = Node::start(&pelton, &["--http", "127.0.0.1:0"])?;
    scene.nats.serving("hostile", None, 1).await?;
    Ok((scene, proxy))
}

async fn handled(nats: &Nats, sequence: u64) -> Result<()> {
    eventually(&format!("event {sequence} to be handled"), || async {
        let done = format!("done.HOSTILE=3A{sequence}");
        Ok(nats.value("shop", &done).await?.map(drop))
    })
    .await
}

/// Waits until the server has sent all of a stream to whoever reads it.
async fn sent(nats: &Nats, name: &str) -> Result<()> {
    eventually("all to be sent", || async {
        let stream = nats.js.get_stream(name).await?;
        let readers: Vec<_> = stream.consumers().try_collect().await?;
        // A node that is gone has left one, too.
        let all = readers.iter().any(|reader| reader.num_pending == 0);
        let left = readers.iter().map(|reader| reader.num_pending);
        ensure!(all, "left: {:?}", left.collect::<Vec<_>>());
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn what_was_on_a_connection_that_broke_is_read_again() -> Result<()> {
    let (scene, proxy) = behind_proxy(&manifest()?).await?;
    for round in 0..3 {
        let first = scene
            .nats
            .publish("hostile.act.k0", r#"{"do":"fine"}"#)
            .await?;
        handled(&scene.nats, first).await?;
        proxy.set(Mode::HoldAnswers);
        let mut sequences = Vec::new();
        for key in 0..EVENTS {
            let subject = format!("hostile.act.k{key}");
            sequences.push(scene.nats.publish(&subject, r#"{"do":"fine"}"#).await?);
        }
        sent(&scene.nats, "HOSTILE").await?;
        cut(&scene, &proxy).await?;
        for sequence in sequences {
            handled(&scene.nats, sequence)
                .await
                .with_context(|| format!("in round {round}"))?;
        }
    }
    Ok(())
}

/// Breaks the node's connections, with what was on them, and lets it connect again.
async fn cut(scene: &Scene, proxy: &Proxy) -> Result<()> {
    let address = scene.node.http().await?;
    let breaks = || async {
        let page = scrape(address).await?;
        anyhow::Ok(page.sum("pelton_node_nats_breaks_total", &[]))
    };
    let before = breaks().await?;
    proxy.set(Mode::Cut);
    eventually("all three connections to be lost", || async {
        Ok((breaks().await? >= before + 3.0).then_some(()))
    })
    .await?;
    proxy.set(Mode::Open);
    Ok(())
}
