//! `pelton build`: from crates to components, one file per function, with what each one announces and imports.

mod cargo;
mod features;
mod functions;

use std::path::PathBuf;

use clap::Args;
use pelton_runtime::component::Component;
use pelton_runtime::config::Manifest;
use pelton_runtime::records::Handler;
use schemars::JsonSchema;
use serde::Serialize;

pub(crate) use functions::artifact;
pub use functions::build_functions;

use crate::global::Global;
use crate::output::Output;
use crate::sdk;

/// Build the functions into components, target/pelton/FUNCTION.wasm
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton build\n  pelton build orders\n  pelton build --json | jq -r '.[].digest'"
)]
pub struct BuildArgs {
    /// Functions to build; default: all in pelton.toml
    #[arg(value_name = "FUNCTION")]
    functions: Vec<String>,
}

/// A function as it was built: an element of what `pelton build --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BuiltFunction {
    /// The function's name.
    pub function: String,
    /// The component's file.
    pub file: PathBuf,
    /// Its size, bytes.
    pub size: usize,
    /// SHA-256 of the file, 64 hex digits.
    pub digest: String,
    /// Version of `pelton:function` that it exports.
    pub contract: String,
    /// What it announces.
    pub handlers: Vec<Handler>,
    /// Interfaces that it imports.
    pub imports: Vec<String>,
}

impl BuiltFunction {
    pub(crate) fn new(manifest: &Manifest, function: String, component: Component) -> Self {
        Self {
            file: artifact(manifest, &function),
            function,
            size: component.bytes.len(),
            digest: component.digest,
            contract: component.contract,
            handlers: component.handlers,
            imports: component.imports,
        }
    }

    fn row(&self) -> Vec<String> {
        let handlers = self.handlers.iter().map(|one| one.subject.as_str());
        let imports = self.imports.iter().map(|one| short(one));
        vec![
            self.function.clone(),
            kib(self.size),
            handlers.collect::<Vec<_>>().join(", "),
            imports.collect::<Vec<_>>().join(", "),
            self.digest.chars().take(12).collect(),
        ]
    }
}

/// Runs the subcommand.
pub async fn run(args: BuildArgs, global: &Global) -> anyhow::Result<()> {
    let manifest = global.manifest()?;
    note_sdk(&manifest, global);
    let built: Vec<_> = build_functions(&manifest, &args.functions)
        .await?
        .into_iter()
        .map(|(name, component)| BuiltFunction::new(&manifest, name, component))
        .collect();
    let output = global.output();
    output.document(&built, |built| summary(&output, built))
}

/// Says if the app's copy of the SDK is not this binary's.
pub(crate) fn note_sdk(manifest: &Manifest, global: &Global) {
    if let Some(difference) = sdk::difference(&manifest.root) {
        global.output().note(&format!("note: {difference}"));
    }
}

/// A row per function.
pub(crate) fn summary(output: &Output, built: &[BuiltFunction]) -> String {
    output.table(
        &["FUNCTION", "SIZE", "HANDLERS", "IMPORTS", "DIGEST"],
        built.iter().map(BuiltFunction::row).collect(),
    )
}

/// What a function's component is made from: folders of crates (whole), and single files.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) files: Vec<PathBuf>,
}

/// The sources of all functions; of a crate that cargo does not understand at the moment, its folder at least.
pub(crate) async fn sources(manifest: &Manifest) -> Sources {
    let mut sources = Sources::default();
    for function in manifest.functions.values() {
        let path = manifest.root.join(&function.component);
        if functions::is_module(&path) {
            sources.files.push(path);
            continue;
        }
        match cargo::inspect(&path).await {
            Ok(one) => {
                sources.files.push(one.workspace.join("Cargo.toml"));
                sources.folders.extend(one.folders);
            }
            Err(_) => sources.folders.push(path),
        }
    }
    sources.folders.sort();
    sources.folders.dedup();
    sources
}

/// Whether cargo accepts the crate in `folder`.
pub(crate) async fn inspect(folder: &std::path::Path) -> anyhow::Result<()> {
    cargo::inspect(folder).await.map(drop)
}

/// `pelton:function/state@0.1.0` → `state`, `wasi:http/types@0.2.6` → `wasi:http/types`.
fn short(import: &str) -> &str {
    let name = import.split('@').next().unwrap_or(import);
    name.strip_prefix("pelton:function/").unwrap_or(name)
}

/// Bytes for a person.
fn kib(bytes: usize) -> String {
    let tenths = (bytes * 10).div_ceil(1024);
    format!("{}.{} KiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_people() {
        assert_eq!(short("pelton:function/state@0.1.0"), "state");
        assert_eq!(short("wasi:config/store@0.2.0-rc.1"), "wasi:config/store");
        assert_eq!(kib(0), "0.0 KiB");
        assert_eq!(kib(116_224), "113.5 KiB");
    }
}
