//! A function changes its kind of delivery while events come: each is handled once, none is forgotten.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::http::HttpServer;
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(60);
const STREAM: &str = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n";

struct Scene {
    nats: Nats,
    pelton: Pelton,
    project: Project,
    server: NatsServer,
}

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:9";

fn more(host: &str) -> String {
    format!("start = \"all\"\ntimeout = \"120s\"\nallow = {{ http = [\"{host}\"] }}")
}

fn queue(host: &str) -> Result<String> {
    let function = project::function("hostile", &build::component("hostile")?, &more(host));
    Ok(format!("{STREAM}{function}"))
}

fn positions(host: &str) -> Result<String> {
    let function = project::keyed("hostile", &build::component("hostile")?, 3, &more(host));
    Ok(format!("{STREAM}{function}"))
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

impl Scene {
    async fn deploy(&self, text: &str) -> Result<()> {
        self.project.change(text)?;
        self.pelton.ok(&["deploy"]).await?;
        Ok(())
    }

    /// A deploy of this that has said `line`.
    async fn deploying(&self, text: &str, line: &str) -> Result<Child> {
        self.project.change(text)?;
        let mut command = self.pelton.command(&["deploy"])?;
        let mut deploy = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let said = deploy.stderr.take().context("no stderr")?;
        let mut said = BufReader::new(said).lines();
        while !said
            .next_line()
            .await?
            .context(line.to_owned())?
            .contains(line)
        {}
        Ok(deploy)
    }

    /// Deploys this, and kills the deploy so long after it has said `line`. Whether that was before the function changed.
    async fn killed(&self, text: &str, line: &str, after: Duration) -> Result<bool> {
        let before = self.version().await?;
        let mut deploy = self.deploying(text, line).await?;
        tokio::time::sleep(after).await;
        deploy.kill().await?;
        Ok(self.version().await? == before)
    }

    async fn version(&self) -> Result<u64> {
        let version = &self.info().await?["version"];
        version.as_u64().context("no version")
    }

    async fn info(&self) -> Result<Value> {
        let info = self.pelton.json(&["function", "info", "hostile"]).await?;
        Ok(info["status"].clone())
    }

    /// Waits until nothing is pending.
    async fn idle(&self) -> Result<()> {
        within(LONG, "all events to be done", || async {
            let status = self.info().await?;
            ensure!(status["pending"] == 0, "{status}");
            Ok(Some(()))
        })
        .await
    }

    /// An event that comes now, of this number, is handled.
    async fn goes_on(&self, n: usize) -> Result<()> {
        count(&self.nats, n).await?;
        within(LONG, "the function to go on", || async {
            let value = self.nats.value("shop", &format!("counters.n-{n}")).await?;
            Ok((value == Some(json!(1))).then_some(()))
        })
        .await
    }

    /// Each of these events counted once.
    async fn counted(&self, events: usize) -> Result<()> {
        self.idle().await?;
        for n in 0..events {
            let count = self.nats.value("shop", &format!("counters.n-{n}")).await?;
            ensure!(count == Some(json!(1)), "event {n} counted {count:?}");
        }
        let dead = self.nats.dead("shop").await?;
        ensure!(dead.is_empty(), "{dead:?}");
        Ok(())
    }
}

async fn publish(nats: &Nats, events: std::ops::Range<usize>) -> Result<()> {
    for n in events {
        count(nats, n).await?;
    }
    Ok(())
}

/// Events of 40 keys, each of which counts in its own counter, at some hundreds a second, until it is enough.
struct Publishing {
    enough: Arc<AtomicBool>,
    task: JoinHandle<Result<usize>>,
}

impl Publishing {
    fn begin(nats: &Nats) -> Self {
        let (nats, enough) = (nats.clone(), Arc::new(AtomicBool::new(false)));
        let until = enough.clone();
        let task = tokio::spawn(async move {
            let mut events = 0;
            while !until.load(Ordering::Relaxed) {
                count(&nats, events).await?;
                events += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(events)
        });
        Self { enough, task }
    }

    /// How many there were.
    async fn end(self) -> Result<usize> {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn count(nats: &Nats, n: usize) -> Result<()> {
    let act = json!({ "do": "count", "counter": format!("n-{n}") }).to_string();
    nats.publish(&format!("hostile.act.k{}", n % 40), act)
        .await?;
    Ok(())
}

#[tokio::test]
async fn each_event_is_handled_once_across_both_changes() -> Result<()> {
    let scene = deployed(&queue(NOWHERE)?).await?;
    let _nodes = [
        Node::start(&scene.pelton, &[])?,
        Node::start(&scene.pelton, &[])?,
    ];
    scene.nats.serving("hostile", Some(1), 2).await?;
    let publishing = Publishing::begin(&scene.nats);
    for (version, text) in [
        (2, positions(NOWHERE)?),
        (3, queue(NOWHERE)?),
        (4, positions(NOWHERE)?),
    ] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.deploy(&text).await?;
        scene.nats.serving("hostile", Some(version), 2).await?;
    }
    let events = publishing.end().await?;
    ensure!(events > 500, "only {events} events");
    scene.counted(events).await?;
    // Only positions are left: the consumer went when the nodes had taken over.
    let info = scene.info().await?;
    ensure!(info["inputs"][0]["consumer"].is_null(), "{info}");
    let pending = scene.nats.pending("shop", "hostile", "HOSTILE").await;
    ensure!(pending.is_err(), "a consumer is left: {pending:?}");
    Ok(())
}

#[tokio::test]
async fn a_deploy_killed_between_both_loses_and_doubles_nothing() -> Result<()> {
    // Both kinds of change take some 120 ms on an idle machine.
    const MOMENTS: [u64; 4] = [0, 30, 60, 100];
    let scene = deployed(&queue(NOWHERE)?).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    scene.nats.serving("hostile", Some(1), 1).await?;
    let publishing = Publishing::begin(&scene.nats);
    let (queue, positions) = (queue(NOWHERE)?, positions(NOWHERE)?);
    let (to_rest, closing) = ("to come to rest", "closing the positions");
    let mut half_way = [0; 5];
    for moment in MOMENTS.map(Duration::from_millis) {
        let ways = [
            // Those that were not done yet are taken back, or repeated.
            (&positions, to_rest, &queue, true),
            (&positions, to_rest, &positions, false),
            (&queue, closing, &positions, true),
            (&queue, closing, &positions, false),
            (&queue, closing, &queue, false),
        ];
        for (way, (text, line, then, back)) in ways.into_iter().enumerate() {
            let half = scene.killed(text, line, moment).await?;
            half_way[way] += u32::from(half);
            match half && back {
                true => drop(scene.pelton.ok(&["rollout", "hostile", "abort"]).await?),
                false => scene.deploy(then).await?,
            }
            scene
                .goes_on(1_000_000 * (way + 1) + moment.as_millis() as usize)
                .await?;
            let version = scene.version().await?;
            scene.nats.serving("hostile", Some(version), 1).await?;
        }
    }
    let events = publishing.end().await?;
    ensure!(half_way.iter().all(|one| *one > 0), "{half_way:?}");
    scene.counted(events).await
}

#[tokio::test]
async fn a_queue_that_does_not_come_to_rest_goes_on_as_it_was() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let scene = deployed(&queue(&gate.host())?).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let act = json!({ "do": "http", "url": gate.url() }).to_string();
    scene.nats.publish("hostile.act.a", act).await?;
    gate.asked(1).await?;
    scene.project.change(&positions(&gate.host())?)?;
    let said = ["1 events of stream HOSTILE", "function info hostile"];
    scene.pelton.refused(&["deploy"], &said).await?;
    // It is not paused any more.
    let other = json!({ "do": "count", "counter": "n-0" }).to_string();
    scene.nats.publish("hostile.act.b", other).await?;
    within(LONG, "the other event", || async {
        let count = scene.nats.value("shop", "counters.n-0").await?;
        Ok((count == Some(json!(1))).then_some(()))
    })
    .await?;
    Ok(())
}

/// What somebody else decides while a deploy waits for the inputs stands, and they are not kept from the active version.
#[tokio::test]
async fn a_deploy_that_is_overtaken_leaves_the_inputs_where_they_are() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let before = queue(&gate.host())?;
    let scene = deployed(&before).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let act = json!({ "do": "http", "url": gate.url() }).to_string();
    scene.nats.publish("hostile.act.a", act).await?;
    gate.asked(1).await?;
    let (other, rest) = (positions(&gate.host())?, "to come to rest");

    let mut deploy = scene.deploying(&other, rest).await?;
    let reset = ["function", "reset", "hostile", "--to", "start", "--yes"];
    let said = ["changes `delivery`", "rollout hostile abort"];
    scene.pelton.refused(&reset, &said).await?;
    scene.pelton.ok(&["rollout", "hostile", "abort"]).await?;
    scene.goes_on(1).await?;
    ensure!(!deploy.wait().await?.success(), "it was taken back");
    scene.goes_on(2).await?;

    let mut deploy = scene.deploying(&other, rest).await?;
    scene.deploy(&before.replace("120s", "110s")).await?;
    scene.goes_on(3).await?;
    ensure!(!deploy.wait().await?.success(), "another one was deployed");
    scene.goes_on(4).await?;

    // One that is killed meanwhile leaves them paused for a minute, and deploying what is there ends that.
    let mut deploy = scene.deploying(&other, rest).await?;
    deploy.kill().await?;
    scene.deploy(&before.replace("120s", "110s")).await?;
    scene.goes_on(5).await?;
    gate.open();
    scene.idle().await
}

#[tokio::test]
async fn what_is_parked_keeps_a_function_with_its_positions() -> Result<()> {
    let scene = deployed(&positions(NOWHERE)?).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    let waits = json!({ "do": "fail", "how": "defer", "code": "early", "well_at": 0 });
    scene
        .nats
        .publish("hostile.act.a", waits.to_string())
        .await?;
    let status = within(LONG, "the event to be deferred", || async {
        let status = scene.info().await?;
        ensure!(status["deferred"] == 1, "{status}");
        Ok(Some(status))
    })
    .await?;
    ensure!(
        status["pending"] == 1 && status["retrying"] == 0,
        "{status}"
    );
    ensure!(status["inputs"][0]["oldest_sequence"] == 1, "{status}");
    status["oldest_pending_ms"].as_u64().context("no age")?;
    scene.project.change(&queue(NOWHERE)?)?;
    let said = ["1 of its deliveries are parked", "fix: wait until"];
    scene.pelton.refused(&["deploy"], &said).await?;
    // It goes on by positions.
    publish(&scene.nats, 0..10).await?;
    within(LONG, "the other events", || async {
        let status = scene.info().await?;
        ensure!(status["pending"] == 1, "{status}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_first_deploy_begins_where_start_says() -> Result<()> {
    let scene = deployed(STREAM).await?;
    publish(&scene.nats, 0..10).await?;
    let component = build::component("hostile")?;
    let with = |start: &str| {
        format!(
            "{STREAM}{}",
            project::keyed(
                "hostile",
                &component,
                3,
                &format!("{start}\nallow = {{ http = [\"{NOWHERE}\"] }}")
            )
        )
    };
    scene.project.change(&with(""))?;
    let said = ["holds 10 messages already", "start = \"all\""];
    scene.pelton.refused(&["deploy"], &said).await?;
    let stream = scene.nats.js.get_stream("HOSTILE").await?;
    let seventh = stream.get_raw_message(7).await?.time;
    let format = &time::format_description::well_known::Rfc3339;
    for (start, handled) in [
        ("start = \"new\"".to_owned(), 10..12),
        (format!("start = \"{}\"", seventh.format(format)?), 6..12),
    ] {
        // Another app, so that it is a first deploy each time.
        let app = format!("s{}", handled.start);
        let project = Project::verbatim(&format!("pelton = 1\napp = \"{app}\"\n{}", with(&start)))?;
        let pelton = Pelton::new(&scene.server.url(), project.path())?;
        pelton.ok(&["deploy"]).await?;
        let node = Node::start(&pelton, &["--app", &app])?;
        for n in [10, 11] {
            let act = json!({ "do": "count", "counter": format!("n-{n}") }).to_string();
            scene.nats.publish("hostile.act.k1", act).await?;
        }
        within(LONG, "the last event", || async {
            let info = pelton.json(&["function", "info", "hostile"]).await?;
            ensure!(info["status"]["pending"] == 0, "{info}");
            Ok(Some(()))
        })
        .await?;
        for n in 0..12 {
            let count = scene.nats.value(&app, &format!("counters.n-{n}")).await?;
            ensure!(
                count.is_some() == handled.contains(&n),
                "{start}: event {n} counted {count:?}"
            );
        }
        drop(node);
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_removes_what_is_acked_wants_a_queue() -> Result<()> {
    let project = Project::new(&positions(NOWHERE)?)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    let config = async_nats::jetstream::stream::Config {
        name: "HOSTILE".into(),
        subjects: vec!["hostile.>".into()],
        retention: async_nats::jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    nats.js.create_stream(config).await?;
    let said = [
        "retention workqueue",
        "fix: say delivery = \"at-least-once\"",
    ];
    for command in ["check", "deploy"] {
        let output = pelton.run(&[command]).await?;
        let text = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.code != Some(0), "{output:#?}");
        for words in said {
            ensure!(text.contains(words), "should say {words:?}: {output:#?}");
        }
    }
    Ok(())
}

/// One that waits for the gate, and then `events` of other keys, which are done beyond it.
async fn done_beyond(scene: &Scene, gate: &HttpServer, events: usize) -> Result<()> {
    let slow = json!({ "do": "http", "url": gate.url() });
    scene
        .nats
        .publish("hostile.act.slow", slow.to_string())
        .await?;
    gate.asked(1).await?;
    publish(&scene.nats, 0..events).await?;
    within(LONG, "all but that one to be done", || async {
        let filter = "$KV.shop.counters.>";
        let done = scene.nats.count_below("KV_shop", filter).await?;
        ensure!(done == events, "{done}");
        Ok(Some(()))
    })
    .await
}

/// The queue never takes an event: what was done beyond the first that was not is not done again by positions.
#[tokio::test]
async fn there_and_back_before_the_queue_has_done_anything() -> Result<()> {
    const EVENTS: usize = 20;
    let gate = HttpServer::closed().await?;
    let by_key = positions(&gate.host())?;
    let scene = deployed(&by_key).await?;
    let mut node = Node::start(&scene.pelton, &[])?;
    done_beyond(&scene, &gate, EVENTS).await?;
    node.kill().await?;
    // By another key, too: it is another partition then.
    let by_other = by_key.replace("key = { token = 3 }", "key = { token = 2 }");
    ensure!(by_other != by_key, "nothing to change in {by_key}");
    for text in [queue(&gate.host())?, by_key, queue(&gate.host())?, by_other] {
        scene.deploy(&text).await?;
    }
    gate.open();
    let _node = Node::start(&scene.pelton, &[])?;
    scene.idle().await?;
    scene.counted(EVENTS).await?;
    assert_eq!(gate.requests(), 2, "it was not done, and is tried again");
    Ok(())
}

fn unloadable(host: &str) -> Result<String> {
    Ok(queue(host)?.replace("start =", "secrets = [\"NOT_THERE\"]\nstart ="))
}

/// The inputs are handed over when a node has loaded the version that takes them by the other engine, and not before.
#[tokio::test]
async fn a_queue_that_no_node_can_load_gets_no_input() -> Result<()> {
    const EVENTS: usize = 20;
    let scene = deployed(&positions(NOWHERE)?).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    publish(&scene.nats, 0..EVENTS).await?;
    scene.counted(EVENTS).await?;
    scene.project.change(&unloadable(NOWHERE)?)?;
    let said = [
        "not deployed: hostile version 2",
        "no node can load it",
        "NOT_THERE",
    ];
    scene.pelton.refused(&["deploy"], &said).await?;
    assert_eq!(scene.version().await?, 1);
    publish(&scene.nats, EVENTS..2 * EVENTS).await?;
    scene.counted(2 * EVENTS).await?;
    // And what can be loaded gets them, and is told as such.
    scene.deploy(&queue(NOWHERE)?).await?;
    assert_eq!(scene.version().await?, 3);
    let status = ["rollout", "hostile", "status"];
    let story = scene.pelton.json(&status).await?["story"].clone();
    let told: Vec<(&str, u64)> = story
        .as_array()
        .context("a story")?
        .iter()
        .filter_map(|one| Some((one["what"].as_str()?, one["version"].as_u64()?)))
        .collect();
    assert_eq!(
        told[told.len() - 4..],
        [("begun", 2), ("aborted", 2), ("begun", 3), ("promoted", 3)]
    );
    publish(&scene.nats, 2 * EVENTS..3 * EVENTS).await?;
    scene.counted(3 * EVENTS).await
}

/// A queue that no node can load is given up again while the node goes on: nothing is done twice, and nothing has to come for what waits.
#[tokio::test]
async fn back_from_a_queue_that_no_node_can_load() -> Result<()> {
    const EVENTS: usize = 20;
    let gate = HttpServer::closed().await?;
    let text = positions(&gate.host())?;
    let scene = deployed(&text).await?;
    let _node = Node::start(&scene.pelton, &[])?;
    done_beyond(&scene, &gate, EVENTS).await?;
    scene.project.change(&unloadable(&gate.host())?)?;
    let untried = ["deploy", "--no-trial"];
    scene.pelton.refused(&untried, &["NOT_THERE"]).await?;
    publish(&scene.nats, EVENTS..2 * EVENTS).await?;
    scene.deploy(&text).await?;
    gate.open();
    scene.idle().await?;
    scene.counted(2 * EVENTS).await
}
