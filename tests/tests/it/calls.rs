//! Request/reply: a call is done once, in its key's order, and answered when it has committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::{HeaderMap, Message, Request};
use futures::StreamExt;
use futures::future::join_all;
use pelton_tests::http::HttpServer;
use pelton_tests::{Nats, Node, Scene, build, eventually, foreign, project, within};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(60);
const SUBJECT: &str = "hostile.act.a";

/// The function that does as it is told, deployed and running.
async fn hostile() -> Result<Scene> {
    Scene::start(&manifest()?).await
}

fn manifest() -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let component = build::component("hostile")?;
    text += &project::function("hostile", &component, project::QUICK_RETRY);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

fn count(counter: &str) -> String {
    json!({ "do": "count", "counter": counter }).to_string()
}

fn fails(how: &str, well_at: u32) -> String {
    json!({ "do": "fail", "how": how, "code": "told-to", "well_at": well_at }).to_string()
}

/// A plain request, as any client makes it; `None`: no reply in time.
async fn request(
    nats: &Nats,
    headers: &[(&str, &str)],
    body: String,
    wait: Duration,
) -> Result<Option<Message>> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let request = Request::new()
        .headers(map)
        .payload(body.into())
        .timeout(Some(wait));
    let subject = "pelton.call.shop.hostile";
    match nats.core.send_request(subject, request).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == async_nats::RequestErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The reply of a call to the first handler that must get one.
async fn call(nats: &Nats, id: &str, body: String) -> Result<Message> {
    let headers = [("Pelton-Subject", SUBJECT), ("Nats-Msg-Id", id)];
    let reply = request(nats, &headers, body, LONG).await?;
    reply.context("no reply")
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    let headers = message.headers.as_ref();
    headers
        .and_then(|headers| headers.get(name))
        .map_or("", |value| value.as_str())
}

async fn counter(nats: &Nats, name: &str) -> Result<Option<Value>> {
    nats.value("shop", &format!("counters.{name}")).await
}

#[tokio::test]
async fn a_call_is_answered_when_its_effect_is_durable() -> Result<()> {
    let scene = hostile().await?;
    let body = count("a");
    let args = ["call", "hostile", body.as_str(), "--subject", SUBJECT];
    for now in 1..4 {
        let output = scene.pelton.ok(&args).await?;
        assert_eq!(output.stdout, now.to_string(), "the reply and nothing else");
        assert_eq!(counter(&scene.nats, "a").await?, Some(now.into()));
    }
    let called = scene.pelton.json(&args).await?;
    assert_eq!(called["reply"], 4);
    assert_eq!(called["content_type"], "application/json");
    // A handler that replies nothing.
    let fine = json!({ "do": "fine" }).to_string();
    let args = ["call", "hostile", &fine, "--subject", SUBJECT, "--id", "e1"];
    assert_eq!(scene.pelton.ok(&args).await?.stdout, "");
    let done = scene.nats.value("shop", "done.e1").await?;
    assert_eq!(done.context("no record")?["attempt"], 1);
    ensure!(scene.nats.dead("shop").await?.is_empty(), "dead letters");
    Ok(())
}

