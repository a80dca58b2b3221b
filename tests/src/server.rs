//! A real nats-server in a folder of its own, killed when dropped, and killable and startable again on the same data
//! and port for the tests of outages.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::wait::within;

/// Servers at once, each with its nodes: the machines that run this may have two cores.
static SERVERS: Semaphore = Semaphore::const_new(3);

/// A server process and its data.
pub struct NatsServer {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
    /// Of a server with a configuration file of its own: the variables that the file reads.
    envs: Option<Vec<(String, String)>>,
    _permit: SemaphorePermit<'static>,
}

/// The configuration file, in the server's folder.
const CONFIG: &str = "server.conf";

impl NatsServer {
    /// Starts a server on a free port, when one of the few places for servers is free.
    ///
    /// # Errors
    /// No nats-server binary, or it does not come up.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// As [`start`](Self::start), with `config` as its configuration file: what it demands of its clients.
    ///
    /// # Errors
    /// No nats-server binary, or it does not come up.
    pub async fn start_with(config: &str) -> Result<Self> {
        let permit = SERVERS.acquire().await?;
        let folder = tempfile::tempdir()?;
        if config.is_empty() {
            return Self::begin(folder, None, permit).await;
        }
        std::fs::write(folder.path().join(CONFIG), config)?;
        Self::begin(folder, Some(Vec::new()), permit).await
    }

    /// As [`start`](Self::start), each in a folder that holds its `server.conf`, with the variables that this reads. All at once: they
    /// may wait for each other. At most three.
    ///
    /// # Errors
    /// One does not come up.
    pub async fn configured(servers: Vec<(TempDir, Vec<(String, String)>)>) -> Result<Vec<Self>> {
        let mut permits = SERVERS.acquire_many(u32::try_from(servers.len())?).await?;
        let mut begun = Vec::new();
        for (folder, envs) in servers {
            let permit = permits.split(1).context("more servers than places")?;
            begun.push(Self::begin(folder, Some(envs), permit));
        }
        futures::future::try_join_all(begun).await
    }

    async fn begin(
        folder: TempDir,
        envs: Option<Vec<(String, String)>>,
        permit: SemaphorePermit<'static>,
    ) -> Result<Self> {
        let mut server = Self {
            folder,
            port: 0,
            child: None,
            envs,
            _permit: permit,
        };
        server.spawn("-1").await?;
        Ok(server)
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server as a power cut would; its data stay.
    ///
    /// # Errors
    /// The process could not be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again on the same data and port.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let port = self.port.to_string();
        self.spawn(&port).await
    }

    /// Replaces its configuration file, which it reads when it starts again.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join(CONFIG), config)?)
    }

    /// Changes another file in its folder, which its configuration file includes.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn edit(&self, file: &str, change: impl Fn(String) -> String) -> Result<()> {
        let path = self.folder.path().join(file);
        let text = std::fs::read_to_string(&path)?;
        Ok(std::fs::write(&path, change(text))?)
    }

    /// Has it read its configuration file again while it runs.
    ///
    /// # Errors
    /// The process is gone.
    pub async fn reload(&self) -> Result<()> {
        let pid = self.child.as_ref().context("the server is down")?.id();
        let sent = tokio::process::Command::new("kill")
            .args(["-HUP", &pid.to_string()])
            .status();
        ensure!(sent.await?.success(), "kill -HUP failed");
        Ok(())
    }

    /// Where it keeps a stream.
    pub fn stream_folder(&self, stream: &str) -> PathBuf {
        let streams = self.folder.path().join("data/jetstream/$G/streams");
        streams.join(stream)
    }

    async fn spawn(&mut self, port: &str) -> Result<()> {
        let folder = self.folder.path();
        let log = File::create(folder.join("server.log"))?;
        let mut command = Command::new(binary()?);
        if let Some(envs) = &self.envs {
            command.arg("-c").arg(folder.join(CONFIG));
            command.envs(envs.iter().map(|(name, value)| (name, value)));
        }
        let child = command
            .args(["-js", "-a", "127.0.0.1", "-p", port, "-sd"])
            .arg(folder.join("data"))
            .arg("--ports_file_dir")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("nats-server does not start")?;
        let ports = folder.join(format!("nats-server_{}.ports", child.id()));
        self.child = Some(child);
        let ready = within(Duration::from_secs(20), "nats-server's ports", || async {
            read_port(&ports).await
        });
        self.port = ready.await.with_context(|| self.log())?;
        Ok(())
    }

    /// What it has logged so far; empty when that cannot be read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // A process that is gone already is what is wanted.
        let _ = self.kill();
    }
}

/// The port of the file that the server writes once it listens, when it also answers.
async fn read_port(file: &Path) -> Result<Option<u16>> {
    let Ok(text) = std::fs::read_to_string(file) else {
        return Ok(None);
    };
    let ports: Value = serde_json::from_str(&text)?;
    let url = ports["nats"][0].as_str().context("no address yet")?;
    let port = url.rsplit(':').next().context("no port")?.parse()?;
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    Ok(Some(port))
}

/// The nats-server that the set-up fetched, found as `pelton dev` finds it.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PELTON_NATS_SERVER") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join("nats-server"))
        .collect();
    places.push(cache_home()?.join("pelton/nats-server-2.15.1/bin/nats-server"));
    match places.iter().find(|place| place.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            bail!("no nats-server: run `make test`, which fetches one, or set PELTON_NATS_SERVER")
        }
    }
}

/// The user's cache folder.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_home() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache"))
}
