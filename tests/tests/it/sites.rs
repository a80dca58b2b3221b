//! Two sites that a leaf connection joins, with one account and the same app: each handles its own
//! events, and neither
//! stores what the other one writes.
//!
//! `PELTON_SITES_EVENTS` and `PELTON_SITES_CUTS` set how many events each site gets and how often
//! the connection is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures::StreamExt;
use pelton_tests::proxy::{Mode, Proxy};
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, build, project, within};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// For all events of a site, on a busy machine.
const LONG: Duration = Duration::from_secs(180);
/// Events at each site, half of them in a stream that is read by position and half in a queue.
const EVENTS: u64 = 2000;
/// How often the leaf connection is cut.
const CUTS: u64 = 3;
/// Counters per site and stream.
const KEYS: u64 = 20;
/// Events that wait for their acks while more are published.
const UNACKED: usize = 200;
/// Streams that the two functions read.
const INPUTS: [&str; 2] = ["WORK", "JOBS"];

/// What is set at both servers about JetStream domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Domains {
    /// Each site has its own.
    Named,
    /// None.
    Unset,
    /// What suits a leaf server without JetStream: `$JS.API` and `$KV` cross the connection.
    Default,
}

struct Site {
    name: &'static str,
    node: Node,
    nats: Nats,
    pelton: Pelton,
    server: NatsServer,
}

impl Site {
    async fn start(name: &'static str, server: NatsServer, project: &Project) -> Result<Self> {
        let nats = Nats::connect(&server.url()).await?;
        let pelton = Pelton::new(&server.url(), project.path())?;
        pelton.ok(&["deploy"]).await?;
        let node = Node::start(&pelton, &[])?;
        for function in ["ledger", "queue"] {
            nats.serving(function, None, 1).await?;
        }
        Ok(Self {
            name,
            node,
            nats,
            pelton,
            server,
        })
    }

    /// Publishes these events, even ones to one stream and odd ones to the other.
    async fn publish(&self, events: Range<u64>) -> Result<()> {
        let acks = futures::stream::iter(events).map(|n| async move {
            let (kind, key) = (["work", "jobs"][(n % 2) as usize], n / 2 % KEYS);
            let id = format!("{}-{kind}-{key}", self.name);
            let mut body = json!({ "act": { "do": "count", "id": id } });
            if n % 100 < 2 {
                // The node logs that, and tries again.
                body["fail"] = json!({ "how": "panic", "until": 2 });
            }
            let subject = format!("{kind}.{key}.c");
            self.nats.publish(&subject, body.to_string()).await
        });
        let mut acks = acks.buffered(UNACKED);
        while let Some(ack) = acks.next().await {
            ack?;
        }
        Ok(())
    }

    /// Waits until each of this many events was handled here once, and checks that nothing else
    /// was.
    async fn handled(&self, events: u64) -> Result<()> {
        let what = format!("{events} receipts at {}", self.name);
        within(LONG, &what, || async {
            let found = self.nats.count("AUDIT").await?;
            ensure!(found >= events, "{found} receipts");
            Ok(Some(()))
        })
        .await?;
        let receipts = self.read("AUDIT").await?;
        let mut seen = BTreeSet::new();
        for (subject, receipt) in &receipts {
            let receipt: Value = serde_json::from_slice(receipt)?;
            let place = (receipt["stream"].to_string(), receipt["sequence"].as_u64());
            ensure!(seen.insert(place), "handled twice at {subject}: {receipt}");
        }
        for (n, stream) in INPUTS.into_iter().enumerate() {
            let published = (events + 1 - n as u64) / 2;
            let stored = self.nats.count(stream).await?;
            assert_eq!(stored, published, "events in {stream} at {}", self.name);
        }
        assert_eq!(seen.len() as u64, events, "events handled at {}", self.name);
        let dead = self.nats.dead("shop").await?;
        ensure!(dead.is_empty(), "dead letters at {}: {dead:?}", self.name);
        Ok(())
    }

