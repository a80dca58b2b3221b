//! `pelton deploy`: build, check, upload, register.

use clap::Args;

use crate::global::Global;

/// Build and deploy functions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton deploy --dry-run")]
pub struct DeployArgs {}

/// Runs the subcommand.
pub async fn run(_args: DeployArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
