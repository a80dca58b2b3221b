//! The nodes: `pelton run` processes, each with proxies of its own between it and the servers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pelton_tests::{Pelton, Project};
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::cluster::{Cluster, signal};
use pelton_tests::proxy::{Mode, Proxy};

/// How long a node may take to drain.
const PATIENCE: Duration = Duration::from_secs(40);

/// Places for nodes. Who does something to one holds its lock.
pub(crate) struct Nodes {
    all: Vec<Mutex<Node>>,
}

/// A place for a node: its way to the servers, and the process, if there is one.
pub(crate) struct Node {
    pelton: Pelton,
    proxies: Vec<Proxy>,
    log: PathBuf,
    child: Option<Child>,
}

impl Nodes {
    /// Starts `count` nodes.
    ///
    /// # Errors
    /// One does not start.
    pub(crate) async fn start(
        folder: &Path,
        project: &Project,
        cluster: &Cluster,
        count: usize,
    ) -> Result<Self> {
        let mut all = Vec::new();
        for n in 0..count {
            let mut proxies = Vec::new();
            for port in cluster.ports() {
                proxies.push(Proxy::start(*port).await?);
            }
            let urls: Vec<_> = proxies.iter().map(Proxy::url).collect();
            let mut pelton = Pelton::new(&urls.join(","), project.path())?;
            pelton.set_env("RUST_LOG", "pelton_runtime=debug");
            let mut node = Node {
                pelton,
                proxies,
                log: folder.join(format!("node-{n}.log")),
                child: None,
            };
            node.start()?;
            all.push(Mutex::new(node));
        }
        Ok(Self { all })
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of that number.
    pub(crate) fn node(&self, n: usize) -> Result<&Mutex<Node>> {
        self.all.get(n).context("no such node")
    }
}

impl Node {
    /// Starts a node here.
    ///
    /// # Errors
    /// The process does not start.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = self
            .pelton
            .command(&["run"])?
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .context("pelton run does not start")?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts one if it has ended by itself: a node that found no server at its start does so.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn revive(&mut self) -> Result<bool> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if ended {
            self.start()?;
        }
        Ok(ended)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => Ok(child.kill().await?),
            None => Ok(()),
        }
    }

    /// Sends a signal, such as `STOP`.
    ///
    /// # Errors
    /// It is not running.
    pub(crate) async fn signal(&self, name: &str) -> Result<()> {
        signal(self.child.as_ref(), name).await
    }

    /// Asks it to leave, and waits until it has.
    ///
    /// # Errors
    /// It does not leave in time.
    pub(crate) async fn leave(&mut self) -> Result<()> {
        self.signal("TERM").await?;
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(status) => status.map(drop).map_err(Into::into),
            Err(_) => bail!("a node was still there {PATIENCE:?} after SIGTERM"),
        }
    }

    /// What happens between this node and the servers: all, or the one of this number.
    pub(crate) fn network(&self, mode: Mode, server: Option<usize>) {
        for (n, proxy) in self.proxies.iter().enumerate() {
            if server.is_none_or(|server| server == n) {
                proxy.set(mode);
            }
        }
    }
}
