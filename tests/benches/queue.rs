//! What the queue engine costs beside the client that it is built on, measured in one run on one machine, because
//! only ratios of one run mean anything: a plain pull consumer with acks, a function that does nothing, a function that
//! commits state for every event, and a service that does the same by hand, without atomicity.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use futures::{StreamExt, TryStreamExt, stream};
use pelton_tests::orders::{body, subject};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, modules, project, within};

/// Events without effects: enough for some seconds.
const EMPTY: u64 = 400_000;
/// Atomic batches of two messages.
const BATCHES: u64 = 2_000;
/// Batches at once; a server takes 50 on one stream.
const BATCHES_AT_ONCE: usize = 40;
/// Events whose handling changes state.
const ORDERS: u64 = 40_000;
/// Events that are counted by key.
const COUNTED: u64 = 100_000;
/// Keys that they have.
const KEYS: u64 = 10_000;
/// What the service written by hand does at once.
const BY_HAND_AT_ONCE: usize = 64;
/// Longest that one measurement may take.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
async fn main() -> Result<()> {
    // As of other benchmarks: what names are asked for; all without any.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = wanted.iter().filter(|one| !one.starts_with('-')).collect();
    println!("{:<44} {:>12} {:>8}", "events per second", "rate", "of raw");
    let mut first = None;
    for (name, what) in MEASUREMENTS {
        if !wanted.is_empty() && !wanted.iter().any(|one| name.contains(one.as_str())) {
            continue;
        }
        let rate = measure(name).await?;
        let whole = *first.get_or_insert(rate);
        println!("{what:<44} {rate:>12.0} {:>7.1}%", 100.0 * rate / whole);
    }
    Ok(())
}

/// What is measured, by name; the first one is what the others are held against.
const MEASUREMENTS: [(&str, &str); 9] = [
    ("raw", "raw async-nats: pull and ack"),
    ("plain-queue", "pelton: a function that does nothing"),
    ("plain-positions", "pelton: the same, position engine"),
    ("batches", "raw: atomic batches of two messages"),
    ("by-hand", "by hand: KV get, KV update, publish, ack"),
    ("orders-queue", "pelton: orders, its effects atomic"),
    ("orders-positions", "pelton: the same, position engine"),
    ("tally-many", "pelton: count 10,000 keys and emit"),
    ("tally-one", "pelton: the same, all events on one key"),
];

async fn measure(name: &str) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let plain = |n| (format!("plain.{n}"), "{}".to_owned());
    match name {
        // The client loses a request for messages now and then, and waits for its heartbeat: such a run says nothing.
        "raw" => match raw().await {
            Ok(rate) => Ok(rate),
            Err(_) => raw().await,
        },
        "batches" => batches().await,
        "by-hand" => by_hand().await,
        "plain-queue" | "plain-positions" => {
            let component = folder.path().join("plain.wasm");
            std::fs::write(&component, modules::component()?)?;
            function("plain", &component, EMPTY, Engine::of(name), plain).await
        }
        "tally-many" | "tally-one" => {
            let keys = if name == "tally-one" { 1 } else { KEYS };
            let component = build::component("tally")?;
            function(
                "tally",
                &component,
                COUNTED,
                Engine::Positions,
                counts(keys),
            )
            .await
        }
        _ => {
            let component = build::component("orders")?;
            function("orders", &component, ORDERS, Engine::of(name), created).await
        }
    }
}

/// How a function's events are delivered.
#[derive(Clone, Copy)]
enum Engine {
    Queue,
    Positions,
}

impl Engine {
    fn of(name: &str) -> Self {
        match name.ends_with("-queue") {
            true => Self::Queue,
            false => Self::Positions,
        }
    }
}

