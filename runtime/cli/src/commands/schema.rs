//! `pelton schema`: JSON schemas.

use clap::Args;

use crate::global::Global;

/// Write the JSON schemas of all output
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton schema docs/schemas")]
pub struct SchemaArgs {}

/// Runs the subcommand.
pub async fn run(_args: SchemaArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
