//! Consumers on Pelton's own streams: a server allows 1000 per stream by default, so a node shares
//! one between its functions and listings leave none behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use async_nats::jetstream::consumer::pull;
use futures::TryStreamExt;
use pelton_tests::scrape::{Answer, ask};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, Scene, eventually, modules};

/// Functions of one app on two nodes.
const FUNCTIONS: usize = 60;
/// Consumers that a node may have on the commit stream, whatever runs on it.
const PER_NODE: usize = 4;

/// A manifest of functions that handle `plain.>` and do nothing.
fn plain(folder: &Project, functions: usize) -> Result<String> {
    let component = folder.file("plain.wasm", &modules::component()?)?;
    let mut text = "[streams.PLAIN]\nsubjects = [\"plain.>\"]\n".to_owned();
    for n in 0..functions {
        text += &format!("[functions.f{n}]\ncomponent = {component:?}\n");
    }
    Ok(text)
}

/// Number of consumers per stream.
async fn consumers(nats: &Nats) -> Result<BTreeMap<String, usize>> {
    let mut streams = nats.js.streams();
    let mut found = BTreeMap::new();
    while let Some(stream) = streams.try_next().await? {
        found.insert(stream.config.name, stream.state.consumer_count);
    }
    Ok(found)
}

#[tokio::test]
async fn consumers_do_not_grow_with_functions_or_listings() -> Result<()> {
    let folder = Project::new("")?;
    let scene = Scene::start(&plain(&folder, FUNCTIONS)?).await?;
    let nats = &scene.nats;
    let _second = scene.node()?;
    for n in 0..FUNCTIONS {
        nats.serving(&format!("f{n}"), None, 2).await?;
    }
    for n in [0, FUNCTIONS / 2, FUNCTIONS - 1] {
        let function = format!("f{n}");
        let call = ["call", &function, "{}", "--subject", "plain.x"];
        scene.pelton.ok(&call).await?;
    }
    nats.publish("plain.a", "{}").await?;
    let before = consumers(nats).await?;
    let on_commits = before.get("KV_shop").copied();
    ensure!(
        on_commits.is_some_and(|count| count <= 2 * PER_NODE),
        "{before:?}"
    );
    for n in 0..20 {
        let listed = scene.pelton.json(&["function", "ls"]).await?;
        ensure!(
            listed.as_array().map(Vec::len) == Some(FUNCTIONS),
            "{listed}"
        );
        same_or_fewer(&before, nats, &format!("`function ls`, time {n}")).await?;
    }
    for command in [
        &["function", "info", "f1"][..],
        &["state", "ls"],
        &["dead-letter", "ls"],
        &["node", "ls"],
        &["logs"],
    ] {
        scene.pelton.ok(command).await?;
        same_or_fewer(&before, nats, &command.join(" ")).await?;
    }
    Ok(())
}

/// Checks that no stream has more consumers than before. Nodes replace readers of inputs as they
/// share partitions, so there only those of listings count.
async fn same_or_fewer(before: &BTreeMap<String, usize>, nats: &Nats, after: &str) -> Result<()> {
    let now = consumers(nats).await?;
    let more = now
        .iter()
        .find(|(name, count)| *name != "PLAIN" && before.get(*name) < Some(*count));
    ensure!(more.is_none(), "after {after}: {more:?}, before {before:?}");
    let input = nats.js.get_stream("PLAIN").await?;
    let readers: Vec<_> = input.consumers().try_collect().await?;
    let of_listings = readers
        .iter()
        .filter(|one| one.config.description.as_deref() == Some("Pelton listing"));
    ensure!(
        of_listings.count() == 0,
        "after {after}: a listing's reader is left"
    );
    ensure!(
        now.get("KV_shop") == before.get("KV_shop"),
        "after {after}: {now:?}"
    );
    Ok(())
}

/// A server that allows two consumers per stream, with one function deployed.
async fn crowded() -> Result<(NatsServer, Nats, Pelton, Project)> {
    let config = "jetstream { limits { default_max_consumers: 2 } }";
    let server = NatsServer::start_with(config).await?;
    let nats = Nats::connect(&server.url()).await?;
    let project = Project::new("")?;
    project.change(&plain(&project, 1)?)?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    Ok((server, nats, pelton, project))
}

/// Uses up the consumers of a stream.
async fn fill(nats: &Nats, stream: &str) -> Result<()> {
    let stream = nats.js.get_stream(stream).await?;
    for n in 0..2 {
        let config = pull::Config {
            durable_name: Some(format!("other-{n}")),
            ..Default::default()
        };
        stream.create_consumer(config).await?;
    }
    Ok(())
}

