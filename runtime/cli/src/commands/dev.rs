//! `pelton dev`: a server, a node, and a redeploy at every change.

use clap::Args;

use crate::global::Global;

/// Run the app here and redeploy at every change
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton dev ")]
pub struct DevArgs {}

/// Runs the subcommand.
pub async fn run(_args: DevArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
