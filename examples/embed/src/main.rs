//! `embed-example APP`: a node inside a program of one's own.
//!
//! The program goes about its business, here printing what changes in the app's state, while the node in it serves the
//! app's functions. Other nodes, `pelton run` ones too, share the work with it.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream;
use etcetera::BaseStrategy;
use futures::StreamExt;
use pelton_runtime::nats::{self, ConnectOptions};
use pelton_runtime::runtime::{Runtime, RuntimeOptions};

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let app = std::env::args()
        .nth(1)
        .context("usage: embed-example APP")?;
    let options = ConnectOptions {
        server: std::env::var("NATS_URL").ok(),
        ..Default::default()
    };
    let client = nats::connect(&options, "embed-example").await?;

    let node = Runtime::start(RuntimeOptions {
        apps: vec![app.clone()],
        cache_dir: etcetera::choose_base_strategy()?
            .cache_dir()
            .join("embed-example"),
        drain_deadline: Duration::from_secs(5),
        node_name: "embedded".into(),
        ..RuntimeOptions::new(options)
    })
    .await?;
    println!("node {} serves {app}; Ctrl-C ends it", node.id());

    tokio::select! {
        business = print_changes(client, &app) => business?,
        signal = tokio::signal::ctrl_c() => signal?,
    }
    // Finishes what runs, hands back what it cannot finish in time.
    node.shutdown().await;
    println!("the node has left");
    Ok(())
}

/// The program's own work: follows the app's state, an ordinary KV bucket.
async fn print_changes(client: async_nats::Client, app: &str) -> Result<()> {
    let bucket = jetstream::new(client)
        .get_key_value(app)
        .await
        .with_context(|| format!("no app {app} here: deploy it first"))?;
    let mut changes = bucket.watch_all().await?;
    while let Some(change) = changes.next().await {
        let change = change?;
        println!(
            "{} #{} {}",
            change.key,
            change.revision,
            String::from_utf8_lossy(&change.value)
        );
    }
    Ok(())
}
