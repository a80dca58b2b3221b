//! `pelton add`: adds a function to an app.

use clap::Args;

use crate::global::Global;

/// Add a function to this app
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton add orders")]
pub struct AddArgs {}

/// Runs the subcommand.
pub async fn run(_args: AddArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
