//! Which nodes are alive and what they serve, as their heartbeats say. A hint for who should run what: what may be committed, the
//! positions decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::{Client, Message};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::names::NODES_BUCKET;
use crate::records::NodeRecord;
use crate::registry::NODE_TTL;

/// After this long every live node has been heard.
const LISTEN: Duration = Duration::from_millis(1500);
/// How often the silent are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Pause before a subscription that ended is made anew.
const PAUSE: Duration = Duration::from_secs(1);

/// App and function.
type Served = BTreeSet<(String, String)>;

/// The live nodes by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    nodes: BTreeMap<String, Served>,
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

    /// How many nodes serve anything of an app.
    pub(crate) fn of_app(&self, app: &str) -> usize {
        let serves = |served: &&Served| served.iter().any(|(one, _)| one == app);
        self.nodes.values().filter(serves).count()
    }
}

/// Listens to heartbeats until `stop`.
pub(crate) async fn follow(
    client: Client,
    members: watch::Sender<Members>,
    stop: CancellationToken,
) {
    let listening = async {
        loop {
            if let Ok(beats) = client.subscribe(format!("$KV.{NODES_BUCKET}.*")).await {
                listen(beats, &members).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = stop.cancelled() => {}
    }
}

async fn listen(mut beats: async_nats::Subscriber, members: &watch::Sender<Members>) {
    let began = Instant::now();
    let mut heard: BTreeMap<String, (Instant, Served)> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            beat = beats.next() => match beat {
                Some(beat) => hear(&mut heard, &beat),
                None => return,
            },
            _ = look.tick() => {}
        }
        heard.retain(|_, (last, _)| last.elapsed() < NODE_TTL);
        let now = Members {
            nodes: heard
                .iter()
                .map(|(node, (_, served))| (node.clone(), served.clone()))
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

fn hear(heard: &mut BTreeMap<String, (Instant, Served)>, beat: &Message) {
    let Some(node) = beat.subject.rsplit('.').next() else {
        return;
    };
    // A node that leaves deletes its entry.
    let Ok(record) = serde_json::from_slice::<NodeRecord>(&beat.payload) else {
        heard.remove(node);
        return;
    };
    let functions = record.functions.into_iter().filter(|one| one.version > 0);
    let served = functions.map(|one| (one.app, one.function)).collect();
    heard.insert(node.to_owned(), (Instant::now(), served));
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
            complete: true,
        };
        assert_eq!(
            members.serving("shop", "notifier").collect::<Vec<_>>(),
            ["a", "b"]
        );
        let counted = ["shop", "bank", "zoo"].map(|app| members.of_app(app));
        assert_eq!(counted, [2, 1, 0]);
    }
}
