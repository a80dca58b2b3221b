//! Messages that no client can read, wherever they lie: each is named in the log and given up once,
//! and holds nobody up.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use pelton_tests::raw::RawPublisher;
use pelton_tests::scrape::{Page, ask, scrape_all};
use pelton_tests::{Nats, Node, Scene, build, eventually, project, within};
use serde_json::Value;

const FINE: &str = r#"{"do":"fine"}"#;
/// Header lines that the client refuses.
const REFUSED: [&[u8]; 4] = [
    b"X-L: caf\xe9",
    b"X A: b",
    b"ce-\xc3\xa9: b",
    b"no colon in it",
];

/// The component can make requests, and so some host has to be allowed.
fn allow(function: &str) -> String {
    format!("[functions.{function}.allow]\nhttp = [\"127.0.0.1:9\"]\n")
}

fn manifest(extra: &str) -> Result<String> {
    let component = build::component("hostile")?;
    let streams = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let more = format!("{}\n{extra}\n{}", project::QUICK_RETRY, allow("hostile"));
    Ok(streams + &project::keyed("hostile", &component, 3, &more))
}

/// A second function, which takes the same events from a queue.
fn queue() -> Result<String> {
    let component = build::component("hostile")?;
    let more = format!("{}\n{}", project::QUICK_RETRY, allow("queue"));
    Ok(project::function("queue", &component, &more))
}

async fn handled(nats: &Nats, sequence: u64) -> Result<()> {
    eventually(&format!("event {sequence} to be handled"), || async {
        let done = format!("done.HOSTILE=3A{sequence}");
        Ok(nats.value("shop", &done).await?.map(drop))
    })
    .await
}

/// Waits for so many dead letters, and gives function and sequence of each.
async fn given_up(nats: &Nats, count: usize) -> Result<Vec<(String, u64)>> {
    eventually(&format!("{count} dead letters"), || async {
        let mut dead = Vec::new();
        for letter in nats.dead("shop").await? {
            ensure!(letter.code() == "pelton-event-malformed", "{letter:?}");
            let sequence = letter.header("Pelton-Sequence").parse()?;
            dead.push((letter.header("Pelton-Function").to_owned(), sequence));
        }
        dead.sort();
        ensure!(dead.len() >= count, "{dead:?}");
        Ok(Some(dead))
    })
    .await
}

/// What all nodes say of breaks of one of their connections.
async fn breaks(nodes: &[&Node], connection: &str) -> Result<f64> {
    let mut addresses = Vec::new();
    for node in nodes {
        addresses.push(node.http().await?);
    }
    let label = format!("connection=\"{connection}\"");
    let pages = scrape_all(&addresses).await?;
    let of = |page: &Page| page.sum("pelton_node_nats_breaks_total", &[&label]);
    Ok(pages.iter().map(of).sum())
}

#[tokio::test]
async fn unreadable_headers_and_subjects_are_dead_lettered_by_both_engines() -> Result<()> {
    let scene = Scene::start(&(manifest("")? + &queue()?)).await?;
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    let first = scene.nats.publish("hostile.act.a", FINE).await?;
    for header in REFUSED {
        raw.publish_with("hostile.act.a", header, FINE).await?;
    }
    // A subject that is not UTF-8, and one with white space that is no blank of the protocol's.
    for subject in [&b"hostile.act.caf\xe9"[..], b"hostile.act.a\xc2\xa0b"] {
        raw.publish(subject, None, FINE.as_bytes()).await?;
        let headers = b"NATS/1.0\r\nA: b\r\n\r\n";
        raw.publish(subject, Some(headers), FINE.as_bytes()).await?;
    }
    // The server stores these without their headers: else a client would take them for its words.
    for status in ["100 Idle", "404 Nothing", "503"] {
        let block = format!("NATS/1.0 {status}\r\n\r\n");
        raw.publish(b"hostile.act.a", Some(block.as_bytes()), FINE.as_bytes())
            .await?;
    }
    raw.flush().await?;
    let last = scene.nats.publish("hostile.act.a", FINE).await?;
    assert_eq!((first, last), (1, 13));

    for readable in [first, 10, 11, 12, last] {
        handled(&scene.nats, readable).await?;
    }
    let all = (2..10).map(|sequence| ("hostile".to_owned(), sequence));
    let queued = (2..10).map(|sequence| ("queue".to_owned(), sequence));
    let expected: Vec<_> = all.chain(queued).collect();
    assert_eq!(given_up(&scene.nats, expected.len()).await?, expected);
    let log = scene.node.log()?;
    // The log names some of many, and counts the rest.
    let named = "a message is unreadable stream=\"HOSTILE\" sequence=2 ";
    ensure!(log.contains(named), "{log}");
    Ok(())
}

