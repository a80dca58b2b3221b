//! The position engine: order per key and each effect once, whoever dies.

use std::ops::Range;
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
    server: NatsServer,
}

/// The order system, deployed, in order per order. No node runs yet.
async fn shop() -> Result<Scene> {
    let text = project::shop_in_order(&build::component("orders")?, &build::component("notifier")?);
    deployed(&text).await
}

async fn deployed(text: &str) -> Result<Scene> {
    let project = Project::new(text)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    Ok(Scene {
        nats,
        pelton,
        _project: project,
        server,
    })
}

/// Waits until nothing is parked or on its way.
async fn settled(nats: &Nats) -> Result<()> {
    within(LONG, "no leftovers", || async {
        for rest in ["park", "out"] {
            let left = nats
                .count_below("KV_shop", &format!("$KV.PELTON_shop.{rest}.>"))
                .await?;
            ensure!(left == 0, "{left} left under {rest}");
        }
        Ok(Some(()))
    })
    .await?;
    let positions = nats.count_below("KV_shop", "$KV.PELTON_shop.pos.>").await?;
    ensure!(positions == 128, "{positions} positions of two functions");
    let markers = nats
        .count_below("KV_shop", "$KV.PELTON_shop.txn.*.*.*")
        .await?;
    ensure!(
        markers == 0,
        "{markers} markers, which are the queue engine's"
    );
    Ok(())
}

async fn publish(nats: &Nats, orders: usize) -> Result<()> {
    publish_some(nats, 0..orders).await
}

