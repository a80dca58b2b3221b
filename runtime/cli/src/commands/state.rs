//! `pelton state`: the app's keys and values.

use clap::Args;

use crate::global::Global;

/// Read and write an app's state
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton state ls")]
pub struct StateArgs {}

/// Runs the subcommand.
pub async fn run(_args: StateArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
