//! Puts the SDK's files into the binary, and what `pelton --version --verbose` says of the build.

#![allow(clippy::print_stdout, reason = "how a build script talks to cargo")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What of `sdk/` a function is built from; the rest is the SDK's own tests.
const SDK: [&str; 4] = ["src", "macros/src", "macros/Cargo.toml", "wit"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join("../..")
        .canonicalize()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("sdk.rs"), sdk(&root)?)?;

    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let lock = fs::read_to_string(lock)?;
    tell("WASMTIME", &locked(&lock, "wasmtime"));
    tell("ASYNC_NATS", &locked(&lock, "async-nats"));
    tell("TARGET", &env::var("TARGET")?);
    println!("cargo::rerun-if-env-changed=PELTON_COMMIT");
    let named = env::var("PELTON_COMMIT").ok();
    let commit = named.filter(|one| !one.is_empty());
    tell(
        "COMMIT",
        &commit.or_else(|| commit_of(&root)).unwrap_or_default(),
    );
    Ok(())
}

fn tell(name: &str, value: &str) {
    println!("cargo::rustc-env=PELTON_BUILD_{name}={value}");
}

/// Rust that holds the SDK's files: `FILES`, by their path in its folder, and the workspace's
/// manifest.
fn sdk(root: &Path) -> Result<String, Box<dyn Error>> {
    let sdk = root.join("sdk");
    let mut files = vec![sdk.join("Cargo.toml"), root.join("LICENSE")];
    for part in SDK {
        collect(&sdk.join(part), &mut files)?;
        println!("cargo::rerun-if-changed={}", sdk.join(part).display());
    }
    files.sort();
    let mut text = "const FILES: &[(&str, &str)] = &[\n".to_owned();
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file
            .strip_prefix(&sdk)
            .or_else(|_| file.strip_prefix(root))?;
        writeln!(text, "({name:?}, include_str!({file:?})),")?;
    }
    let workspace = root.join("Cargo.toml");
    println!("cargo::rerun-if-changed={}", workspace.display());
    writeln!(
        text,
        "];\nconst WORKSPACE: &str = include_str!({workspace:?});"
    )?;
    Ok(text)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// The version of a package in the lock file.
fn locked(lock: &str, package: &str) -> String {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let version = lines
        .nth(1)
        .and_then(|line| line.strip_prefix("version = "));
    version.unwrap_or("unknown").trim_matches('"').to_owned()
}

/// The commit that is checked out, if these sources are a repository of their own.
fn commit_of(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let top = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize();
    if top.ok()? != root {
        return None;
    }
    // It grows with every commit and checkout. A path that is missing would run this at every
    // build.
    let log = root.join(git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.is_file() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(&["rev-parse", "HEAD"])
}
