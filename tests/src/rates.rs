//! The four rates of a cluster of three nodes over a minute, held against what was sent: for the test, and for the measurement.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::scrape::{scrape_all, sum};
use crate::{Nats, NatsServer, Node, Pelton, Project, build, project, within};

/// Keys that events have.
const KEYS: u64 = 300;
/// Between two bursts of the load.
const BURST: Duration = Duration::from_millis(20);
/// What is left to do when the load ends.
const TAIL: Duration = Duration::from_secs(120);
/// For so long the counters must stay as they are, seconds: whoever counts does so every second.
const STILL: f64 = 4.0;
/// Looks in which they must have come to rest.
const LOOKS: u32 = 10;

/// A server and nodes that show their metrics; two functions count the same events and emit one for each. Declared in the order in which they
/// are let go.
pub struct Cluster {
    /// The nodes, the oldest first.
    pub nodes: Vec<Node>,
    /// Where each shows metrics.
    pub addresses: Vec<SocketAddr>,
    /// A client.
    pub nats: Nats,
    _project: Project,
    _server: NatsServer,
}

/// The four counters, over all nodes and functions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Events stored.
    pub produced: f64,
    /// Deliveries handed out.
    pub consumed: f64,
    /// Deliveries committed.
    pub handled: f64,
    /// Emitted events that have arrived.
    pub transported: f64,
}

impl Rates {
    /// What it comes to when so many events were sent: both functions take each, and emit one.
    pub fn of(sent: u64) -> Self {
        let sent = sent as f64;
        Self {
            produced: sent,
            consumed: 2.0 * sent,
            handled: 2.0 * sent,
            transported: 2.0 * sent,
        }
    }

    /// Each counter's distance from another one's, as a share of that.
    pub fn off(&self, wanted: &Self) -> [f64; 4] {
        let values = |rates: &Self| {
            [
                rates.produced,
                rates.consumed,
                rates.handled,
                rates.transported,
            ]
        };
        let (mine, wanted) = (values(self), values(wanted));
        std::array::from_fn(|n| match (mine.get(n), wanted.get(n)) {
            (Some(mine), Some(wanted)) => (mine - wanted).abs() / wanted.max(1.0),
            _ => f64::INFINITY,
        })
    }
}

impl Cluster {
    /// Starts it, and waits until all nodes are ready and one of them counts what is stored.
    ///
    /// # Errors
    /// Any of it fails.
    pub async fn start(size: usize) -> Result<Self> {
        let tally = build::component("tally")?;
        let mut text = "[streams.TALLY]\nsubjects = [\"tally.>\"]\n".to_owned();
        text += "[streams.COUNTS]\nsubjects = [\"counts.>\"]\n";
        for name in ["tally", "again"] {
            text += &project::keyed(name, &tally, 2, "");
            text += &format!("[functions.{name}.allow]\nemit = [\"counts.*\"]\n");
        }
        let project = Project::new(&text)?;
        let server = NatsServer::start().await?;
        let nats = Nats::connect(&server.url()).await?;
        let pelton = Pelton::new(&server.url(), project.path())?;
        pelton.ok(&["deploy"]).await?;
        let (mut nodes, mut addresses) = (Vec::new(), Vec::new());
        for count in 1..=size {
            let node = Node::start(&pelton, &["--http", "127.0.0.1:0"])?;
            addresses.push(node.http().await?);
            nodes.push(node);
            for function in ["tally", "again"] {
                nats.serving(function, None, count).await?;
            }
        }
        let cluster = Self {
            nodes,
            addresses,
            nats,
            _project: project,
            _server: server,
        };
        within(TAIL, "a node to count what is stored", || async {
            let pages = scrape_all(&cluster.addresses).await?;
            let counting = pages
                .iter()
                .filter(|page| !page.values("pelton_events_produced_total", &[]).is_empty());
            Ok((counting.count() == 1).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    /// Publishes `count` events, so many a second.
    ///
    /// # Errors
    /// One is not stored.
    pub async fn load(&self, count: u64, per_second: u64) -> Result<()> {
        publish(&self.nats, count, per_second).await
    }

    /// The counters of these nodes.
    ///
    /// # Errors
    /// One does not answer.
    pub async fn rates(&self, addresses: &[SocketAddr]) -> Result<Rates> {
        let pages = scrape_all(addresses).await?;
        Ok(Rates {
            produced: sum(
                &pages,
                "pelton_events_produced_total",
                &["stream=\"TALLY\""],
            ),
            consumed: sum(&pages, "pelton_events_consumed_total", &[]),
            handled: sum(&pages, "pelton_events_handled_total", &[]),
            transported: sum(
                &pages,
                "pelton_events_transported_total",
                &["stream=\"COUNTS\""],
            ),
        })
    }

    /// Waits until these nodes' counters are where `enough` wants them, and stay as they are.
    ///
    /// # Errors
    /// They do not come there, or go on.
    pub async fn at_rest(
        &self,
        addresses: &[SocketAddr],
        enough: impl Fn(&Rates) -> bool,
    ) -> Result<Rates> {
        within(TAIL, "the counters to tell all that was sent", || async {
            let rates = self.rates(addresses).await?;
            ensure!(enough(&rates), "{rates:?}");
            Ok(Some(()))
        })
        .await?;
        let uptime = || async {
            let pages = scrape_all(addresses).await?;
            Ok::<_, anyhow::Error>(sum(&pages, "pelton_node_uptime_seconds", &[]))
        };
        let mut known = None;
        for _ in 0..LOOKS {
            let before = known.replace(self.rates(addresses).await?);
            let since = uptime().await?;
            within(TAIL, "time to go by", || async {
                let gone = (uptime().await? - since) / addresses.len() as f64;
                Ok((gone > STILL).then_some(()))
            })
            .await?;
            if let Some(before) = before.filter(|before| known == Some(*before)) {
                return Ok(before);
            }
        }
        bail!("the counters go on: {known:?}")
    }
}

/// Publishes events to be counted, so many a second, and waits until all are stored.
///
/// # Errors
/// One is not stored.
pub async fn publish(nats: &Nats, count: u64, per_second: u64) -> Result<()> {
    let mut tick = tokio::time::interval(BURST);
    let burst = (per_second * BURST.as_millis() as u64 / 1000).max(1);
    let mut sent = 0;
    while sent < count {
        tick.tick().await;
        let mut acks = Vec::new();
        for n in sent..(sent + burst).min(count) {
            let subject = format!("tally.k{}", n % KEYS);
            acks.push(nats.js.publish(subject, "".into()).await?);
        }
        sent += burst;
        for ack in acks {
            ack.await?;
        }
    }
    Ok(())
}
