//! What the queue engine costs beside the client that it is built on, measured in one run on one machine, because
//! only ratios of one run mean anything: a plain pull consumer with acks, a function that does nothing, a function that
//! commits state for every event, and a service that does the same by hand, without atomicity.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use futures::{StreamExt, TryStreamExt, stream};
use pelton_tests::orders::{body, subject};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, modules, project, within};

/// Events without effects: enough for some seconds.
const EMPTY: u64 = 100_000;
/// Atomic batches of two messages.
const BATCHES: u64 = 2_000;
/// Batches at once; a server takes 50 on one stream.
const BATCHES_AT_ONCE: usize = 40;
/// Events whose handling changes state.
const ORDERS: u64 = 40_000;
/// Keys of the function that counts.
const KEYS: u64 = 10_000;
/// What the service written by hand does at once.
const BY_HAND_AT_ONCE: usize = 64;
/// Longest that one measurement may take.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
async fn main() -> Result<()> {
    let raw = raw().await?;
    let batches = batches().await?;
    let folder = tempfile::tempdir()?;
    let component = folder.path().join("plain.wasm");
    std::fs::write(&component, modules::component()?)?;
    let plain = |n| (format!("plain.{n}"), "{}".to_owned());
    let empty = function("plain", &component, EMPTY, Engine::Queue, plain).await?;
    let empty_positions = function("plain", &component, EMPTY, Engine::Positions, plain).await?;
    let component = build::component("orders")?;
    let orders = function("orders", &component, ORDERS, Engine::Queue, created).await?;
    let positions = function("orders", &component, ORDERS, Engine::Positions, created).await?;
    let component = build::component("tally")?;
    let counts = |keys: u64| move |n: u64| (format!("tally.k{}", n % keys), String::new());
    let many = function("tally", &component, ORDERS, Engine::Positions, counts(KEYS)).await?;
    let one = function("tally", &component, ORDERS, Engine::Positions, counts(1)).await?;
    let by_hand = by_hand().await?;
    println!("{:<44} {:>12} {:>8}", "events per second", "rate", "of raw");
    for (what, rate) in [
        ("raw async-nats: pull and ack", raw),
        ("pelton: a function that does nothing", empty),
        ("pelton: the same, position engine", empty_positions),
        ("raw: atomic batches of two messages", batches),
        ("by hand: KV get, KV update, publish, ack", by_hand),
        ("pelton: orders, its effects atomic", orders),
        ("pelton: the same, position engine", positions),
        ("pelton: count 10,000 keys and emit", many),
        ("pelton: the same, all events on one key", one),
    ] {
        println!("{what:<44} {rate:>12.0} {:>7.1}%", 100.0 * rate / raw);
    }
    Ok(())
}

/// How a function's events are delivered.
#[derive(Clone, Copy)]
enum Engine {
    Queue,
    Positions,
}

fn created(n: u64) -> (String, String) {
    let id = format!("o-{n}");
    (subject(&id, "created"), body(&id, "created").to_string())
}

