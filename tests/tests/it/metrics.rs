//! What a node shows over HTTP, held against what was sent and what was done to it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_runtime::telemetry::metrics::{self, Kind};
use pelton_tests::http::HttpServer;
use pelton_tests::rates::{self, Cluster, Rates};
use pelton_tests::scrape::{self, Answer, ask, scrape};
use pelton_tests::{Node, Scene, build, eventually, project};
use serde_json::{Value, json};

/// Events of a short load and of one of a minute, and how many a second.
const EVENTS: u64 = 3000;
const EVENTS_OF_A_MINUTE: u64 = 30_000;
const PER_SECOND: u64 = 500;
/// How far a counter may be from what was sent.
const TOLERANCE: f64 = 0.01;
/// Nodes of these scenes show their metrics.
const SHOWN: [(&str, &str); 1] = [("PELTON_HTTP", "127.0.0.1:0")];

/// The function `hostile`, which may call nobody.
fn hostile(more: &str, queue: bool) -> Result<String> {
    calling(more, queue, "127.0.0.1:1")
}

/// The same, which may call `host`.
fn calling(more: &str, queue: bool, host: &str) -> Result<String> {
    let component = build::component("hostile")?;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &match queue {
        true => project::function("hostile", &component, more),
        false => project::keyed("hostile", &component, 3, more),
    };
    text += &format!("[functions.hostile.allow]\nhttp = [\"{host}\"]\n");
    Ok(text)
}

fn reasons(answer: &Answer) -> Result<Vec<String>> {
    let body: Value = serde_json::from_str(&answer.body)?;
    let reasons = body["reasons"].as_array().cloned().unwrap_or_default();
    Ok(reasons
        .iter()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect())
}

