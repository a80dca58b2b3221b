//! `make demo`: a node with a NATS of its own, the functions `orders` and `notifier`, and the lives of seven orders.
//!
//! Ends with 0 only if all of it was observed: what is printed is read back from NATS with an ordinary client, and
//! every expectation is a line with ✓ or ✗.

mod node;
mod observe;
mod report;
mod story;
mod wait;

use std::process::ExitCode;

use anyhow::{Context, Result};

use node::Node;
use observe::Observer;
use report::Report;

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a program's last word")]
async fn main() -> ExitCode {
    match demo().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole demo; whether every expectation held.
async fn demo() -> Result<bool> {
    let data = tempfile::tempdir().context("no temporary folder for NATS's data")?;
    let mut report = Report::new();
    report.heading("A node with its own NATS, orders and notifier deployed");
    let mut node = Node::start(data.path()).await?;
    let told = match tell_and_check(&node, &mut report).await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(node.last_words())),
    };
    let stopped = node.stop().await;
    told?;
    report.heading("The end");
    report.check(
        stopped?,
        "the node left after SIGTERM, and its NATS with it",
    );
    Ok(report.sum())
}

async fn tell_and_check(node: &Node, report: &mut Report) -> Result<()> {
    let client = async_nats::connect(node.url())
        .await
        .with_context(|| format!("the node says its NATS is at {}", node.url()))?;
    let observer = Observer::new(client.clone(), node.url());
    let serving = observer.serving(&["orders", "notifier"]).await?;
    report.check(true, &format!("{} serves {serving}", node.url()));

    report.heading("Events published");
    let told = story::tell(client, &observer, report).await?;

    let seen = observer.everything().await?;
    report.orders(&seen);
    told.check_orders(&seen, report);
    report.mails(&seen);
    told.check_notifications(&seen, report);
    report.dead_letters(&seen);
    told.check_dead_letters(&seen, report);
    Ok(())
}
