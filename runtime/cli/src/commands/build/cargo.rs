//! Cargo, called so that what it builds depends on the source alone: not on the folder it stands in, not on
//! the flags of a shell, and not on another cargo that happens to run us.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::{CrateType, Message, Metadata, MetadataCommand, Package, PackageId};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// What functions are compiled for: a core module without WASI, which Pelton turns into a component.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// The profile `function`: small code, one unit, nothing that names the build, and integers that
/// overflow panic as they do in tests. Given on the command line, so that a project needs no
/// profile of its own.
const PROFILE: [&str; 9] = [
    "profile.function.inherits='release'",
    "profile.function.opt-level='s'",
    "profile.function.lto=true",
    "profile.function.codegen-units=1",
    "profile.function.strip=true",
    "profile.function.panic='abort'",
    "profile.function.debug=false",
    "profile.function.overflow-checks=true",
    "profile.function.incremental=false",
];

/// A function's crate, as cargo knows it.
#[derive(Debug, Clone)]
pub(crate) struct Crate {
    /// Cargo's id, which `-p` takes.
    pub(crate) id: PackageId,
    /// The package's name.
    pub(crate) name: String,
    /// Folder of the workspace that it belongs to.
    pub(crate) workspace: PathBuf,
    /// Where cargo puts what it builds.
    target_dir: PathBuf,
    /// Folders of crates beside the workspace that this one depends on.
    neighbours: BTreeMap<String, PathBuf>,
    /// Its own folder and those of all crates that it reaches by paths.
    pub(crate) folders: BTreeSet<PathBuf>,
}

/// What cargo says of the crate in `folder`.
///
/// # Errors
/// No cargo, no `Cargo.toml` there, one that cargo refuses, or a crate that is not built as `cdylib`.
pub(crate) async fn inspect(folder: &Path) -> anyhow::Result<Crate> {
    let file = folder.join("Cargo.toml");
    ensure!(
        file.is_file(),
        "{} is no crate: it has no Cargo.toml; `component` names a crate's folder or a .wasm file",
        folder.display()
    );
    let file = file
        .canonicalize()
        .with_context(|| format!("cannot read {}", file.display()))?;
    let output = cargo(folder)
        .args(["metadata", "--no-deps", "--format-version=1"])
        .arg("--manifest-path")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(not_started)?;
    if !output.status.success() {
        bail!(
            "cargo cannot read {}:\n{}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let metadata = MetadataCommand::parse(String::from_utf8_lossy(&output.stdout))
        .context("cargo metadata answered something else than its JSON")?;
    let package = find(&metadata, &file).with_context(|| {
        format!(
            "{} holds no [package]: let `component` name a member's folder",
            file.display()
        )
    })?;
    ensure_cdylib(package)?;
    Ok(Crate {
        id: package.id.clone(),
        name: package.name.to_string(),
        workspace: metadata.workspace_root.clone().into_std_path_buf(),
        target_dir: metadata.target_directory.clone().into_std_path_buf(),
        neighbours: neighbours(&metadata, package),
        folders: folders(&metadata, package),
    })
}

fn find<'a>(metadata: &'a Metadata, file: &Path) -> Option<&'a Package> {
    metadata.packages.iter().find(|package| {
        package
            .manifest_path
            .canonicalize()
            .is_ok_and(|path| path == file)
    })
}

fn ensure_cdylib(package: &Package) -> anyhow::Result<()> {
    let builds_module = package.targets.iter().any(|target| {
        target
            .crate_types
            .iter()
            .any(|kind| matches!(kind, CrateType::CDyLib))
    });
    ensure!(
        builds_module,
        "{}: the crate builds no module; add to it:\n  [lib]\n  crate-type = [\"cdylib\", \"rlib\"]",
        package.manifest_path
    );
    Ok(())
}

/// Crates that are reached by a path out of the workspace: cargo names their files absolutely.
fn neighbours(metadata: &Metadata, package: &Package) -> BTreeMap<String, PathBuf> {
    package
        .dependencies
        .iter()
        .filter_map(|dependency| {
            let path = dependency.path.as_ref()?;
            (!path.starts_with(&metadata.workspace_root))
                .then(|| (dependency.name.clone(), path.clone().into_std_path_buf()))
        })
        .collect()
}

