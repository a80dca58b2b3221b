//! The node: `pelton dev` as a child process, which starts a nats-server as its own child.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Until `ready`: the functions are compiled to wasm first, from nothing the first time.
const START_DEADLINE: Duration = Duration::from_secs(900);
/// From SIGTERM to the end; a node drains for less.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Lines of the node's output that a failure shows.
const KEPT_LINES: usize = 40;

/// A running node; killed when dropped.
pub(crate) struct Node {
    child: Child,
    url: String,
    lines: Arc<Mutex<VecDeque<String>>>,
}

/// The first line that `pelton dev --json` prints.
#[derive(Deserialize)]
struct Ready {
    url: String,
}

impl Node {
    /// Starts a node on the repository's `pelton.toml` with its data in `data`, and waits until it is ready.
    pub(crate) async fn start(data: &Path) -> Result<Self> {
        let binary = binary()?;
        let mut child = Command::new(&binary)
            .args(["dev", "--json", "--no-watch", "--port", "0", "--data"])
            .arg(data)
            .current_dir(repository()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!("{} does not start; build it: make build", binary.display())
            })?;
        let output = child.stdout.take().context("no output to read")?;
        let mut output = BufReader::new(output).lines();
        let ready = tokio::time::timeout(START_DEADLINE, output.next_line())
            .await
            .with_context(|| {
                format!(
                    "pelton dev was not ready within {} s",
                    START_DEADLINE.as_secs()
                )
            })??;
        let Some(ready) = ready else {
            bail!(
                "pelton dev ended before it was ready ({})",
                child.wait().await?
            );
        };
        let Ready { url } = serde_json::from_str(&ready)
            .with_context(|| format!("pelton dev did not begin with a ready event: {ready}"))?;
        let lines = Arc::default();
        tokio::spawn(keep_last(output, Arc::clone(&lines)));
        Ok(Self { child, url, lines })
    }

    /// Where its NATS listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it printed last, for a failure's message.
    pub(crate) fn last_words(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        format!("the node's last lines:\n{}\n", lines.join("\n"))
    }

    /// SIGTERM, and waits for the end; whether it left well and its NATS is gone.
    pub(crate) async fn stop(&mut self) -> Result<bool> {
        let Some(pid) = self.child.id() else {
            bail!("the node had ended by itself");
        };
        Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status()
            .await?;
        let status = tokio::time::timeout(STOP_DEADLINE, self.child.wait())
            .await
            .with_context(|| {
                format!(
                    "the node was still there {} s after SIGTERM",
                    STOP_DEADLINE.as_secs()
                )
            })??;
        Ok(status.success() && async_nats::connect(&self.url).await.is_err())
    }
}

/// Reads on, or the node would block on a full pipe.
async fn keep_last(mut output: Lines<BufReader<ChildStdout>>, kept: Arc<Mutex<VecDeque<String>>>) {
    while let Ok(Some(line)) = output.next_line().await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

/// The `pelton` binary: cargo puts it beside this one.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PELTON_BIN") {
        return Ok(path.into());
    }
    Ok(std::env::current_exe()?.with_file_name("pelton"))
}

fn repository() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .ancestors()
        .nth(2)
        .context("not in the repository")?
        .to_owned())
}