#[tokio::test]
async fn four_counters_on_three_nodes_agree_with_what_was_sent() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    cluster.load(EVENTS_OF_A_MINUTE, PER_SECOND).await?;
    let (all, wanted) = (&cluster.addresses, Rates::of(EVENTS_OF_A_MINUTE));
    let near = |rates: &Rates| rates.off(&wanted).iter().all(|off| *off <= TOLERANCE);
    let rates = cluster.at_rest(all, near).await?;
    ensure!(near(&rates), "{rates:?}, should be {wanted:?}");

    let pages = scrape::scrape_all(all).await?;
    for page in &pages {
        let handled = page.sum("pelton_events_handled_total", &[]);
        ensure!(handled > 0.0, "a node did nothing: {}", page.text);
        // What is counted by version, and in histograms, comes to the same.
        for name in ["pelton_commits_total", "pelton_latency_seconds_count"] {
            assert_eq!(page.sum(name, &["version=\"1\""]), handled, "{name}");
        }
        assert_eq!(page.sum("pelton_commit_batches_in_flight", &[]), 0.0);
        let batched = page.sum("pelton_commit_batch_deliveries_sum", &[]);
        ensure!(batched >= handled, "{batched} in batches of {handled}");
    }
    eventually("one node to say what waits", || async {
        let pages = scrape::scrape_all(all).await?;
        let labels = ["function=\"tally\"", "stream=\"TALLY\""];
        let said = pages
            .iter()
            .flat_map(|page| page.values("pelton_pending_events", &labels));
        let said: Vec<f64> = said.collect();
        ensure!(said == [0.0], "{said:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn who_counts_what_is_stored_may_be_killed() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let nats = cluster.nats.clone();
    let load = tokio::spawn(async move { rates::publish(&nats, EVENTS, PER_SECOND).await });
    let (oldest, others) = cluster.addresses.split_first().context("no nodes")?;
    let (oldest, others) = (*oldest, others.to_vec());
    let name = "pelton_events_produced_total";
    let counted = eventually("the oldest node to count a third", || async {
        let counted = scrape(oldest).await?.sum(name, &[]);
        Ok((counted >= EVENTS as f64 / 3.0).then_some(counted))
    })
    .await?;
    cluster.nodes.first_mut().context("no node")?.kill().await?;
    load.await??;
    let others_counted = |rates: &Rates| counted + rates.produced >= 0.95 * EVENTS as f64;
    let rates = cluster.at_rest(&others, others_counted).await?;
    // Between the last look at the node and its end it may have counted once more: a second's worth. Had the next one begun anew, or not where
    // that one was, it would be a third of all.
    let all = counted + rates.produced;
    let off = (all - EVENTS as f64).abs();
    ensure!(
        off <= PER_SECOND as f64 * 1.5,
        "{counted} and then {} of {EVENTS}",
        rates.produced
    );
    Ok(())
}

/// One event that fails until it is given up, one that fails once, one that goes well.
async fn counted(queue: bool) -> Result<()> {
    let text = hostile(project::QUICK_RETRY, queue)?;
    let scene = Scene::start_with(&text, &SHOWN).await?;
    let address = scene.node.http().await?;
    let fail = |how: &str, well_at: u32| {
        json!({ "do": "fail", "how": how, "code": "x", "well_at": well_at }).to_string()
    };
    let nats = &scene.nats;
    let lost = nats.publish("hostile.act.a", fail("retry", 0)).await?;
    nats.publish("hostile.act.b", fail("retry", 2)).await?;
    nats.publish("hostile.act.c", r#"{"do":"fine"}"#).await?;
    nats.dead_of("shop", "HOSTILE", lost).await?;
    let page = eventually("all to be handled", || async {
        let page = scrape(address).await?;
        let handled = page.sum("pelton_events_handled_total", &[]);
        ensure!(handled == 2.0, "{handled}");
        Ok(Some(page))
    })
    .await?;
    for (name, count) in [
        ("pelton_events_consumed_total", 3.0),
        ("pelton_attempts_total", 6.0),
        ("pelton_attempt_failures_total", 4.0),
        ("pelton_attempt_duration_seconds_count", 6.0),
        ("pelton_retries_total", 3.0),
        ("pelton_dead_lettered_total", 1.0),
        ("pelton_commits_total", 2.0),
        ("pelton_deferrals_total", 0.0),
        ("pelton_function_ready", 1.0),
        ("pelton_node_nats_connected", 1.0),
    ] {
        assert_eq!(page.sum(name, &[]), count, "{name}: {}", page.text);
    }
    // A queue may hand a message out too early once more.
    let deliveries = page.sum("pelton_deliveries_total", &[]);
    ensure!(deliveries >= 6.0, "{deliveries}");
    eventually("the dead letter to be seen", || async {
        let seen = scrape(address).await?.values("pelton_dead_letters", &[]);
        Ok((seen == [1.0]).then_some(()))
    })
    .await
}

#[tokio::test]
async fn attempts_are_counted_each_and_deliveries_once() -> Result<()> {
    counted(false).await?;
    counted(true).await
}

#[tokio::test]
async fn every_series_is_described_and_no_label_grows_with_events() -> Result<()> {
    let scene = Scene::start_with(&hostile("", false)?, &SHOWN).await?;
    let address = scene.node.http().await?;
    scene
        .nats
        .publish("hostile.act.some-key", r#"{"do":"fine"}"#)
        .await?;
    let page = eventually("what waits to be shown", || async {
        let page = scrape(address).await?;
        let all = [
            page.values("pelton_events_handled_total", &[]),
            page.values("pelton_events_produced_total", &[]),
            page.values("pelton_pending_events", &[]),
        ];
        Ok((all == [[1.0], [1.0], [0.0]]).then_some(page))
    })
    .await?;
    let described: Vec<_> = metrics::ALL.iter().flat_map(|(_, all)| *all).collect();
    let mut shown = BTreeSet::new();
    for (series, _) in page.series() {
        let name = series.split('{').next().unwrap_or_default();
        let metric = described
            .iter()
            .find(|metric| metric.series().iter().any(|one| one == name));
        let metric = metric.with_context(|| format!("{name} is not described"))?;
        shown.insert(metric.name);
        let mut labels: BTreeSet<&str> = metric.labels.iter().copied().collect();
        if metric.kind == Kind::Histogram && name.ends_with("_bucket") {
            labels.insert("le");
        }
        let rest = series.strip_prefix(name).unwrap_or_default();
        let found = rest.trim_matches(['{', '}']).split(',');
        let found = found.filter_map(|label| Some(label.split_once('=')?.0));
        assert_eq!(found.collect::<BTreeSet<_>>(), labels, "{series}");
        ensure!(!series.contains("some-key"), "{series}");
        let help = format!("# HELP {} {}", metric.name, metric.help);
        ensure!(page.text.contains(&help), "{name} has no help");
    }
    // Nothing was emitted, so nothing was transported.
    let missing = described.iter().filter(|one| !shown.contains(one.name));
    let missing: Vec<&str> = missing.map(|one| one.name).collect();
    assert_eq!(
        missing,
        ["pelton_events_transported", "pelton_outbox_oldest_seconds"]
    );
    Ok(())
}

#[tokio::test]
async fn a_node_is_ready_while_it_has_its_server() -> Result<()> {
    let mut scene = Scene::start_with(&hostile("", false)?, &SHOWN).await?;
    let address = scene.node.http().await?;
    let ready = async |wanted: u16| {
        eventually(&format!("/readyz to say {wanted}"), || async {
            let answer = ask(address, "GET", "/readyz").await?;
            ensure!(answer.status == wanted, "{answer:?}");
            Ok(Some(answer))
        })
        .await
    };
    ready(200).await?;
    scene.server.kill()?;
    let answer = ready(503).await?;
    let why = reasons(&answer)?;
    ensure!(why.iter().any(|one| one.contains("NATS")), "{why:?}");
    let page = scrape(address).await?;
    for name in ["pelton_node_nats_connected", "pelton_node_ready"] {
        assert_eq!(page.sum(name, &[]), 0.0, "{name}");
    }
    // A supervisor is not to kill it for that.
    let alive = ask(address, "GET", "/healthz").await?;
    assert_eq!(alive.status, 200, "{alive:?}");
    scene.server.restart().await?;
    ready(200).await?;
    assert_eq!(scrape(address).await?.sum("pelton_node_ready", &[]), 1.0);
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_says_so_until_its_end() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let text = calling("timeout = \"60s\"", true, &gate.host())?;
    let mut scene = Scene::start_with(&text, &SHOWN).await?;
    let address = scene.node.http().await?;
    let act = json!({ "do": "http", "url": gate.url() }).to_string();
    scene.nats.publish("hostile.act.now", act).await?;
    gate.asked(1).await?;
    let leaving = scene.node.terminate(Duration::from_secs(30));
    let watching = async {
        let said = eventually("the node to say that it stops", || async {
            let answer = ask(address, "GET", "/readyz").await?;
            let why = reasons(&answer)?;
            let stops = why.iter().any(|one| one.contains("stopping"));
            ensure!(stops && answer.status == 503, "{answer:?}");
            let page = scrape(address).await?;
            Ok(Some(page.sum("pelton_node_draining", &[])))
        })
        .await;
        gate.open();
        said
    };
    let (status, draining) = tokio::join!(leaving, watching);
    assert_eq!(draining?, 1.0);
    ensure!(status?.success(), "it was asked to leave");
    ensure!(
        ask(address, "GET", "/healthz").await.is_err(),
        "it is gone, and answers"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_asked_badly_is_refused() -> Result<()> {
    let scene = Scene::start_with(&hostile("", false)?, &SHOWN).await?;
    let address = scene.node.http().await?;
    let posted = ask(address, "POST", "/metrics").await?;
    assert_eq!(posted.status, 405);
    let head = posted.head.to_lowercase();
    ensure!(head.contains("allow: get, head"), "{head}");
    let nowhere = ask(address, "GET", "/").await?;
    assert_eq!(nowhere.status, 404);
    ensure!(nowhere.body.contains("/metrics"), "{nowhere:?}");
    let head = ask(address, "HEAD", "/metrics").await?;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let long = format!("/{}", "x".repeat(64 << 10));
    let long = ask(address, "GET", &long).await;
    ensure!(long.is_err() || long?.status >= 400, "a head without end");

    let taken = address.to_string();
    let words = [taken.as_str(), "--http", "port 0"];
    scene
        .pelton
        .refused(&["run", "--http", &taken], &words)
        .await?;
    let words = ["127.0.0.1:9090"];
    scene
        .pelton
        .refused(&["run", "--http", "somewhere"], &words)
        .await?;

    // It is off unless it is asked for.
    let silent = Node::start(
        &pelton_tests::Pelton::new(&scene.server.url(), scene.project.path())?,
        &[],
    )?;
    scene.nats.serving("hostile", None, 2).await?;
    ensure!(!silent.log()?.contains("/metrics"), "{}", silent.log()?);
    Ok(())
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() -> Result<()> {
    let root = build::root()?;
    let all = metrics::ALL.iter().flat_map(|(_, all)| *all);
    let known: BTreeSet<String> = all.flat_map(|metric| metric.series()).collect();
    for (file, least) in [("grafana/pelton.json", 20), ("alerts/pelton.rules.yaml", 6)] {
        let text = std::fs::read_to_string(root.join("deploy").join(file))?;
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: BTreeSet<&str> = words.filter(|word| word.starts_with("pelton_")).collect();
        for name in &used {
            ensure!(known.contains(*name), "{file} asks for {name}");
        }
        ensure!(used.len() >= least, "{file} asks for {used:?}");
    }
    let dashboard = std::fs::read_to_string(root.join("deploy/grafana/pelton.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(panels.iter().all(|one| one["title"].is_string()));
    Ok(())
}
