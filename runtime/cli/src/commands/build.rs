//! `pelton build`: builds functions.

use clap::Args;

use crate::global::Global;

/// Build the functions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton build orders")]
pub struct BuildArgs {}

/// Runs the subcommand.
pub async fn run(_args: BuildArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

/// Builds the named functions (all when none is named) and reads what came out.
pub async fn build_functions(
    _manifest: &pelton_runtime::config::Manifest,
    _functions: &[String],
) -> anyhow::Result<std::collections::BTreeMap<String, pelton_runtime::component::Component>> {
    anyhow::bail!("not built yet")
}
