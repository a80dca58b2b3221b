//! How long events wait for their commit while twenty versions are deployed, on two nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, load, project, within};

const DEPLOYS: u32 = 20;
/// What is left to do when the load ends.
const TAIL: Duration = Duration::from_secs(120);

fn manifest(version: u32) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 3, "");
    text += &format!("[functions.hostile.config]\ntag = \"v{version}\"\n");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// When the messages of a stream under a prefix were stored, nanoseconds since 1970, by the
/// sequence
/// of the event that they are of.
async fn stored(nats: &Nats, stream: &str, prefix: &str) -> Result<BTreeMap<u64, i128>> {
    let mut found = BTreeMap::new();
    for message in nats.messages(stream).await? {
        let subject = message.subject.as_str();
        let Some(rest) = subject.strip_prefix(prefix) else {
            continue;
        };
        // An event's id is its stream and sequence.
        let sequence = match rest.rsplit_once("=3A") {
            Some((_, sequence)) => sequence.parse()?,
            None => message.sequence,
        };
        found.insert(sequence, message.time.unix_timestamp_nanos());
    }
    Ok(found)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
async fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut wanted = wanted.iter().filter(|one| !one.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|one| "deploys".contains(one.as_str())) {
        return Ok(());
    }
    let scene = Scene::start(&manifest(1)?).await?;
    let _second = scene.node()?;
    let nats = &scene.nats;
    nats.serving("hostile", Some(1), 2).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let deploying = async {
        for version in 2..=DEPLOYS + 1 {
            scene.project.change(&manifest(version)?)?;
            scene.pelton.ok(&["deploy"]).await?;
        }
        let _ = stop.send(());
        anyhow::Ok(())
    };
    let (sent, deployed) = tokio::join!(load::publish_counts(nats, stopped), deploying);
    deployed?;
    let sent = sent?;
    let done = within(TAIL, "all to be handled", || async {
        let done = stored(nats, "KV_shop", "$KV.shop.done.").await?;
        ensure!(done.len() as u64 == sent, "{} of {sent}", done.len());
        Ok(Some(done))
    })
    .await?;
    let published = stored(nats, "HOSTILE", "hostile.act.").await?;
    let waits = published.iter();
    let mut waits: Vec<i128> = waits
        .filter_map(|(sequence, at)| Some(done.get(sequence)? - at))
        .collect();
    waits.sort_unstable();
    let at = |share: usize| {
        let wait = waits.get((waits.len() * share / 100).min(waits.len() - 1));
        wait.map(|wait| wait / 1_000_000).context("no events")
    };
    println!(
        "{sent} events during {DEPLOYS} deploys: from stored to committed p50 {} ms, p99 {} ms, longest {} ms",
        at(50)?,
        at(99)?,
        at(100)?
    );
    Ok(())
}
