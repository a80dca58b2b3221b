//! `pelton publish`: publishes events.

use clap::Args;

use crate::global::Global;

/// Publish an event
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton publish orders.o-1.created '{}'")]
pub struct PublishArgs {}

/// Runs the subcommand.
pub async fn run(_args: PublishArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
