//! Many deploys while events come: none is lost, handled twice or failed because of one, and none waits for long.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, project, within};
use serde_json::json;

const DEPLOYS: usize = 20;
/// Between two events: 500 in a second.
const PACE: Duration = Duration::from_millis(2);
const KEYS: u64 = 100;
/// What an event may wait from when it is stored to when its commit is, in 99 of 100 cases.
const P99: Duration = Duration::from_millis(250);

fn manifest(tag: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += &format!("[functions.hostile.config]\ntag = {tag:?}\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// Publishes at the pace until told to stop; how many.
async fn publish(nats: &Nats, mut stop: tokio::sync::oneshot::Receiver<()>) -> Result<u64> {
    let mut tick = tokio::time::interval(PACE);
    let mut sent = 0;
    while stop.try_recv().is_err() {
        tick.tick().await;
        let key = sent % KEYS;
        let body = json!({ "do": "count", "counter": format!("c{key}") });
        let subject = format!("hostile.act.k{key}");
        nats.publish(&subject, body.to_string()).await?;
        sent += 1;
    }
    Ok(sent)
}

/// When each message of a stream under a prefix was stored, nanoseconds, by the last token of its subject.
async fn stored(nats: &Nats, stream: &str, prefix: &str) -> Result<BTreeMap<u64, i128>> {
    let mut found = BTreeMap::new();
    for message in nats.messages(stream).await? {
        let subject = message.subject.as_str();
        let Some(rest) = subject.strip_prefix(prefix) else {
            continue;
        };
        // The event's id is its stream and sequence.
        let sequence = match rest.rsplit_once("=3A") {
            Some((_, sequence)) => sequence.parse()?,
            None => message.sequence,
        };
        found.insert(sequence, message.time.unix_timestamp_nanos());
    }
    Ok(found)
}

#[tokio::test]
async fn twenty_deploys_under_load_are_noticed_by_no_event() -> Result<()> {
    let scene = Scene::start(&manifest("v1")?).await?;
    let _second = scene.node()?;
    let nats = &scene.nats;
    nats.serving("hostile", Some(1), 2).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let deploying = async {
        for version in 2..=DEPLOYS + 1 {
            scene.project.change(&manifest(&format!("v{version}"))?)?;
            scene.pelton.ok(&["deploy"]).await?;
        }
        let _ = stop.send(());
        anyhow::Ok(())
    };
    let (sent, deployed) = tokio::join!(publish(nats, stopped), deploying);
    deployed?;
    let sent = sent?;
    let done = within(Duration::from_secs(60), "all to be handled", || async {
        let done = stored(nats, "KV_shop", "$KV.shop.done.").await?;
        ensure!(done.len() as u64 == sent, "{} of {sent}", done.len());
        Ok(Some(done))
    })
    .await?;

    let mut counted = 0;
    for key in 0..KEYS {
        let value = nats.value("shop", &format!("counters.c{key}")).await?;
        counted += value.and_then(|value| value.as_u64()).context("a number")?;
    }
    assert_eq!(counted, sent, "lost or handled twice");
    ensure!(nats.dead("shop").await?.is_empty());
    for node in nats.nodes().await? {
        let counts = &node["functions"][0]["counts"];
        assert_eq!(counts["retried"], 0, "{counts}");
    }
    let published = stored(nats, "HOSTILE", "hostile.act.").await?;
    let mut waited: Vec<i128> = published
        .iter()
        .filter_map(|(sequence, at)| Some(done.get(sequence)? - at))
        .collect();
    waited.sort_unstable();
    let p99 = waited.get(waited.len() * 99 / 100).context("one")?;
    ensure!(
        u128::try_from(*p99)? <= P99.as_nanos(),
        "99 of 100 waited up to {} ms",
        p99 / 1_000_000
    );
    Ok(())
}
