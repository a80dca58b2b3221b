//! From a manifest's functions to components.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use cargo_metadata::PackageId;
use pelton_runtime::component::{self, Component};
use pelton_runtime::config::Manifest;

use super::cargo::{self, Crate};
use super::features;
use crate::output::failure;

/// Where `pelton build` leaves a function's component.
pub(crate) fn artifact(manifest: &Manifest, function: &str) -> PathBuf {
    manifest
        .root
        .join("target/pelton")
        .join(format!("{function}.wasm"))
}

/// Builds the named functions (none named: all) and leaves each as `target/pelton/<function>.wasm`.
///
/// A crate is compiled; what cargo has to say goes to stderr as it comes. A `.wasm` file is read.
///
/// # Errors
/// A name that the manifest does not have, a missing tool (with the command that installs it), a compile error,
/// or a module that is no function.
pub async fn build_functions(
    manifest: &Manifest,
    functions: &[String],
) -> anyhow::Result<BTreeMap<String, Component>> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut folders: BTreeMap<String, PathBuf> = BTreeMap::new();
    for name in select(manifest, functions)? {
        let Some(function) = manifest.functions.get(name) else {
            continue;
        };
        let path = manifest.root.join(&function.component);
        if path
            .extension()
            .is_some_and(|extension| extension == "wasm")
        {
            files.insert(name.clone(), path);
        } else {
            folders.insert(name.clone(), path);
        }
    }
    files.extend(compile(manifest, &folders).await?);
    let mut components = BTreeMap::new();
    for (name, file) in files {
        let component = read(&file).with_context(|| place(manifest, &name))?;
        save(&artifact(manifest, &name), &component.bytes)?;
        components.insert(name, component);
    }
    Ok(components)
}

/// Whether a manifest's `component` is a file that was built elsewhere.
pub(crate) fn is_module(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "wasm")
}

/// The functions asked for, or all.
fn select<'a>(manifest: &'a Manifest, functions: &[String]) -> anyhow::Result<Vec<&'a String>> {
    for name in functions {
        let known: Vec<_> = manifest.functions.keys().map(String::as_str).collect();
        ensure!(
            manifest.functions.contains_key(name),
            "pelton.toml has no function {name:?}; it has: {}",
            known.join(", ")
        );
    }
    Ok(manifest
        .functions
        .keys()
        .filter(|name| functions.is_empty() || functions.contains(name))
        .collect())
}

/// Function → folder becomes function → module.
async fn compile(
    manifest: &Manifest,
    folders: &BTreeMap<String, PathBuf>,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut by_workspace: BTreeMap<PathBuf, Vec<Crate>> = BTreeMap::new();
    let mut ids: BTreeMap<&String, PackageId> = BTreeMap::new();
    for (name, folder) in folders {
        let one = cargo::inspect(folder)
            .await
            .with_context(|| place(manifest, name))?;
        ids.insert(name, one.id.clone());
        let crates = by_workspace.entry(one.workspace.clone()).or_default();
        // Two functions may share a crate.
        if crates.iter().all(|other| other.id != one.id) {
            crates.push(one);
        }
    }
    let mut modules = BTreeMap::new();
    for (workspace, crates) in &by_workspace {
        cargo::ensure_target(workspace).await?;
        let crates: Vec<&Crate> = crates.iter().collect();
        if features::agree(&crates).await {
            modules.extend(cargo::build(&crates).await?);
        } else {
            for one in crates {
                modules.extend(cargo::build(&[one]).await?);
            }
        }
    }
    ids.into_iter()
        .map(|(name, id)| {
            let module = modules
                .get(&id)
                .with_context(|| format!("function {name}: cargo built no .wasm file"))?;
            Ok((name.clone(), module.clone()))
        })
        .collect()
}

fn read(file: &Path) -> anyhow::Result<Component> {
    let bytes = std::fs::read(file).map_err(|error| {
        failure(
            format!("cannot read {}: {error}", file.display()),
            "build the component there, or have `component` name a .wasm file or a crate's folder that exists",
        )
    })?;
    component::read(&bytes).with_context(|| file.display().to_string())
}

/// Where the manifest names a function's component.
fn place(manifest: &Manifest, function: &str) -> String {
    let (line, column) = manifest.locate(&format!("functions.{function}.component"));
    let file = manifest.file().display();
    format!("{file}:{line}:{column}: function {function}")
}

/// Whole or not at all: another command may be reading.
fn save(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if std::fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = file.parent().context("no folder to write to")?;
    let part = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
