//! Measures what no event passes by: what is stored in input streams, what has arrived in target streams, and what waits.
//!
//! What is true of the whole cluster is measured by one node: of those that show metrics and serve an app, the one with the least id. The ids
//! begin with when a node started, so it is the oldest, and changes only when that one leaves. How far it has counted is in its
//! heartbeat: whoever goes on begins there, so that a change loses nothing, and counts twice only what the one before
//! had counted since its last heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::janitor::Apps;
use super::node::every;
use crate::commit::{stream, transport};
use crate::control::functions::{self, FunctionStatus, Survey};
use crate::members::{Heard, Members};
use crate::names::{AppNames, NODES_BUCKET};
use crate::nats::Connection;
use crate::nats::raw::{self, Which};
use crate::records::Counted;
use crate::registry::NODE_TTL;
use crate::telemetry::{AppMeter, FunctionLag, InputLag, Meters};

/// How often is looked at what is stored and what has arrived.
const LOOK: Duration = Duration::from_secs(1);
/// For so long a node must have been the first, and have looked without a pause, before it counts: after an outage, nodes do not hear of
/// each other at once.
const SETTLED: Duration = Duration::from_secs(2);
/// Looks after which events that do not seem to arrive are asked for in another way.
const DOUBT: u32 = 5;
/// How often is looked at what waits. It reads a part of what does, so a look that takes long is followed by a longer pause.
const LAG: Duration = Duration::from_secs(10);
/// The pause is so many times what the look took, and never longer than that: what is shown must not be of long ago.
const REST: u32 = 10;
const LONGEST: Duration = Duration::from_secs(60);

/// What both tasks need.
#[derive(Clone)]
pub(super) struct Observer {
    pub(super) nats: Connection,
    /// This node's id.
    pub(super) node: String,
    pub(super) apps: watch::Receiver<Apps>,
    pub(super) members: watch::Receiver<Members>,
    pub(super) heard: Heard,
    pub(super) meters: Arc<Meters>,
    pub(super) health: Arc<Health>,
}

/// What one task remembers from look to look.
struct Looks {
    /// Up to where each stream is counted, or was when this node first saw it.
    known: BTreeMap<(String, String), Counted>,
    /// Since when this node is the one to measure an app.
    since: BTreeMap<String, Instant>,
    /// By app and target, what was seen of events on their way.
    waits: BTreeMap<(String, String), Wait>,
    last: Instant,
}

/// Events on their way to a target.
#[derive(Default)]
struct Wait {
    /// Up to where it has read the commit stream.
    reached: u64,
    /// Looks since that was another place.
    looks: u32,
}

impl Observer {
    pub(super) async fn run(self, stop: CancellationToken) {
        let rates = async {
            let mut looks = Looks {
                known: BTreeMap::new(),
                since: BTreeMap::new(),
                waits: BTreeMap::new(),
                last: Instant::now(),
            };
            let mut tick = every(LOOK);
            let mut apps = self.apps.clone();
            loop {
                // What is stored in a new input from its first moment on is counted.
                tokio::select! {
                    _ = tick.tick() => {}
                    Ok(()) = apps.changed() => {}
                }
                if self.nats.is_connected() {
                    self.look(&mut looks).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = future::join(rates, self.lag()) => {}
        }
    }

    async fn look(&self, looks: &mut Looks) {
        self.ask_for_heartbeat().await;
        if looks.last.elapsed() > NODE_TTL {
            // This process, or NATS, stood still: others may have gone on meanwhile.
            looks.since.clear();
        }
        let apps = self.apps.borrow().clone();
        for (app, served) in &apps {
            let measures = self.is_first(app);
            let since = match measures {
                true => *looks.since.entry(app.clone()).or_insert_with(Instant::now),
                false => {
                    looks.since.remove(app);
                    self.meters.app(app).set_lag(Vec::new());
                    Instant::now()
                }
            };
            let counts = measures && since.elapsed() >= SETTLED;
            for stream in &served.inputs {
                self.produced(looks, app, stream, counts).await;
            }
            self.transported(looks, app).await;
        }
        looks.since.retain(|app, _| {
            let served = apps.contains_key(app);
            if !served {
                self.meters.app(app).set_lag(Vec::new());
            }
            served
        });
        looks.last = Instant::now();
        let counted = looks.known.values();
        let counted = counted.filter(|one| looks.since.contains_key(&one.app));
        self.health.set_counted(counted.cloned().collect());
    }

    /// Whether of all that could, it is this node.
    fn is_first(&self, app: &str) -> bool {
        let members = self.members.borrow();
        members.is_complete() && members.measures(app) == Some(self.node.as_str())
    }

    /// Whether the server holds a heartbeat of this node.
    async fn ask_for_heartbeat(&self) {
        let js = self.nats.jetstream();
        let (stream, subject) = (
            format!("KV_{NODES_BUCKET}"),
            format!("$KV.{NODES_BUCKET}.{}", self.node),
        );
        if let Ok(Some(_)) = raw::get(&js, &stream, Which::Last(&subject)).await {
            self.health.accepted();
        }
    }

    /// Counts what was stored in an input stream since the last look, this node's or another's.
    async fn produced(&self, looks: &mut Looks, app: &str, name: &str, counts: bool) {
        let key = (app.to_owned(), name.to_owned());
        if !counts && looks.known.contains_key(&key) {
            return;
        }
        let info = match stream::info(&self.nats.jetstream(), name).await {
            Ok(Some(info)) => info,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, app, stream = name, "what is stored is not counted now");
                return;
            }
        };
        let created = info["created"].as_str().unwrap_or_default();
        let Some(last) = info["state"]["last_seq"].as_u64() else {
            return;
        };
        let heard = self.heard.of(app, name);
        let heard = heard.filter(|heard| heard.created == created);
        let heard = heard.map(|heard| heard.sequence);
        let known = looks.known.entry(key).or_insert_with(|| Counted {
            app: app.to_owned(),
            stream: name.to_owned(),
            created: created.to_owned(),
            sequence: heard.unwrap_or(last),
        });
        if known.created != created {
            (known.created, known.sequence) = (created.to_owned(), 0);
        }
        if !counts {
            return;
        }
        let from = heard.unwrap_or(0).max(known.sequence);
        self.meters
            .app(app)
            .produced(name, last.saturating_sub(from));
        known.sequence = last.max(from);
    }

