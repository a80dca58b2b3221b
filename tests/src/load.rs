//! Events for the component `hostile` at a steady pace, for the test and the benchmark of deploys.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::sync::oneshot;

use crate::Nats;

/// Between two events: 500 a second.
const PACE: Duration = Duration::from_millis(2);
/// Keys and counters of the events.
pub const KEYS: u64 = 100;

/// Publishes events that count until `stop` comes; returns how many.
///
/// # Errors
/// NATS does not answer.
pub async fn publish_counts(nats: &Nats, mut stop: oneshot::Receiver<()>) -> Result<u64> {
    let mut tick = tokio::time::interval(PACE);
    let mut sent = 0;
    while stop.try_recv().is_err() {
        tick.tick().await;
        let key = sent % KEYS;
        let body = json!({ "do": "count", "counter": format!("c{key}") });
        let subject = format!("hostile.act.k{key}");
        nats.publish(&subject, body.to_string()).await?;
        sent += 1;
    }
    Ok(sent)
}
