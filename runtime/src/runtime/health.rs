//! Whether this node lives and is ready, as its own tasks last said: what `/healthz` and `/readyz` answer, and what its heartbeat holds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::records::{Counted, NodeFunction, PAUSED};

/// A heartbeat that the server has not confirmed for so long is not accepted.
const ACCEPTED: Duration = Duration::from_secs(5);
/// The node's task turns every second, and every few while NATS is away: when it has not for so long, it does not any more.
const TURNS: Duration = Duration::from_secs(30);

/// What is known.
#[derive(Debug)]
pub(super) struct Health {
    began: Instant,
    state: Mutex<State>,
    /// There is something new for the next heartbeat.
    news: Notify,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    accepted: Option<Instant>,
    functions: Vec<NodeFunction>,
    counted: Vec<Counted>,
    /// It stops.
    draining: bool,
    /// It was told to take nothing more.
    resting: bool,
    /// Why the registry cannot be watched.
    deaf: Option<String>,
}

impl NodeFunction {
    /// Whether the version that is deployed runs, or is ready to.
    pub(super) fn is_ready(&self) -> bool {
        matches!(
            self.status.as_str(),
            "running" | "ready" | "pausing" | PAUSED
        )
    }
}

impl Health {
    pub(super) fn new() -> Self {
        let began = Instant::now();
        let state = State {
            turned: began,
            accepted: None,
            functions: Vec::new(),
            counted: Vec::new(),
            draining: false,
            resting: false,
            deaf: None,
        };
        Self {
            began,
            state: Mutex::new(state),
            news: Notify::new(),
        }
    }

    /// How long the node has been there.
    pub(super) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The node's task goes on.
    pub(super) fn turned(&self) {
        self.state().turned = Instant::now();
    }

    /// The node's task has looked at its functions.
    pub(super) fn saw(&self, functions: Vec<NodeFunction>) {
        self.state().functions = functions;
    }

    /// The server holds a heartbeat of this node.
    pub(super) fn accepted(&self) {
        self.state().accepted = Some(Instant::now());
    }

    /// Up to where this node has counted what is stored in input streams. Others are to know it at once: should this node be gone the
    /// next moment, they go on there.
    pub(super) fn set_counted(&self, counted: Vec<Counted>) {
        let mut state = self.state();
        if state.counted != counted {
            state.counted = counted;
            self.news.notify_one();
        }
    }

    /// Waits until there is something that should not wait for the next heartbeat.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn counted(&self) -> Vec<Counted> {
        self.state().counted.clone()
    }

    /// The node stops.
    pub(super) fn drains(&self) {
        self.state().draining = true;
    }

    /// The node is told to take nothing more, or to serve again.
    pub(super) fn rests(&self, rests: bool) {
        self.state().resting = rests;
    }

    /// Records whether the registry is watched, or why not. Returns whether that is new.
    pub(super) fn watches(&self, error: Option<String>) -> bool {
        let mut state = self.state();
        let known = state.deaf == error;
        state.deaf = error;
        !known
    }

    pub(super) fn is_draining(&self) -> bool {
        let state = self.state();
        state.draining || state.resting
    }

    pub(super) fn functions(&self) -> Vec<NodeFunction> {
        self.state().functions.clone()
    }

    /// Why the node does not live; none: it does.
    pub(super) fn stalled(&self) -> Option<String> {
        let state = self.state();
        let silent = state.turned.elapsed();
        (silent > TURNS && !state.draining)
            .then(|| format!("the node's task has not turned for {} s", silent.as_secs()))
    }

    /// Why the node is not ready; empty: it is.
    pub(super) fn reasons(&self, connected: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        if !connected {
            reasons.push("it is not connected to NATS".to_owned());
        }
        let state = self.state();
        if state.draining {
            reasons.push("it is stopping: it takes nothing more".to_owned());
        }
        if state.resting {
            reasons.push("it is drained, as asked for: it takes nothing more".to_owned());
        }
        if state.accepted.is_none_or(|at| at.elapsed() > ACCEPTED) {
            reasons.push("its heartbeat is not stored: other nodes do not know of it".to_owned());
        }
        if let Some(why) = &state.deaf {
            reasons.push(format!("the registry cannot be watched: {why}"));
        }
        let waiting = state.functions.iter().filter(|one| !one.is_ready());
        reasons.extend(waiting.map(|report| {
            let NodeFunction {
                app,
                function,
                deployed,
                status,
                ..
            } = report;
            format!("version {deployed} of {app}/{function} does not run: {status}")
        }));
        reasons
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(status: &str) -> NodeFunction {
        NodeFunction {
            app: "shop".into(),
            function: "orders".into(),
            deployed: 3,
            status: status.into(),
            ..NodeFunction::default()
        }
    }

    #[test]
    fn a_node_is_ready_when_nothing_is_in_the_way() {
        let health = Health::new();
        assert_eq!(health.reasons(true).len(), 1, "no heartbeat yet");
        health.accepted();
        for status in ["running", "ready"] {
            health.saw(vec![known(status)]);
            assert!(health.reasons(true).is_empty(), "{status}");
        }
        health.saw(vec![known("running"), known("failed: no secret X")]);
        assert_eq!(
            health.reasons(true),
            ["version 3 of shop/orders does not run: failed: no secret X"]
        );
        health.saw(Vec::new());
        assert_eq!(health.reasons(false), ["it is not connected to NATS"]);
        assert!(health.watches(Some("full".into())) && !health.watches(Some("full".into())));
        assert_eq!(
            health.reasons(true),
            ["the registry cannot be watched: full"]
        );
        assert!(health.watches(None) && health.reasons(true).is_empty());
        health.rests(true);
        assert_eq!(health.reasons(true).len(), 1);
        assert!(health.is_draining());
        health.rests(false);
        assert!(health.reasons(true).is_empty() && !health.is_draining());
        health.drains();
        assert_eq!(health.reasons(true).len(), 1);
        assert!(health.stalled().is_none());
    }
}