    /// Counts this node's emitted events that have reached their targets.
    async fn transported(&self, looks: &mut Looks, app: &str) {
        let meter = self.meters.app(app);
        let names = AppNames::new(app);
        let on_their_way = meter.on_their_way();
        let open = |(one, target): &(String, String)| {
            one != app || on_their_way.iter().any(|(other, _)| other == target)
        };
        looks.waits.retain(|key, _| open(key));
        for (target, last) in on_their_way {
            let key = (app.to_owned(), target.clone());
            let Wait { reached, looks } = looks.waits.entry(key).or_default();
            *looks += 1;
            match self.reached(&names, &target).await {
                Some(now) if now > *reached => (*reached, *looks) = (now, 0),
                _ if *looks <= DOUBT => {}
                // A server that was restarted does not say how far it is before the next event.
                _ => {
                    let waiting = transport::waiting(&self.nats.jetstream(), &names, &target).await;
                    if matches!(waiting, Ok(None)) {
                        meter.reached(&target, last);
                    }
                }
            }
            meter.reached(&target, *reached);
        }
    }

    /// Up to where a target has stored what the app's commit stream holds for it.
    async fn reached(&self, names: &AppNames, target: &str) -> Option<u64> {
        let info = stream::info(&self.nats.jetstream(), target).await.ok()??;
        let commit = names.commit_stream();
        let sources = info["sources"].as_array()?;
        let source = sources.iter().find(|one| one["name"] == commit.as_str())?;
        source["seq"].as_u64()
    }

    /// Looks at what waits, where this node is the one to do it.
    async fn lag(&self) {
        let mut pause = LAG;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let apps = self.apps.borrow().clone();
            for app in apps.keys().filter(|app| self.is_first(app)) {
                if let Err(error) = self.look_at_lag(app, &self.meters.app(app)).await {
                    tracing::debug!(%error, app, "what waits is not looked at");
                }
            }
            pause = (began.elapsed() * REST).clamp(LAG, LONGEST);
        }
    }

    async fn look_at_lag(
        &self,
        app: &str,
        meter: &AppMeter,
    ) -> Result<(), crate::control::ControlError> {
        let js = self.nats.jetstream();
        let (mut lag, mut survey) = (Vec::new(), Survey::new(&js, true));
        for (record, _) in functions::records(&js, Some(app)).await? {
            let status = survey.status(&record, &[]).await;
            if let Some(error) = &status.error {
                tracing::debug!(
                    error,
                    app,
                    function = record.function,
                    "what waits is not shown"
                );
            } else {
                lag.push(lag_of(status));
            }
        }
        // It may have taken a while.
        if self.is_first(app) {
            meter.set_lag(lag);
        }
        Ok(())
    }
}

fn lag_of(status: FunctionStatus) -> FunctionLag {
    let seconds = |ms: Option<u64>| ms.map_or(0.0, |ms| ms as f64 / 1000.0);
    let inputs = status.inputs.into_iter().map(|input| InputLag {
        pending: input.pending.unwrap_or(0),
        retrying: input.retrying,
        deferred: input.deferred,
        oldest: seconds(input.oldest_pending_ms),
        stream: input.stream,
    });
    let targets = status.targets.into_iter();
    FunctionLag {
        function: status.function,
        inputs: inputs.collect(),
        dead_letters: status.dead_letters.unwrap_or(0),
        targets: targets
            .map(|target| (target.stream, seconds(target.oldest_waiting_ms)))
            .collect(),
    }
}
