//! `pelton new`: starts an app.

use clap::Args;

use crate::global::Global;

/// Start an app in a new folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton new shop")]
pub struct NewArgs {}

/// Runs the subcommand.
pub async fn run(_args: NewArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
