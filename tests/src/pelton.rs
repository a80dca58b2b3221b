//! The real `pelton` binary as a child process: one command with its exit code and output.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::build;
use crate::server;
use crate::wait::eventually;

/// Longest that any command of a test may take; building a crate is the slowest of them.
const LIMIT: Duration = Duration::from_secs(240);

/// How commands are started: where, and against which server.
#[derive(Debug)]
pub struct Pelton {
    url: String,
    folder: PathBuf,
    /// Contexts of the `nats` CLI that the user may have must not reach a test.
    config: TempDir,
    /// What is none is not set.
    envs: Vec<(String, Option<String>)>,
}

/// What a command came to.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// The rest.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Pelton {
    /// Commands in `folder` against the server at `url`.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub fn new(url: &str, folder: &Path) -> Result<Self> {
        Ok(Self {
            url: url.to_owned(),
            folder: folder.to_owned(),
            config: tempfile::tempdir()?,
            envs: Vec::new(),
        })
    }

    /// Sets an environment variable of every command started from here on.
    pub fn set_env(&mut self, name: &str, value: impl Into<String>) {
        self.envs.push((name.to_owned(), Some(value.into())));
    }

    /// Takes an environment variable away, `NATS_URL` for one: what the server is then has to be said otherwise.
    pub fn unset_env(&mut self, name: &str) {
        self.envs.push((name.to_owned(), None));
    }

    /// A command that is not started yet.
    ///
    /// # Errors
    /// The binary cannot be built.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Command> {
        let mut command = Command::new(build::pelton()?);
        command
            .args(args)
            .current_dir(&self.folder)
            .env("NATS_URL", &self.url)
            .env("XDG_CONFIG_HOME", self.config.path())
            .env("XDG_CACHE_HOME", build::cache()?)
            .env("PELTON_NATS_SERVER", server::binary()?)
            .env("NO_COLOR", "1")
            // As little as contexts: the machine may have a file for its own node.
            .env("PELTON_CONFIG", "/dev/null")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (name, value) in &self.envs {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// It does not start or does not end.
    pub async fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        let words: Vec<_> = args
            .iter()
            .map(|arg| arg.as_ref().to_string_lossy().into_owned())
            .collect();
        let line = format!("pelton {}", words.join(" "));
        let start = Instant::now();
        let ended = tokio::time::timeout(LIMIT, self.command(args)?.output());
        let output = ended
            .await
            .with_context(|| format!("`{line}` did not end in {LIMIT:?}"))??;
        Ok(Output {
            line,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        })
    }

    /// Waits until a function has nothing left to do.
    ///
    /// # Errors
    /// It goes on having something.
    pub async fn idle(&self, function: &str) -> Result<()> {
        let what = format!("{function} to have nothing left to do");
        eventually(&what, || async {
            let info = self.json(&["function", "info", function]).await?;
            let pending = &info["status"]["pending"];
            ensure!(*pending == 0, "{pending} events to go");
            Ok(Some(()))
        })
        .await
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// It failed; shows both outputs.
    pub async fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        let output = self.run(args).await?;
        ensure!(output.code == Some(0), "should have succeeded: {output:#?}");
        Ok(output)
    }

    /// Runs a command that must be refused, with a message that holds each of `words` and no panic.
    ///
    /// # Errors
    /// It succeeded, or says something else.
    pub async fn refused<S: AsRef<OsStr>>(&self, args: &[S], words: &[&str]) -> Result<Output> {
        let output = self.run(args).await?;
        ensure!(
            output.code.is_some_and(|code| code != 0),
            "should have been refused: {output:#?}"
        );
        let said = output.stderr.to_lowercase();
        ensure!(!said.contains("panicked"), "panicked: {output:#?}");
        for word in words {
            ensure!(
                said.contains(&word.to_lowercase()),
                "should say {word:?}: {output:#?}"
            );
        }
        Ok(output)
    }

    /// Runs a command with `--json` and parses what it prints.
    ///
    /// # Errors
    /// It failed, or its output is no JSON.
    pub async fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Value> {
        let mut all: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        all.push(OsStr::new("--json"));
        let output = self.ok(&all).await?;
        serde_json::from_str(&output.stdout).with_context(|| format!("is no JSON: {output:#?}"))
    }
}
