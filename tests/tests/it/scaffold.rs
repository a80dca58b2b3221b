//! What `pelton new` writes works as it is.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use pelton_tests::{Nats, NatsServer, Node, Pelton, build};
use tokio::process::Command;

/// Nothing may come from a repository: whatever cargo asks git for fails.
const NO_GIT: [(&str, &str); 2] = [
    ("CARGO_NET_GIT_FETCH_WITH_CLI", "true"),
    ("GIT_ALLOW_PROTOCOL", "none"),
];

#[tokio::test]
async fn a_new_app_is_tested_built_and_deployed_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = NatsServer::start().await?;
    let outside = Pelton::new(&server.url(), folder.path())?;
    outside.ok(&["new", "fresh"]).await?;

    let root = folder.path().join("fresh");
    // Beside the other artifacts of the build: the second run finds what the first has compiled.
    let target = build::scratch()?.join("scaffold");
    let tests = Command::from(build::cargo())
        .arg("test")
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &target)
        .envs(NO_GIT)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&tests.stdout).into_owned();
    ensure!(
        tests.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&tests.stderr)
    );
    ensure!(
        said.contains("test result: ok. ") && said.contains(" passed"),
        "{said}"
    );
    ensure!(
        said.lines().any(|line| line.ends_with("... ok")),
        "it has a test: {said}"
    );

    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    ensure!(!lock.contains("git+"), "{lock}");
    let clippy = std::fs::read_to_string(root.join("clippy.toml"))?;
    for clock in ["std::time::SystemTime::now", "std::time::Instant::now"] {
        ensure!(clippy.contains(clock), "{clippy}");
    }

    let mut pelton = Pelton::new(&server.url(), &root)?;
    pelton.set_env("CARGO_TARGET_DIR", target.to_string_lossy());
    for (name, value) in NO_GIT {
        pelton.set_env(name, value);
    }
    pelton.ok(&["check"]).await?;
    pelton.ok(&["build"]).await?;
    pelton.ok(&["deploy"]).await?;
    let listed = pelton.json(&["function", "ls"]).await?;
    let names: Vec<String> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|function| function["function"].as_str().map(str::to_owned))
        .collect();
    ensure!(!names.is_empty(), "{listed}");
    let node = Node::start(&pelton, &[])?;
    let nats = Nats::connect(&server.url()).await?;
    for name in &names {
        nats.serving(name, None, 1).await?;
    }

    added(&pelton, &root, &nats).await?;
    drop(node);
    Ok(())
}

/// Further functions go the same way.
async fn added(pelton: &Pelton, root: &Path, nats: &Nats) -> Result<()> {
    // It begins with what comes.
    pelton.ok(&["add", "second"]).await?;
    // Ticks of a schedule come from no stream.
    pelton
        .ok(&["add", "third", "--subject", "schedule.tick"])
        .await?;
    let manifest = std::fs::read_to_string(root.join("pelton.toml"))?;
    for (part, there) in [
        ("[streams.SECOND]", true),
        ("\nstart = \"new\"\n", true),
        ("[streams.THIRD]", false),
        ("\nschedule = ", true),
    ] {
        ensure!(manifest.contains(part) == there, "{part}: {manifest}");
    }
    pelton.ok(&["deploy"]).await?;
    for added in ["second", "third"] {
        nats.serving(added, None, 1).await?;
    }
    pelton
        .ok(&["call", "third", "{}", "--subject", "schedule.tick"])
        .await?;
    let run = nats.value("fresh", "third.last").await?;
    ensure!(run.is_some_and(|run| run["seconds"].is_i64()), "no run");
    Ok(())
}

#[tokio::test]
async fn another_sdk_is_said_and_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let outside = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    outside.ok(&["new", "aged"]).await?;
    let root = folder.path().join("aged");
    let copy = root.join("vendor/pelton-sdk/Cargo.toml");
    let text = std::fs::read_to_string(&copy)?;
    let version = outside.ok(&["--version"]).await?.stdout;
    let version = version.split_whitespace().last().unwrap_or_default();
    let aged = text.replace(&format!("\"{version}\""), "\"0.0.1\"");
    std::fs::write(&copy, aged)?;
    // It is said before anything is built, and is no error: `pelton.toml` has none, and this
    // function does not exist.
    let pelton = Pelton::new("nats://127.0.0.1:1", &root)?;
    let said = pelton.refused(&["build", "nobody"], &["0.0.1", "pelton vendor"]);
    said.await?;
    let wrote = pelton.json(&["vendor"]).await?;
    ensure!(
        wrote["before"] == "0.0.1" && wrote["used"] == true,
        "{wrote}"
    );
    assert_eq!(std::fs::read_to_string(&copy)?, text);
    let said = pelton.refused(&["build", "nobody"], &[]).await?;
    ensure!(!said.stderr.contains("pelton vendor"), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_binary_says_what_it_is_made_of() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    let short = pelton.ok(&["--version"]).await?.stdout;
    let long = pelton.ok(&["--version", "--verbose"]).await?.stdout;
    ensure!(long.starts_with(short.trim_end()), "{short}{long}");
    for part in [
        "commit: ",
        "target: ",
        "sdk: ",
        "contract: pelton:function@0.1.",
        "wasmtime: ",
        "async-nats: ",
        "nats-server: 2.",
    ] {
        ensure!(long.contains(part), "{part}: {long}");
    }
    Ok(())
}
