//! Random messages from a publisher that knows no rules: each is handled or given up, once, and the
//! nodes stay up.
//!
//! By default the bytes are drawn from those over which a client only reports an error. A campaign
//! (`make messages`) takes any that the server accepts, and as many messages as it likes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::raw::RawPublisher;
use pelton_tests::scrape::{ask, scrape_all};
use pelton_tests::{Nats, Node, Scene, build, project, within};

/// Messages of the short run.
const MESSAGES: u64 = 1500;
/// One request to what nodes listen on for so many messages.
const PER_REQUEST: u64 = 20;
/// Messages published before the server is asked whether it has read them.
const AT_ONCE: u64 = 100;
const COUNTERS: u64 = 50;

/// How the messages are drawn.
struct Draw {
    /// Whether any byte may be in them.
    any: bool,
}

impl Draw {
    /// One token of a subject.
    fn token(&self) -> Vec<u8> {
        let mut token = vec![b'k', fastrand::u8(b'a'..=b'h')];
        let odd: [&[u8]; 4] = [b"\xe9", "\u{e9}".as_bytes(), "\u{a0}".as_bytes(), b"\xff"];
        if fastrand::u8(..20) == 0 {
            token.extend_from_slice(odd[fastrand::usize(..odd.len())]);
        }
        if self.any && fastrand::u8(..10) == 0 {
            let byte = fastrand::u8(..);
            token.extend(Some(byte).filter(|byte| !b" \t\r\n.*>".contains(byte)));
        }
        token
    }

    /// A header block; none: a message without.
    fn headers(&self) -> Option<Vec<u8>> {
        if fastrand::bool() {
            return None;
        }
        let lines: [&[u8]; 14] = [
            b"X-One: 1",
            b"x-one: 2",
            b"X-Two:",
            b"X-Three: a b\r\n c",
            b"Content-Type: text/plain",
            b"content-type: application/json",
            b"ce-id: 7",
            b"X Blank: 1",
            b"X-\xe9: 1",
            b"X-Latin: caf\xe9",
            b"X-\xc3\xa9: 1",
            b"no colon",
            b"traceparent: 00-1-1-00",
            b"TraceParent: 00-2-2-00",
        ];
        // Mostly readable ones.
        let known = if fastrand::u8(..8) == 0 {
            lines.len()
        } else {
            7
        };
        let mut block = match fastrand::u8(..40) {
            0 => b"NATS/1.0 404 Not Found".to_vec(),
            1 => b"NATS/1.0 100 Idle".to_vec(),
            2 => b"NATS/2.0".to_vec(),
            _ => b"NATS/1.0".to_vec(),
        };
        for _ in 0..fastrand::usize(..4) {
            block.extend_from_slice(b"\r\n");
            block.extend_from_slice(lines[fastrand::usize(..known)]);
            if self.any && fastrand::u8(..10) == 0 {
                let bytes = fastrand::usize(1..6);
                block.extend((0..bytes).map(|_| fastrand::u8(..)));
            }
        }
        block.extend_from_slice(b"\r\n\r\n");
        Some(block)
    }

