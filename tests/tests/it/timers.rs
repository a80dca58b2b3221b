//! What Pelton itself hands to a function: its internal input, which costs nothing while nothing is due and keeps nothing
//! of what is done; delayed events, and ticks of a schedule.

use std::time::Duration;

use anyhow::{Result, ensure};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project, within};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

struct Scene {
    nats: Nats,
    pelton: Pelton,
    project: Project,
    server: NatsServer,
}

/// The manifest; `more` are further keys of the function.
fn manifest(more: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += "[streams.LATER]\nsubjects = [\"later.>\"]\n";
    let retry = "retry = { max-attempts = 9, initial-delay = \"50ms\", max-delay = \"200ms\" }";
    let more = format!("{retry}\n{more}");
    text += &project::function("hostile", &build::component("hostile")?, &more);
    text += "[functions.hostile.allow]\nemit = [\"later.>\"]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

async fn hostile() -> Result<Scene> {
    deployed(&manifest("")?).await
}

async fn deployed(text: &str) -> Result<Scene> {
    let project = Project::new(text)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    Ok(Scene {
        nats,
        pelton,
        project,
        server,
    })
}

/// Hands a message to the function as Pelton does.
async fn hand(nats: &Nats, id: &str, key: &str, body: &Value) -> Result<u64> {
    let headers = [
        ("Pelton-Subject", "hostile.act.x"),
        ("Pelton-Key", key),
        ("Nats-Msg-Id", id),
    ];
    let subject = format!("$KV.PELTON_shop.due.hostile.{id}");
    nats.publish_with(&subject, &headers, body.to_string())
        .await
}

/// The record of an event that was handled: its value and its place among all commits.
async fn done(nats: &Nats, id: &str) -> Result<(Value, u64)> {
    within(LONG, &format!("{id} to be handled"), || async {
        let key = format!("done.{id}");
        let entry = nats.state("shop").await?.entry(key.as_str()).await?;
        let Some(entry) = entry else { return Ok(None) };
        Ok(Some((
            serde_json::from_slice(&entry.value)?,
            entry.revision,
        )))
    })
    .await
}

/// Waits until nothing is due, parked or on its way.
async fn nothing_left(nats: &Nats) -> Result<()> {
    within(LONG, "no leftovers", || async {
        for rest in ["due", "park", "out", "at"] {
            let left = nats
                .count_below("KV_shop", &format!("$KV.PELTON_shop.{rest}.>"))
                .await?;
            ensure!(left == 0, "{left} left under {rest}");
        }
        // What says that a name holds no timer stays for a while.
        let held = nats.messages("KV_shop").await?.into_iter().find(|one| {
            let subject = one.subject.as_str();
            let record = ["timer", "tick"]
                .iter()
                .any(|kind| subject.starts_with(&format!("$KV.PELTON_shop.{kind}.")));
            record && one.headers.get("KV-Operation").is_none()
        });
        ensure!(held.is_none(), "left: {held:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn what_is_due_is_handled_once_in_order_and_leaves_nothing() -> Result<()> {
    let scene = hostile().await?;
    let nats = &scene.nats;
    let mut node = Node::start(&scene.pelton, &[])?;
    let other = Node::start(&scene.pelton, &[])?;
    nats.serving("hostile", None, 2).await?;
    let idle = nats.count_below("KV_shop", "$KV.PELTON_shop.pos.>").await?;
    assert_eq!(idle, 0, "positions of what is idle");

    let count = json!({ "do": "count", "counter": "c" });
    for n in 0..60 {
        hand(nats, &format!("n{n}"), &format!("k{}", n % 7), &count).await?;
        if n == 30 {
            node.kill().await?;
        }
    }
    let mut last = [0; 7];
    for n in 0..60 {
        let (_, at) = done(nats, &format!("n{n}")).await?;
        ensure!(at > last[n % 7], "n{n} overtook one of its key");
        last[n % 7] = at;
    }
    assert_eq!(nats.value("shop", "counters.c").await?, Some(json!(60)));
    nothing_left(nats).await?;
    drop(other);
    Ok(())
}

#[tokio::test]
async fn a_failure_of_what_is_due_is_retried_and_given_up_as_any() -> Result<()> {
    let scene = hostile().await?;
    let nats = &scene.nats;
    let mut node = Node::start(&scene.pelton, &[])?;
    let failing = json!({ "do": "fail", "how": "retry-after", "code": "not-yet", "well_at": 4 });
    hand(nats, "a", "k", &failing).await?;
    hand(nats, "b", "k", &json!({ "do": "fine" })).await?;
    within(LONG, "both to be parked", || async {
        let parked = nats
            .count_below("KV_shop", "$KV.PELTON_shop.park.>")
            .await?;
        Ok((parked == 2).then_some(()))
    })
    .await?;
    node.kill().await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let (record, first) = done(nats, "a").await?;
    assert_eq!(record["attempt"], 4);
    ensure!(done(nats, "b").await?.1 > first, "b waited for a");

    let rejected = json!({ "do": "fail", "how": "reject", "code": "no", "well_at": 0 });
    let sequence = hand(nats, "c", "k", &rejected).await?;
    let dead = nats.dead_of("shop", "KV_shop", sequence).await?;
    assert_eq!((dead.code(), dead.header("Pelton-Event-Id")), ("no", "c"));
    nothing_left(nats).await
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Has the function set a timer and waits until that is committed.
async fn set(nats: &Nats, name: &str, at_ms: i64) -> Result<()> {
    let subject = format!("later.{name}");
    act(
        nats,
        &json!({ "do": "later", "name": name, "at_ms": at_ms, "subject": subject }),
    )
    .await
}

async fn act(nats: &Nats, act: &Value) -> Result<()> {
    let sequence = nats.publish("hostile.act.a", act.to_string()).await?;
    done(nats, &format!("HOSTILE=3A{sequence}")).await?;
    Ok(())
}

/// Events that came, by subject: when each was stored, milliseconds since 1970.
async fn came(nats: &Nats) -> Result<Vec<(String, i64)>> {
    let messages = nats.messages("LATER").await?;
    let came = messages.into_iter().map(|one| {
        let at = i64::try_from(one.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        (one.subject.to_string(), at)
    });
    Ok(came.collect())
}

async fn come(nats: &Nats, count: usize) -> Result<Vec<(String, i64)>> {
    within(LONG, &format!("{count} delayed events"), || async {
        let came = came(nats).await?;
        ensure!(came.len() >= count, "{came:?}");
        Ok(Some(came))
    })
    .await
}

#[tokio::test]
async fn a_delayed_event_comes_once_at_its_time_and_a_cancelled_one_never() -> Result<()> {
    let scene = hostile().await?;
    let nats = &scene.nats;
    let _node = Node::start(&scene.pelton, &[])?;
    let now = now_ms();
    set(nats, "past", now - 1000).await?;
    let late = now_ms() + 4000;
    set(nats, "moved", late - 2000).await?;
    set(nats, "moved", late).await?;
    set(nats, "never", late - 2000).await?;
    act(nats, &json!({ "do": "cancel", "name": "never" })).await?;
    act(nats, &json!({ "do": "cancel", "name": "unheard-of" })).await?;
    set(nats, "soon", late - 1000).await?;

    let came = come(nats, 3).await?;
    let order: Vec<&str> = came.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!(order, ["later.past", "later.soon", "later.moved"]);
    ensure!(
        came[1].1 >= late - 1000 && came[2].1 >= late,
        "{came:?} came before {late}"
    );
    ensure!(came[2].1 < late + 3000, "{came:?} came long after {late}");
    let event = nats.messages("LATER").await?.pop().map(|one| one.headers);
    let headers = event.unwrap_or_default();
    let steering = headers.iter().map(|(name, _)| name.to_string());
    let steering: Vec<String> = steering
        .filter(|name| name.starts_with("Pelton-") || name.starts_with("Nats-Sched"))
        .collect();
    ensure!(steering.is_empty(), "{steering:?} left with the event");
    nothing_left(nats).await?;
    assert_eq!(self::came(nats).await?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_server_killed_as_timers_fire_doubles_and_loses_none() -> Result<()> {
    let mut scene = hostile().await?;
    let _node = Node::start(&scene.pelton, &[])?;
    scene.nats.serving("hostile", None, 1).await?;
    let begin = now_ms() + 3000;
    let mut asked = Vec::new();
    for n in 0..100 {
        let later = json!({
            "do": "later", "name": format!("t{n}"), "at_ms": begin + 10 * n, "subject": format!("later.t{n}"),
        });
        asked.push(
            scene
                .nats
                .publish("hostile.act.a", later.to_string())
                .await?,
        );
    }
    for sequence in asked {
        done(&scene.nats, &format!("HOSTILE=3A{sequence}")).await?;
    }
    come(&scene.nats, 30).await?;
    scene.server.kill()?;
    scene.server.restart().await?;
    come(&scene.nats, 100).await?;
    nothing_left(&scene.nats).await?;
    let came = came(&scene.nats).await?;
    let distinct: std::collections::BTreeSet<&str> =
        came.iter().map(|(subject, _)| subject.as_str()).collect();
    assert_eq!((came.len(), distinct.len()), (100, 100));
    Ok(())
}

#[tokio::test]
async fn a_tick_that_a_killed_server_brought_back_stops_no_schedule() -> Result<()> {
    let scene = deployed(&manifest("schedule = \"* * * * * *\"")?).await?;
    let nats = &scene.nats;
    let mut node = Node::start(&scene.pelton, &[])?;
    ticked(nats, 1).await?;
    node.kill().await?;
    let stream = nats.js.get_stream("KV_shop").await?;
    let record = "$KV.PELTON_shop.tick.hostile";
    let mut tick: Value = serde_json::from_slice(
        &stream
            .get_last_raw_message_by_subject(record)
            .await?
            .payload,
    )?;
    tick["at"] = json!("2026-01-01T00:00:00Z");
    tick["id"] = json!("tick-hostile-1");
    tick["ticking"]["version"] = json!(9);
    nats.publish(record, tick.to_string()).await?;
    for kind in ["at", "due"] {
        let lies = format!("$KV.PELTON_shop.{kind}.>");
        stream.purge().filter(lies).await?;
    }
    let before = ticks(nats).await?.len();
    let _node = Node::start(&scene.pelton, &[])?;
    ticked(nats, before + 2).await
}

/// The seconds that the function was told of, in order, each with how often.
async fn ticks(nats: &Nats) -> Result<Vec<(i64, u64)>> {
    use futures::TryStreamExt;
    let state = nats.state("shop").await?;
    let keys: Vec<String> = state.keys().await?.try_collect().await?;
    let mut ticks = Vec::new();
    for key in keys {
        let Some(second) = key.strip_prefix("ticks.") else {
            continue;
        };
        let count = nats.value("shop", &key).await?.and_then(|one| one.as_u64());
        ticks.push((second.parse()?, count.unwrap_or(0)));
    }
    ticks.sort_unstable();
    Ok(ticks)
}

async fn ticked(nats: &Nats, count: usize) -> Result<()> {
    within(LONG, &format!("{count} ticks"), || async {
        let ticks = ticks(nats).await?;
        ensure!(ticks.len() >= count, "{ticks:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_schedule_ticks_once_each_second_whichever_node_dies() -> Result<()> {
    let text = manifest("schedule = { cron = \"* * * * * *\", timezone = \"Europe/Zurich\" }")?;
    let scene = deployed(&text).await?;
    let nats = &scene.nats;
    let mut nodes = vec![
        Node::start(&scene.pelton, &[])?,
        Node::start(&scene.pelton, &[])?,
    ];
    ticked(nats, 3).await?;
    // One of the two runs the ticks: both are killed in turn.
    for part in [6, 12] {
        nodes.remove(0).kill().await?;
        nodes.push(Node::start(&scene.pelton, &[])?);
        ticked(nats, part).await?;
    }
    // Another version goes on with what is set, and one without a schedule ends it.
    scene.project.change(&format!(
        "{text}\n[functions.hostile.config]\ntag = \"two\"\n"
    ))?;
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("hostile", Some(2), 2).await?;
    ticked(nats, 15).await?;
    scene.project.change(&manifest("")?)?;
    scene.pelton.ok(&["deploy"]).await?;
    nats.serving("hostile", Some(3), 2).await?;
    nothing_left(nats).await?;

    let ticks = ticks(nats).await?;
    let twice = ticks.iter().filter(|(_, count)| *count != 1).count();
    let gaps: Vec<_> = ticks
        .windows(2)
        .filter(|two| two[1].0 != two[0].0 + 1)
        .collect();
    ensure!(twice == 0 && gaps.is_empty(), "{ticks:?}");
    Ok(())
}
