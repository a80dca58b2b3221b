//! What each safeguard of the position engine is there for, with nodes as real processes. `make mutations` takes safeguards away and
//! expects the test of each to fail; what happens in each is brought about, not waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, Scene, build, project, wait, within};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// The function that does what it is told, and a stream that it may emit to.
fn manifest() -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += "[streams.OUT]\nsubjects = [\"out.>\"]\n";
    let retry = "retry = { max-attempts = 9, initial-delay = \"50ms\", max-delay = \"200ms\" }";
    text += &project::keyed("hostile", &build::component("hostile")?, 3, retry);
    text += "[functions.hostile.allow]\nemit = [\"out.>\"]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// The record of an event that was handled.
async fn record(nats: &Nats, sequence: u64) -> Result<Option<Value>> {
    nats.value("shop", &format!("done.HOSTILE=3A{sequence}"))
        .await
}

async fn done(nats: &Nats, sequence: u64) -> Result<Value> {
    within(LONG, &format!("event {sequence} to be handled"), || {
        record(nats, sequence)
    })
    .await
}

/// Has an event of this key handled.
async fn act(nats: &Nats, key: &str, act: &Value) -> Result<u64> {
    let sequence = nats
        .publish(&format!("hostile.act.{key}"), act.to_string())
        .await?;
    done(nats, sequence).await?;
    Ok(sequence)
}

/// Sequences of the events whose handler came to its end, whatever became of it, by the node that ran it.
async fn ran(nats: &Nats) -> Result<BTreeMap<String, BTreeSet<u64>>> {
    let mut ran = BTreeMap::<String, BTreeSet<u64>>::new();
    for line in nats.messages("PELTON_LOGS").await? {
        let line: Value = serde_json::from_slice(&line.payload)?;
        let node = line["node"].as_str().unwrap_or_default().to_owned();
        ran.entry(node)
            .or_default()
            .extend(line["sequence"].as_u64());
    }
    Ok(ran)
}

/// Keeps as many batches open as the commit stream lets be open at once, so that nothing is committed as long as this is held.
struct Crowd(tokio::task::JoinHandle<()>);

impl Crowd {
    async fn gather(nats: &Nats) -> Result<Self> {
        Self::open(nats, 0).await?;
        let nats = nats.clone();
        let refill = async move {
            // The server gives each up after ten seconds.
            for round in 1.. {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = Self::open(&nats, round).await;
            }
        };
        Ok(Self(tokio::spawn(refill)))
    }

