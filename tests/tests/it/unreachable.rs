//! Servers that cannot be used: none there, one that says nothing, one that is too old. Every command says so, in
//! one line and soon.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use pelton_tests::old_server::OldServer;
use pelton_tests::{Output, Pelton, Project, Scene, build, modules, project, wait};
use tokio::net::TcpListener;

/// What is promised, and what starting so many processes at once on a busy machine may add.
const SOON: Duration = Duration::from_secs(30);

/// Every command that needs NATS.
const COMMANDS: [&[&str]; 15] = [
    &["run"],
    &["deploy"],
    &["deploy", "--dry-run"],
    &["publish", "plain.x", "{}"],
    &["logs"],
    &["logs", "-f"],
    &["function", "ls"],
    &["function", "info", "plain"],
    &["state", "ls"],
    &["state", "get", "k"],
    &["state", "put", "k", "v"],
    &["state", "del", "k"],
    &["state", "watch"],
    &["dead-letter", "ls"],
    &["dead-letter", "replay", "1"],
];

fn project() -> Result<Project> {
    let project = Project::new("")?;
    let component = project.file("plain.wasm", &modules::component()?)?;
    let mut text = "[streams.PLAIN]\nsubjects = [\"plain.>\"]\n".to_owned();
    text += &project::function("plain", &component, "");
    project.change(&text)?;
    Ok(project)
}

/// Runs all of them, a few at a time, and checks that each is refused in one line that holds `words`.
async fn all_refused(url: &str, words: &[&str]) -> Result<()> {
    let project = project()?;
    let pelton = Pelton::new(url, project.path())?;
    for some in COMMANDS.chunks(4) {
        let runs = some.iter().map(|command| pelton.refused(command, words));
        for output in try_join_all(runs).await? {
            one_line_and_soon(&output)?;
        }
    }
    Ok(())
}

fn one_line_and_soon(output: &Output) -> Result<()> {
    // `deploy` builds before it connects, and says that it does; its refusal is one line all the same.
    let errors = output
        .stderr
        .lines()
        .skip_while(|line| !line.starts_with("error"));
    ensure!(errors.count() == 1, "not one line: {output:#?}");
    ensure!(output.stdout.is_empty(), "no data: {output:#?}");
    ensure!(output.took < SOON, "not soon: {output:#?}");
    Ok(())
}

#[tokio::test]
async fn with_nats_down_every_command_says_so() -> Result<()> {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    all_refused(&format!("nats://{address}"), &["NATS", &address]).await
}

#[tokio::test]
async fn with_a_server_that_says_nothing_every_command_says_so() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let address = silent.local_addr()?.to_string();
    all_refused(&format!("nats://{address}"), &["NATS", &address]).await
}

#[tokio::test]
async fn with_a_server_too_old_every_command_says_so() -> Result<()> {
    let old = OldServer::start("2.14.9").await?;
    all_refused(&old.url(), &["2.14.9", "2.15.1"]).await
}

#[tokio::test]
async fn a_dead_letter_cannot_be_shown_either() -> Result<()> {
    let project = project()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", project.path())?;
    let output = pelton
        .refused(&["dead-letter", "show", "1"], &["NATS", "127.0.0.1:1"])
        .await?;
    one_line_and_soon(&output)
}

/// Though its caller would wait for ten minutes.
#[tokio::test]
async fn without_a_node_the_caller_is_told_at_once() -> Result<()> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function("hostile", &build::component("hostile")?, "");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let mut scene = Scene::start(&text).await?;
    scene.node.terminate(wait::PROMPT).await?;
    let call = ["call", "hostile", "{}", "--subject", "hostile.act.a"];
    let args = [call.as_slice(), &["--timeout", "10m"]].concat();
    let words = ["no node answers", "pelton run"];
    let refused = scene.pelton.refused(&args, &words).await?;
    ensure!(refused.took < wait::PROMPT, "{refused:?}");
    Ok(())
}