async fn publish_some(nats: &Nats, orders: Range<usize>) -> Result<()> {
    let mut acks = Vec::new();
    for step in STEPS {
        for n in orders.clone() {
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

/// They are tried again after each of their key, which costs that one no more than their handler's time.
#[tokio::test]
async fn those_that_wait_for_another_hold_up_no_other() -> Result<()> {
    const WAIT: usize = 30;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let scene = deployed(&text).await?;
    let node = Node::start(&scene.pelton, &[])?;
    let nats = &scene.nats;
    let waits = json!({ "do": "fail", "how": "defer", "code": "no", "well_at": 0 }).to_string();
    for _ in 0..WAIT {
        nats.publish("hostile.act.a", waits.clone()).await?;
    }
    let parked = async || nats.count_below("KV_shop", "$KV.PELTON_shop.park.>").await;
    eventually("all to wait", || async {
        Ok((parked().await? == WAIT).then_some(()))
    })
    .await?;
    let mut last = 0;
    for _ in 0..400 {
        last = nats.publish("hostile.act.a", r#"{"do":"fine"}"#).await?;
    }
    let done = format!("done.HOSTILE=3A{last}");
    eventually("the last of the key", || nats.value("shop", &done)).await?;
    assert_eq!(parked().await?, WAIT, "others were parked behind them");
    drop(node);
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

#[tokio::test]
async fn a_node_that_sleeps_beyond_its_lease_does_no_harm() -> Result<()> {
    let scene = shop().await?;
    let nodes = [
        Node::start(&scene.pelton, &[])?,
        Node::start(&scene.pelton, &[])?,
    ];
    let [sleeper, _other] = &nodes;
    for (round, orders) in [100, 200, 300].into_iter().enumerate() {
        let before = orders - 100;
        publish_some(&scene.nats, before..orders).await?;
        within(LONG, "work to be under way", || async {
            let seen = scene
                .nats
                .count_below("KV_shop", "$KV.shop.orders.>")
                .await?;
            ensure!(seen >= before + 20, "{seen} orders");
            Ok(Some(()))
        })
        .await?;
        sleeper.signal("STOP").await?;
        // Everything is done without it, what it had begun included.
        let done = all_done(&scene.nats, orders).await;
        sleeper.signal("CONT").await?;
        done.with_context(|| format!("round {round}"))?;
    }
    all_done(&scene.nats, 300).await
}

async fn hostile() -> Result<Scene> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let retry = "retry = { max-attempts = 9, initial-delay = \"50ms\", max-delay = \"200ms\" }";
    text += &project::keyed("hostile", &build::component("hostile")?, 3, retry);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    deployed(&text).await
}

/// The record of an event that was handled: its value and its place among all commits.
async fn done(nats: &Nats, sequence: u64) -> Result<(Value, u64)> {
    let key = format!("done.HOSTILE=3A{sequence}");
    within(LONG, &format!("event {sequence} to be handled"), || async {
        let entry = nats.state("shop").await?.entry(key.as_str()).await?;
        let Some(entry) = entry else { return Ok(None) };
        Ok(Some((
            serde_json::from_slice(&entry.value)?,
            entry.revision,
        )))
    })
    .await
}

fn fails(how: &str, well_at: u32) -> String {
    json!({ "do": "fail", "how": how, "code": "not-yet", "well_at": well_at }).to_string()
}

#[tokio::test]
async fn a_failure_holds_up_its_key_and_no_other_and_outlives_its_node() -> Result<()> {
    let scene = hostile().await?;
    let mut node = Node::start(&scene.pelton, &[])?;
    let fine = json!({ "do": "fine" }).to_string();
    let nats = &scene.nats;
    let failing = nats
        .publish("hostile.act.a", fails("retry-after", 6))
        .await?;
    let mut behind = Vec::new();
    for _ in 0..5 {
        behind.push(nats.publish("hostile.act.a", fine.clone()).await?);
    }
    let other = nats.publish("hostile.act.b", fine.clone()).await?;
    let (_, free) = done(nats, other).await?;
    within(LONG, "all of the key to be parked", || async {
        let parked = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        ensure!(parked == 6, "{parked}");
        Ok(Some(()))
    })
    .await?;
    let cleared = parked(nats, failing).await?;
    node.kill().await?;
    let mut node = Node::start(&scene.pelton, &[])?;

    let (record, mut last) = done(nats, failing).await?;
    assert_eq!(record["attempt"], 6, "attempts before the crash count");
    ensure!(free < last, "another key waited");
    for sequence in behind {
        let (record, at) = done(nats, sequence).await?;
        assert_eq!(record["attempt"], 1);
        ensure!(at > last, "event {sequence} overtook its predecessor");
        last = at;
    }
    settled_at(nats, 0).await?;

    // A server that is killed may bring back what was cleared: whoever takes over passes it by.
    let ended = done(nats, failing).await?;
    let (subject, headers, payload) = cleared;
    let restored = nats.js.publish_with_headers(subject, headers, payload);
    restored.await?.await?;
    node.kill().await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let later = nats.publish("hostile.act.a", fine).await?;
    done(nats, later).await?;
    assert_eq!(done(nats, failing).await?, ended, "handled again");
    Ok(())
}

/// A message as it lies in the park.
async fn parked(
    nats: &Nats,
    sequence: u64,
) -> Result<(String, async_nats::HeaderMap, bytes::Bytes)> {
    let stream = nats.js.get_stream("KV_shop").await?;
    let subjects = stream.info_with_subjects("$KV.PELTON_shop.park.>").await?;
    let subjects: Vec<(String, usize)> = futures::TryStreamExt::try_collect(subjects).await?;
    let subject = subjects
        .into_iter()
        .map(|(subject, _)| subject)
        .find(|subject| subject.ends_with(&format!(".{sequence}")))
        .context("it is parked")?;
    let found = stream.get_last_raw_message_by_subject(&subject).await?;
    let mut headers = async_nats::HeaderMap::new();
    for (name, values) in found.headers.iter() {
        for value in values
            .iter()
            .filter(|_| !name.to_string().starts_with("Nats-"))
        {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok((subject, headers, found.payload))
}

#[tokio::test]
async fn a_deferred_event_lets_others_of_its_key_pass() -> Result<()> {
    let scene = hostile().await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let nats = &scene.nats;
    nats.publish("hostile.act.a", fails("defer", 0)).await?;
    for _ in 0..3 {
        let fine = json!({ "do": "fine" }).to_string();
        let sequence = nats.publish("hostile.act.a", fine).await?;
        done(nats, sequence).await?;
    }
    settled_at(nats, 1).await?;
    let rejected = nats.publish("hostile.act.a", fails("reject", 0)).await?;
    let dead = nats.dead_of("shop", "HOSTILE", rejected).await?;
    assert_eq!(dead.code(), "not-yet");
    // A subject without the token that is the key.
    let keyless = nats.publish("hostile.raw", "x").await?;
    let dead = nats.dead_of("shop", "HOSTILE", keyless).await?;
    assert_eq!(dead.code(), "pelton-key-missing");
    Ok(())
}

/// Waits until so many are parked.
async fn settled_at(nats: &Nats, parked: usize) -> Result<()> {
    within(LONG, "the park to come to rest", || async {
        let left = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        ensure!(left == parked, "{left} parked");
        Ok(Some(()))
    })
    .await
}

/// A server that is killed brings back what was cleared, without anybody claiming anything: it is removed, and what waits stays.
#[tokio::test]
async fn what_a_killed_server_brings_back_is_removed() -> Result<()> {
    let mut scene = hostile().await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let nats = &scene.nats;
    let waits = nats.publish("hostile.act.w", fails("defer", 0)).await?;
    let slow = nats
        .publish("hostile.act.a", fails("retry-after", 4))
        .await?;
    let mut failing = vec![slow];
    for key in 0..40 {
        let subject = format!("hostile.act.k{key}");
        failing.push(nats.publish(&subject, fails("retry", 3)).await?);
    }
    let (subject, headers, payload) = within(LONG, "a copy", || async {
        Ok(parked(nats, slow).await.ok())
    })
    .await?;
    let mut ended = Vec::new();
    for sequence in &failing {
        ended.push(done(nats, *sequence).await?);
    }
    settled_at(nats, 1).await?;
    scene.server.restart().await?;
    // One in any case, whatever this server does.
    within(LONG, "one more", || async {
        let (subject, headers) = (subject.clone(), headers.clone());
        let restored = nats
            .js
            .publish_with_headers(subject, headers, payload.clone());
        Ok(Some(restored.await?.await?))
    })
    .await?;
    ensure!(
        nats.count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?
            > 1,
        "nothing is back"
    );
    settled_at(nats, 1).await?;
    parked(nats, waits).await?;
    for (sequence, before) in failing.iter().zip(ended) {
        assert_eq!(done(nats, *sequence).await?, before, "handled again");
    }
    let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
    assert_eq!(info["status"]["pending"], 1, "{info}");
    Ok(())
}

/// A thousand events of one key beside a few of others, and a node killed in the middle: each number is told once, in order.
#[tokio::test]
async fn a_hot_key_is_counted_in_order_and_once() -> Result<()> {
    let mut text =
        "[streams.TALLY]\nsubjects = [\"tally.>\"]\n[streams.COUNTS]\nsubjects = [\"counts.>\"]\n"
            .to_owned();
    text += &project::keyed("tally", &build::component("tally")?, 2, "");
    text += "[functions.tally.allow]\nemit = [\"counts.*\"]\n";
    let scene = deployed(&text).await?;
    let nats = &scene.nats;
    let mut node = Node::start(&scene.pelton, &[])?;
    let mut acks = Vec::new();
    for n in 0..3000 {
        let key = if n % 10 == 0 { "cold" } else { "hot" };
        let subject = format!("tally.{key}");
        acks.push(nats.js.publish(subject, "".into()).await?);
    }
    for ack in acks {
        ack.await?;
    }
    within(LONG, "some counts", || async {
        Ok((nats.count("COUNTS").await? >= 300).then_some(()))
    })
    .await?;
    node.kill().await?;
    let _other = Node::start(&scene.pelton, &[])?;
    within(LONG, "all counts", || async {
        Ok((nats.count("COUNTS").await? >= 3000).then_some(()))
    })
    .await?;
    let mut told = std::collections::BTreeMap::<String, u64>::new();
    for message in nats.messages("COUNTS").await? {
        let last = told.entry(message.subject.to_string()).or_default();
        *last += 1;
        ensure!(
            message.payload == last.to_string(),
            "{} of {} is {:?}",
            last,
            message.subject,
            message.payload
        );
    }
    for (key, events) in [("hot", 2700), ("cold", 300)] {
        assert_eq!(told.get(&format!("counts.{key}")), Some(&events));
        let value = nats.value("shop", &format!("counts.{key}")).await?;
        assert_eq!(value, Some(json!(events)), "{key}");
    }
    Ok(())
}

/// Those of one key go into the park one by one, and a node may die in between: the first and the third of three are there, and the second
/// is still in the input.
#[tokio::test]
async fn what_is_parked_waits_for_what_comes_before_it_in_the_input() -> Result<()> {
    let scene = hostile().await?;
    let nats = &scene.nats;
    let fine = json!({ "do": "fine" }).to_string();
    for sequence in 1..=3 {
        let published = nats.publish("hostile.act.o-1", fine.clone()).await?;
        assert_eq!(published, sequence);
    }
    let input = nats.js.get_stream("HOSTILE").await?;
    let record = json!({
        "format": 1, "txn": "", "attempts": 1, "deferrals": 0, "deferred_since_ms": null, "not_before_ms": 0, "errors": [],
    });
    for sequence in [1, 3] {
        let stored = input.get_raw_message(sequence).await?.time;
        let stored = stored.unix_timestamp_nanos().to_string();
        // The partition of this key, which stored positions rest on; and the key in Base64.
        let subject = format!("$KV.PELTON_shop.park.hostile.HOSTILE.34.by0x.{sequence}");
        let headers = [
            ("Pelton-Format", "1"),
            ("Pelton-Attempts", &record.to_string()),
            ("Pelton-Subject", "hostile.act.o-1"),
            ("Pelton-Stored-Ns", &stored),
            ("Pelton-Headers", "[]"),
            ("Pelton-Body", "inline"),
        ];
        nats.publish_with(&subject, &headers, fine.clone()).await?;
    }
    // Done up to nothing, and beyond it 1 and 3, both of them parked.
    let position = json!({
        "format": 1, "owner": "", "sequence": 0, "done": [1, 2], "witness": 0, "witness_stored": 0, "parked": [1, 2],
    });
    let subject = "$KV.PELTON_shop.pos.hostile.HOSTILE.34";
    nats.publish(subject, position.to_string()).await?;

    let _node = Node::start(&scene.pelton, &[])?;
    let mut last = 0;
    for (sequence, attempt) in [(1, 2), (2, 1), (3, 2)] {
        let (record, at) = done(nats, sequence).await?;
        assert_eq!(record["attempt"], attempt);
        ensure!(at > last, "event {sequence} overtook its predecessor");
        last = at;
    }
    settled_at(nats, 0).await
}