    /// Checks what this site's streams hold: its own records and state, and nothing of the other
    /// site's.
    async fn holds_its_own(&self, events: u64) -> Result<()> {
        let node = self.node_id().await?;
        let mut counters = BTreeMap::new();
        for (subject, body) in self.read("KV_shop").await? {
            let text = String::from_utf8_lossy(&body);
            if let Some(id) = subject.strip_prefix("$KV.shop.v.") {
                ensure!(id.starts_with(self.name), "{id} is state at {}", self.name);
                counters.insert(id.to_owned(), text.parse::<u64>()?);
            }
            if subject.contains(".pos.") {
                let own = text.contains(&node) || text.contains("\"owner\":\"\"");
                ensure!(own, "at {}: {subject} {text}", self.name);
            }
        }
        assert_eq!(counters.values().sum::<u64>(), events, "{counters:?}");
        let mut lines = 0;
        for (subject, line) in self.read("PELTON_LOGS").await? {
            let line: Value = serde_json::from_slice(&line)?;
            // A deploy's lines name no node.
            let own = line["node"] == "" || line["node"] == *node;
            ensure!(own, "at {}: {subject} {line}", self.name);
            lines += u64::from(line["node"] == *node);
        }
        ensure!(lines > 0, "nothing was logged at {}", self.name);
        // Another upload would have come on top of this site's own.
        let modules = self.nats.js.get_stream("KV_PELTON_MODULES").await?;
        let state = &modules.cached_info().state;
        assert_eq!(state.last_sequence, state.messages, "components came twice");
        Ok(())
    }

    /// The one node of this site, as the site knows it.
    async fn node_id(&self) -> Result<String> {
        let nodes = self.nats.nodes().await?;
        assert_eq!(nodes.len(), 1, "nodes known at {}: {nodes:?}", self.name);
        Ok(nodes[0]["node"].as_str().context("no id")?.to_owned())
    }

    /// All messages of a stream, in one pass.
    async fn read(&self, stream: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let stream = self.nats.js.get_stream(stream).await?;
        let mut left = stream.cached_info().state.messages;
        let mut all = Vec::new();
        if left == 0 {
            return Ok(all);
        }
        let consumer = stream.create_consumer(OrderedConfig::default()).await?;
        let mut messages = consumer.messages().await?;
        while left > 0 {
            let message = messages.next().await.context("no more messages")??;
            left = message
                .info()
                .map_err(|error| anyhow::anyhow!("{error}"))?
                .pending;
            all.push((message.subject.to_string(), message.payload.to_vec()));
        }
        Ok(all)
    }

    /// Waits until the node's log has this text so often.
    async fn says(&self, text: &str, times: usize) -> Result<()> {
        let what = format!("the node of {} to say {text:?}", self.name);
        within(LONG, &what, || async {
            let found = self.node.log()?.matches(text).count();
            Ok((found >= times).then_some(()))
        })
        .await
    }
}

struct Sites {
    hub: Site,
    edge: Site,
    proxy: Proxy,
    // The commands run in its folder.
    _project: Project,
}

impl Sites {
    /// Deploys the app at both sites, joined or not.
    async fn start(domains: Domains, joined: bool) -> Result<Self> {
        // Free until the hub listens there.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let proxy = Proxy::start(port).await?;
        if !joined {
            proxy.set(Mode::Cut);
        }
        let leaf = proxy.url().replace("nats://", "nats-leaf://");
        // Publishers' events cross, as any NATS message does: what a site keeps for itself it has
        // to deny.
        let inputs = "[\"work.>\", \"jobs.>\"]";
        let edge = format!(
            "reconnect: \"200ms\", remotes: [\
             {{ url: \"{leaf}\", deny_imports: {inputs}, deny_exports: {inputs} }}]"
        );
        // Not advertised: the edge would come back past the proxy.
        let hub = format!("listen: \"127.0.0.1:{port}\", no_advertise: true");
        let mut servers = Vec::new();
        for (name, leafnodes) in [("hub", hub), ("edge", edge)] {
            let folder = tempfile::tempdir()?;
            let text = config(name, domains, &leafnodes);
            std::fs::write(folder.path().join("server.conf"), text)?;
            servers.push((folder, Vec::new()));
        }
        let mut servers = NatsServer::configured(servers).await?.into_iter();
        let mut server = || servers.next().context("too few servers");
        let project = Project::new(&manifest()?)?;
        if joined {
            let (hub, edge) = (server()?, server()?);
            pass(&hub.url(), &edge.url()).await?;
            return Self::deploy(hub, edge, proxy, project).await;
        }
        Self::deploy(server()?, server()?, proxy, project).await
    }

    async fn deploy(
        hub: NatsServer,
        edge: NatsServer,
        proxy: Proxy,
        project: Project,
    ) -> Result<Self> {
        Ok(Self {
            hub: Site::start("hub", hub, &project).await?,
            edge: Site::start("edge", edge, &project).await?,
            proxy,
            _project: project,
        })
    }

    fn both(&self) -> [&Site; 2] {
        [&self.hub, &self.edge]
    }

    /// Publishes these events at both sites at the same time.
    async fn publish(&self, events: Range<u64>) -> Result<()> {
        let hub = self.hub.publish(events.clone());
        let edge = self.edge.publish(events);
        tokio::try_join!(hub, edge).map(drop)
    }

