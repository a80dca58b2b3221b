//! `pelton logs`: what functions log.

use clap::Args;

use crate::global::Global;

/// Show what functions log
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton logs -f")]
pub struct LogsArgs {}

/// Runs the subcommand.
pub async fn run(_args: LogsArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
