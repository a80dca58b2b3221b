//! What operators do to functions and nodes that run: pause, resume, another concurrency, drain; each confirmed by every node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::http::HttpServer;
use pelton_tests::{Nats, Node, Scene, build, eventually, project, within};
use serde_json::{Value, json};

const KEYS: u64 = 20;
/// From a change among the nodes until `node ls` tells it.
const RIGHT: Duration = Duration::from_secs(5);

fn manifest(tag: &str, http: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += &format!("[functions.hostile.allow]\nhttp = [{http:?}]\n");
    Ok(text)
}

async fn scene(nodes: usize) -> Result<(Scene, Vec<Node>)> {
    let scene = Scene::start(&manifest("v1", "127.0.0.1:9")?).await?;
    let more: Vec<Node> = (1..nodes).map(|_| scene.node()).collect::<Result<_>>()?;
    scene.nats.serving("hostile", Some(1), nodes).await?;
    Ok((scene, more))
}

/// So many events, each of which adds one to the counter of its key.
async fn count(nats: &Nats, events: u64) -> Result<()> {
    for n in 0..events {
        let key = n % KEYS;
        let body = json!({ "do": "count", "counter": format!("c{key}") });
        nats.publish(&format!("hostile.act.k{key}"), body.to_string())
            .await?;
    }
    Ok(())
}

/// What all counters have come to.
async fn counted(nats: &Nats) -> Result<u64> {
    let mut all = 0;
    for key in 0..KEYS {
        let value = nats.value("shop", &format!("counters.c{key}")).await?;
        all += value.and_then(|value| value.as_u64()).unwrap_or(0);
    }
    Ok(all)
}

async fn counted_to(nats: &Nats, expected: u64) -> Result<()> {
    eventually(&format!("{expected} events to be counted"), || async {
        let found = counted(nats).await?;
        ensure!(found <= expected, "{found} counted");
        ensure!(found == expected, "{found} counted so far");
        Ok(Some(()))
    })
    .await
}

async fn pending(scene: &Scene) -> Result<u64> {
    let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
    info["status"]["pending"].as_u64().context("a number")
}

#[tokio::test]
async fn a_paused_function_takes_nothing_on_any_node_until_it_is_resumed() -> Result<()> {
    let (scene, _more) = scene(2).await?;
    count(&scene.nats, 100).await?;
    let paused = scene.pelton.json(&["function", "pause", "hostile"]).await?;
    assert_eq!(paused["nodes"]["running"], json!(["hostile"]), "{paused}");
    ensure!(paused["controls"]["paused"]["by"].is_string(), "{paused}");
    // Confirmed: nothing is under way any more.
    let before = counted(&scene.nats).await?;
    count(&scene.nats, 60).await?;
    assert_eq!(pending(&scene).await?, 160 - before);
    // A deploy is taken over, and stays paused; so does a node that starts.
    scene.project.change(&manifest("v2", "127.0.0.1:9")?)?;
    let deployed = scene.pelton.ok(&["deploy"]).await?;
    ensure!(deployed.stdout.contains("stays paused"), "{deployed:#?}");
    let _late = scene.node()?;
    eventually("the late node to rest", || async {
        let nodes = scene.pelton.json(&["node", "ls"]).await?;
        let all = nodes.as_array().context("a list")?;
        let rests = all
            .iter()
            .all(|node| node["functions"][0]["status"] == "paused");
        ensure!(all.len() == 3 && rests, "{nodes}");
        Ok(Some(()))
    })
    .await?;
    let listed = scene.pelton.ok(&["function", "ls"]).await?;
    ensure!(listed.stdout.contains("paused"), "{listed:#?}");
    let said = [
        "no node answers",
        "status: paused",
        "function resume hostile",
    ];
    scene
        .pelton
        .refused(
            &["call", "hostile", "{}", "--subject", "hostile.act.k0"],
            &said,
        )
        .await?;
    assert_eq!(counted(&scene.nats).await?, before);

    scene.pelton.ok(&["function", "resume", "hostile"]).await?;
    counted_to(&scene.nats, 160).await?;
    scene.nats.serving("hostile", Some(2), 3).await?;
    // Both are no harm when they are so already.
    scene.pelton.ok(&["function", "resume", "hostile"]).await?;
    Ok(())
}