/// An event to be counted.
fn counts(keys: u64) -> impl Fn(u64) -> (String, String) {
    move |n| (format!("tally.k{}", n % keys), String::new())
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

/// The same counting as one writes it without Pelton: at least once, and a crash between its steps leaves them half done.
async fn by_hand() -> Result<f64> {
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    for (name, subjects) in [("TALLY", "tally.>"), ("COUNTS", "counts.>")] {
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
    fill(&nats, COUNTED, counts(KEYS)).await?;
    let config = pull::Config {
        durable_name: Some("service".into()),
        max_ack_pending: 10_000,
        ..Default::default()
    };
    let tally = nats.js.get_stream("TALLY").await?;
    let messages = tally.create_consumer(config).await?.messages().await?;
    let start = Instant::now();
    messages
        .take(COUNTED as usize)
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(BY_HAND_AT_ONCE, async |message| {
            count_by_hand(&nats, &state, message).await
        })
        .await?;
    Ok(rate(COUNTED, start.elapsed()))
}

async fn count_by_hand(
    nats: &Nats,
    state: &async_nats::jetstream::kv::Store,
    message: async_nats::jetstream::Message,
) -> Result<()> {
    let name = message.subject.split('.').nth(1).context("a key")?;
    let key = format!("counts.{name}");
    let (mut count, mut revision) = (0u64, 0);
    if let Some(entry) = state.entry(key.as_str()).await? {
        count = std::str::from_utf8(&entry.value)?.parse()?;
        revision = entry.revision;
    }
    let next = (count + 1).to_string();
    state.update(&key, next.clone().into(), revision).await?;
    let subject = format!("counts.{name}");
    nats.js.publish(subject, next.into()).await?.await?;
    let acked = message.ack().await;
    acked.map_err(|error| anyhow::anyhow!("{error}"))
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
    let mut done = match engine {
        Engine::Queue => {
            let stream = if name == "orders" { "ORDERS" } else { "PLAIN" };
            let consumer = nats.consumer_of("shop", name, stream).await?;
            Done::Acks(Box::new(nats.clone()), consumer, stream)
        }
        Engine::Positions => {
            let subject = format!("$KV.PELTON_shop.pos.{name}.>");
            Done::Positions(nats.core.subscribe(subject).await?, HashMap::new())
        }
    };
    let _node = Node::start(&pelton, &[])?;
    let took = done.wait(&nats, count).await?;
    ensure!(nats.dead("shop").await?.is_empty(), "dead letters");
    Ok(rate(count, took))
}

/// By what is seen that a function has begun and is done. Nodes tell their counts once a second only.
enum Done {
    /// Its consumer, of this name.
    Acks(Box<Nats>, String, &'static str),
    /// Its positions as they are written, and the latest message of each that is done: the first are claims, the last to name another
    /// message says that all is done.
    Positions(async_nats::Subscriber, HashMap<String, u64>),
}

impl Done {
    async fn wait(&mut self, nats: &Nats, count: u64) -> Result<Duration> {
        let all = within(LIMIT, "work to be done", || async {
            Ok((nats.committed().await? >= count).then_some(()))
        });
        tokio::pin!(all);
        let (mut began, mut last) = (None, Instant::now());
        loop {
            tokio::select! {
                ended = &mut all => {
                    ended?;
                    let began: Instant = began.context("nothing was seen to begin")?;
                    return Ok(last - began);
                }
                moved = self.moved() => if moved? {
                    last = Instant::now();
                    began.get_or_insert(last);
                },
            }
        }
    }

    /// Whether something has been done since.
    async fn moved(&mut self) -> Result<bool> {
        match self {
            Self::Positions(positions, done) => {
                let position = positions.next().await.context("no more positions")?;
                let record: serde_json::Value = serde_json::from_slice(&position.payload)?;
                let latest = record["witness"].as_u64().context("no position")?;
                let before = done.insert(position.subject.to_string(), latest);
                Ok(before != Some(latest))
            }
            Self::Acks(nats, name, stream) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let consumer = nats
                    .js
                    .get_consumer_from_stream::<pull::Config, _, _>(name.as_str(), *stream);
                let info = consumer.await?.cached_info().clone();
                Ok(info.delivered.consumer_sequence > 0
                    && (info.num_pending > 0 || info.num_ack_pending > 0))
            }
        }
    }
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
