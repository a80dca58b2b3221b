//! Which nodes are alive and what they serve, as their heartbeats say. A hint for who should run what: what may be committed, the
//! positions decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Message;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::names::NODES_BUCKET;
use crate::nats::Connection;
use crate::records::{Counted, NodeRecord};
use crate::registry::NODE_TTL;

/// After this long every live node has been heard.
const LISTEN: Duration = Duration::from_millis(1500);
/// How often the silent are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Pause before a subscription that ended is made anew.
const PAUSE: Duration = Duration::from_secs(1);

/// App and function.
type Served = BTreeSet<(String, String)>;

/// Up to where nodes have counted what is stored in input streams, by app and stream: the latest that any of them said, those that are
/// gone included. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<(String, String), Counted>>>);

impl Heard {
    /// What was said of an app's stream.
    pub(crate) fn of(&self, app: &str, stream: &str) -> Option<Counted> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&(app.to_owned(), stream.to_owned())).cloned()
    }

    fn note(&self, counted: Vec<Counted>) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for one in counted {
            let known = heard
                .entry((one.app.clone(), one.stream.clone()))
                .or_default();
            // Of a stream that was made anew, whatever is said of it.
            if known.created != one.created || known.sequence < one.sequence {
                *known = one;
            }
        }
    }
}

/// The live nodes by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    nodes: BTreeMap<String, Served>,
    /// Those of them that show metrics, and the apps of what they have, be it paused.
    measuring: BTreeMap<String, BTreeSet<String>>,
    /// Whether all that live have been heard.
    complete: bool,
}

impl Members {
    /// Whether all live nodes are known.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn is_alive(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// Nodes that serve a function.
    pub(crate) fn serving(&self, app: &str, function: &str) -> impl Iterator<Item = &str> {
        let key = (app.to_owned(), function.to_owned());
        let serving = self
            .nodes
            .iter()
            .filter(move |(_, served)| served.contains(&key));
        serving.map(|(node, _)| node.as_str())
    }

    /// The one of those that show metrics and serve an app that measures what is true of the whole cluster.
    pub(crate) fn measures(&self, app: &str) -> Option<&str> {
        let mut measuring = self.measuring.iter();
        let found = measuring.find(|(_, apps)| apps.contains(app));
        found.map(|(node, _)| node.as_str())
    }

    /// The oldest of the nodes that serve anything of an app: ids begin with when a node started.
    pub(crate) fn oldest_of(&self, app: &str) -> Option<&str> {
        let mut nodes = self.nodes.iter();
        let serves = |(_, served): &(&String, &Served)| served.iter().any(|(one, _)| one == app);
        nodes.find(serves).map(|(node, _)| node.as_str())
    }

    /// How many nodes serve anything of an app.
    pub(crate) fn of_app(&self, app: &str) -> usize {
        let serves = |served: &&Served| served.iter().any(|(one, _)| one == app);
        self.nodes.values().filter(serves).count()
    }
}

/// Listens to heartbeats until `stop`.
pub(crate) async fn follow(
    nats: Connection,
    members: watch::Sender<Members>,
    counted: Heard,
    stop: CancellationToken,
) {
    let listening = async {
        loop {
            let client = nats.client();
            if let Ok(beats) = client.subscribe(format!("$KV.{NODES_BUCKET}.*")).await {
                listen(beats, &members, &counted).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = stop.cancelled() => {}
    }
}

/// One node's latest beat: when it came, what it serves, and if it shows metrics, the apps of what it has.
type Beat = (Instant, Served, Option<BTreeSet<String>>);

async fn listen(
    mut beats: async_nats::Subscriber,
    members: &watch::Sender<Members>,
    counted: &Heard,
) {
    let began = Instant::now();
    let mut heard: BTreeMap<String, Beat> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            beat = beats.next() => match beat {
                Some(beat) => hear(&mut heard, &beat, counted),
                None => return,
            },
            _ = look.tick() => {}
        }
        heard.retain(|_, (last, ..)| last.elapsed() < NODE_TTL);
        let now = Members {
            nodes: heard
                .iter()
                .map(|(node, (_, served, _))| (node.clone(), served.clone()))
                .collect(),
            measuring: heard
                .iter()
                .filter_map(|(node, (.., apps))| Some((node.clone(), apps.clone()?)))
                .collect(),
            complete: began.elapsed() > LISTEN,
        };
        members.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

fn hear(heard: &mut BTreeMap<String, Beat>, beat: &Message, counted: &Heard) {
    let Some(node) = beat.subject.rsplit('.').next() else {
        return;
    };
    // A node that leaves deletes its entry.
    let Ok(record) = serde_json::from_slice::<NodeRecord>(&beat.payload) else {
        heard.remove(node);
        return;
    };
    counted.note(record.counted);
    let apps = record.functions.iter().map(|one| one.app.clone());
    let apps = record.metrics.then(|| apps.collect());
    let functions = record.functions.into_iter().filter(|one| one.version > 0);
    let served = functions.map(|one| (one.app, one.function)).collect();
    heard.insert(node.to_owned(), (Instant::now(), served, apps));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_by_function_and_by_app() {
        let one = |app: &str, function: &str| (app.to_owned(), function.to_owned());
        let nodes = BTreeMap::from([
            (
                "a".to_owned(),
                Served::from([one("shop", "orders"), one("shop", "notifier")]),
            ),
            (
                "b".to_owned(),
                Served::from([one("shop", "notifier"), one("bank", "notifier")]),
            ),
            ("c".to_owned(), Served::new()),
        ]);
        let members = Members {
            nodes,
            measuring: BTreeMap::from([
                (
                    "b".to_owned(),
                    BTreeSet::from(["shop".to_owned(), "bank".to_owned()]),
                ),
                ("c".to_owned(), BTreeSet::new()),
            ]),
            complete: true,
        };
        let measures = ["shop", "bank", "zoo"].map(|app| members.measures(app));
        assert_eq!(measures, [Some("b"), Some("b"), None]);
        assert_eq!(
            members.serving("shop", "notifier").collect::<Vec<_>>(),
            ["a", "b"]
        );
        let counted = ["shop", "bank", "zoo"].map(|app| members.of_app(app));
        assert_eq!(counted, [2, 1, 0]);
    }

    #[test]
    fn the_latest_count_of_a_stream_is_kept_and_of_a_new_one_its_own() {
        let heard = Heard::default();
        let said = |created: &str, sequence| {
            heard.note(vec![Counted {
                app: "shop".into(),
                stream: "IN".into(),
                created: created.into(),
                sequence,
            }]);
            heard.of("shop", "IN").map(|one| one.sequence)
        };
        assert_eq!(said("monday", 7), Some(7));
        assert_eq!(said("monday", 5), Some(7), "a slow node");
        assert_eq!(said("tuesday", 2), Some(2));
        assert_eq!(heard.of("shop", "OUT"), None);
    }
}