#[tokio::test]
async fn who_has_not_confirmed_is_named() -> Result<()> {
    let (scene, more) = scene(2).await?;
    let nodes = scene.pelton.json(&["node", "ls"]).await?;
    let sleeper = more.first().context("a second node")?;
    let named = nodes.as_array().context("a list")?.iter();
    let mut named = named.filter(|node| node["pid"] == sleeper.pid());
    let id = named.next().context("it is listed")?["node"].clone();
    sleeper.signal("STOP").await?;
    let paused = ["function", "pause", "hostile", "--wait", "1s"];
    let id = id.as_str().context("a text")?;
    let said = ["not confirmed by", id, "not within 1s"];
    scene.pelton.refused(&paused, &said).await?;
    // Nor is one forgotten of which nothing is heard any more.
    let paused = ["function", "pause", "hostile", "--wait", "60s"];
    let said = ["not confirmed by", id, "not heard from any more"];
    scene.pelton.refused(&paused, &said).await?;
    sleeper.signal("CONT").await?;
    scene.pelton.ok(&["function", "pause", "hostile"]).await?;
    let missing = ["function", "pause", "hostil"];
    scene
        .pelton
        .refused(&missing, &["no function hostil", "choose one of hostile"])
        .await?;
    Ok(())
}

/// The busiest that a node said it was, and what it may be.
async fn load(scene: &Scene) -> Result<(u64, u64)> {
    let nodes = scene.pelton.json(&["node", "ls"]).await?;
    let function = &nodes[0]["functions"][0];
    let number = |name: &str| function[name].as_u64().context("a number");
    Ok((number("busy")?, number("concurrency")?))
}

#[tokio::test]
async fn concurrency_is_changed_while_it_runs() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let scene = Scene::start(&manifest("v1", &gate.host())?).await?;
    let set = |to: &'static str| ["function", "set", "hostile", "--concurrency", to];
    scene.pelton.ok(&set("2")).await?;
    for key in 0..6 {
        let body = json!({ "do": "http", "url": gate.url() });
        let subject = format!("hostile.act.k{key}");
        scene.nats.publish(&subject, body.to_string()).await?;
    }
    let busy = async |expected: (u64, u64)| {
        eventually(&format!("{expected:?} attempts"), || async {
            let found = load(&scene).await?;
            ensure!(found == expected, "{found:?}");
            Ok(Some(()))
        })
        .await
    };
    busy((2, 2)).await?;
    let said = scene.pelton.ok(&set("4")).await?;
    ensure!(said.stdout.contains("in place of 64"), "{said:#?}");
    busy((4, 4)).await?;
    scene.pelton.refused(&set("0"), &["1 to 4096"]).await?;
    gate.open();
    scene.pelton.ok(&set("deployed")).await?;
    busy((0, 64)).await?;
    Ok(())
}

/// What `node ls --json` says, by state.
async fn states(scene: &Scene) -> Result<Vec<(u64, String)>> {
    let nodes = scene.pelton.json(&["node", "ls"]).await?;
    let nodes = nodes.as_array().context("a list")?.iter();
    let state = |node: &Value| {
        let draining = node["draining"] == true;
        let rests = node["functions"][0]["status"] == "paused";
        let state = match (draining, rests) {
            (false, _) => "serving",
            (true, false) => "draining",
            (true, true) => "drained",
        };
        Some((node["pid"].as_u64()?, state.to_owned()))
    };
    Ok(nodes.filter_map(state).collect())
}

