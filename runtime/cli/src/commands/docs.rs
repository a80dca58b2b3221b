//! `pelton docs` (hidden): the parts of the documentation that follow from the code.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::global::Global;
use crate::node::page;

/// Bring the table of a node's settings in a page up to date
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton docs docs/node.md")]
pub struct DocsArgs {
    /// The page.
    file: PathBuf,
}

/// Rewrites the page.
pub async fn run(args: DocsArgs, _global: &Global) -> anyhow::Result<()> {
    let path = args.file;
    let page = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    std::fs::write(&path, page::with_table(&page)?)
        .with_context(|| format!("{} cannot be written", path.display()))
}
