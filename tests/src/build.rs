//! What the tests run, built once per run: the binary by cargo, the components by `pelton build` itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::server;

/// What a first test builds and the others wait for; a failure is the same for all.
type Once<T> = OnceLock<std::result::Result<T, String>>;

/// Functions that are built, the folders of their crates, and what else their tables say.
const FUNCTIONS: [(&str, &str, &str); 6] = [
    ("orders", "functions/orders", ""),
    ("notifier", "functions/notifier", ""),
    ("hostile", "tests/guests/hostile", ""),
    ("tally", "tests/guests/tally", ""),
    ("rows", "tests/guests/rows", ""),
    ("ledger", "tests/guests/ledger", "subjects = [\"work.*.*\"]"),
];

/// Root of the repository.
///
/// # Errors
/// The crate is not where it was compiled.
pub fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(root.context("no parent folder")?.to_owned())
}

/// Cargo's folder of release artifacts: the test executable is in `deps` below it.
fn release() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let release = test.parent().and_then(Path::parent);
    Ok(release
        .context("the test is in no target folder")?
        .to_owned())
}

/// A folder beside the build's artifacts for what tests leave behind on purpose.
///
/// # Errors
/// It cannot be made.
pub fn scratch() -> Result<PathBuf> {
    let target = release()?;
    let folder = target.parent().context("no target folder")?.join("tmp");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Cache of the nodes that tests start: compiled artifacts are made once for all of them.
///
/// # Errors
/// It cannot be made.
pub fn cache() -> Result<PathBuf> {
    let folder = scratch()?.join("cache");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The `pelton` binary: `PELTON_BIN`, else what cargo builds of the sources as they are.
///
/// # Errors
/// It does not build.
pub fn pelton() -> Result<PathBuf> {
    static BINARY: Once<PathBuf> = OnceLock::new();
    let built = BINARY.get_or_init(|| build_pelton().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

/// Cargo as a user starts it: what the cargo that runs these tests tells them of itself would make crates that look at
/// it (ring is one) be built anew each time.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        let name_text = name.to_string_lossy();
        if told.iter().any(|prefix| name_text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

fn build_pelton() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PELTON_BIN") {
        return Ok(path.into());
    }
    let output = cargo()
        .args(["build", "--release", "--quiet", "--workspace", "--bins"])
        .current_dir(root()?)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "pelton does not build:\n{said}");
    Ok(release()?.join("pelton"))
}

/// The component of one of [`FUNCTIONS`].
///
/// # Errors
/// It does not build.
pub fn component(name: &str) -> Result<PathBuf> {
    static FOLDER: Once<PathBuf> = OnceLock::new();
    let built = FOLDER.get_or_init(|| build_components().map_err(|error| format!("{error:#}")));
    let folder = built.clone().map_err(|error| anyhow!(error))?;
    let file = folder.join(format!("{name}.wasm"));
    ensure!(file.is_file(), "{} was not built", file.display());
    Ok(file)
}

/// One `pelton build` of a manifest that names the repository's own crates.
fn build_components() -> Result<PathBuf> {
    let folder = scratch()?.join("guests");
    std::fs::create_dir_all(&folder)?;
    let mut manifest = "pelton = 1\napp = \"guests\"\n".to_owned();
    manifest += "[streams.ALL]\nsubjects = [\"orders.>\", \"notifications.>\", \"hostile.>\", \"work.>\", \"rows.>\"]\n";
    for (name, place, more) in FUNCTIONS {
        let place = root()?.join(place);
        manifest += &format!("[functions.{name}]\ncomponent = {place:?}\n{more}\n");
    }
    std::fs::write(folder.join("pelton.toml"), manifest)?;
    let output = Command::new(pelton()?)
        .arg("build")
        .current_dir(&folder)
        .env("XDG_CACHE_HOME", cache()?)
        .env("PELTON_NATS_SERVER", server::binary()?)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "guests do not build:\n{said}");
    Ok(folder.join("target/pelton"))
}
