//! Calls, while the server is killed: each is done once, and in the end none is left or listed as
//! pending.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::{HeaderMap, Request};
use futures::{StreamExt, TryStreamExt, stream};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project};

use crate::held::{held, kill, only, pending};
use crate::{LINE, PATIENCE};

/// Calls of the run among the tests.
pub(crate) const SHORT: u64 = 500;
/// Keys that they count.
const KEYS: u64 = 100;
/// Calls at the same time.
const AT_ONCE: usize = 64;
/// How long one request waits, and how often one call is asked.
const WAIT: Duration = Duration::from_secs(5);
const TRIES: usize = 60;

/// Makes so many calls, while the server is killed so often. `patient`: waits until the answers
/// have expired.
pub(crate) async fn run(count: u64, kills: u64, patient: bool) -> Result<()> {
    let mut text = String::new();
    for (stream, subject) in [("TALLY", "tally.>"), ("COUNTS", "counts.>")] {
        text += &format!("[streams.{stream}]\nsubjects = [{subject:?}]\n");
    }
    text += &project::keyed("tally", &build::component("tally")?, 2, "");
    text += "[functions.tally.allow]\nemit = [\"counts.*\"]\n";
    let project = Project::new(&text)?;
    let mut server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    let _node = Node::start(&pelton, &[])?;
    nats.serving("tally", None, 1).await?;

    let done = AtomicU64::new(0);
    let calls = stream::iter((0..count).map(|n| call(&nats, n, &done)));
    let calls = calls.buffer_unordered(AT_ONCE).try_collect::<()>();
    let killing = async {
        let (mut killed, mut said) = (0, Instant::now());
        while done.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let so_far = done.load(Ordering::Relaxed);
            if killed < kills && so_far * (kills + 1) > count * (killed + 1) {
                killed += 1;
                kill(&mut server, &nats).await?;
            }
            if said.elapsed() >= LINE {
                said = Instant::now();
                println!("soak: {so_far:>8} calls  {:?}", held(&nats).await?);
            }
        }
        anyhow::Ok(killed)
    };
    let (called, killed) = tokio::join!(calls, killing);
    called?;
    println!("soak: {count} calls answered, {} kills", killed?);
    pending(&pelton, 0).await?;
    let mut sum = 0;
    for key in 0..KEYS.min(count) {
        let value = nats.value("shop", &format!("counts.k{key}")).await?;
        sum += value.and_then(|value| value.as_u64()).context("a count")?;
    }
    ensure!(sum == count, "{count} calls were done {sum} times");
    if patient {
        only(&nats, &pelton, KEYS.min(count)).await?;
        // Once more: what was answered long ago comes back with a killed server.
        kill(&mut server, &nats).await?;
        println!(
            "soak: after a kill the stream holds {:?}",
            held(&nats).await?
        );
        pending(&pelton, 0).await?;
        only(&nats, &pelton, KEYS.min(count)).await?;
    }
    Ok(())
}

/// Asks until there is an answer.
async fn call(nats: &Nats, n: u64, done: &AtomicU64) -> Result<()> {
    let began = Instant::now();
    let mut last = String::new();
    for _ in 0..TRIES {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("call-{n}"));
        headers.insert("Pelton-Subject", format!("tally.k{}", n % KEYS));
        headers.insert("Pelton-Timeout", "5s");
        let request = Request::new().headers(headers).timeout(Some(WAIT));
        let asked = nats.core.send_request("pelton.call.shop.tally", request);
        match asked.await {
            Ok(reply) => {
                let headers = reply.headers.unwrap_or_default();
                let Some(code) = headers.get("Pelton-Code") else {
                    done.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                };
                last = code.to_string();
            }
            Err(error) => last = error.to_string(),
        }
        ensure!(began.elapsed() < 2 * PATIENCE, "call {n}: {last}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("call {n}: {last}")
}
