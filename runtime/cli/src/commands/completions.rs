//! `pelton completions`: completion scripts.

use clap::Args;

use crate::global::Global;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton completions bash")]
pub struct CompletionsArgs {}

/// Runs the subcommand.
pub async fn run(_args: CompletionsArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
