//! What most tests begin with: a server, a deployed project and a node that serves it.

use anyhow::Result;

use crate::client::Nats;
use crate::node::Node;
use crate::pelton::Pelton;
use crate::project::Project;
use crate::server::NatsServer;

/// Declared in the order in which they are let go: the node before its server.
pub struct Scene {
    /// The node; more can be started with [`Scene::node`].
    pub node: Node,
    /// A client beside it.
    pub nats: Nats,
    /// Commands in the project's folder.
    pub pelton: Pelton,
    /// The project.
    pub project: Project,
    /// The server.
    pub server: NatsServer,
}

impl Scene {
    /// Deploys the manifest of app `shop` that goes on with `rest`, and waits until a node serves all its functions.
    ///
    /// # Errors
    /// Any of it fails.
    pub async fn start(rest: &str) -> Result<Self> {
        Self::start_with(rest, &[]).await
    }

    /// As [`start`](Self::start), with environment variables for the commands and the node.
    ///
    /// # Errors
    /// Any of it fails.
    pub async fn start_with(rest: &str, envs: &[(&str, &str)]) -> Result<Self> {
        let project = Project::new(rest)?;
        let server = NatsServer::start().await?;
        let nats = Nats::connect(&server.url()).await?;
        let mut pelton = Pelton::new(&server.url(), project.path())?;
        for (name, value) in envs {
            pelton.set_env(name, *value);
        }
        pelton.ok(&["deploy"]).await?;
        let node = Node::start(&pelton, &[])?;
        let scene = Self {
            node,
            nats,
            pelton,
            project,
            server,
        };
        for function in functions(rest) {
            scene.nats.serving(&function, None, 1).await?;
        }
        Ok(scene)
    }

    /// Starts one more node.
    ///
    /// # Errors
    /// It does not start.
    pub fn node(&self) -> Result<Node> {
        Node::start(&self.pelton, &[])
    }
}

/// Names of the functions of a manifest.
fn functions(manifest: &str) -> Vec<String> {
    let tables = manifest.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("[functions.")?.strip_suffix(']')?;
        (!name.contains('.')).then(|| name.to_owned())
    });
    tables.collect()
}
