//! The servers: one, or three that hold every stream three times. Processes on ports that stay theirs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::{Nats, within};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// Until a server, or a cluster, answers requests about streams.
const UP: Duration = Duration::from_secs(30);

/// All servers.
pub(crate) struct Cluster {
    servers: Vec<Mutex<Server>>,
    ports: Vec<u16>,
    /// Held by who takes a server away: two of three must be there.
    pub trouble: Mutex<()>,
}

/// A server process and its data.
pub(crate) struct Server {
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `count` servers with their data below `folder`.
    ///
    /// # Errors
    /// One does not come up.
    pub(crate) async fn start(folder: &Path, count: usize) -> Result<Self> {
        let ports = free_ports(2 * count)?;
        let (clients, routes) = ports.split_at(count);
        let mut servers = Vec::new();
        for (n, port) in clients.iter().enumerate() {
            let data = folder.join(format!("server-{n}"));
            std::fs::create_dir_all(&data)?;
            let mut config = format!(
                "server_name: s{n}\nlisten: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {data:?} }}\n"
            );
            if let (true, Some(own)) = (count > 1, routes.get(n)) {
                let all: Vec<_> = routes
                    .iter()
                    .map(|port| format!("\"nats://127.0.0.1:{port}\""))
                    .collect();
                // Nodes must not learn of ways around their proxies.
                config += &format!(
                    "cluster {{ name: faults, listen: \"127.0.0.1:{own}\", no_advertise: true, routes: [{}] }}\n",
                    all.join(", ")
                );
            }
            let mut server = Server {
                config: folder.join(format!("server-{n}.conf")),
                log: folder.join(format!("server-{n}.log")),
                child: None,
            };
            std::fs::write(&server.config, config)?;
            server.start()?;
            servers.push(Mutex::new(server));
        }
        let cluster = Self {
            servers,
            ports: clients.to_vec(),
            trouble: Mutex::new(()),
        };
        cluster.up().await?;
        Ok(cluster)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.servers.len()
    }

    /// The servers' ports for clients.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// All of them, for a client, past the proxies.
    pub(crate) fn url(&self) -> String {
        let urls: Vec<_> = self
            .ports
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        urls.join(",")
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of that number.
    pub(crate) fn server(&self, n: usize) -> Result<&Mutex<Server>> {
        self.servers.get(n).context("no such server")
    }

    /// A client of all of them, past the proxies.
    ///
    /// # Errors
    /// None is there.
    pub(crate) async fn client(&self) -> Result<Nats> {
        let url = self.url();
        within(UP, "a connection", || async {
            Ok(Some(Nats::connect(&url).await?))
        })
        .await
    }

    /// Waits until requests about streams are answered, and all servers are in the cluster.
    ///
    /// # Errors
    /// They are not.
    pub(crate) async fn up(&self) -> Result<()> {
        let nats = self.client().await?;
        within(UP, "the servers", || async {
            let answer: Value = nats.js.request("INFO", &()).await?;
            ensure!(answer.get("error").is_none(), "{answer}");
            Ok(Some(()))
        })
        .await
    }
}

impl Server {
    /// Starts it, on the data that it left.
    ///
    /// # Errors
    /// The process does not start.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(pelton_tests::server::binary()?)
            .arg("-c")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("nats-server does not start")?;
        self.child = Some(child);
        Ok(())
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

    /// Asks it to end, and waits until it has, or ends it.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Result<()> {
        self.signal("TERM").await?;
        if let Some(child) = &mut self.child
            && tokio::time::timeout(patience, child.wait()).await.is_ok()
        {
            self.child = None;
        }
        self.kill().await
    }
}

/// Sends a signal to a child.
///
/// # Errors
/// It is not running.
pub(crate) async fn signal(child: Option<&Child>, name: &str) -> Result<()> {
    let pid = child.and_then(Child::id).context("is not running")?;
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    ensure!(sent.await?.success(), "kill -{name} {pid} failed");
    Ok(())
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<_> = (0..count)
        .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()?;
    let ports = held.iter().map(|one| Ok(one.local_addr()?.port()));
    ports.collect()
}