fn folders(metadata: &Metadata, package: &Package) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut next = vec![package];
    while let Some(package) = next.pop() {
        let Some(folder) = package.manifest_path.parent() else {
            continue;
        };
        if !folders.insert(folder.as_std_path().to_owned()) {
            continue;
        }
        for path in package
            .dependencies
            .iter()
            .filter_map(|one| one.path.as_ref())
        {
            let member = metadata
                .packages
                .iter()
                .find(|other| other.manifest_path.parent() == Some(path));
            match member {
                Some(member) => next.push(member),
                None => {
                    folders.insert(path.as_std_path().to_owned());
                }
            }
        }
    }
    folders
}

/// Refuses to begin without the target's standard library, for cargo's own words do not say what to do.
///
/// # Errors
/// The command that installs it.
pub(crate) async fn ensure_target(folder: &Path) -> anyhow::Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = clean(Command::new(rustc), folder)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(not_started)?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let installed = output.status.success()
        && std::fs::read_dir(&libraries).is_ok_and(|mut files| files.next().is_some());
    ensure!(
        installed,
        "Rust's standard library for {TARGET} is not installed, and functions are compiled for it\n  \
         fix: rustup target add {TARGET}"
    );
    Ok(())
}

/// Builds crates of one workspace in one call; their modules by package id.
///
/// # Errors
/// Cargo's failure; what it had to say went to stderr.
pub(crate) async fn build(crates: &[&Crate]) -> anyhow::Result<BTreeMap<PackageId, PathBuf>> {
    let Some(first) = crates.first() else {
        return Ok(BTreeMap::new());
    };
    let mut command = cargo(&first.workspace);
    command.args(["build", "--lib", "--target", TARGET, "--profile=function"]);
    command.arg("--message-format=json-render-diagnostics");
    command.args(PROFILE.iter().flat_map(|line| ["--config", line]));
    command.args(["--config", &remapping(crates)?]);
    for one in crates {
        command.args(["-p", &one.id.repr]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(not_started)?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut modules = BTreeMap::new();
    while let Some(line) = lines.next_line().await.context("cannot read from cargo")? {
        let Ok(Message::CompilerArtifact(artifact)) = serde_json::from_str(&line) else {
            continue;
        };
        let module = artifact
            .filenames
            .iter()
            .find(|file| file.extension() == Some("wasm"));
        if let Some(module) = module {
            modules.insert(artifact.package_id, module.clone().into_std_path_buf());
        }
    }
    let status = child.wait().await.context("cannot wait for cargo")?;
    if !status.success() {
        let names: Vec<_> = crates
            .iter()
            .filter(|one| !modules.contains_key(&one.id))
            .map(|one| one.name.as_str())
            .collect();
        bail!(
            "cargo did not build {}: see its messages above",
            names.join(", ")
        );
    }
    Ok(modules)
}

/// Flags that take every path of this machine out of the module. The last prefix that matches wins.
fn remapping(crates: &[&Crate]) -> anyhow::Result<String> {
    let mut prefixes: Vec<(PathBuf, String)> = Vec::new();
    let home = etcetera::home_dir().ok();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(home.as_ref()?.join(".cargo")));
    prefixes.extend(home.map(|path| (path, "/home".into())));
    prefixes.extend(cargo_home.map(|path| (path, "/cargo".into())));
    for one in crates {
        prefixes.extend(
            one.neighbours
                .iter()
                .map(|(name, path)| (path.clone(), format!("/{name}"))),
        );
    }
    if let Some(one) = crates.first() {
        prefixes.push((one.workspace.clone(), "/app".into()));
        prefixes.push((one.target_dir.clone(), "/target".into()));
    }
    prefixes.dedup();
    let flags: Vec<String> = prefixes
        .iter()
        .filter(|(path, _)| path.parent().is_some())
        .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()))
        .collect();
    // A JSON array of strings is a TOML one too.
    Ok(format!(
        "target.{TARGET}.rustflags={}",
        serde_json::to_string(&flags)?
    ))
}

/// Cargo, started in `folder` (whose `rust-toolchain.toml` and `.cargo/config.toml` count), free of its surroundings.
pub(crate) fn cargo(folder: &Path) -> Command {
    clean(Command::new("cargo"), folder)
}

