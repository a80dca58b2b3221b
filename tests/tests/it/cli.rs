//! The commands as scripts and people use them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::http::HttpServer;
use pelton_tests::orders::{body, completed};
use pelton_tests::{Pelton, Scene, build, eventually, project};
use serde_json::{Value, json};

/// Every command that a user may type.
const COMMANDS: [&[&str]; 24] = [
    &["new"],
    &["add"],
    &["vendor"],
    &["build"],
    &["check"],
    &["dev"],
    &["run"],
    &["deploy"],
    &["publish"],
    &["logs"],
    &["function"],
    &["function", "ls"],
    &["function", "info"],
    &["state", "ls"],
    &["state", "get"],
    &["state", "put"],
    &["state", "del"],
    &["state", "watch"],
    &["dead-letter"],
    &["dead-letter", "ls"],
    &["dead-letter", "show"],
    &["dead-letter", "replay"],
    &["dead-letter", "rm"],
    &["completions"],
];

async fn shop() -> Result<Scene> {
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    Scene::start(&project::shop(&orders, &notifier)).await
}

/// The elements of an array, or of the one array that an object holds.
fn items(value: &Value) -> Result<Vec<Value>> {
    let array = value.as_array().or_else(|| {
        let mut arrays = value.as_object()?.values().filter_map(Value::as_array);
        arrays.next()
    });
    array.cloned().with_context(|| format!("no list: {value}"))
}

#[tokio::test]
async fn every_command_helps_with_an_example() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    for command in COMMANDS {
        let mut args = command.to_vec();
        args.push("--help");
        let output = pelton.ok(&args).await?;
        let example = format!("pelton {}", command.join(" "));
        let examples = output.stdout.split("Example").nth(1).unwrap_or("");
        ensure!(examples.contains(&example), "{command:?}: {output:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn completions_name_the_commands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    for shell in ["bash", "zsh", "fish"] {
        let output = pelton.ok(&["completions", shell]).await?;
        ensure!(output.stdout.contains("dead-letter"), "{shell}");
    }
    Ok(())
}

#[tokio::test]
async fn json_of_functions_state_and_dead_letters() -> Result<()> {
    let scene = shop().await?;
    let pelton = &scene.pelton;
    let created = body("o-1", "created").to_string();
    pelton
        .ok(&["publish", "orders.o-1.created", &created])
        .await?;
    scene.nats.order("o-1", "created").await?;

    let functions = items(&pelton.json(&["function", "ls"]).await?)?;
    let names: Vec<_> = functions.iter().map(|each| &each["function"]).collect();
    assert_eq!(names, ["notifier", "orders"]);
    let info = pelton.json(&["function", "info", "orders"]).await?;
    assert_eq!(info["record"]["function"], "orders", "{info}");
    assert_eq!(info["record"]["version"], 1, "{info}");

    let keys = pelton.json(&["state", "ls"]).await?;
    ensure!(keys.to_string().contains("orders.o-1"), "{keys}");
    let value = pelton.json(&["state", "get", "orders.o-1"]).await?;
    ensure!(value.to_string().contains("created"), "{value}");
    pelton.ok(&["state", "put", "notes.n-1", "hello"]).await?;
    let note = scene.nats.state("shop").await?.get("notes.n-1").await?;
    assert_eq!(note.unwrap_or_default(), "hello");
    let raw = pelton.ok(&["state", "get", "notes.n-1"]).await?;
    assert_eq!(raw.stdout.trim_end(), "hello");
    pelton.ok(&["state", "del", "notes.n-1"]).await?;
    let note = scene.nats.state("shop").await?.get("notes.n-1").await?;
    assert_eq!(note, None);
    pelton
        .refused(&["state", "get", "notes.n-1"], &["notes.n-1"])
        .await?;

    let sequence = scene.nats.publish("orders.o-2.created", "no json").await?;
    let dead = scene.nats.dead_of("shop", "ORDERS", sequence).await?;
    let letters = items(&pelton.json(&["dead-letter", "ls"]).await?)?;
    ensure!(
        letters
            .iter()
            .all(|letter| letter["code"] == "payload-invalid"),
        "{letters:?}"
    );
    let id = dead.sequence.to_string();
    let shown = pelton.json(&["dead-letter", "show", &id]).await?;
    let text = shown.to_string();
    for word in ["payload-invalid", "orders.o-2.created", "attempt"] {
        ensure!(text.contains(word), "no {word} in {text}");
    }
    Ok(())
}

