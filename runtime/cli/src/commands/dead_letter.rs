//! `pelton dead-letter`: what was given up on.

use clap::Args;

use crate::global::Global;

/// Look at dead letters and replay them
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton dead-letter ls")]
pub struct DeadLetterArgs {}

/// Runs the subcommand.
pub async fn run(_args: DeadLetterArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
