//! The soak: a million events through one node and one server, and whether anything grew that should not: the node's memory, and what
//! the commit stream holds.
//!
//! `make soak` runs it, with `COUNT` events; among the tests it is a run of seconds, too short to judge the memory. The guest `tally` counts
//! the events of each key and tells each number. What it told is read while it runs: so every effect is checked, and nothing is kept of it.
//!
//! `WORK=rows` creates and deletes `COUNT` rows, `WORK=calls` makes `COUNT` calls, while the server
//! is killed `KILLS` times; then the commit stream must be as small as it was.

#![expect(clippy::print_stdout, reason = "a program of its own, which reports")]

mod audit;
mod calls;
mod held;
mod load;
mod memory;
mod reader;
mod rows;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project};

use crate::load::Load;
use crate::memory::Memory;
use crate::reader::Reader;

/// Keys of the work.
const KEYS: u64 = 10_000;
/// Events of the run among the tests: two for each key.
const SHORT: u64 = 2 * KEYS;
/// The work, and what the function tells.
const INPUT: &str = "TALLY";
const TARGET: &str = "COUNTS";
/// Between two looks at the memory, and between two lines of progress.
const LOOK: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(10);
/// Without any event for so long, the run is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let begun = Instant::now();
    let ended = match is_asked_for() {
        false => return ExitCode::SUCCESS,
        true => work().await,
    };
    let failed = u8::from(ended.is_err());
    let word = if failed == 0 { "ok" } else { "FAILED" };
    if let Err(error) = ended {
        println!("soak: {error:#}");
    }
    println!("test soak ... {word}\n");
    println!(
        "test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {}s\n",
        1 - failed,
        begun.elapsed().as_secs()
    );
    ExitCode::from(failed)
}

/// The work that `WORK` names, or a short run of each.
async fn work() -> Result<()> {
    let kind = std::env::var("WORK").unwrap_or_default();
    let given = number("COUNT")?;
    let kills = number("KILLS")?;
    println!("\nrunning 1 test");
    match kind.as_str() {
        "" if given.is_none() => {
            run(SHORT).await?;
            rows::run(rows::SHORT, 1).await?;
            calls::run(calls::SHORT, 1, false).await
        }
        "" | "events" => {
            let count = given.unwrap_or(SHORT);
            println!("soak: COUNT={count}");
            ensure!(
                count >= KEYS && count.is_multiple_of(KEYS),
                "COUNT is {count}; it should be a multiple of the {KEYS} keys, so that all of them get as many events"
            );
            run(count).await
        }
        "rows" => rows::run(given.unwrap_or(rows::SHORT), kills.unwrap_or(1)).await,
        "calls" => {
            let count = given.unwrap_or(calls::SHORT);
            calls::run(count, kills.unwrap_or(1), true).await
        }
        other => anyhow::bail!("WORK is {other:?}; choose events, rows or calls"),
    }
}

/// A number from the environment.
fn number(name: &str) -> Result<Option<u64>> {
    match std::env::var(name).unwrap_or_default().as_str() {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .with_context(|| format!("{name} is {text:?} and should be a number")),
    }
}

/// Whether the tests that were asked for include this one.
fn is_asked_for() -> bool {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut named = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    let asked = named.peek().is_none() || named.any(|name| "soak".contains(name.as_str()));
    asked && !args.iter().any(|arg| arg == "--list")
}

async fn run(count: u64) -> Result<()> {
    let component = build::component("tally")?;
    let mut text = String::new();
    for (stream, subject) in [(INPUT, "tally.>"), (TARGET, "counts.>")] {
        text += &format!("[streams.{stream}]\nsubjects = [{subject:?}]\n");
    }
    text += &project::keyed("tally", &component, 2, "start = \"all\"");
    text += "[functions.tally.allow]\nemit = [\"counts.*\"]\n";
    let project = Project::new(&text)?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    let mut node = Node::start(&pelton, &[])?;
    nats.serving("tally", None, 1).await?;

    let mut load = Load::new(&nats, count);
    let mut reader = Reader::open(&nats).await?;
    let memory = soak(&nats, &mut node, &mut load, &mut reader, count).await?;
    reader.no_more().await?;
    audit::audit(&nats, count).await?;
    memory.judge(count)
}

/// Everything in, and everything told; the memory is looked at meanwhile.
async fn soak(
    nats: &Nats,
    node: &mut Node,
    load: &mut Load,
    reader: &mut Reader,
    count: u64,
) -> Result<Memory> {
    let mut memory = Memory::default();
    let begun = Instant::now();
    let (mut looked, mut said, mut moved) = (begun, begun, begun);
    let mut before = 0;
    while reader.told() < count {
        load.ahead_of(reader.told()).await?;
        if reader.read().await? {
            moved = Instant::now();
        }
        let told = reader.told();
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            ensure!(node.alive()?, "the node has ended by itself");
            memory.look(node, told)?;
            load.purge(reader.all_done()).await?;
            reader.purge().await?;
        }
        if said.elapsed() >= LINE || told == count {
            let rate = (told - before) as f64 / said.elapsed().as_secs_f64();
            (said, before) = (Instant::now(), told);
            let held = nats
                .js
                .get_stream("KV_shop")
                .await?
                .cached_info()
                .state
                .clone();
            println!(
                "soak: {:>5.0} s  {told:>8} events  {rate:>6.0} a second  node {:>5.1} MiB  commit stream {:>6} messages, {:>5.1} MiB",
                begun.elapsed().as_secs_f64(),
                memory.last_mib(),
                held.messages,
                held.bytes as f64 / f64::from(1 << 20),
            );
        }
        ensure!(
            moved.elapsed() < PATIENCE,
            "stuck: {told} of {count} events done, and none in the last {PATIENCE:?}"
        );
    }
    Ok(memory)
}