    async fn open(nats: &Nats, round: usize) -> Result<()> {
        for n in 0..60 {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Batch-Id", format!("crowd-{round}-{n}").as_str());
            headers.insert("Nats-Batch-Sequence", "1");
            let subject = format!("$KV.shop.crowd.{n}");
            let begun = nats.core.publish_with_headers(subject, headers, "".into());
            begun.await?;
        }
        Ok(nats.core.flush().await?)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Between the end of its handlers and their commit a node falls asleep, and wakes up when another has done it all.
#[tokio::test]
async fn a_node_that_sleeps_before_its_commit_wakes_up_in_vain() -> Result<()> {
    const EVENTS: u64 = 40;
    let scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    act(nats, "first", &json!({ "do": "fine" })).await?;
    let crowd = Crowd::gather(nats).await?;
    let mut asked = BTreeSet::new();
    for n in 0..EVENTS {
        let emit = json!({ "do": "emit", "subject": format!("out.{n}"), "count": 1, "bytes": 10 });
        let subject = format!("hostile.act.k{n}");
        asked.insert(nats.publish(&subject, emit.to_string()).await?);
    }
    within(LONG, "all handlers to have run", || async {
        let ran = ran(nats).await?;
        let ran = ran.values().any(|ran| ran.is_superset(&asked));
        Ok(ran.then_some(()))
    })
    .await?;
    scene.node.signal("STOP").await?;
    ensure!(nats.count("OUT").await? == 0, "something was committed");
    drop(crowd);

    let _other = scene.node()?;
    within(LONG, "the other node to do it all", || async {
        let count = nats.count("OUT").await?;
        ensure!(count >= EVENTS, "{count} events");
        Ok(Some(()))
    })
    .await?;
    scene.node.signal("CONT").await?;
    let woken = within(LONG / 3, "the sleeper to find it out", || async {
        let said = scene.node.log()?;
        Ok(said.contains("another node has taken").then_some(()))
    })
    .await;
    for sequence in asked {
        done(nats, sequence).await?;
    }
    let subjects = nats.messages("OUT").await?;
    let distinct: BTreeSet<&str> = subjects.iter().map(|one| one.subject.as_str()).collect();
    assert_eq!((subjects.len(), distinct.len()), (40, 40), "{distinct:?}");
    woken
}

/// Attempts of a delivery outlive the node, and so does the delivery.
#[tokio::test]
async fn what_is_to_be_tried_again_outlives_its_node() -> Result<()> {
    let mut scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    let fails = json!({ "do": "fail", "how": "retry-after", "code": "not-yet", "well_at": 8 });
    let failing = nats.publish("hostile.act.a", fails.to_string()).await?;
    within(LONG, "two attempts", || async {
        let said = scene.node.log()?;
        Ok((said.matches("not-yet").count() >= 2).then_some(()))
    })
    .await?;
    scene.node.kill().await?;
    let _other = scene.node()?;
    let later = act(nats, "a", &json!({ "do": "fine" })).await?;
    let record = record(nats, failing).await?;
    let record =
        record.with_context(|| format!("{later} is done, and {failing} before it is lost"))?;
    assert_eq!(record["attempt"], 8, "attempts before the crash count");
    Ok(())
}

/// A node remembers what it read. What it decides on that when another has written is not let through, a dead letter neither.
#[tokio::test]
async fn an_event_is_not_given_up_for_what_is_no_longer_so() -> Result<()> {
    let scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    let bucket = nats.state("shop").await?;
    bucket.put("counters.c", "no number".into()).await?;
    let count = json!({ "do": "count", "counter": "c" }).to_string();
    let before = nats.publish("hostile.act.a", count.clone()).await?;
    let dead = nats.dead_of("shop", "HOSTILE", before).await?;
    assert_eq!(dead.code(), "state-invalid");
    bucket.put("counters.c", "5".into()).await?;
    let after = nats.publish("hostile.act.a", count).await?;
    within(LONG, "the second event to end", || async {
        let done = record(nats, after).await?.is_some();
        Ok((done || nats.dead("shop").await?.len() > 1).then_some(()))
    })
    .await?;
    assert_eq!(nats.value("shop", "counters.c").await?, Some(json!(6)));
    Ok(())
}

/// The client makes a lost consumer anew, and one that has had no message yet from the stream's beginning.
#[tokio::test]
async fn what_is_read_a_second_time_is_not_handled_again() -> Result<()> {
    let mut scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    let fine = json!({ "do": "fine" });
    for _ in 0..20 {
        act(nats, "a", &fine).await?;
    }
    // As it leaves it writes how far it is.
    scene.node.terminate(LONG).await?;
    // Another partition, which had no event, is behind: the next node begins to read before all of them.
    let stream = nats.js.get_stream("KV_shop").await?;
    let mut behind = false;
    for partition in 0..2 {
        let subject = format!("$KV.PELTON_shop.pos.hostile.HOSTILE.{partition}");
        let stored = stream.get_last_raw_message_by_subject(&subject).await?;
        let mut position: Value = serde_json::from_slice(&stored.payload)?;
        if position["witness"] == 0 {
            position["sequence"] = 0.into();
            nats.publish(&subject, position.to_string()).await?;
            behind = true;
        }
    }
    ensure!(behind, "no partition is without an event");
    let other = scene.node()?;
    nats.serving("hostile", None, 1).await?;
    let last = act(nats, "a", &fine).await?;
    let again = within(LONG, "the other node's log", || async {
        let ran = ran(nats).await?;
        Ok(ran.into_values().find(|ran| ran.contains(&last)))
    })
    .await?;
    assert_eq!(again, BTreeSet::from([last]), "handled again");
    drop(other);
    Ok(())
}

/// What the server has sent and the reader has not got, as when a connection breaks; here somebody else has it.
#[tokio::test]
async fn what_did_not_reach_the_reader_is_read_again() -> Result<()> {
    use futures::StreamExt;
    let scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    let fine = json!({ "do": "fine" });
    act(nats, "a", &fine).await?;
    let inbox = nats.core.new_inbox();
    let mut stolen = nats.core.subscribe(inbox.clone()).await?;
    for reader in consumers(nats).await? {
        let ask = format!("$JS.API.CONSUMER.MSG.NEXT.HOSTILE.{reader}");
        let one = json!({ "batch": 1, "expires": 60_000_000_000_u64 }).to_string();
        nats.core
            .publish_with_reply(ask, inbox.clone(), one.into())
            .await?;
    }
    nats.core.flush().await?;
    let mut asked = Vec::new();
    // The server gives each that has asked one in turn.
    for _ in 0..20 {
        asked.push(nats.publish("hostile.act.a", fine.to_string()).await?);
    }
    let taken = tokio::time::timeout(LONG, stolen.next()).await?;
    ensure!(
        taken.is_some_and(|taken| taken.status.is_none()),
        "nothing was taken"
    );
    act(nats, "a", &fine).await?;
    for sequence in asked {
        let record = record(nats, sequence).await?;
        ensure!(record.is_some(), "{sequence} is lost, and its key went on");
    }
    Ok(())
}

/// Names of the consumers that read the input.
async fn consumers(nats: &Nats) -> Result<BTreeSet<String>> {
    use futures::TryStreamExt;
    let stream = nats.js.get_stream("HOSTILE").await?;
    Ok(stream.consumer_names().try_collect().await?)
}

/// The server may fire a schedule twice, should it be killed as it does so; here that is done by hand, before its time.
#[tokio::test]
async fn a_timer_that_fires_twice_comes_once() -> Result<()> {
    let scene = Scene::start(&manifest()?).await?;
    let nats = &scene.nats;
    let since = std::time::UNIX_EPOCH.elapsed()?;
    let soon = u64::try_from(since.as_millis())? + 3000;
    for (name, at) in [("timer", soon), ("after", soon + 500)] {
        let later =
            json!({ "do": "later", "name": name, "at_ms": at, "subject": format!("out.{name}") });
        act(nats, name, &later).await?;
    }
    let mut scheduled = nats.messages("KV_shop").await?;
    scheduled.retain(|one| {
        let subject = one.headers.get("Pelton-Subject");
        one.headers.get("Nats-Schedule").is_some()
            && subject.is_some_and(|subject| subject.as_str() == "out.timer")
    });
    let scheduled = scheduled.first().context("no schedule")?;
    let target = scheduled.headers.get("Nats-Schedule-Target");
    let target = target.context("no target")?.to_string();
    let mut headers = async_nats::HeaderMap::new();
    for (name, values) in scheduled.headers.iter() {
        let own = name.to_string().starts_with("Nats-");
        for value in values.iter().filter(|_| !own) {
            headers.append(name.clone(), value.clone());
        }
    }
    for _ in 0..2 {
        let (headers, body) = (headers.clone(), scheduled.payload.clone());
        let fired = nats.js.publish_with_headers(target.clone(), headers, body);
        fired.await?.await?;
    }
    within(LONG, "the later timer", || async {
        let came = nats.messages("OUT").await?;
        Ok(came
            .iter()
            .any(|one| one.subject.as_str() == "out.after")
            .then_some(()))
    })
    .await?;
    let came = nats.messages("OUT").await?;
    let came: Vec<&str> = came.iter().map(|one| one.subject.as_str()).collect();
    assert_eq!(came, ["out.timer", "out.after"]);
    Ok(())
}

/// Counts of `tally`: for each key, when each number was told, in order, milliseconds since 1970.
async fn told(nats: &Nats) -> Result<BTreeMap<String, Vec<i64>>> {
    let mut told = BTreeMap::<String, Vec<i64>>::new();
    for message in nats.messages("COUNTS").await? {
        let times = told.entry(message.subject.to_string()).or_default();
        times.push(i64::try_from(
            message.time.unix_timestamp_nanos() / 1_000_000,
        )?);
        let (count, said) = (times.len(), &message.payload);
        ensure!(
            said == &count.to_string(),
            "{said:?} is number {count} of {}",
            message.subject
        );
    }
    Ok(told)
}

fn tally() -> Result<String> {
    let mut text = "[streams.TALLY]\nsubjects = [\"tally.>\"]\n".to_owned();
    text += "[streams.COUNTS]\nsubjects = [\"counts.>\"]\n";
    text += &project::keyed("tally", &build::component("tally")?, 2, "");
    text += "[functions.tally.allow]\nemit = [\"counts.*\"]\n";
    Ok(text)
}

/// Events of one key go along with each other. When the first of them cannot be committed, the others are not lost with it.
#[tokio::test]
async fn those_that_went_along_with_one_that_did_not_end_are_handled_in_order() -> Result<()> {
    const EVENTS: u64 = 500;
    let scene = Scene::start(&tally()?).await?;
    let nats = &scene.nats;
    nats.publish("tally.hot", "").await?;
    within(LONG, "the first count", || async {
        Ok((nats.count("COUNTS").await? == 1).then_some(()))
    })
    .await?;
    let crowd = Crowd::gather(nats).await?;
    for _ in 1..EVENTS {
        nats.publish("tally.hot", "").await?;
    }
    within(LONG, "a commit to be given up for now", || async {
        let said = scene.node.log()?;
        Ok(said.contains("could not commit").then_some(()))
    })
    .await?;
    drop(crowd);
    within(LONG, "all counts", || async {
        let count = nats.count("COUNTS").await?;
        ensure!(count >= EVENTS, "{count} counts");
        Ok(Some(()))
    })
    .await?;
    let told = told(nats).await?;
    let count = told.get("counts.hot").map_or(0, Vec::len);
    assert_eq!(u64::try_from(count)?, EVENTS);
    Ok(())
}

/// From `kill -9` until each key of the dead node is handled by the other.
#[tokio::test]
async fn a_dead_nodes_keys_are_taken_over_within_five_seconds() -> Result<()> {
    const KEYS: usize = 200;
    const BOUND: i64 = wait::PROMPT.as_millis() as i64;
    let mut scene = Scene::start(&tally()?).await?;
    let nats = &scene.nats;
    let _other = scene.node()?;
    nats.serving("tally", None, 2).await?;
    let load = {
        let nats = nats.clone();
        tokio::spawn(async move {
            loop {
                for n in 0..KEYS {
                    let _ = nats.core.publish(format!("tally.k{n}"), "".into()).await;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    };
    // Both nodes have their share before one of them dies.
    within(LONG, "both nodes to run partitions", || async {
        let owners = owners(nats).await?;
        Ok((owners.len() == 2 && owners.values().all(|count| *count > 8)).then_some(()))
    })
    .await?;
    scene.node.kill().await?;
    let killed = std::time::UNIX_EPOCH.elapsed()?;
    let killed = i64::try_from(killed.as_millis())?;
    let counts = nats.js.get_stream("COUNTS").await?;
    let mut late = 0;
    for n in 0..KEYS {
        let subject = format!("counts.k{n}");
        let what = format!("key {n} to be handled again");
        let at = within(LONG, &what, || async {
            let last = counts.get_last_raw_message_by_subject(&subject).await?;
            let at = i64::try_from(last.time.unix_timestamp_nanos() / 1_000_000)?;
            Ok((at > killed).then_some(at))
        });
        late = late.max(at.await?);
    }
    load.abort();
    let took = late - killed;
    ensure!(took < BOUND, "the last key waited {took} ms");
    Ok(())
}

/// How many partitions each node runs.
async fn owners(nats: &Nats) -> Result<BTreeMap<String, usize>> {
    use futures::TryStreamExt;
    let stream = nats.js.get_stream("KV_shop").await?;
    let positions = stream.info_with_subjects("$KV.PELTON_shop.pos.>").await?;
    let positions: Vec<(String, usize)> = positions.try_collect().await?;
    let mut owners = BTreeMap::new();
    for (position, _) in positions {
        let found = stream.get_last_raw_message_by_subject(&position).await?;
        let record: Value = serde_json::from_slice(&found.payload)?;
        let owner = record["owner"].as_str().unwrap_or_default().to_owned();
        *owners.entry(owner).or_default() += 1;
    }
    Ok(owners)
}
