//! Nodes that end: killed in the middle of their work, or asked to leave.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use pelton_tests::http::HttpServer;
use pelton_tests::orders::{STEPS, body, completed, subject};
use pelton_tests::{Node, Scene, build, eventually, project, within};
use serde_json::{Value, json};

const ORDERS: usize = 500;
/// 4000 commits of one batch each, and the waiting of steps that overtook their predecessors.
const LONG: Duration = Duration::from_secs(180);

/// Publishes the lives of all orders, each order's steps in their order: 2000 events.
async fn publish_all(scene: &Scene) -> Result<()> {
    let mut acks = Vec::new();
    for step in STEPS {
        for n in 0..ORDERS {
            let id = format!("o-{n}");
            let payload = body(&id, step).to_string().into();
            acks.push(scene.nats.js.publish(subject(&id, step), payload).await?);
        }
    }
    for ack in acks {
        ack.await?;
    }
    Ok(())
}

/// Orders that exist by now.
async fn begun(scene: &Scene) -> Result<usize> {
    let keys = "$KV.shop.orders.>";
    scene.nats.count_below("KV_shop", keys).await
}

#[tokio::test]
async fn killed_in_the_middle_of_2000_events_nothing_is_lost() -> Result<()> {
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    let mut scene = Scene::start(&project::shop(&orders, &notifier)).await?;
    publish_all(&scene).await?;

    // Three times, each time when the work is somewhere in its middle.
    for part in [50, 200, 350] {
        within(LONG, "work to be under way", || async {
            let seen = begun(&scene).await?;
            ensure!(seen >= part, "{seen} orders");
            Ok(Some(()))
        })
        .await?;
        scene.node.kill().await?;
        let pending = scene.nats.pending("shop", "orders", "ORDERS").await?;
        ensure!(pending > 0, "killed too late: the work was done");
        scene.node = Node::start(&scene.pelton, &[])?;
    }

    for function in ["orders", "notifier"] {
        scene
            .nats
            .drained_within(LONG, "shop", function, "ORDERS")
            .await?;
    }
    ensure!(scene.nats.dead("shop").await?.is_empty());
    let bucket = scene.nats.state("shop").await?;
    for n in 0..ORDERS {
        let id = format!("o-{n}");
        let value = bucket.get(format!("orders.{id}")).await?;
        let order: Value = serde_json::from_slice(&value.unwrap_or_default())?;
        ensure!(order == completed(&id), "{order}");
    }
    one_notification_per_event(&scene).await
}

async fn one_notification_per_event(scene: &Scene) -> Result<()> {
    within(LONG, "the outbox to be empty", || async {
        let left = scene
            .nats
            .count_below("KV_shop", "$KV.PELTON_shop.out.>")
            .await?;
        ensure!(left == 0, "{left} messages");
        Ok(Some(()))
    })
    .await?;
    let stream = scene.nats.js.get_stream("NOTIFICATIONS").await?;
    let consumer = stream
        .create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig::default())
        .await?;
    let count = scene.nats.count("NOTIFICATIONS").await?;
    let mut messages = consumer.messages().await?;
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let Some(message) = messages.try_next().await? else {
            break;
        };
        let headers = message.headers.clone().unwrap_or_default();
        let id = headers.get("ce-id").map(|id| id.as_str().to_owned());
        ids.extend(id);
    }
    assert_eq!(count as usize, ORDERS * STEPS.len(), "one e-mail per event");
    assert_eq!(ids.len(), count as usize, "each with an id of its own");
    Ok(())
}

/// One function whose handler waits for an answer of `gate`.
async fn waiting(gate: &HttpServer) -> Result<(Scene, u64)> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function(
        "hostile",
        &build::component("hostile")?,
        "timeout = \"60s\"",
    );
    text += &format!("[functions.hostile.allow]\nhttp = [\"{}\"]\n", gate.host());
    let scene = Scene::start(&text).await?;
    let act = json!({ "do": "http", "url": gate.url() });
    let sequence = scene
        .nats
        .publish("hostile.act.now", act.to_string())
        .await?;
    gate.asked(1).await?;
    Ok((scene, sequence))
}

#[tokio::test]
async fn asked_to_leave_a_node_finishes_what_it_has_begun() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let (mut scene, sequence) = waiting(&gate).await?;
    let key = format!("done.HOSTILE=3A{sequence}");
    let pid = scene.node.pid();
    let leaving = scene.node.terminate(Duration::from_secs(30));
    let opening = async {
        // Once it says that it drains, an event that comes now is not taken any more.
        eventually("the node to say so", || async {
            let sent = tokio::process::Command::new("kill")
                .args(["-0", &pid.to_string()])
                .status();
            ensure!(sent.await?.success(), "it left without its work");
            let nodes = scene.nats.nodes().await?;
            let drain = nodes.iter().all(|node| node["draining"] == true);
            Ok(drain.then_some(()))
        })
        .await?;
        gate.open();
        anyhow::Ok(())
    };
    let (status, opened) = tokio::join!(leaving, opening);
    opened?;
    ensure!(
        status?.success(),
        "a node that was asked to leave ends with 0"
    );
    let done = scene.nats.value("shop", &key).await?;
    ensure!(done.is_some(), "what was begun is finished");
    assert_eq!(gate.requests(), 1);
    scene.nats.drained("shop", "hostile", "HOSTILE").await
}

#[tokio::test]
async fn what_cannot_be_finished_is_handed_back() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let (mut scene, sequence) = waiting(&gate).await?;
    // The handler would wait for a minute: longer than the node may take.
    let status = scene.node.terminate(Duration::from_secs(30)).await?;
    ensure!(status.success(), "{status}");
    let key = format!("done.HOSTILE=3A{sequence}");
    ensure!(scene.nats.value("shop", &key).await?.is_none());

    // Another node gets it at once, not when an acknowledgement is overdue.
    let _other = scene.node()?;
    gate.asked(2).await?;
    gate.open();
    eventually("the event to be handled", || scene.nats.value("shop", &key)).await?;
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    ensure!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}
