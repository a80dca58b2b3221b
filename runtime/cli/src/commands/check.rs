//! `pelton check`: checks the manifest and the components.

use clap::Args;

use crate::global::Global;

/// Check the manifest against the components
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton check ")]
pub struct CheckArgs {}

/// Runs the subcommand.
pub async fn run(_args: CheckArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