/// Events per second over a time.
fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// A pull consumer that acknowledges each message.
async fn raw() -> Result<f64> {
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let config = async_nats::jetstream::stream::Config {
        name: "RAW".into(),
        subjects: vec!["raw.>".into()],
        ..Default::default()
    };
    let stream = nats.js.create_stream(config).await?;
    fill(&nats, EMPTY, |n| (format!("raw.{n}"), "{}".to_owned())).await?;
    let config = pull::Config {
        durable_name: Some("raw".into()),
        max_ack_pending: 1000,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;
    let start = Instant::now();
    for _ in 0..EMPTY {
        let message = messages.next().await.context("the stream ended early")??;
        message
            .ack()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(rate(EMPTY, start.elapsed()))
}

/// Atomic batches alone, as many at once as a node has in flight: what the server can do, whoever asks.
async fn batches() -> Result<f64> {
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let config = async_nats::jetstream::stream::Config {
        name: "BATCHES".into(),
        subjects: vec!["batches.>".into()],
        max_messages_per_subject: 1,
        allow_atomic_publish: true,
        ..Default::default()
    };
    nats.js.create_stream(config).await?;
    let start = Instant::now();
    stream::iter((0..BATCHES).map(Ok))
        .try_for_each_concurrent(BATCHES_AT_ONCE, |n| batch(&nats, n))
        .await?;
    Ok(rate(BATCHES, start.elapsed()))
}

async fn batch(nats: &Nats, n: u64) -> Result<()> {
    let id = format!("batch-{n}");
    let headers = |sequence: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", sequence);
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        headers
    };
    let first =
        nats.core
            .publish_with_headers(format!("batches.marker.{n}"), headers("1"), "txn".into());
    first.await?;
    let mut last = headers("2");
    last.insert("Nats-Batch-Commit", "1");
    let state = body(&id, "created").to_string().into();
    let answer = nats
        .core
        .request_with_headers(format!("batches.state.{n}"), last, state)
        .await?;
    let answer = String::from_utf8_lossy(&answer.payload);
    ensure!(answer.contains("\"count\":2"), "{answer}");
    Ok(())
}

/// A service as one writes it without Pelton: at least once, and a crash between its steps leaves them half done.
async fn by_hand() -> Result<f64> {
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    for (name, subjects) in [("ORDERS", "orders.>"), ("MAILS", "mails.>")] {
        let config = async_nats::jetstream::stream::Config {
            name: name.into(),
            subjects: vec![subjects.into()],
            ..Default::default()
        };
        nats.js.create_stream(config).await?;
    }
    let config = async_nats::jetstream::kv::Config {
        bucket: "shop".into(),
        ..Default::default()
    };
    let state = nats.js.create_key_value(config).await?;
    fill(&nats, ORDERS, created).await?;
    let config = pull::Config {
        durable_name: Some("service".into()),
        max_ack_pending: 10_000,
        ..Default::default()
    };
    let orders = nats.js.get_stream("ORDERS").await?;
    let messages = orders.create_consumer(config).await?.messages().await?;
    let start = Instant::now();
    messages
        .take(ORDERS as usize)
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(BY_HAND_AT_ONCE, async |message| {
            let order = message
                .subject
                .split('.')
                .nth(1)
                .context("an order")?
                .to_owned();
            let key = format!("orders.{order}");
            let revision = state
                .entry(key.as_str())
                .await?
                .map_or(0, |entry| entry.revision);
            state
                .update(&key, message.payload.clone(), revision)
                .await?;
            let mail = nats
                .js
                .publish(format!("mails.{order}"), message.payload.clone());
            mail.await?.await?;
            message
                .ack()
                .await
                .map_err(|error| anyhow::anyhow!("{error}"))
        })
        .await?;
    Ok(rate(ORDERS, start.elapsed()))
}

/// A function on a node, from the first event done to the last.
async fn function(
    name: &str,
    component: &Path,
    count: u64,
    engine: Engine,
    event: impl Fn(u64) -> (String, String),
) -> Result<f64> {
    let mut text = project::SHOP_STREAMS.to_owned();
    for stream in ["plain", "tally", "counts"] {
        text += &format!(
            "[streams.{}]\nsubjects = [\"{stream}.>\"]\n",
            stream.to_uppercase()
        );
    }
    text += &match engine {
        Engine::Queue => project::function(name, component, ""),
        Engine::Positions => project::keyed(name, component, 2, ""),
    };
    if name == "tally" {
        text += "[functions.tally.allow]\nemit = [\"counts.*\"]\n";
    }
    let project = Project::new(&text)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    fill(&nats, count, event).await?;
    let _node = Node::start(&pelton, &[])?;
    // Heartbeats come every second: the first one with work begins the measurement, the first with all of it ends it.
    let committed = |least: u64| {
        let nats = &nats;
        within(LIMIT, "work to be done", move || async move {
            let done = nats.committed().await?;
            Ok((done >= least).then_some((done, Instant::now())))
        })
    };
    let (before, start) = committed(1).await?;
    let (after, end) = committed(count).await?;
    ensure!(
        count - before > count / 4,
        "too few events for this machine: {before} done at the start"
    );
    let took = end - start;
    ensure!(nats.dead("shop").await?.is_empty(), "dead letters");
    Ok(rate(after - before, took))
}

/// Stores events, many in flight.
async fn fill(nats: &Nats, count: u64, event: impl Fn(u64) -> (String, String)) -> Result<()> {
    let mut acks = std::collections::VecDeque::new();
    for n in 0..count {
        let (subject, body) = event(n);
        acks.push_back(nats.js.publish(subject, body.into()).await?);
        if acks.len() > 500 {
            acks.pop_front().context("an ack")?.await?;
        }
    }
    for ack in acks {
        ack.await?;
    }
    Ok(())
}