#[tokio::test]
async fn info_shows_what_waits_and_since_when() -> Result<()> {
    let gate = HttpServer::closed().await?;
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    let more = "timeout = \"120s\"\nconcurrency = 1";
    text += &project::function("hostile", &build::component("hostile")?, more);
    text += &format!("[functions.hostile.allow]\nhttp = [\"{}\"]\n", gate.host());
    let scene = Scene::start(&text).await?;
    let act = json!({ "do": "http", "url": gate.url() }).to_string();
    for _ in 0..5 {
        scene.nats.publish("hostile.act.now", act.clone()).await?;
    }
    gate.asked(1).await?;
    let numbers = |value: &Value| value.to_string();
    let info = eventually("the oldest to be a second old", || async {
        let info = scene.pelton.json(&["function", "info", "hostile"]).await?;
        let pending = find(&info, "pending").and_then(|value| value.as_u64());
        ensure!(
            pending.is_some_and(|n| (4..=5).contains(&n)),
            "{}",
            numbers(&info)
        );
        let age = find_containing(&info, "oldest").context("no age of the oldest")?;
        ensure!(!age.is_null(), "{info}");
        Ok(Some(info))
    })
    .await?;
    let people = scene.pelton.ok(&["function", "info", "hostile"]).await?;
    ensure!(
        people.stdout.to_lowercase().contains("oldest"),
        "{people:#?}, {info}"
    );
    gate.open();
    scene.nats.drained("shop", "hostile", "HOSTILE").await
}

/// The value of a field, wherever it stands.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    search(value, &|field| field == name)
}

fn find_containing<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    search(value, &|field| field.contains(part))
}

fn search<'a>(value: &'a Value, wanted: &dyn Fn(&str) -> bool) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            let here = fields.iter().find(|(name, _)| wanted(name));
            let here = here.map(|(_, value)| value);
            here.or_else(|| fields.values().find_map(|each| search(each, wanted)))
        }
        Value::Array(all) => all.iter().find_map(|each| search(each, wanted)),
        _ => None,
    }
}

#[tokio::test]
async fn logs_follow_and_state_is_watched() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function("hostile", &build::component("hostile")?, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let scene = Scene::start(&text).await?;
    let folder = tempfile::tempdir()?;
    for (args, word) in [
        (&["logs", "-f"][..], "done: HOSTILE:"),
        (&["state", "watch"], "done.HOSTILE=3A"),
    ] {
        let file = folder.path().join(args.join("-"));
        let output = std::fs::File::create(&file)?;
        let mut child = scene.pelton.command(args)?.stdout(output).spawn()?;
        // It may begin after a first event: each question makes one more.
        eventually("an event to show", || async {
            scene.nats.publish("hostile.raw", "x").await?;
            let shown = std::fs::read_to_string(&file)?;
            Ok(shown.contains(word).then_some(()))
        })
        .await?;
        ensure!(
            child.try_wait()?.is_none(),
            "{args:?} goes on until stopped"
        );
        child.kill().await?;
    }
    Ok(())
}

#[tokio::test]
async fn dev_serves_the_app_with_a_server_of_its_own() -> Result<()> {
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    let project = pelton_tests::Project::new(&project::shop(&orders, &notifier))?;
    let pelton = Pelton::new("nats://127.0.0.1:1", project.path())?;
    let out = project.path().join("out");
    let mut child = pelton
        .command(&["dev", "--json", "--no-watch", "--port", "0"])?
        .env_remove("NATS_URL")
        .stdout(std::fs::File::create(&out)?)
        .spawn()?;
    let url = eventually("dev to say where its server is", || async {
        let text = std::fs::read_to_string(&out)?;
        let line = text.lines().next().context("nothing said yet")?;
        let ready: Value = serde_json::from_str(line)?;
        Ok(ready["url"].as_str().map(str::to_owned))
    })
    .await?;
    let nats = pelton_tests::Nats::connect(&url).await?;
    nats.life("o-1").await?;
    let order = nats.order("o-1", "completed").await?;
    assert_eq!(order, completed("o-1"));
    let pid = child.id().context("dev ended")?.to_string();
    let sent = tokio::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status();
    ensure!(sent.await?.success());
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
    ensure!(ended.success(), "{ended}");
    eventually("its server to be gone with it", || async {
        let port = url.rsplit(':').next().unwrap_or("").to_owned();
        let address = format!("127.0.0.1:{}", port.trim_end_matches('/'));
        let gone = tokio::net::TcpStream::connect(address).await.is_err();
        Ok(gone.then_some(()))
    })
    .await
}