fn clean(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder);
    let nested = std::env::var_os("CARGO_MANIFEST_DIR").is_some();
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| leaks(name, nested)) {
            command.env_remove(&name);
        }
    }
    // A user's `build.incremental = true` would win over the profile, and two incremental builds may differ.
    command.env("CARGO_INCREMENTAL", "0");
    command
}

/// Variables that would change what is built, or that an outer cargo (`nested`) sets for its own child.
fn leaks(name: &str, nested: bool) -> bool {
    const FLAGS: [&str; 6] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_INCREMENTAL",
        "RUSTC_WORKSPACE_WRAPPER",
    ];
    const JOBSERVER: [&str; 3] = ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS"];
    const NESTED: [&str; 7] = [
        "CARGO",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
    ];
    let own_rustflags = name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS");
    FLAGS.contains(&name)
        || JOBSERVER.contains(&name)
        || own_rustflags
        || name.starts_with("CARGO_PROFILE_")
        || (nested
            && (NESTED.contains(&name)
                || name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_BIN_")))
}

fn not_started(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return anyhow::anyhow!(
            "cargo and rustc, which compile functions, are not on PATH\n  \
             fix: install Rust (https://rustup.rs), then run: rustup target add {TARGET}"
        );
    }
    anyhow::Error::new(error).context("cannot start cargo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaks() {
        for (name, nested, expected) in [
            ("RUSTFLAGS", false, true),
            ("CARGO_PROFILE_RELEASE_DEBUG", false, true),
            ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", false, true),
            ("RUSTUP_TOOLCHAIN", false, false),
            ("RUSTUP_TOOLCHAIN", true, true),
            ("CARGO_PKG_NAME", true, true),
            ("CARGO_HOME", true, false),
            ("CARGO_TARGET_DIR", true, false),
            ("CARGO_NET_OFFLINE", true, false),
            ("PATH", true, false),
        ] {
            assert_eq!(leaks(name, nested), expected, "{name}, nested {nested}");
        }
    }
    /// A crate whose module holds a path (of the panic) and which a neighbour beside the workspace is part of.
    fn sketch(root: &Path) -> PathBuf {
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "app/Cargo.toml",
            "[workspace]\nmembers = [\"one\"]\nresolver = \"3\"\n",
        );
        write(
            "app/one/Cargo.toml",
            "[package]\nname = \"one\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
             [dependencies]\nbeside = { path = \"../../beside\" }\n",
        );
        write(
            "app/one/src/lib.rs",
            "#[unsafe(no_mangle)]\npub extern \"C\" fn f(i: u32) -> u32 {\n    beside::at(i) + [1, 2][i as usize]\n}\n",
        );
        write(
            "beside/Cargo.toml",
            "[package]\nname = \"beside\"\nedition = \"2024\"\n",
        );
        write(
            "beside/src/lib.rs",
            "pub fn at(i: u32) -> u32 {\n    std::panic::Location::caller().file().len() as u32 + [3, 4][i as usize]\n}\n",
        );
        root.join("app/one")
    }

    #[tokio::test]
    async fn modules_do_not_tell_where_they_were_built() {
        let mut modules = Vec::new();
        for _ in 0..2 {
            let root = tempfile::tempdir().unwrap();
            let folder = sketch(root.path());
            ensure_target(&folder).await.unwrap();
            let one = inspect(&folder).await.unwrap();
            let built = build(&[&one]).await.unwrap();
            let module = std::fs::read(&built[&one.id]).unwrap();
            let text = String::from_utf8_lossy(&module).into_owned();
            assert!(text.contains("/beside/src/lib.rs"));
            assert!(!text.contains(root.path().to_str().unwrap()));
            modules.push(module);
        }
        assert!(modules[0] == modules[1], "two builds differ");
    }

    #[tokio::test]
    async fn what_is_no_function() {
        let root = tempfile::tempdir().unwrap();
        let error = inspect(root.path()).await.unwrap_err().to_string();
        assert!(error.contains("no Cargo.toml"), "{error}");
        sketch(root.path());
        let error = inspect(&root.path().join("beside")).await.unwrap_err();
        assert!(error.to_string().contains("cdylib"), "{error}");
        let error = inspect(&root.path().join("app")).await.unwrap_err();
        assert!(error.to_string().contains("[package]"), "{error}");
    }
}