#[tokio::test]
async fn a_call_that_cannot_be_done_says_why() -> Result<()> {
    let scene = hostile().await?;
    let pelton = &scene.pelton;
    let fine = json!({ "do": "fine" }).to_string();
    let with = |more: &[&str]| -> Vec<String> {
        let all = ["call", "hostile", fine.as_str()];
        all.iter()
            .chain(more)
            .map(|&text| text.to_owned())
            .collect()
    };
    let all: &[&str] = &["hostile.act.>", "hostile.raw", "hostile.look", "--subject"];
    pelton.refused(&with(&[]), all).await?;
    pelton
        .refused(
            &with(&["--subject", "orders.x"]),
            &["no handler takes orders.x"],
        )
        .await?;
    pelton
        .refused(
            &with(&["--subject", SUBJECT, "--timeout", "1h"]),
            &["up to 10m"],
        )
        .await?;
    pelton
        .refused(
            &["call", "nobody", "{}"],
            &["has no function nobody", "hostile"],
        )
        .await?;
    for (body, code, says) in [
        (fails("reject", 0), "told-to", "attempt 1 failed"),
        (fails("retry", 0), "told-to", "attempt 3 failed"),
        ("no JSON".to_owned(), "payload-invalid", "no JSON value"),
    ] {
        let args = ["call", "hostile", &body, "--subject", SUBJECT];
        let output = pelton.refused(&args, &[code, says]).await?;
        assert_eq!(output.stdout, "");
    }
    let refused = call(&scene.nats, "r", fails("reject", 0)).await?;
    assert_eq!(header(&refused, "Nats-Service-Error-Code"), "422");
    assert_eq!(
        header(&refused, "Nats-Service-Error"),
        "attempt 1 failed as it was told to"
    );
    assert_eq!(header(&refused, "Pelton-Code"), "told-to");
    let exhausted = call(&scene.nats, "x", fails("retry", 0)).await?;
    assert_eq!(header(&exhausted, "Nats-Service-Error-Code"), "500");
    // What is given up on is kept as ever.
    eventually("five dead letters", || async {
        let dead = scene.nats.dead("shop").await?;
        ensure!(dead.len() == 5, "{}", dead.len());
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn who_ran_out_of_time_is_told_how_to_get_the_reply() -> Result<()> {
    let scene = hostile().await?;
    let slow = fails("retry-after", 3);
    let mut args = vec!["call", "hostile", &slow, "--subject", SUBJECT];
    let mut late = args.clone();
    late.extend(["--timeout", "150ms"]);
    let refused = scene
        .pelton
        .refused(&late, &["did not reply", "--id"])
        .await?;
    let mut words = refused.stderr.split_whitespace();
    let id = words.find(|word| *word == "--id").and(words.next());
    let id = id.context("no id")?.trim_end_matches(',');
    args.extend(["--id", id]);
    scene.pelton.ok(&args).await?;
    let key = format!("done.{id}");
    let done = scene.nats.value("shop", &key).await?.context("no record")?;
    assert_eq!(done["attempt"], 3, "one call, taken to its end");
    Ok(())
}

#[tokio::test]
async fn the_same_id_is_done_once_and_answered_every_time() -> Result<()> {
    let scene = hostile().await?;
    let _other = scene.node()?;
    scene.nats.serving("hostile", None, 2).await?;
    let nats = &scene.nats;
    // At the same time, on two nodes: while the first is being done, and after it.
    let calls = (0..20).map(|_| call(nats, "one", count("a")));
    for reply in join_all(calls).await {
        assert_eq!(reply?.payload, "1");
    }
    assert_eq!(call(nats, "one", count("a")).await?.payload, "1");
    assert_eq!(call(nats, "two", count("a")).await?.payload, "2");
    // One that waits for its next attempt is the same call, too.
    let slow = (0..5).map(|_| call(nats, "slow", fails("retry-after", 3)));
    for reply in join_all(slow).await {
        assert_eq!(header(&reply?, "Nats-Service-Error"), "");
    }
    let rejected = (0..5).map(|_| call(nats, "bad", fails("reject", 0)));
    for reply in join_all(rejected).await {
        assert_eq!(header(&reply?, "Pelton-Code"), "told-to");
    }
    let again = call(nats, "bad", fails("reject", 0)).await?;
    assert_eq!(header(&again, "Pelton-Code"), "told-to");
    assert_eq!(nats.dead("shop").await?.len(), 1);
    assert_eq!(counter(nats, "a").await?, Some(2.into()));
    Ok(())
}

/// Commits a counter's batch, stops the node before it hears of that, and says whether the caller got a reply all the same.
async fn kill_before_the_reply(scene: &mut Scene, id: &str) -> Result<bool> {
    let mut staged = scene
        .nats
        .core
        .subscribe(format!("$KV.shop.counters.{id}"))
        .await?;
    scene.nats.core.flush().await?;
    let nats = scene.nats.clone();
    let name = id.to_owned();
    let caller = tokio::spawn(async move {
        let headers = [("Pelton-Subject", SUBJECT), ("Nats-Msg-Id", name.as_str())];
        request(&nats, &headers, count(&name), Duration::from_secs(2)).await
    });
    staged.next().await.context("nothing was written")?;
    scene.node.signal("STOP").await?;
    within(LONG, "the effect to be durable", || async {
        counter(&scene.nats, id).await
    })
    .await?;
    scene.node.kill().await?;
    Ok(caller.await??.is_some())
}

#[tokio::test]
async fn a_node_killed_between_commit_and_reply_doubles_nothing() -> Result<()> {
    let mut scene = hostile().await?;
    let mut without = 0;
    for n in 0..10 {
        let id = format!("k{n}");
        let replied = kill_before_the_reply(&mut scene, &id).await?;
        scene.node = scene.node()?;
        // Until the node is there, nobody responds.
        let again = within(LONG, "a reply", || async {
            call(&scene.nats, &id, count(&id)).await.map(Some)
        })
        .await?;
        assert_eq!(
            again.payload, "1",
            "the reply of the one time that it was done"
        );
        assert_eq!(counter(&scene.nats, &id).await?, Some(1.into()));
        without += usize::from(!replied);
        if without == 2 {
            return Ok(());
        }
    }
    anyhow::bail!("the node was never stopped before it replied")
}

/// The record of a call that was handled: its attempt and its place among all commits.
async fn done(nats: &Nats, id: &str) -> Result<Option<(Value, u64)>> {
    let entry = nats
        .state("shop")
        .await?
        .entry(format!("done.{id}"))
        .await?;
    entry
        .map(|entry| Ok((serde_json::from_slice(&entry.value)?, entry.revision)))
        .transpose()
}

#[tokio::test]
async fn calls_keep_the_order_of_their_key_and_late_ones_are_dropped() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed(
        "hostile",
        &build::component("hostile")?,
        3,
        project::QUICK_RETRY,
    );
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let scene = Scene::start(&text).await?;
    let nats = &scene.nats;
    let fine = || json!({ "do": "fine" }).to_string();
    let ask = |id: &'static str, subject: &'static str, body: String, wait: u64| async move {
        let said = format!("{wait}ms");
        let headers = [
            ("Pelton-Subject", subject),
            ("Nats-Msg-Id", id),
            ("Pelton-Timeout", said.as_str()),
        ];
        request(nats, &headers, body, Duration::from_millis(wait)).await
    };
    // It fails for longer than the impatient one waits, and holds up its key alone.
    let failing = ask("failing", "hostile.act.a", fails("retry-after", 3), 30_000);
    let behind = async {
        within(LONG, "the first to fail", || async {
            let parked = nats
                .count_below("KV_shop", "$KV.PELTON_shop.park.>")
                .await?;
            ensure!(parked == 1, "{parked} parked");
            Ok(Some(()))
        })
        .await?;
        let (behind, impatient, other) = tokio::join!(
            ask("behind", "hostile.act.a", fine(), 30_000),
            ask("impatient", "hostile.act.a", fine(), 200),
            ask("other", "hostile.act.b", fine(), 30_000),
        );
        anyhow::Ok((behind?, impatient?, other?))
    };
    let (failing, rest) = tokio::join!(failing, behind);
    let (behind, impatient, other) = rest?;
    ensure!(failing?.is_some() && behind.is_some() && other.is_some());
    ensure!(impatient.is_none(), "a late reply");
    let at = |id: &'static str| async move { done(nats, id).await?.context(id) };
    let (failing, behind, other) = (
        at("failing").await?,
        at("behind").await?,
        at("other").await?,
    );
    assert_eq!(failing.0["attempt"], 3);
    ensure!(other.1 < failing.1, "another key waited");
    ensure!(
        failing.1 < behind.1,
        "a call overtook another one of its key"
    );
    ensure!(
        done(nats, "impatient").await?.is_none(),
        "a late call was done"
    );
    // As if it had never been asked.
    let again = ask("impatient", "hostile.act.a", fine(), 30_000).await?;
    ensure!(again.is_some() && done(nats, "impatient").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_client_of_another_language_finds_and_calls_a_function() -> Result<()> {
    let scene = hostile().await?;
    let args = [
        scene.server.url(),
        "pelton-shop-hostile".into(),
        SUBJECT.into(),
        count("py"),
        fails("reject", 0),
    ];
    let found = foreign("call.py", &args).await?;
    assert_eq!(found["reply"], "1");
    assert_eq!(found["headers"]["Content-Type"], "application/json");
    assert_eq!(found["refused"]["Nats-Service-Error-Code"], "422");
    assert_eq!(found["stats"]["num_requests"], 2);
    assert_eq!(found["stats"]["num_errors"], 1);
    let info = &found["info"];
    assert_eq!(info["type"], "io.nats.micro.v1.info_response");
    assert_eq!(info["version"], "1.0.0");
    assert_eq!(info["metadata"]["pelton-function"], "hostile");
    assert_eq!(info["endpoints"][0]["subject"], "pelton.call.shop.hostile");
    // By name: the node is a service, too.
    let ping = "$SRV.PING.pelton-shop-hostile";
    let pong = scene.nats.core.request(ping, "".into()).await?;
    let pong: Value = serde_json::from_slice(&pong.payload)?;
    assert_eq!(pong["name"], "pelton-shop-hostile");
    Ok(())
}

/// Callers who ask one call after the other, each a counter of its own, until they are told to stop.
struct Callers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<u64>>>,
}

impl Callers {
    /// Who gets no reply within `wait` asks again with the same id, so often.
    fn start(nats: &Nats, wait: Duration, tries: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |caller: usize| {
            let (nats, stop) = (nats.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let (id, counter) = (format!("c{caller}-{n}"), format!("c{caller}"));
                    let headers = [("Pelton-Subject", SUBJECT), ("Nats-Msg-Id", id.as_str())];
                    let mut reply = None;
                    for _ in 0..tries {
                        reply = request(&nats, &headers, count(&counter), wait).await?;
                        if reply.is_some() {
                            break;
                        }
                    }
                    let reply = reply.with_context(|| format!("no reply to {id}"))?;
                    ensure!(reply.payload == n.to_string(), "call {id}: {reply:?}");
                }
                Ok(n)
            })
        };
        let tasks = (0..8).map(task).collect();
        Self { stop, tasks }
    }

    /// Each call of each was answered and done once.
    async fn end(self, nats: &Nats) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for (caller, task) in self.tasks.into_iter().enumerate() {
            let n = task.await??;
            ensure!(n > 5, "only {n} calls");
            assert_eq!(counter(nats, &format!("c{caller}")).await?, Some(n.into()));
        }
        Ok(())
    }
}