    /// What a handler counts, or a body that it cannot read.
    fn body(&self) -> Vec<u8> {
        if fastrand::u8(..20) == 0 {
            let length = fastrand::usize(..40);
            return (0..length).map(|_| fastrand::u8(..)).collect();
        }
        let counter = fastrand::u64(..COUNTERS);
        format!(r#"{{"do":"count","counter":"n{counter}"}}"#).into_bytes()
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The component can make requests, and so some host has to be allowed.
fn more(function: &str) -> String {
    let retry = project::QUICK_RETRY;
    format!("{retry}\n[functions.{function}.allow]\nhttp = [\"127.0.0.1:9\"]\n")
}

fn manifest(with_queue: bool) -> Result<String> {
    let component = build::component("hostile")?;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &component, 3, &more("hostile"));
    if with_queue {
        text += &project::function("queue", &component, &more("queue"));
    }
    Ok(text)
}

#[tokio::test]
async fn random_messages_are_handled_or_given_up_once() -> Result<()> {
    let messages = setting("MESSAGES");
    let draw = Draw {
        any: setting("ANY_BYTES").is_some(),
    };
    // What is pulled from a queue with an unreadable message comes again after its ack wait of 30
    // s.
    let with_queue = messages.is_some();
    let messages = messages.unwrap_or(MESSAGES);
    let mut scene = Scene::start(&manifest(with_queue)?).await?;
    scene.node.kill().await?;
    scene.node = Node::start(&scene.pelton, &["--http", "127.0.0.1:0"])?;
    let mut second = Node::start(&scene.pelton, &["--http", "127.0.0.1:0"])?;
    scene.nats.serving("hostile", None, 2).await?;

    let stored = publish(&scene, &draw, messages).await?;
    let functions = 1 + u64::from(with_queue);
    let limit = Duration::from_secs(90 + messages / 20);
    within(limit, "all to be handled or given up", || async {
        let given_up = scene.nats.count("PELTON_DEAD_shop").await?;
        let counted = counted(&scene.nats).await?;
        let (all, want) = (counted + given_up, stored * functions);
        ensure!(
            all == want,
            "{counted} counted, {given_up} given up of {want}"
        );
        Ok(Some(()))
    })
    .await?;
    let dead = dead(&scene.nats).await?;
    let once: BTreeSet<_> = dead.iter().map(|(place, _)| place).collect();
    ensure!(once.len() == dead.len(), "something was given up twice");
    let unreadable = dead
        .iter()
        .filter(|(_, code)| code == "pelton-event-malformed");
    let unreadable = unreadable.count() as f64;

    ensure!(scene.node.alive()? && second.alive()?, "a node has ended");
    let addresses = [scene.node.http().await?, second.http().await?];
    for address in addresses {
        assert_eq!(ask(address, "GET", "/healthz").await?.status, 200);
    }
    let name = "pelton_node_nats_breaks_total";
    let pages = scrape_all(&addresses).await?;
    let breaks = pages.iter().map(|page| page.sum(name, &["inputs"]));
    let breaks: f64 = breaks.sum();
    println!(
        "messages: {stored} stored, {} given up, {breaks} breaks",
        dead.len()
    );
    ensure!(
        breaks <= unreadable * 2.0,
        "{breaks} breaks over {unreadable} unreadable messages on two nodes"
    );
    // All is as before.
    let call = [
        "call",
        "hostile",
        r#"{"do":"fine"}"#,
        "--subject",
        "hostile.act.a",
        "--id",
        "last",
    ];
    scene.pelton.ok(&call).await?;
    Ok(())
}

/// Publishes random messages; returns how many the stream has stored.
async fn publish(scene: &Scene, draw: &Draw, messages: u64) -> Result<u64> {
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    let nodes = scene.nats.nodes().await?;
    let node = nodes.first().and_then(|node| node["node"].as_str());
    let node = format!("pelton.node.{}", node.context("a node")?);
    let requests = ["pelton.call.shop.hostile", "$SRV.PING", "$SRV.STATS", &node];
    for n in 0..messages {
        let subject = [b"hostile.act.", draw.token().as_slice()].concat();
        raw.publish(&subject, draw.headers().as_deref(), &draw.body())
            .await?;
        if n % PER_REQUEST == 0 {
            let subject = requests[fastrand::usize(..requests.len())];
            raw.publish(subject.as_bytes(), draw.headers().as_deref(), b"{}")
                .await?;
        }
        if n % AT_ONCE == 0 {
            raw.flush().await?;
        }
    }
    raw.flush().await?;
    let mut stream = scene.nats.js.get_stream("HOSTILE").await?;
    Ok(stream.info().await?.state.messages)
}

/// The sum of all counters.
async fn counted(nats: &Nats) -> Result<u64> {
    let mut sum = 0;
    for n in 0..COUNTERS {
        let value = nats.value("shop", &format!("counters.n{n}")).await?;
        sum += value.and_then(|value| value.as_u64()).unwrap_or_default();
    }
    Ok(sum)
}

/// Function and sequence of what was given up, and why.
async fn dead(nats: &Nats) -> Result<Vec<((String, String), String)>> {
    let letters = nats.dead("shop").await?.into_iter();
    let all = letters.map(|letter| {
        let (function, sequence) = (
            letter.header("Pelton-Function").to_owned(),
            letter.header("Pelton-Sequence").to_owned(),
        );
        ((function, sequence), letter.code().to_owned())
    });
    Ok(all.collect())
}
