//! State is shared: with other functions, other nodes, and clients that know nothing of Pelton.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use pelton_tests::{Scene, build, eventually, project};
use serde_json::{Value, json};

const EVENTS: u64 = 200;
const FOREIGN: u64 = 100;

/// One hot counter makes attempts collide: they may do so often, and are not many at once.
async fn scene() -> Result<Scene> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let more = "concurrency = 8\nretry = { max-attempts = 100, initial-delay = \"10ms\", max-delay = \"200ms\" }";
    text += &project::function("hostile", &build::component("hostile")?, more);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Scene::start(&text).await
}

/// Compare-and-set, as a careful client of the bucket does it.
async fn add_one(scene: &Scene) -> Result<()> {
    let bucket = scene.nats.state("shop").await?;
    eventually("a foreign increment to win", || async {
        let entry = bucket.entry("counters.hot").await?;
        let (count, revision): (u64, u64) = match entry {
            Some(entry) => (serde_json::from_slice(&entry.value)?, entry.revision),
            None => (0, 0),
        };
        let value = json!(count + 1).to_string().into();
        bucket.update("counters.hot", value, revision).await?;
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn no_update_is_lost_between_a_function_and_a_foreign_client() -> Result<()> {
    let scene = scene().await?;
    let act = json!({ "do": "count", "counter": "hot" }).to_string();
    let publish = async {
        for _ in 0..EVENTS {
            scene.nats.publish("hostile.act.now", act.clone()).await?;
        }
        anyhow::Ok(())
    };
    let foreign = async {
        for _ in 0..FOREIGN {
            add_one(&scene).await?;
        }
        anyhow::Ok(())
    };
    let (published, added) = tokio::join!(publish, foreign);
    published?;
    added?;
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    let dead = scene.nats.dead("shop").await?;
    ensure!(dead.is_empty(), "{dead:?}");
    let count = scene.nats.value("shop", "counters.hot").await?;
    assert_eq!(count, Some(json!(EVENTS + FOREIGN)));
    Ok(())
}

#[tokio::test]
async fn a_value_that_a_foreign_client_broke_is_a_dead_letter() -> Result<()> {
    let scene = scene().await?;
    let bucket = scene.nats.state("shop").await?;
    bucket.put("counters.hot", "no number".into()).await?;
    let act = json!({ "do": "count", "counter": "hot" }).to_string();
    let sequence = scene.nats.publish("hostile.act.now", act).await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    assert_eq!(dead.code(), "state-invalid");
    ensure!(dead.reason().contains("counters.hot"), "{}", dead.reason());
    Ok(())
}

#[tokio::test]
async fn two_nodes_share_a_function() -> Result<()> {
    let scene = scene().await?;
    let mut other = scene.node()?;
    scene.nats.serving("hostile", None, 2).await?;
    let act = json!({ "do": "count", "counter": "shared" }).to_string();
    for _ in 0..EVENTS {
        scene.nats.publish("hostile.act.now", act.clone()).await?;
    }
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    let count = scene.nats.value("shop", "counters.shared").await?;
    assert_eq!(count, Some(json!(EVENTS)));
    ensure!(scene.nats.dead("shop").await?.is_empty());

    // Both of them worked: each line that the handler logs says where it ran.
    eventually("both nodes to have logged", || async {
        let lines = scene.nats.messages("PELTON_LOGS").await?;
        let mut nodes = BTreeSet::new();
        for line in lines {
            let line: Value = serde_json::from_slice(&line.payload)?;
            nodes.extend(line["node"].as_str().map(str::to_owned));
        }
        Ok((nodes.len() == 2).then_some(()))
    })
    .await?;

    // One leaves, the other goes on.
    other.kill().await?;
    let sequence = scene.nats.publish("hostile.act.now", act).await?;
    let key = format!("done.HOSTILE=3A{sequence}");
    eventually("the other to go on", || scene.nats.value("shop", &key)).await?;
    Ok(())
}

/// A KV client that updates the bucket writes the stream's whole configuration, and knows one subject of it.
#[tokio::test]
async fn a_bucket_whose_configuration_was_rewritten_is_mended() -> Result<()> {
    let scene = scene().await?;
    let mut stream = scene.nats.js.get_stream("KV_shop").await?;
    let mut config = stream.info().await?.config.clone();
    let subjects = std::mem::replace(&mut config.subjects, vec!["$KV.shop.>".to_owned()]);
    config.metadata.clear();
    scene.nats.js.update_stream(config).await?;

    let act = json!({ "do": "count", "counter": "hot" }).to_string();
    scene.nats.publish("hostile.act.now", act).await?;
    eventually("the event to commit", || {
        scene.nats.value("shop", "counters.hot")
    })
    .await?;
    let config = &stream.info().await?.config;
    assert_eq!(config.subjects, subjects);
    assert_eq!(
        config.metadata.get("pelton-app").map(String::as_str),
        Some("shop")
    );
    Ok(())
}

/// With the settings as they are when nobody says anything, and many more deliveries at once than attempts may lose.
#[tokio::test]
async fn a_hot_key_costs_waiting_and_no_event() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function("hostile", &build::component("hostile")?, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let scene = Scene::start(&text).await?;
    let act = json!({ "do": "count", "counter": "hot" }).to_string();
    for _ in 0..500 {
        let publish = scene.nats.js.publish("hostile.act.now", act.clone().into());
        publish.await?;
    }
    scene
        .nats
        .drained_within(Duration::from_secs(120), "shop", "hostile", "HOSTILE")
        .await?;
    assert_eq!(
        scene.nats.value("shop", "counters.hot").await?,
        Some(json!(500))
    );
    assert!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}

/// A client that compacts the bucket takes revisions back: what a node remembers of them must not count for ever.
#[tokio::test]
async fn a_key_that_was_purged_begins_anew() -> Result<()> {
    let scene = scene().await?;
    let act = json!({ "do": "count", "counter": "gone" }).to_string();
    for round in 0..3 {
        scene.nats.publish("hostile.act.now", act.clone()).await?;
        scene.nats.drained("shop", "hostile", "HOSTILE").await?;
        let count = scene.nats.value("shop", "counters.gone").await?;
        assert_eq!(count, Some(json!(1)), "round {round}");
        let stream = scene.nats.js.get_stream("KV_shop").await?;
        stream.purge().filter("$KV.shop.counters.gone").await?;
    }
    assert!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}

/// An attempt that waits for a key is not checked by any commit: what the node believes of that key must not outlive it, or it
/// would never hear of a client that writes the key beside Pelton.
#[tokio::test]
async fn who_waits_for_a_key_hears_of_a_foreign_client_that_writes_it() -> Result<()> {
    let component = build::component("orders")?;
    let orders = project::keyed("orders", &component, 2, project::QUICK_RETRY);
    let scene = Scene::start(&format!("{}{orders}", project::SHOP_STREAMS)).await?;
    scene.nats.step("o-1", "paid").await?;
    eventually("the payment to be deferred", || async {
        let info = scene.pelton.json(&["function", "info", "orders"]).await?;
        Ok((info["status"]["deferred"] == 1).then_some(()))
    })
    .await?;
    let order = json!({
        "order_id": "o-1",
        "customer_id": "c-1",
        "total_price": "19.90",
        "status": "created",
    });
    let bucket = scene.nats.state("shop").await?;
    bucket.put("orders.o-1", order.to_string().into()).await?;
    scene.nats.order("o-1", "paid").await?;
    eventually("the park to be empty", || async {
        let parked = scene.nats.count_below("KV_shop", "$KV.PELTON_shop.park.>");
        Ok((parked.await? == 0).then_some(()))
    })
    .await?;
    assert!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}