/// Waits until `/readyz` answers with this status and these words.
async fn ready(address: SocketAddr, status: u16, words: &[&str]) -> Result<Answer> {
    eventually(
        &format!("/readyz to say {status} and {words:?}"),
        || async {
            let answer = ask(address, "GET", "/readyz").await?;
            let says = words.iter().all(|word| answer.body.contains(word));
            ensure!(answer.status == status && says, "{answer:?}");
            Ok(Some(answer))
        },
    )
    .await
}

#[tokio::test]
async fn consumer_limit_is_reported_and_recovered_from() -> Result<()> {
    for stream in ["KV_shop", "PLAIN"] {
        let (_server, nats, pelton, _project) = crowded().await?;
        fill(&nats, stream).await?;
        let node = Node::start(&pelton, &["--http", "127.0.0.1:0"])?;
        let address = node.http().await?;
        let words = [
            stream,
            "maximum consumers limit reached",
            "default_max_consumers",
        ];
        ready(address, 503, &words).await?;
        let function = pelton.json(&["function", "ls"]).await?;
        ensure!(
            function[0]["error"].is_null(),
            "a listing needs no consumer: {function}"
        );
        if stream == "KV_shop" {
            pelton.refused(&["state", "ls"], &words).await?;
        }
        let full = nats.js.get_stream(stream).await?;
        for n in 0..2 {
            full.delete_consumer(&format!("other-{n}")).await?;
        }
        ready(address, 200, &[]).await?;
        // Once, although the node keeps trying.
        let log = node.log()?;
        let said = log
            .lines()
            .filter(|line| line.contains("limit reached"))
            .count();
        ensure!(said == 1, "said {said} times: {log}");
        let call = ["call", "f0", "{}", "--subject", "plain.x"];
        pelton.ok(&call).await?;
    }
    Ok(())
}

#[tokio::test]
async fn function_ls_shows_other_functions_if_one_is_unreadable() -> Result<()> {
    let project = Project::new("")?;
    project.change(&plain(&project, 2)?)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    nats.publish("plain.a", "{}").await?;
    nats.publish("$KV.PELTON_shop.pos.f0.PLAIN.0", "no position")
        .await?;
    let listed = pelton.json(&["function", "ls"]).await?;
    let damaged = listed[0]["error"].as_str().unwrap_or_default();
    ensure!(
        damaged.contains("$KV.PELTON_shop.pos.f0.PLAIN.0"),
        "{listed}"
    );
    ensure!(listed[0]["pending"].is_null(), "{listed}");
    ensure!(
        listed[1]["error"].is_null() && listed[1]["pending"] == 1,
        "{listed}"
    );
    let table = pelton.ok(&["function", "ls"]).await?;
    ensure!(table.stdout.contains("shop/f0: "), "{table:?}");
    let info = pelton.ok(&["function", "info", "f0"]).await?;
    ensure!(info.stdout.contains("not readable"), "{info:?}");
    nats.publish("$KV.PELTON_shop.pos.f1.PLAIN.0", "no position")
        .await?;
    pelton
        .refused(&["function", "ls"], &["can be read"])
        .await?;
    Ok(())
}

/// Another client takes messages from the shared reader's consumer, as if a connection had lost
/// them.
#[tokio::test]
async fn call_lost_on_its_way_to_the_shared_reader_is_answered() -> Result<()> {
    let folder = Project::new("")?;
    let scene = Scene::start(&plain(&folder, 3)?).await?;
    let nats = &scene.nats;
    let call = ["call", "f1", "{}", "--subject", "plain.x"];
    scene.pelton.ok(&call).await?;
    let commits = nats.js.get_stream("KV_shop").await?;
    let readers: Vec<String> = commits.consumer_names().try_collect().await?;
    ensure!(readers.len() == 1, "{readers:?}");
    let inbox = nats.core.new_inbox();
    let mut stolen = nats.core.subscribe(inbox.clone()).await?;
    let ask = format!("$JS.API.CONSUMER.MSG.NEXT.KV_shop.{}", readers[0]);
    let two = "{\"batch\":2,\"expires\":60000000000}";
    nats.core.publish_with_reply(ask, inbox, two.into()).await?;
    nats.core.flush().await?;
    for n in 0..4 {
        let function = format!("f{}", n % 3);
        let call = [
            "call",
            &function,
            "{}",
            "--subject",
            "plain.x",
            "--timeout",
            "60s",
        ];
        scene.pelton.ok(&call).await?;
    }
    use futures::StreamExt;
    let taken = stolen.next().await;
    ensure!(
        taken.is_some_and(|one| one.status.is_none()),
        "nothing was taken"
    );
    Ok(())
}