#[tokio::test]
async fn one_node_is_killed_one_drained_and_one_added_under_load() -> Result<()> {
    let (mut scene, mut more) = scene(3).await?;
    let (events, rate) = (3000_u64, Duration::from_millis(2));
    let publishing = async {
        let mut tick = tokio::time::interval(rate);
        for n in 0..events {
            tick.tick().await;
            let key = n % KEYS;
            let body = json!({ "do": "count", "counter": format!("c{key}") });
            let subject = format!("hostile.act.k{key}");
            scene.nats.publish(&subject, body.to_string()).await?;
        }
        anyhow::Ok(())
    };
    let (drained, killed) = (more.remove(0), &mut more);
    let changing = async {
        killed.first_mut().context("a third node")?.kill().await?;
        let pid = u64::from(drained.pid());
        let nodes = scene.nats.nodes().await?;
        let id = nodes.iter().find(|node| node["pid"] == pid);
        let id = id.context("it is alive")?["node"].clone();
        let id = id.as_str().context("a text")?;
        let said = scene.pelton.ok(&["node", "drain", id]).await?;
        ensure!(said.stdout.contains("is drained"), "{said:#?}");
        let added = scene.node()?;
        let expected = {
            let mut all = [
                (u64::from(scene.node.pid()), "serving".to_owned()),
                (pid, "drained".to_owned()),
                (u64::from(added.pid()), "serving".to_owned()),
            ];
            all.sort();
            all
        };
        within(RIGHT, "`node ls` to be right", || async {
            let mut found = states(&scene).await?;
            found.sort();
            ensure!(found == expected, "{found:?}");
            Ok(Some(()))
        })
        .await?;
        anyhow::Ok((added, id.to_owned()))
    };
    let (published, changed) = tokio::join!(publishing, changing);
    published?;
    let (_added, id) = changed?;
    counted_to(&scene.nats, events).await?;
    ensure!(scene.nats.dead("shop").await?.is_empty());
    scene.pelton.ok(&["node", "drain", &id, "--undo"]).await?;
    scene.nats.serving("hostile", Some(1), 3).await?;
    // The last one that serves leaves everything to the one that was drained before.
    scene.node.terminate(Duration::from_secs(20)).await?;
    count(&scene.nats, 100).await?;
    counted_to(&scene.nats, events + 100).await?;
    Ok(())
}

#[tokio::test]
async fn nodes_are_found_by_the_service_protocol() -> Result<()> {
    let (scene, _more) = scene(2).await?;
    let mut found = Vec::new();
    let inbox = scene.nats.core.new_inbox();
    let mut answers = scene.nats.core.subscribe(inbox.clone()).await?;
    let asked = scene
        .nats
        .core
        .publish_with_reply("$SRV.STATS.pelton-node", inbox, "".into());
    asked.await?;
    use futures::StreamExt;
    while found.len() < 2 {
        let answer = tokio::time::timeout(Duration::from_secs(5), answers.next()).await?;
        let stats: Value = serde_json::from_slice(&answer.context("an answer")?.payload)?;
        let node = &stats["endpoints"][0]["data"];
        assert_eq!(node["functions"][0]["status"], "running", "{stats}");
        found.push(node["node"].as_str().context("an id")?.to_owned());
    }
    found.sort();
    let said = ["several nodes", found.first().context("one")?.as_str()];
    scene
        .pelton
        .refused(&["node", "drain", "01"], &said)
        .await?;
    scene
        .pelton
        .refused(&["node", "drain", "nobody"], &["no node nobody is alive"])
        .await?;
    Ok(())
}

/// Longer than others take a node for alive that says nothing.
const BEATS: usize = 4;

#[tokio::test]
async fn a_node_that_stops_keeps_what_runs_and_leaves_the_rest() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let text = manifest("v1", &gate.host())?;
    let text = text.replace(
        "key = { token = 3 }",
        "key = { token = 3 }\ntimeout = \"30s\"",
    );
    let Scene {
        mut node,
        nats,
        pelton,
        project: _project,
        server: _server,
    } = Scene::start_with(&text, &[("PELTON_DRAIN", "30s")]).await?;
    let body = json!({ "do": "http", "url": gate.url() }).to_string();
    // Of a partition that none of the counted keys has: they would have to wait for it.
    let slow = nats.publish("hostile.act.a", body).await?;
    gate.asked(1).await?;
    let _second = Node::start(&pelton, &[])?;
    nats.serving("hostile", Some(1), 2).await?;

    let pid = u64::from(node.pid());
    let others = async {
        use futures::StreamExt;
        let mut beats = nats.core.subscribe("$KV.PELTON_NODES.*").await?;
        // All keys but that one are the other's at once.
        count(&nats, 40).await?;
        counted_to(&nats, 40).await?;
        let mut seen = 0;
        while seen < BEATS {
            let beat = tokio::time::timeout(Duration::from_secs(10), beats.next()).await?;
            let beat: Value = serde_json::from_slice(&beat.context("a beat")?.payload)?;
            seen += usize::from(beat["pid"] == pid && beat["draining"] == true);
        }
        gate.open();
        anyhow::Ok(())
    };
    let (stopped, others) = tokio::join!(node.terminate(Duration::from_secs(40)), others);
    others?;
    ensure!(stopped?.success(), "it did not end well");
    let done = nats
        .value("shop", &format!("done.HOSTILE=3A{slow}"))
        .await?;
    assert_eq!(done.context("it was done before it left")?["attempt"], 1);
    assert_eq!(gate.requests(), 1, "another node has tried it, too");
    Ok(())
}