#[tokio::test]
async fn calls_go_on_while_versions_change() -> Result<()> {
    let scene = hostile().await?;
    // Not one is lost.
    let callers = Callers::start(&scene.nats, LONG, 1);
    for version in 2..7 {
        let text = manifest()? + &format!("[functions.hostile.config]\ntag = \"v{version}\"\n");
        scene.project.change(&text)?;
        scene.pelton.ok(&["deploy"]).await?;
        scene.nats.serving("hostile", Some(version), 1).await?;
    }
    callers.end(&scene.nats).await
}

/// A function on a queue, which has no key, gets one while calls wait.
#[tokio::test]
async fn calls_that_wait_are_not_lost_when_the_key_changes() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let component = build::component("hostile")?;
    let stream = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n";
    let allow = format!("[functions.hostile.allow]\nhttp = [{:?}]\n", gate.host());
    let narrow = format!("concurrency = 1\n{}", project::QUICK_RETRY);
    let queue = project::function("hostile", &component, &narrow);
    let scene = Scene::start(&format!("{stream}{queue}{allow}")).await?;
    let nats = &scene.nats;
    let slow = json!({ "do": "http", "url": gate.url(), "counter": "slow" }).to_string();
    let call = |id: String, body: String| {
        let nats = nats.clone();
        tokio::spawn(async move {
            let headers = [("Pelton-Subject", SUBJECT), ("Nats-Msg-Id", id.as_str())];
            request(&nats, &headers, body, LONG).await
        })
    };
    let mut calls = vec![call("slow".into(), slow)];
    gate.asked(1).await?;
    for n in 0..40 {
        calls.push(call(format!("c{n}"), count(&format!("n{n}"))));
    }
    eventually("all calls to be stored", || async {
        let due = nats
            .count_below("KV_shop", "$KV.PELTON_shop.due.hostile.>")
            .await?;
        Ok((due == 41).then_some(()))
    })
    .await?;
    let keyed = format!(
        "\n[functions.hostile]\ncomponent = {component:?}\nkey = {{ data = \"/counter\" }}\n{narrow}\n"
    );
    scene.project.change(&format!("{stream}{keyed}{allow}"))?;
    scene.pelton.ok(&["deploy", "--no-wait"]).await?;
    gate.open();
    for (n, call) in calls.into_iter().enumerate() {
        let reply = call.await??;
        ensure!(reply.is_some(), "no reply to call {n}");
    }
    for n in 0..40 {
        assert_eq!(counter(nats, &format!("n{n}")).await?, Some(json!(1)));
    }
    Ok(())
}

