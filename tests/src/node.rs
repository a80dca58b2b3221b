//! A node: `pelton run` as a child process, with its log kept for the failure that one day needs it.

use std::fs::File;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::NamedTempFile;
use tokio::process::Child;

use crate::pelton::Pelton;

/// Lines of a node's log that a failed test shows.
const TAIL: usize = 80;

/// A running `pelton run`; killed when dropped.
pub struct Node {
    child: Child,
    pid: u32,
    log: NamedTempFile,
}

impl Node {
    /// Starts a node; it may not serve anything yet.
    ///
    /// # Errors
    /// The process does not start.
    pub fn start(pelton: &Pelton, args: &[&str]) -> Result<Self> {
        let log = NamedTempFile::new()?;
        // Appending: both outputs share the file without writing over each other.
        let sink = File::options().append(true).open(log.path())?;
        let mut all = vec!["run"];
        all.extend(args);
        let child = pelton
            .command(&all)?
            .stdout(sink.try_clone()?)
            .stderr(sink)
            .stdin(Stdio::null())
            .spawn()
            .context("pelton run does not start")?;
        let pid = child.id().context("pelton run ended at once")?;
        Ok(Self { child, pid, log })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `kill -9`, and waits until the process is gone.
    ///
    /// # Errors
    /// It was gone already.
    pub async fn kill(&mut self) -> Result<()> {
        ensure!(self.alive()?, "the node had ended by itself");
        self.child.kill().await?;
        Ok(())
    }

    /// Sends a signal, such as `STOP`.
    ///
    /// # Errors
    /// The process is gone.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let sent = tokio::process::Command::new("kill")
            .args([&format!("-{name}"), &self.pid.to_string()])
            .status();
        ensure!(sent.await?.success(), "kill -{name} failed");
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not leave within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal("TERM").await?;
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("still there {deadline:?} after SIGTERM"),
        }
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// The system does not say.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The most memory that the process has held, bytes.
    ///
    /// # Errors
    /// The process is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        self.bytes("VmHWM:")
    }

    /// The memory that the process holds, bytes.
    ///
    /// # Errors
    /// The process is gone.
    pub fn memory(&self) -> Result<u64> {
        self.bytes("VmRSS:")
    }

    fn bytes(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("no {name} in /proc status"))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }

    /// Everything that it printed so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log.path())?)
    }
}

impl Drop for Node {
    #[expect(
        clippy::print_stderr,
        reason = "shown by the test runner when a test failed"
    )]
    fn drop(&mut self) {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or(&[]);
        eprintln!("--- node {}, last lines ---\n{}", self.pid, tail.join("\n"));
    }
}
