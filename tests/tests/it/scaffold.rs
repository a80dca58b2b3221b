//! What `pelton new` writes works as it is.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};
use pelton_tests::{Nats, NatsServer, Node, Pelton, build};
use tokio::process::Command;

#[tokio::test]
async fn a_new_app_is_tested_built_and_deployed_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = NatsServer::start().await?;
    let outside = Pelton::new(&server.url(), folder.path())?;
    let sdk = build::root()?.join("sdk");
    let sdk = sdk.to_string_lossy().into_owned();
    outside.ok(&["new", "fresh", "--sdk", &sdk]).await?;

    let root = folder.path().join("fresh");
    // Beside the other artifacts of the build: the second run finds what the first has compiled.
    let target = build::scratch()?.join("scaffold");
    let tests = Command::from(build::cargo())
        .arg("test")
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &target)
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

    let mut pelton = Pelton::new(&server.url(), &root)?;
    pelton.set_env("CARGO_TARGET_DIR", target.to_string_lossy());
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