/// What steers the bucket is not the caller's to say.
#[tokio::test]
async fn a_call_that_says_it_deletes_is_a_call() -> Result<()> {
    let scene = hostile().await?;
    let headers = [("Pelton-Subject", SUBJECT), ("KV-Operation", "DEL")];
    let reply = request(&scene.nats, &headers, count("c"), LONG).await?;
    ensure!(reply.context("no reply")?.payload == "1", "it was not done");
    Ok(())
}

#[tokio::test]
async fn calls_go_on_while_nodes_come_and_go() -> Result<()> {
    let mut scene = hostile().await?;
    let callers = Callers::start(&scene.nats, Duration::from_secs(5), 4);
    for _ in 0..5 {
        let other = scene.node()?;
        scene.nats.serving("hostile", None, 2).await?;
        let mut gone = std::mem::replace(&mut scene.node, other);
        gone.terminate(LONG).await?;
        scene.nats.serving("hostile", None, 1).await?;
    }
    callers.end(&scene.nats).await
}

/// What is tried again, or waits behind that, is under way; without an id, too.
#[tokio::test]
async fn a_call_that_is_tried_again_keeps_its_caller() -> Result<()> {
    let slow = "retry = { max-attempts = 3, initial-delay = \"20s\", max-delay = \"20s\" }";
    let scene = Scene::start(&manifest()?.replace(project::QUICK_RETRY, slow)).await?;
    let calls = (0..6).map(async |n| {
        let subject = format!("hostile.act.k{}", n / 2);
        let headers = [("Pelton-Subject", &*subject), ("Pelton-Timeout", "60s")];
        let body = [fails("retry", 2), count("n")][n % 2].clone();
        request(&scene.nats, &headers, body, LONG).await
    });
    for reply in join_all(calls).await {
        let reply = reply?.context("no reply")?;
        assert_eq!(header(&reply, "Nats-Service-Error"), "", "{reply:?}");
    }
    gone(&scene.nats, 0).await
}