    async fn cut(&self) -> Result<()> {
        const CLOSED: &str = "Leafnode connection closed";
        let before = self
            .both()
            .map(|site| site.server.log().matches(CLOSED).count());
        self.proxy.set(Mode::Cut);
        for (site, before) in self.both().into_iter().zip(before) {
            within(LONG, "the cut to be noticed", || async {
                let now = site.server.log().matches(CLOSED).count();
                Ok((now > before).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn join(&self) -> Result<()> {
        self.proxy.set(Mode::Open);
        pass(&self.hub.server.url(), &self.edge.server.url()).await
    }
}

/// Waits until messages pass between the two servers, both ways.
async fn pass(hub: &str, edge: &str) -> Result<()> {
    for (from, to) in [(hub, edge), (edge, hub)] {
        let (from, to) = (Nats::connect(from).await?, Nats::connect(to).await?);
        let heard = Mutex::new(to.core.subscribe("sites.joined").await?);
        within(LONG, "the sites to be joined", || async {
            from.core.publish("sites.joined", "".into()).await?;
            let mut heard = heard.lock().await;
            let next = tokio::time::timeout(Duration::from_millis(100), heard.next()).await;
            Ok(next.ok().flatten().map(drop))
        })
        .await?;
    }
    Ok(())
}

fn config(name: &str, domains: Domains, leafnodes: &str) -> String {
    let (domain, default) = match domains {
        Domains::Named => (format!("domain: {name}"), ""),
        Domains::Unset => (String::new(), ""),
        Domains::Default => (String::new(), "default_js_domain: { \"$G\": \"\" }\n"),
    };
    format!("server_name: {name}\njetstream {{ {domain} }}\n{default}leafnodes {{ {leafnodes} }}\n")
}

/// One function by position and one from a queue; both count, and tell of each event in `AUDIT`.
fn manifest() -> Result<String> {
    let component = build::component("ledger")?;
    let mut text =
        "[streams.WORK]\nsubjects = [\"work.>\"]\n[streams.JOBS]\nsubjects = [\"jobs.>\"]\n\
                    [streams.AUDIT]\nsubjects = [\"audit.>\"]\n"
            .to_owned();
    let more = |subjects| format!("subjects = [\"{subjects}\"]\n{}", project::QUICK_RETRY);
    text += &project::keyed("ledger", &component, 2, &more("work.*.*"));
    text += "[functions.ledger.allow]\nemit = [\"audit.*\"]\n";
    text += &project::function("queue", &component, &more("jobs.*.*"));
    text += "[functions.queue.allow]\nemit = [\"audit.*\"]\n";
    Ok(text)
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

/// Events at both sites while the connection is cut and restored, and before, between and after.
async fn each_handles_its_own(domains: Domains) -> Result<()> {
    let events = setting("PELTON_SITES_EVENTS", EVENTS)?;
    let cuts = setting("PELTON_SITES_CUTS", CUTS)?;
    let sites = Sites::start(domains, true).await?;
    let part = events / (2 * cuts + 1);
    let mut published = 0;
    for _ in 0..cuts {
        for joined in [true, false] {
            let publish = sites.publish(published..published + part);
            let change = async {
                match joined {
                    true => sites.cut().await,
                    false => sites.join().await,
                }
            };
            tokio::try_join!(publish, change)?;
            published += part;
        }
    }
    sites.publish(published..events).await?;
    for site in sites.both() {
        site.handled(events).await?;
    }
    for site in sites.both() {
        site.holds_its_own(events).await?;
    }
    Ok(())
}

#[tokio::test]
async fn joined_sites_with_domains_store_only_their_own_records() -> Result<()> {
    each_handles_its_own(Domains::Named).await
}

#[tokio::test]
async fn joined_sites_without_domains_store_only_their_own_records() -> Result<()> {
    each_handles_its_own(Domains::Unset).await
}

/// A setting has `$KV` cross the connection: nodes stop before they write into each other's state.
#[tokio::test]
async fn sites_that_would_share_records_pause_until_they_are_apart() -> Result<()> {
    let sites = Sites::start(Domains::Default, false).await?;
    sites.publish(0..100).await?;
    for site in sites.both() {
        site.handled(100).await?;
    }
    sites.join().await?;
    for site in sites.both() {
        site.says("another JetStream also stores what is written to", 1)
            .await?;
        let words = ["another JetStream also stores", "default_js_domain"];
        site.pelton.refused(&["deploy"], &words).await?;
    }
    sites.cut().await?;
    for site in sites.both() {
        site.says("no other JetStream stores the app's records any more", 1)
            .await?;
    }
    sites.publish(100..200).await?;
    for site in sites.both() {
        site.handled(200).await?;
        site.holds_its_own(200).await?;
    }
    Ok(())
}
