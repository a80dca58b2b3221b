//! The walls of the house: which module may know what, and how large anything may grow.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pelton_tests::build;

/// Longest file, lines.
const LONGEST: usize = 600;

/// What no source may hold; put together, so that this file does not hold it.
fn forbidden() -> [String; 4] {
    [
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
        ["#[", "ignore"].concat(),
        ["dbg", "!("].concat(),
    ]
}

/// All `.rs` files below folders of the repository, with their text.
fn sources(folders: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let root = build::root()?;
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut all = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let path = entry?.path();
                if path.file_name().is_none_or(|name| name != "target") {
                    open.push(path);
                }
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path)?;
            all.push((path.strip_prefix(&root)?.to_owned(), text));
        }
    }
    ensure!(!all.is_empty(), "no sources in {folders:?}");
    Ok(all)
}

fn all() -> Result<Vec<(PathBuf, String)>> {
    sources(&["runtime", "sdk", "functions", "tests", "examples"])
}

/// Code without its comments: prose may name what code must not use.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or(line))
}

fn uses(text: &str, word: &str) -> bool {
    let bounded = |c: char| !c.is_alphanumeric() && c != '_';
    code(text).any(|line| line.split(bounded).any(|found| found == word))
}

#[test]
fn only_the_sandbox_knows_wasmtime() -> Result<()> {
    let mut inside = 0;
    for (path, text) in sources(&["runtime"])? {
        // Its name alone stands in what the binary says of itself.
        let paths = ["wasmtime::", "wasmtime_wasi::", "wasmtime_wasi_http::"];
        let known = code(&text).any(|line| paths.iter().any(|path| line.contains(path)));
        if path.starts_with("runtime/src/sandbox") {
            inside += usize::from(known);
        } else {
            ensure!(!known, "{} knows wasmtime", path.display());
        }
    }
    ensure!(inside > 0, "the test sees nothing");
    Ok(())
}

#[test]
fn sandbox_effects_verdict_and_event_know_no_nats() -> Result<()> {
    let walled = ["sandbox", "effects", "verdict", "event"];
    let mut checked = 0;
    for (path, text) in sources(&["runtime/src"])? {
        let module = path.strip_prefix("runtime/src")?;
        let module = module.components().next().context("no module")?;
        let module = module.as_os_str().to_string_lossy();
        if walled.contains(&module.trim_end_matches(".rs")) {
            checked += 1;
            ensure!(!uses(&text, "async_nats"), "{} knows NATS", path.display());
        }
    }
    ensure!(
        checked >= walled.len(),
        "the test sees only {checked} files"
    );
    Ok(())
}

#[test]
fn runtime_and_sdk_share_the_contract_alone() -> Result<()> {
    let root = build::root()?;
    for (manifest, other) in [
        ("runtime/Cargo.toml", "pelton-sdk"),
        ("runtime/cli/Cargo.toml", "pelton-sdk"),
        ("sdk/Cargo.toml", "pelton-runtime"),
        ("sdk/macros/Cargo.toml", "pelton-runtime"),
    ] {
        let text = std::fs::read_to_string(root.join(manifest))?;
        // `pelton-sdk-macros` begins as `pelton-sdk` does.
        let names = |line: &str| {
            let rest = line.trim().strip_prefix(other);
            rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
        };
        let depends = text.lines().any(names);
        ensure!(!depends, "{manifest} depends on {other}");
    }
    Ok(())
}

#[test]
fn files_are_small_and_say_why_they_exist() -> Result<()> {
    for (path, text) in all()? {
        let place = path.display();
        let generated = path.file_name().is_some_and(|name| name == "bindings.rs");
        if generated {
            continue;
        }
        let lines = text.lines().count();
        ensure!(lines <= LONGEST, "{place} has {lines} lines");
        let library = [
            Path::new("runtime/src"),
            Path::new("runtime/cli/src"),
            Path::new("sdk/src"),
        ];
        if library.iter().any(|folder| path.starts_with(folder)) {
            ensure!(
                text.starts_with("//!"),
                "{place} does not say why it exists"
            );
        }
    }
    Ok(())
}

#[test]
fn nothing_is_left_open() -> Result<()> {
    let words = forbidden();
    for (path, text) in all()? {
        for word in &words {
            let open = code(&text).any(|line| line.contains(word.as_str()));
            ensure!(!open, "{} holds {word}", path.display());
        }
    }
    Ok(())
}
