//! The position engine: order per key and each effect once, whoever dies. `pelton.toml` does not offer it yet; these tests
//! switch a deployed function to it in the registry.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::orders::{STEPS, completed};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, eventually, project, within};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

struct Scene {
    nats: Nats,
    pelton: Pelton,
    _project: Project,
    _server: NatsServer,
}

/// The order system, deployed, with both functions on the position engine and keyed by order. No node runs yet.
async fn shop() -> Result<Scene> {
    let text = project::shop(&build::component("orders")?, &build::component("notifier")?);
    let project = Project::new(&text)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    for function in ["orders", "notifier"] {
        by_position(&nats, function).await?;
    }
    Ok(Scene {
        nats,
        pelton,
        _project: project,
        _server: server,
    })
}

async fn by_position(nats: &Nats, function: &str) -> Result<()> {
    let registry = nats.js.get_key_value("PELTON_REGISTRY").await?;
    let key = format!("function.shop.{function}");
    let stored = registry.get(&key).await?.context("a record")?;
    let mut record: Value = serde_json::from_slice(&stored)?;
    record["settings"]["delivery"] = json!("exactly-once");
    record["settings"]["key"] = json!({ "token": 2 });
    registry.put(&key, record.to_string().into()).await?;
    Ok(())
}

/// Waits until nothing is parked or on its way.
async fn settled(nats: &Nats) -> Result<()> {
    within(LONG, "no leftovers", || async {
        for rest in ["park", "out"] {
            let left = nats
                .count_below("KV_shop", &format!("$PELTON.shop.{rest}.>"))
                .await?;
            ensure!(left == 0, "{left} left under {rest}");
        }
        Ok(Some(()))
    })
    .await?;
    let positions = nats.count_below("KV_shop", "$PELTON.shop.pos.>").await?;
    ensure!(positions == 128, "{positions} positions of two functions");
    let markers = nats
        .count_below("KV_shop", "$PELTON.shop.txn.*.*.*")
        .await?;
    ensure!(
        markers == 0,
        "{markers} markers, which are the queue engine's"
    );
    Ok(())
}

async fn publish(nats: &Nats, orders: usize) -> Result<()> {
    let mut acks = Vec::new();
    for step in STEPS {
        for n in 0..orders {
            let id = format!("o-{n}");
            let payload = pelton_tests::orders::body(&id, step).to_string().into();
            let subject = pelton_tests::orders::subject(&id, step);
            acks.push(nats.js.publish(subject, payload).await?);
        }
    }
    for ack in acks {
        ack.await?;
    }
    Ok(())
}

/// Every order is completed, each event was notified of once, nothing is left over.
async fn all_done(nats: &Nats, orders: usize) -> Result<()> {
    for n in 0..orders {
        let id = format!("o-{n}");
        within(LONG, &format!("order {id}"), || async {
            let order = nats.value("shop", &format!("orders.{id}")).await?;
            Ok((order == Some(completed(&id))).then_some(()))
        })
        .await?;
    }
    within(LONG, "all notifications", || async {
        let count = nats.count("NOTIFICATIONS").await?;
        ensure!(count == 4 * orders as u64, "{count} notifications");
        Ok(Some(()))
    })
    .await?;
    settled(nats).await?;
    ensure!(nats.dead("shop").await?.is_empty(), "dead letters");
    Ok(())
}

#[tokio::test]
async fn lives_of_orders_in_their_order() -> Result<()> {
    let scene = shop().await?;
    let node = Node::start(&scene.pelton, &[])?;
    publish(&scene.nats, 200).await?;
    all_done(&scene.nats, 200).await?;
    drop(node);
    Ok(())
}

#[tokio::test]
async fn a_killed_node_is_taken_over_and_nothing_is_lost_or_doubled() -> Result<()> {
    let scene = shop().await?;
    let mut nodes = vec![
        Node::start(&scene.pelton, &[])?,
        Node::start(&scene.pelton, &[])?,
    ];
    publish(&scene.nats, 300).await?;
    for part in [40, 120, 200] {
        within(LONG, "work to be under way", || async {
            let seen = scene
                .nats
                .count_below("KV_shop", "$KV.shop.orders.>")
                .await?;
            ensure!(seen >= part, "{seen} orders");
            Ok(Some(()))
        })
        .await?;
        nodes.remove(0).kill().await?;
        nodes.push(Node::start(&scene.pelton, &[])?);
    }
    all_done(&scene.nats, 300).await?;
    eventually("two nodes", || async {
        let nodes = scene.nats.nodes().await?;
        Ok((nodes.len() == 2).then_some(()))
    })
    .await
}
