//! `pelton function`: what is deployed.

use clap::Args;

use crate::global::Global;

/// Look at deployed functions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton function ls")]
pub struct FunctionArgs {}

/// Runs the subcommand.
pub async fn run(_args: FunctionArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
