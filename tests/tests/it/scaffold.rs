//! What `pelton new` writes works as it is.

use std::process::Stdio;

use anyhow::{Result, ensure};
use pelton_tests::{NatsServer, Node, Pelton, build};
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
    let nats = pelton_tests::Nats::connect(&server.url()).await?;
    for name in &names {
        nats.serving(name, None, 1).await?;
    }

    // One more function goes the same way.
    pelton.ok(&["add", "second"]).await?;
    pelton.ok(&["deploy"]).await?;
    nats.serving("second", None, 1).await?;
    drop(node);
    Ok(())
}
