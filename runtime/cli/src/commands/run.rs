//! `pelton run`: a node.

use clap::Args;

use crate::global::Global;

/// Run a node that serves deployed functions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton run --app shop")]
pub struct RunArgs {}

/// Runs the subcommand.
pub async fn run(_args: RunArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