#[tokio::test]
async fn listings_show_functions_beside_unreadable_messages() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    raw.publish(b"hostile.act.caf\xe9", None, FINE.as_bytes())
        .await?;
    raw.publish_with("hostile.act.a", b"X A: b", FINE).await?;
    raw.flush().await?;
    given_up(&scene.nats, 2).await?;
    let listed = scene.pelton.json(&["function", "ls"]).await?;
    let listed = listed.to_string();
    ensure!(listed.contains("hostile"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn unreadable_registry_entry_does_not_keep_nodes_from_new_versions() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    raw.publish_with("$KV.PELTON_REGISTRY.function.shop.x", b"X A: b", "{}")
        .await?;
    raw.flush().await?;
    scene.project.change(&manifest("timeout = \"4s\"\n")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.serving("hostile", Some(2), 1).await?;
    let sequence = scene.nats.publish("hostile.act.a", FINE).await?;
    handled(&scene.nats, sequence).await?;
    // One that starts finds the entry among the others.
    let _second = scene.node()?;
    scene.nats.serving("hostile", Some(2), 2).await
}

#[tokio::test]
async fn value_with_unreadable_headers_is_read_as_state() -> Result<()> {
    let scene = Scene::start(&manifest("")?).await?;
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    raw.publish_with("$KV.shop.counters.c", b"X A: b", "41")
        .await?;
    raw.flush().await?;
    let count = r#"{"do":"count","counter":"c"}"#;
    scene.nats.publish("hostile.act.a", count).await?;
    eventually("the counter to go on from the value", || async {
        let value = scene.nats.value("shop", "counters.c").await;
        Ok(value.ok().flatten().filter(|value| *value == 42))
    })
    .await?;
    assert_eq!(scene.nats.dead("shop").await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn unreadable_requests_leave_calls_and_the_node_service_in_order() -> Result<()> {
    let mut scene = Scene::start(&manifest("")?).await?;
    scene.node.kill().await?;
    scene.node = Node::start(&scene.pelton, &["--http", "127.0.0.1:0"])?;
    scene.nats.serving("hostile", None, 1).await?;
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    let inputs = breaks(&[&scene.node], "pelton-inputs").await?;
    for (n, header) in REFUSED.into_iter().enumerate() {
        for subject in ["pelton.call.shop.hostile", "$SRV.PING"] {
            raw.publish_with(subject, header, FINE).await?;
            raw.flush().await?;
        }
        let call = format!(r#"{{"do":"count","counter":"c{n}"}}"#);
        let id = format!("call-{n}");
        let args = [
            "call",
            "hostile",
            &call,
            "--id",
            &id,
            "--subject",
            "hostile.act.a",
        ];
        eventually("the call to be answered", || async {
            Ok(Some(scene.pelton.ok(&args).await?))
        })
        .await?;
    }
    let answer = ask(scene.node.http().await?, "GET", "/healthz").await?;
    let health: Value = serde_json::from_str(&answer.body)?;
    assert_eq!((answer.status, &health["status"]), (200, &"alive".into()));
    let connections = health["connections"].as_array().context("connections")?;
    assert_eq!(connections.len(), 3);
    // Each request broke at most the connection that takes requests.
    let requests = breaks(&[&scene.node], "pelton-requests").await?;
    ensure!((1.0..=8.0).contains(&requests), "{requests} breaks");
    assert_eq!(breaks(&[&scene.node], "pelton-inputs").await?, inputs);
    Ok(())
}

/// Spellings of headers, in random order: what counts must not differ from node to node.
#[tokio::test]
async fn repeated_and_respelled_headers_are_judged_alike_by_two_nodes() -> Result<()> {
    const EVENTS: usize = 400;
    let component = build::component("hostile")?;
    let text = format!(
        "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n[functions.hostile]\ncomponent = \
         {component:?}\nkey = {{ data = \"/counter\" }}\n{}\n{}",
        project::QUICK_RETRY,
        allow("hostile")
    );
    let scene = Scene::start(&text).await?;
    let _second = scene.node()?;
    scene.nats.serving("hostile", None, 2).await?;
    let names = [
        "Content-Type",
        "content-type",
        "CONTENT-TYPE",
        "X-One",
        "x-one",
    ];
    let values = [
        "application/json",
        "application/cloudevents+json",
        "text/plain",
    ];
    let mut raw = RawPublisher::connect(&scene.server.url()).await?;
    let mut ambiguous = 0;
    for n in 0..EVENTS {
        let mut block = b"NATS/1.0\r\n".to_vec();
        let mut types = BTreeSet::new();
        for _ in 0..fastrand::usize(1..4) {
            let (name, value) = (
                names[fastrand::usize(..names.len())],
                values[fastrand::usize(..values.len())],
            );
            if name.eq_ignore_ascii_case("content-type") {
                types.insert(value);
            }
            block.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        block.extend_from_slice(b"\r\n");
        // As a structured event it is malformed, as a plain one it is counted.
        let body = format!(r#"{{"do":"count","counter":"n{}"}}"#, n % 40);
        let malformed = types.len() > 1 || types.contains("application/cloudevents+json");
        ambiguous += usize::from(malformed);
        raw.publish(b"hostile.act.a", Some(&block), body.as_bytes())
            .await?;
    }
    raw.flush().await?;
    let dead = given_up(&scene.nats, ambiguous).await?;
    within(
        pelton_tests::wait::SOON,
        "all others to be counted",
        || async {
            let counted = counted(&scene.nats, (0..40).map(|n| format!("n{n}"))).await?;
            ensure!(counted as usize == EVENTS - ambiguous, "{counted} counted");
            Ok(Some(()))
        },
    )
    .await?;
    let once: BTreeSet<_> = dead.iter().collect();
    assert_eq!((once.len(), dead.len()), (ambiguous, ambiguous));
    assert_eq!(scene.nats.dead("shop").await?.len(), ambiguous);
    Ok(())
}

/// The sum of these counters.
async fn counted(nats: &Nats, counters: impl Iterator<Item = String>) -> Result<u64> {
    let mut sum = 0;
    for counter in counters {
        let value = nats.value("shop", &format!("counters.{counter}")).await?;
        sum += value.and_then(|value| value.as_u64()).unwrap_or_default();
    }
    Ok(sum)
}