#[tokio::test]
async fn nothing_is_left_of_calls_but_the_answers_of_named_ones() -> Result<()> {
    let scene = hostile().await?;
    let nats = &scene.nats;
    for n in 0..20 {
        let headers = [("Pelton-Subject", SUBJECT)];
        let reply = request(nats, &headers, count("n"), LONG).await?;
        assert_eq!(reply.context("no reply")?.payload, (n + 1).to_string());
    }
    for n in 0..5 {
        call(nats, &format!("n{n}"), count("n")).await?;
    }
    gone(nats, 5).await?;
    // And they are found again by a node that starts, which does none of them again.
    drop(Node::start(&scene.pelton, &[])?);
    assert_eq!(call(nats, "n0", count("n")).await?.payload, "21");
    assert_eq!(counter(nats, "n").await?, Some(25.into()));
    Ok(())
}

/// A server that is killed may bring back what was there before; a call that was done is not done again.
#[tokio::test]
async fn calls_outlive_the_loss_of_their_server() -> Result<()> {
    let mut scene = hostile().await?;
    let mut calls = 0;
    for round in 0..3 {
        let nats = &scene.nats;
        let kept = format!("kept{round}");
        assert_eq!(call(nats, &kept, count(&kept)).await?.payload, "1");
        for _ in 0..10 {
            calls += 1;
            let headers = [("Pelton-Subject", SUBJECT)];
            let reply = request(nats, &headers, count("c"), LONG).await?;
            assert_eq!(reply.context("no reply")?.payload, calls.to_string());
        }
        // Half of the rounds with what takes the calls' place expired, half without.
        if round % 2 == 0 {
            gone(nats, 2 * round + 1).await?;
        }
        scene.server.kill()?;
        scene.server.restart().await?;
        let reply = within(LONG, "a reply", || async {
            call(nats, &kept, count(&kept)).await.map(Some)
        })
        .await?;
        assert_eq!(reply.payload, "1");
        calls += 1;
        let fresh = format!("fresh{round}");
        assert_eq!(
            call(nats, &fresh, count("c")).await?.payload,
            calls.to_string()
        );
        // Each round kept two answers.
        gone(nats, 2 * (round + 1)).await?;
    }
    assert_eq!(counter(&scene.nats, "c").await?, Some(calls.into()));
    Ok(())
}

/// Waits until no more than so many answers are left; each goes after two minutes.
async fn gone(nats: &Nats, answers: usize) -> Result<()> {
    eventually("calls to be removed", || async {
        let left = nats.count_below("KV_shop", "$KV.PELTON_shop.due.>").await?;
        ensure!(left <= answers, "{left} left");
        Ok(Some(()))
    })
    .await
}
