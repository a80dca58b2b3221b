//! Programs of another language beside the system: what they see, a user of that language's client sees.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{build, server};

/// Runs a Python script of `tests/foreign` to its end, and gives the JSON that it prints.
///
/// # Errors
/// It fails, or prints something else.
pub async fn foreign(script: &str, args: &[String]) -> Result<Value> {
    let mut python = Command::new("python3");
    python
        .arg(build::root()?.join("tests/foreign").join(script))
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let library = match std::env::var_os("PELTON_PYTHONPATH") {
        Some(folder) => folder.into(),
        None => server::cache_home()?.join("pelton/python"),
    };
    if library.is_dir() {
        python.env("PYTHONPATH", library);
    }
    let output = python.output().await.context("python3 does not start")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}
