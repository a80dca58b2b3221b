//! Rows that are created and deleted: what the commit stream holds in the end must not tell how
//! many there were, nor may a killed server bring one back.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project, within};

use crate::held::{kill, only, pending, size};
use crate::{LINE, PATIENCE};

/// Rows of the run among the tests.
pub(crate) const SHORT: u64 = 2_000;
/// Rows that exist at the same time.
const ALIVE: u64 = 500;
/// Events stored at most that are not done, and answers that are owed.
const AHEAD: u64 = 20_000;
const IN_FLIGHT: usize = 500;
/// Tries to store an event while the server is away.
const TRIES: usize = 200;

/// Creates and deletes so many rows, while the server is killed so often.
pub(crate) async fn run(count: u64, kills: u64) -> Result<()> {
    let mut text = "[streams.ROWS]\nsubjects = [\"rows.>\"]\n".to_owned();
    text += &project::keyed("rows", &build::component("rows")?, 2, "start = \"all\"");
    let project = Project::new(&text)?;
    let mut server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    let mut node = Node::start(&pelton, &[])?;
    nats.serving("rows", None, 1).await?;

    // Each row twice: it is created, and deleted when so many others have been created since.
    let events = 2 * count;
    let (mut sent, mut said, begun) = (0, Instant::now(), Instant::now());
    let (mut most, mut killed) = (0, 0);
    let mut acks = VecDeque::new();
    while sent < events {
        within(PATIENCE, "events to be done", || async {
            let done = nats.committed().await?;
            ensure!(sent < done + AHEAD, "{done} of {sent}");
            Ok(Some(()))
        })
        .await?;
        ensure!(node.alive()?, "the node has ended by itself");
        for _ in 0..1000.min(events - sent) {
            let row = row(sent, count);
            acks.push_back((sent, row, publish(&nats, sent, row).await?));
            sent += 1;
            settle(&nats, &mut acks, IN_FLIGHT).await?;
        }
        if killed < kills && sent * (kills + 1) > events * (killed + 1) {
            killed += 1;
            // An answer that the server owes would be waited for in vain, one after the other.
            settle(&nats, &mut acks, 0).await?;
            kill(&mut server, &nats).await?;
        }
        most = most.max(size(&nats).await?.0);
        if said.elapsed() >= LINE {
            said = Instant::now();
            let (messages, mib) = size(&nats).await?;
            println!(
                "soak: {:>5.0} s  {sent:>8} events  commit stream {messages:>7} messages, {mib:>5.1} MiB",
                begun.elapsed().as_secs_f64()
            );
        }
    }
    settle(&nats, &mut acks, 0).await?;
    pending(&pelton, 0).await?;
    println!("soak: {count} rows created and deleted, {killed} kills; at most {most} messages");
    only(&nats, &pelton, 0).await?;

    kill(&mut server, &nats).await?;
    let listed = pelton.json(&["state", "ls"]).await?;
    ensure!(
        listed == serde_json::json!([]),
        "back with the server: {listed}"
    );
    println!(
        "soak: after a kill the stream holds {} messages",
        size(&nats).await?.0
    );
    only(&nats, &pelton, 0).await?;
    let dead = nats.dead("shop").await?;
    ensure!(dead.is_empty(), "{} dead letters", dead.len());
    Ok(())
}

/// The row of an event: at first rows are created, then one is created and one deleted in turn, at
/// last they are deleted.
fn row(event: u64, count: u64) -> u64 {
    let alive = ALIVE.min(count);
    let turns = 2 * (count - alive);
    match event.checked_sub(alive) {
        None => event,
        Some(turn) if turn < turns && turn % 2 == 0 => alive + turn / 2,
        Some(turn) if turn < turns => turn / 2,
        Some(turn) => turn - turns + turns / 2,
    }
}

async fn publish(nats: &Nats, event: u64, row: u64) -> Result<PublishAckFuture> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.to_string());
    let body = r#"{"do":"toggle"}"#;
    let sent = nats
        .js
        .publish_with_headers(format!("rows.r{row}"), headers, body.into());
    Ok(sent.await?)
}

/// Waits until at most `left` answers are owed. What the server lost is stored again: once, for it
/// has an id.
async fn settle(
    nats: &Nats,
    acks: &mut VecDeque<(u64, u64, PublishAckFuture)>,
    left: usize,
) -> Result<()> {
    while acks.len() > left {
        let (event, row, ack) = acks.pop_front().context("an ack")?;
        let mut stored = ack.await;
        for _ in 0..TRIES {
            if stored.is_ok() {
                break;
            }
            stored = publish(nats, event, row).await?.await;
        }
        stored.with_context(|| format!("event {event} is not stored"))?;
    }
    Ok(())
}
