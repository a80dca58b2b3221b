//! `deploy/nats` holds: each role does its part with exactly the permissions that are written there, and is refused the rest, with an error
//! that says so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use async_nats::Request;
use pelton_tests::orders::{self, STEPS};
use pelton_tests::scrape::scrape;
use pelton_tests::{
    Nats, NatsServer, Node, Pelton, Project, build, eventually, production, project, within,
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
/// What every refusal says beside what it is that was refused.
const REFUSED: &str = "does not permit user";
/// The same, in a server's log.
const VIOLATION: &str = "Violation";

/// A server with the roles, a project, and commands for each role in its folder.
struct Scene {
    node: Node,
    /// As the reader: what it sees is what there is.
    nats: Nats,
    producer: Nats,
    deployer: Pelton,
    operator: Pelton,
    reader: Pelton,
    project: Project,
    servers: Vec<NatsServer>,
}

impl Scene {
    /// The node is there before anything was deployed.
    async fn start(servers: Vec<NatsServer>, text: &str) -> Result<Self> {
        let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
        let url = urls.join(",");
        let project = Project::new(text)?;
        let pelton = |role: &str| production::pelton(&url, project.path(), role);
        let connect = |role: &'static str| Nats::connect_as(&url, role);
        let ready = within(LONG, "JetStream to be ready", || async {
            let system = connect("reader").await?;
            Ok(system.js.query_account().await.ok().map(drop))
        });
        ready.await?;
        let scene = Self {
            node: Node::start(&pelton("node")?, &["--http", "127.0.0.1:0"])?,
            nats: connect("reader").await?,
            producer: connect("producer").await?,
            deployer: pelton("deployer")?,
            operator: pelton("operator")?,
            reader: pelton("reader")?,
            servers,
            project,
        };
        within(LONG, "the node to serve", || async {
            Ok(scene.node.log()?.contains("serving").then_some(()))
        })
        .await?;
        scene.deployer.ok(&["deploy", "--wait", "60s"]).await?;
        Ok(scene)
    }

    async fn single(text: &str) -> Result<Self> {
        let server = production::single(|permissions| permissions).await?;
        Self::start(vec![server], text).await
    }

    /// Waits until a node runs this version of a function, as a reader sees it.
    async fn serves(&self, function: &str, version: u64) -> Result<()> {
        let what = format!("version {version} of {function} to run");
        eventually(&what, || async {
            let info = self.reader.json(&["function", "info", function]).await?;
            let runs = |node: &Value| node["version"] == version && node["status"] == "running";
            let nodes = info["status"]["nodes"].as_array().cloned();
            Ok(nodes.unwrap_or_default().iter().any(runs).then_some(()))
        })
        .await
    }

    /// What the server refused to the node: nothing.
    fn node_was_refused_nothing(&self) -> Result<()> {
        let log = self.node.log()?;
        ensure!(!log.contains("does not permit"), "the node says: {log}");
        for server in &self.servers {
            let log = server.log();
            let refused = log
                .lines()
                .find(|line| line.contains(VIOLATION) && line.contains("user:node"));
            ensure!(refused.is_none(), "{refused:?}");
        }
        Ok(())
    }
}

/// The order system, one function by position and one from a queue; and one that does as it is told, with a schedule.
fn manifest(replicas: u32, more: &str) -> Result<String> {
    let mut text = format!(
        "[streams.ORDERS]\nsubjects = [\"orders.>\", \"hostile.>\"]\nreplicas = {replicas}\n\
         [streams.NOTIFICATIONS]\nsubjects = [\"notifications.>\"]\nreplicas = {replicas}\n"
    );
    let keys = format!("{}\n{more}", project::QUICK_RETRY);
    text += &project::keyed("orders", &build::component("orders")?, 2, &keys);
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    let subjects = "subjects = [\"orders.>\"]";
    text += &project::function("notifier", &build::component("notifier")?, subjects);
    text += "[functions.notifier.allow]\nemit = [\"notifications.email\"]\n";
    let keys = format!("{}\nschedule = \"* * * * * *\"", project::QUICK_RETRY);
    text += &project::function("hostile", &build::component("hostile")?, &keys);
    text += "[functions.hostile.allow]\nemit = [\"notifications.>\"]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

/// Has the function that does as it is told do this, and waits until it has.
async fn told(operator: &Pelton, what: Value) -> Result<Value> {
    let what = what.to_string();
    let subject = ["--subject", "hostile.act.x", "--timeout", "60s"];
    let call = ["call", "hostile", what.as_str()]
        .into_iter()
        .chain(subject);
    let called = operator.json(&call.collect::<Vec<_>>()).await?;
    Ok(called["reply"].clone())
}

/// A timer, a tick and a retry, all of them calls.
async fn timers_and_retries(scene: &Scene) -> Result<()> {
    let in_a_second = SystemTime::now() + Duration::from_secs(1);
    let at = in_a_second.duration_since(UNIX_EPOCH)?.as_millis();
    let at = u64::try_from(at)?;
    let operator = &scene.operator;
    let timer =
        json!({ "do": "later", "name": "t", "at_ms": at, "subject": "notifications.later" });
    told(operator, timer).await?;
    let fails = json!({ "do": "fail", "how": "retry", "code": "told-to", "well_at": 2 });
    told(operator, fails).await?;
    let count = json!({ "do": "count", "counter": "c" });
    ensure!(told(operator, count.clone()).await? == json!(1), "a reply");
    ensure!(told(operator, count).await? == json!(2), "another one");
    let listed = |filter: &'static str| async move {
        eventually(filter, || async {
            let found = scene.nats.count_below("NOTIFICATIONS", filter).await?;
            Ok((found > 0).then_some(()))
        })
        .await
    };
    listed("notifications.later").await?;
    eventually("a tick", || async {
        let ticks = scene.reader.json(&["state", "ls", "ticks"]).await?;
        Ok(ticks
            .as_array()
            .is_some_and(|all| !all.is_empty())
            .then_some(()))
    })
    .await
}

/// Every command that only looks.
async fn looks_at_everything(pelton: &Pelton, dead: u64) -> Result<()> {
    let dead = dead.to_string();
    let functions = pelton.json(&["function", "ls"]).await?;
    ensure!(functions.as_array().map(Vec::len) == Some(3), "{functions}");
    let letter = pelton.json(&["dead-letter", "show", dead.as_str()]).await?;
    ensure!(letter.is_object(), "{letter}");
    for (args, shows) in [
        (vec!["function", "info", "orders"], "ORDERS"),
        (vec!["function", "info", "notifier"], "NOTIFICATIONS"),
        (vec!["function", "versions", "orders"], "2"),
        (vec!["rollout", "orders", "status"], "version"),
        (vec!["state", "ls", "orders"], "orders.o-1"),
        (vec!["state", "get", "orders.o-1"], "completed"),
        (vec!["logs"], "hostile"),
        (vec!["node", "ls"], "serving"),
        (vec!["dead-letter", "ls"], "payload-invalid"),
    ] {
        let said = pelton.ok(&args).await?;
        ensure!(said.stdout.contains(shows), "no {shows} in {said:#?}");
    }
    Ok(())
}

/// A new version while it runs, the former one again, the kind of delivery, there and back, and what is said to a function that runs.
async fn deploys(scene: &Scene) -> Result<()> {
    let changed = manifest(1, "timeout = \"4s\"")?;
    scene.project.change(&changed)?;
    scene.deployer.ok(&["deploy"]).await?;
    scene.serves("orders", 2).await?;
    scene.deployer.ok(&["rollback", "orders"]).await?;
    scene.serves("orders", 1).await?;
    let subjects = "subjects = [\"orders.>\"]";
    let queue = format!("delivery = \"at-least-once\"\n{subjects}");
    let by_position = changed.replace(&queue, subjects);
    ensure!(by_position != changed, "nothing to change in {changed}");
    for text in [by_position, changed] {
        scene.project.change(&text)?;
        scene.deployer.ok(&["deploy"]).await?;
        scene.producer.step("o-4", "created").await?;
    }
    for args in [
        vec!["pause", "orders"],
        vec!["resume", "orders"],
        vec!["set", "orders", "--concurrency", "4"],
        vec!["reset", "orders", "--to", "new", "--dry-run"],
    ] {
        let args: Vec<&str> = std::iter::once("function").chain(args).collect();
        scene.deployer.ok(&args).await?;
    }
    Ok(())
}

/// What the operator repairs: a state key, a node that is to rest for a while, an event that never came, and what was given up on.
async fn repairs(scene: &Scene) -> Result<()> {
    let operator = &scene.operator;
    operator.ok(&["state", "put", "spare.part", "1"]).await?;
    operator.ok(&["state", "del", "spare.part"]).await?;
    let nodes = operator.json(&["node", "ls"]).await?;
    let node = nodes[0]["node"].as_str().context("no node")?;
    operator.ok(&["node", "drain", node]).await?;
    operator.ok(&["node", "drain", node, "--undo"]).await?;
    let body = orders::body("o-5", "created").to_string();
    operator
        .ok(&["publish", "orders.o-5.created", body.as_str()])
        .await?;
    scene.nats.order("o-5", "created").await?;
    let newest = |dead: Vec<pelton_tests::Dead>| dead.iter().map(|one| one.sequence).max();
    let before = newest(scene.nats.dead("shop").await?);
    operator.ok(&["dead-letter", "replay", "--all"]).await?;
    eventually("it to be given up on again", || async {
        let now = newest(scene.nats.dead("shop").await?);
        Ok((now > before).then_some(()))
    })
    .await
}

/// Each event told once: o-1's four, o-2's three, o-4's two and o-5's. A plain message that comes twice is two events.
async fn each_event_was_told_once(scene: &Scene) -> Result<()> {
    for function in ["orders", "notifier"] {
        eventually(&format!("{function} to have done all"), || async {
            let info = scene.reader.json(&["function", "info", function]).await?;
            Ok((info["status"]["pending"] == 0).then_some(()))
        })
        .await?;
    }
    eventually("ten e-mails", || async {
        let email = "notifications.email";
        let told = scene.nats.count_below("NOTIFICATIONS", email).await?;
        ensure!(told == 10, "there are {told}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn each_role_does_its_part() -> Result<()> {
    let scene = Scene::single(&manifest(1, "")?).await?;
    for step in STEPS {
        scene.producer.step("o-1", step).await?;
    }
    // One that comes too early, one that was published twice, one that is broken.
    scene.producer.step("o-2", "paid").await?;
    scene.producer.step("o-2", "created").await?;
    scene.producer.step("o-2", "created").await?;
    let broken = scene.producer.publish("orders.o-3.created", "{bro").await?;
    let order = scene.nats.order("o-1", "completed").await?;
    assert_eq!(order, orders::completed("o-1"));
    scene.nats.order("o-2", "paid").await?;
    let letter = scene.nats.dead_of("shop", "ORDERS", broken).await?;
    assert_eq!(letter.code(), "payload-invalid");
    timers_and_retries(&scene).await?;
    deploys(&scene).await?;
    for pelton in [&scene.reader, &scene.operator, &scene.deployer] {
        looks_at_everything(pelton, letter.sequence).await?;
    }
    repairs(&scene).await?;
    each_event_was_told_once(&scene).await?;
    // What waits is looked at by the node, too.
    let http = scene.node.http().await?;
    eventually("the node to show what waits", || async {
        let page = scrape(http).await?;
        let shown = [
            "pelton_pending_events",
            "pelton_dead_letters",
            "pelton_outbox_oldest_seconds",
        ];
        let missing = shown.iter().find(|name| page.values(name, &[]).is_empty());
        ensure!(missing.is_none(), "no {missing:?}");
        Ok(Some(()))
    })
    .await?;
    scene.node_was_refused_nothing()
}

/// What a role must be refused, and a word of what the error says was refused.
async fn is_refused(pelton: &Pelton, role: &str, cases: &[(&[&str], &str)]) -> Result<()> {
    for (args, word) in cases {
        let who = format!("{REFUSED} {role} to");
        // It says so because it was refused, not because an answer has not come in its time.
        pelton
            .refused(args, &[&who, word, "fix:", "permissions.conf"])
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_role_is_refused_the_rest() -> Result<()> {
    let scene = Scene::single(&manifest(1, "")?).await?;
    let broken = scene.producer.publish("orders.o-3.created", "{bro").await?;
    scene.nats.dead_of("shop", "ORDERS", broken).await?;
    let before = scene.nats.count("ORDERS").await?;
    let put: &[&str] = &["state", "put", "spare.part", "1"];
    let publish: &[&str] = &["publish", "orders.x.created", "{}"];
    let unasked: &[&str] = &["publish", "--no-ack", "orders.x.created", "{}"];
    let call: &[&str] = &["call", "hostile", "{}", "--subject", "hostile.raw"];
    let replay: &[&str] = &["dead-letter", "replay", "--all"];
    scene.project.change(&manifest(1, "timeout = \"4s\"")?)?;
    let deploy: &[&str] = &["deploy"];
    let pause: &[&str] = &["function", "pause", "orders"];
    let nodes = scene.reader.json(&["node", "ls"]).await?;
    let node = nodes[0]["node"].as_str().context("no node")?.to_owned();
    let drain: &[&str] = &["node", "drain", &node];
    let changes = [
        (put, "write key spare.part of bucket shop"),
        (publish, "publish to orders.x.created"),
        (unasked, "publish to orders.x.created"),
        (call, "call function hostile of app shop"),
        (replay, "publish to orders.o-3.created"),
        (drain, "tell node"),
    ];
    is_refused(&scene.reader, "reader", &changes).await?;
    is_refused(&scene.deployer, "deployer", &changes).await?;
    for (pelton, role) in [(&scene.reader, "reader"), (&scene.operator, "operator")] {
        let record = "PELTON_REGISTRY";
        let changes = [(deploy, record), (pause, record)];
        is_refused(pelton, role, &changes).await?;
    }
    ensure!(scene.nats.count("ORDERS").await? == before, "events came");
    let info = scene.reader.json(&["function", "info", "orders"]).await?;
    assert_eq!(info["status"]["version"], 1, "nothing was deployed");

    // Without its own prefix a user hears no answers; the error says what to give.
    let mut pelton = production::pelton(&scene.servers[0].url(), scene.project.path(), "reader")?;
    pelton.set_env("NATS_INBOX_PREFIX", "_INBOX");
    pelton
        .refused(&["function", "ls"], &[REFUSED, "--inbox-prefix"])
        .await?;
    scene.node_was_refused_nothing()
}

/// The consumer of the function `notifier` that `permissions.conf` names, until somebody writes the
/// real one there.
const PLACEHOLDER: &str = "pelton_shop_notifier_00000000";

/// What is in the registry, by its messages.
async fn registry(scene: &Scene) -> Result<u64> {
    scene.nats.count("KV_PELTON_REGISTRY").await
}

/// What the credentials of one role do when they are in other hands than `pelton`'s.
#[tokio::test]
async fn stolen_credentials_reach_no_further() -> Result<()> {
    let scene = Scene::single(&manifest(1, "")?).await?;
    let url = scene.servers[0].url();
    let before = registry(&scene).await?;
    let info = scene.reader.json(&["function", "info", "notifier"]).await?;
    let consumer = info["status"]["inputs"][0]["consumer"].as_str();
    let consumer = consumer.context("no consumer")?.to_owned();
    let server = &scene.servers[0];
    server.edit("permissions.conf", |text| {
        text.replace(PLACEHOLDER, &consumer)
    })?;
    server.reload().await?;
    eventually("the server to read its permissions again", || async {
        let read = server.log().contains("Reloaded server configuration");
        Ok(read.then_some(()))
    })
    .await?;
    let queue = format!("$JS.API.CONSUMER.MSG.NEXT.ORDERS.{consumer}");
    let subjects = [
        ("node", "$KV.PELTON_REGISTRY.function.shop.orders"),
        ("node", "$KV.PELTON_REGISTRY.version.shop.orders.9"),
        ("node", "$KV.PELTON_MODULES.x"),
        ("node", "$JS.API.STREAM.UPDATE.KV_shop"),
        ("node", "$JS.API.STREAM.CREATE.OTHER"),
        ("node", "$JS.API.STREAM.DELETE.ORDERS"),
        ("node", "orders.o-1.created"),
        ("operator", "$KV.PELTON_REGISTRY.function.shop.orders"),
        ("operator", "$KV.PELTON_shop.pos.orders.ORDERS.1"),
        ("operator", "$JS.API.STREAM.PURGE.ORDERS"),
        ("deployer", "$JS.API.STREAM.DELETE.ORDERS"),
        ("deployer", "$KV.shop.orders.o-1"),
        ("reader", "$KV.shop.orders.o-1"),
        ("reader", queue.as_str()),
        ("operator", queue.as_str()),
        ("deployer", queue.as_str()),
        ("reader", "$JS.API.STREAM.MSG.DELETE.PELTON_DEAD_shop"),
        ("producer", "pelton.call.shop.orders"),
        ("caller", "orders.o-1.created"),
    ];
    for (role, subject) in subjects {
        let nats = Nats::connect_as(&url, role).await?;
        nats.core.publish(subject.to_owned(), "{}".into()).await?;
        nats.core.flush().await?;
        let refused = format!("user:{role}\" - Publish {VIOLATION} - Subject \"{subject}\"");
        eventually(&refused, || async {
            Ok(scene.servers[0].log().contains(&refused).then_some(()))
        })
        .await?;
    }
    ensure!(registry(&scene).await? == before, "the registry changed");
    Ok(())
}

/// A caller cannot have the node answer into a bucket; one who asks as it should is answered.
#[tokio::test]
async fn a_caller_has_no_node_write_for_it() -> Result<()> {
    let scene = Scene::single(&manifest(1, "")?).await?;
    let url = scene.servers[0].url();
    let before = registry(&scene).await?;
    let caller = Nats::connect_as(&url, "caller").await?;
    let body = json!({ "do": "count", "counter": "c" }).to_string();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Pelton-Subject", "hostile.act.x");
    let (call, into) = (
        "pelton.call.shop.hostile",
        "$KV.PELTON_REGISTRY.function.shop.orders",
    );
    let sent = caller.core.publish_with_reply_and_headers(
        call,
        into,
        headers.clone(),
        body.clone().into(),
    );
    sent.await?;
    let request = Request::new()
        .headers(headers)
        .payload(body.into())
        .timeout(Some(LONG));
    let reply = caller.core.send_request(call, request).await?;
    ensure!(reply.payload == "1" || reply.payload == "2", "{reply:?}");
    eventually("the node to be refused that answer", || async {
        let log = scene.servers[0].log();
        Ok(log
            .contains(&format!(
                "user:node\" - Publish {VIOLATION} - Subject \"{into}\""
            ))
            .then_some(()))
    })
    .await?;
    ensure!(registry(&scene).await? == before, "the registry changed");
    Ok(())
}

/// A canary moves by itself only where the node may write the function's record: as it ships, a person moves it.
#[tokio::test]
async fn a_canary_moves_by_hand_or_with_the_line_for_it() -> Result<()> {
    let canary = [
        "deploy",
        "--canary",
        "50%",
        "--every",
        "100ms",
        "--steps",
        "100",
        "--min-attempts",
        "1",
    ];
    let said = "a rollout does not move on";
    for allowed in [false, true] {
        let server = production::single(|text| match allowed {
            true => text.replace("#   \"$", "\"$"),
            false => text,
        });
        let scene = Scene::start(vec![server.await?], &manifest(1, "")?).await?;
        scene.project.change(&manifest(1, "timeout = \"4s\"")?)?;
        scene.deployer.ok(&canary).await?;
        let judged = async {
            let mut n = 0;
            loop {
                scene.producer.step(&format!("k-{n}"), "created").await?;
                n += 1;
                let status = scene.reader.json(&["rollout", "orders", "status"]).await?;
                if status["trial"].is_null() || scene.node.log()?.contains(said) {
                    return anyhow::Ok(status);
                }
            }
        };
        let status = tokio::time::timeout(LONG, judged)
            .await
            .context("nothing moved")??;
        assert_eq!(status["trial"].is_null(), allowed, "{status}");
        if allowed {
            scene.node_was_refused_nothing()?;
        } else {
            scene.deployer.ok(&["rollout", "orders", "promote"]).await?;
            let log = scene.node.log()?;
            ensure!(
                log.contains("does not permit user node to write key function.shop.orders"),
                "{log}"
            );
        }
        scene.serves("orders", 2).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_cluster_of_server_conf_runs_the_order_system() -> Result<()> {
    let mut scene = Scene::start(production::cluster().await?, &manifest(3, "")?).await?;
    for step in STEPS {
        scene.producer.step("o-1", step).await?;
    }
    let order = scene.nats.order("o-1", "completed").await?;
    assert_eq!(order, orders::completed("o-1"));
    // Another one leads what the first has led; the node goes on.
    scene.servers[0].kill()?;
    within(LONG, "an order after a server is gone", || async {
        for step in STEPS {
            scene.producer.step("o-2", step).await?;
        }
        Ok(Some(()))
    })
    .await?;
    within(LONG, "it to be completed", || async {
        let order = scene.nats.value("shop", "orders.o-2").await?;
        Ok(order.filter(|order| order["status"] == "completed"))
    })
    .await?;
    scene.node_was_refused_nothing()
}
