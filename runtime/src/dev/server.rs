//! A nats-server as a child process, for `pelton dev` and for tests: it lives no longer than its handle.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::nats::{ConnectOptions, NatsError};

/// How long a start may take: recovering a large data folder takes a while.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to stop by itself.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often a start is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A running nats-server; killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    binary: PathBuf,
    child: Child,
    url: String,
    log: PathBuf,
}

/// What nats-server writes into its ports file.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

impl ServerProcess {
    /// Starts `binary` on 127.0.0.1 with JetStream in `data_dir` (made when missing; its log is there too) and waits
    /// until it accepts connections. `port`: none takes any that is free.
    ///
    /// # Errors
    /// It cannot be run, the port is taken, or it gave up; with the last lines of its log.
    pub async fn start(
        binary: &Path,
        data_dir: &Path,
        port: Option<u16>,
    ) -> Result<Self, NatsError> {
        Self::start_with(binary, data_dir, port, &[]).await
    }

    /// The same with further arguments for nats-server.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(
        binary: &Path,
        data_dir: &Path,
        port: Option<u16>,
        arguments: &[&str],
    ) -> Result<Self, NatsError> {
        let io = |why: std::io::Error| {
            NatsError(format!(
                "data folder {} cannot be used: {why}; choose another one",
                data_dir.display()
            ))
        };
        std::fs::create_dir_all(data_dir).map_err(io)?;
        let log = data_dir.join("nats-server.log");
        // Of its own, so that a file left by another server is never taken for ours.
        let ports = tempfile::tempdir().map_err(io)?;
        let mut child = spawn(binary, data_dir, &log, ports.path(), port, arguments)?;
        let url = ready(&mut child, ports.path(), &log).await?;
        Ok(Self {
            binary: binary.to_owned(),
            child,
            url,
            log,
        })
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How to connect to it, whatever context the user has selected.
    pub fn options(&self) -> ConnectOptions {
        ConnectOptions::to(&self.url)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_default()
    }

    /// Its process id; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The file it logs to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub async fn ended(&mut self) -> std::io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub async fn kill(mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// Asks it to stop, so that it writes what it holds in memory; kills it when it does not.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub async fn stop(mut self) -> std::io::Result<()> {
        if let Some(pid) = self.child.id() {
            // nats-server knows how to signal its own kind on every platform.
            let asked = Command::new(&self.binary)
                .arg("--signal")
                .arg(format!("term={pid}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .await;
            if asked.is_ok_and(|status| status.success())
                && timeout(STOP_LIMIT, self.child.wait()).await.is_ok()
            {
                return Ok(());
            }
        }
        self.child.kill().await
    }
}

fn spawn(
    binary: &Path,
    data_dir: &Path,
    log: &Path,
    ports: &Path,
    port: Option<u16>,
    arguments: &[&str],
) -> Result<Child, NatsError> {
    let mut command = Command::new(binary);
    command
        .args(["-js", "-a", "127.0.0.1", "-p"])
        .arg(port.map_or_else(|| "-1".to_owned(), |port| port.to_string()))
        .arg("-sd")
        .arg(data_dir)
        .arg("-l")
        .arg(log)
        .arg("--ports_file_dir")
        .arg(ports)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // Ctrl-C reaches the whole group of a terminal; the server has to outlive the node that drains.
    #[cfg(unix)]
    command.process_group(0);
    command.spawn().map_err(|why| {
        NatsError(format!(
            "{} cannot be run: {why}; set PELTON_NATS_SERVER to a nats-server",
            binary.display()
        ))
    })
}

/// Waits for the ports file, then for the port; its URL.
async fn ready(child: &mut Child, ports: &Path, log: &Path) -> Result<String, NatsError> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(url) = url_in(ports)
            && let Some(address) = url.strip_prefix("nats://")
            && TcpStream::connect(address).await.is_ok()
        {
            return Ok(url);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(NatsError(format!(
                "nats-server ended at once ({status}): {}; its log is {}",
                last_lines(log),
                log.display()
            )));
        }
        if Instant::now() > deadline {
            return Err(NatsError(format!(
                "nats-server was not ready within {} s: {}; its log is {}",
                START_LIMIT.as_secs(),
                last_lines(log),
                log.display()
            )));
        }
        sleep(POLL).await;
    }
}

fn url_in(ports: &Path) -> Option<String> {
    let file = std::fs::read_dir(ports).ok()?.flatten().next()?;
    // Not yet written to its end: looked at again.
    let ports: Ports = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports.nats.into_iter().next()
}

/// The end of the log, where the cause is, on one line.
fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut last = VecDeque::new();
    for line in text
        .lines()
        .filter(|line| line.contains("[FTL]") || line.contains("[ERR]"))
    {
        if last.len() == 3 {
            last.pop_front();
        }
        last.push_back(line.split_once("] ").map_or(line, |(_, rest)| rest).trim());
    }
    if last.is_empty() {
        "it gave no reason".to_owned()
    } else {
        Vec::from(last).join(" | ")
    }
}

/// A server with an empty folder, for tests that need one of their own.
#[cfg(test)]
pub(crate) async fn fresh_server() -> (ServerProcess, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let binary = super::find_nats_server().unwrap();
    let server = ServerProcess::start(&binary, data.path(), None).await;
    (server.unwrap(), data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::find_nats_server;
    use crate::nats::{check_server, connect};

    #[tokio::test]
    async fn starts_stops_and_keeps_its_data() {
        let binary = find_nats_server().unwrap();
        let data = tempfile::tempdir().unwrap();
        let server = ServerProcess::start(&binary, data.path(), None)
            .await
            .unwrap();
        let port = server.port();
        let client = connect(&server.options(), "test").await.unwrap();
        check_server(&client).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        let stream = async_nats::jetstream::stream::Config {
            name: "KEPT".into(),
            ..Default::default()
        };
        jetstream.create_stream(stream).await.unwrap();
        server.stop().await.unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());

        let again = ServerProcess::start(&binary, data.path(), Some(port))
            .await
            .unwrap();
        assert_eq!(again.port(), port);
        let client = connect(&again.options(), "test").await.unwrap();
        async_nats::jetstream::new(client)
            .get_stream("KEPT")
            .await
            .unwrap();

        let other = tempfile::tempdir().unwrap();
        let taken = ServerProcess::start(&binary, other.path(), Some(port)).await;
        let why = taken.unwrap_err().0;
        assert!(why.contains("address already in use"), "{why}");
    }
}
