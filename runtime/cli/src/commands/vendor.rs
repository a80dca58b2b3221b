//! `pelton vendor`: the SDK of this binary in place of the app's copy, so that an app moves to
//! another release when its team says so.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use crate::global::Global;
use crate::sdk;

/// Replace the app's copy of the Rust SDK, vendor/pelton-sdk, by the one that this pelton brings
#[derive(Debug, Args)]
#[command(
    after_help = "`pelton new` makes that copy. It belongs to the app: commit it. After an upgrade of pelton, `build`, `check`, `dev` and \
    `deploy` say that it is of another release.\n\n\
    Examples:\n  pelton vendor && cargo test && git add vendor"
)]
pub struct VendorArgs {}

/// What was written: what `pelton vendor --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Vendored {
    /// The folder that was written.
    pub folder: PathBuf,
    /// Version of the SDK in it.
    pub version: String,
    /// Version of the copy that was there before; none: there was none.
    pub before: Option<String>,
    /// Whether the app's Cargo.toml names the folder.
    pub used: bool,
}

/// Runs the subcommand.
pub async fn run(_: VendorArgs, global: &Global) -> anyhow::Result<()> {
    // Not the manifest itself: one that only another release understands must not be in the way.
    let file = std::path::absolute(global.manifest_path()?)?;
    let root = file.parent().context("pelton.toml has no folder")?;
    let before = sdk::version(root);
    let files = sdk::replace(root)?;
    let workspace = std::fs::read_to_string(root.join("Cargo.toml"));
    let vendored = Vendored {
        folder: root.join(sdk::FOLDER),
        version: sdk::VERSION.to_owned(),
        before,
        used: workspace.is_ok_and(|text| text.contains(sdk::FOLDER)),
    };
    global.output().document(&vendored, |vendored| {
        let mut text = format!(
            "wrote {}: pelton-sdk {}, {files} files",
            sdk::FOLDER,
            vendored.version
        );
        if let Some(before) = vendored.before.as_ref().filter(|one| **one != sdk::VERSION) {
            text += &format!("; it was {before}");
        }
        if !vendored.used {
            text += &format!(
                "\nCargo.toml does not name it; to use it, write there:\n  [workspace]\n  exclude = [\"vendor\"]\n  \
                 [workspace.dependencies]\n  pelton-sdk = {{ path = \"{}\" }}",
                sdk::FOLDER
            );
        }
        text
    })
}
