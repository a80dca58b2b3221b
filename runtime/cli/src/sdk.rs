//! The Rust SDK that is part of this binary. `pelton new` writes it into the app's folder, so that
//! an app builds with nothing but the package registry, on every machine that has the app's
//! sources.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use cargo_metadata::semver::Version;
use toml::{Table, Value};

include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// Where it stands in an app's folder.
pub(crate) const FOLDER: &str = "vendor/pelton-sdk";
/// Its version, which is this binary's.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Its files, by their path in [`FOLDER`]; the manifests stand alone, without this project's
/// workspace.
///
/// # Errors
/// None that a user could cause.
pub(crate) fn files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let workspace: Table = WORKSPACE.parse()?;
    let shared = workspace.get("workspace").and_then(Value::as_table);
    let shared = shared.context("the workspace's manifest has no [workspace]")?;
    FILES
        .iter()
        .map(|(path, text)| {
            let text = match path.ends_with("Cargo.toml") {
                true => alone(text, shared)?,
                false => (*text).to_owned(),
            };
            Ok((PathBuf::from(path), text))
        })
        .collect()
}

/// The contract that it is built against, `pelton:function@VERSION`.
pub(crate) fn contract() -> &'static str {
    let wit = FILES.iter().find(|(path, _)| *path == "wit/pelton.wit");
    let mut lines = wit.map_or("", |(_, text)| text).lines();
    let package = lines.find_map(|line| line.strip_prefix("package "));
    package.unwrap_or_default().trim_end_matches(';')
}

/// A crate's manifest with what it takes from the workspace written out, and without what only its
/// own tests need.
fn alone(manifest: &str, workspace: &Table) -> anyhow::Result<String> {
    let mut manifest: Table = manifest.parse()?;
    manifest.remove("lints");
    manifest.remove("dev-dependencies");
    if let Some(package) = manifest.get_mut("package").and_then(Value::as_table_mut) {
        inherit(package, workspace.get("package"));
    }
    let shared = workspace.get("dependencies");
    if let Some(targets) = manifest.get_mut("target").and_then(Value::as_table_mut) {
        for (_, target) in targets.iter_mut() {
            dependencies(target.as_table_mut(), shared);
        }
    }
    dependencies(Some(&mut manifest), shared);
    let note = format!(
        "# Part of pelton {VERSION}, made by `pelton new`. `pelton vendor` replaces this folder by the SDK of the pelton that runs it.\n\n"
    );
    Ok(note + &toml::to_string(&manifest)?)
}

fn dependencies(holder: Option<&mut Table>, shared: Option<&Value>) {
    let all = holder.and_then(|holder| holder.get_mut("dependencies"));
    let Some(all) = all.and_then(Value::as_table_mut) else {
        return;
    };
    inherit(all, shared);
    // The one crate beside it.
    if let Some(macros) = all.get_mut("pelton-sdk-macros") {
        *macros = Value::Table(Table::from_iter([("path".to_owned(), "macros".into())]));
    }
}

/// Replaces each `NAME.workspace = true` by what the workspace says of NAME.
fn inherit(table: &mut Table, shared: Option<&Value>) {
    for (name, value) in table.iter_mut() {
        let inherits = value.get("workspace").and_then(Value::as_bool) == Some(true);
        if let Some(said) = shared
            .and_then(|shared| shared.get(name))
            .filter(|_| inherits)
        {
            *value = said.clone();
        }
    }
}

/// How an app's copy of the SDK differs from this binary's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is of an older release.
    Older(String),
    /// It is of a newer release.
    Newer(String),
    /// It is of this release, and its files are others.
    Changed,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older(version) => write!(
                f,
                "{FOLDER} holds pelton-sdk {version}, and this pelton brings {VERSION}: functions are built with the older one\n  \
                 fix: run `pelton vendor`, which replaces it, and commit the change"
            ),
            Self::Newer(version) => write!(
                f,
                "{FOLDER} holds pelton-sdk {version}, and this pelton is {VERSION}: its nodes may not offer what functions import\n  \
                 fix: install pelton {version} or newer"
            ),
            Self::Changed => write!(
                f,
                "{FOLDER} holds other files than the pelton-sdk {VERSION} of this pelton\n  \
                 fix: run `pelton vendor`, which replaces it, unless it was changed on purpose"
            ),
        }
    }
}

/// Whether the app in `root` has another SDK than this binary's; `None` also when it has no copy.
pub(crate) fn difference(root: &Path) -> Option<Difference> {
    let version = version(root)?;
    let [theirs, ours] = [version.as_str(), VERSION].map(Version::parse);
    match (theirs.ok()?).cmp(&ours.ok()?) {
        std::cmp::Ordering::Less => Some(Difference::Older(version)),
        std::cmp::Ordering::Greater => Some(Difference::Newer(version)),
        std::cmp::Ordering::Equal => {
            let folder = root.join(FOLDER);
            let same = |(path, text): &(PathBuf, String)| {
                std::fs::read_to_string(folder.join(path)).is_ok_and(|found| found == *text)
            };
            let files = files().ok()?;
            (!files.iter().all(same)).then_some(Difference::Changed)
        }
    }
}

/// The version of the app's copy, if it has one.
pub(crate) fn version(root: &Path) -> Option<String> {
    let manifest = std::fs::read_to_string(root.join(FOLDER).join("Cargo.toml")).ok()?;
    let manifest: Table = manifest.parse().ok()?;
    let package = manifest.get("package")?;
    let named = package.get("name")?.as_str()? == "pelton-sdk";
    let version = package.get("version")?.as_str()?;
    named.then(|| version.to_owned())
}

/// Writes this binary's SDK into the app in `root`, in place of the one that is there: wholly or
/// not at all.
///
/// # Errors
/// Something else stands there; the folder cannot be written.
pub(crate) fn replace(root: &Path) -> anyhow::Result<usize> {
    let folder = root.join(FOLDER);
    ensure!(
        !folder.exists() || version(root).is_some(),
        "{} is not a copy of pelton-sdk, and nothing else is overwritten\n  fix: move it away, then run `pelton vendor` again",
        folder.display()
    );
    let files = files()?;
    let part = root
        .join("vendor")
        .join(format!(".pelton-sdk-{}", std::process::id()));
    let old = part.with_extension("old");
    let written = write(&part, &files).and_then(|()| {
        if folder.exists() {
            std::fs::rename(&folder, &old)?;
        }
        std::fs::rename(&part, &folder)
    });
    // Leftovers would only be in the way of whoever looks; a failure here would hide the cause.
    let _ = std::fs::remove_dir_all(&part);
    if written.is_err() && old.exists() && !folder.exists() {
        let _ = std::fs::rename(&old, &folder);
    }
    if folder.exists() {
        let _ = std::fs::remove_dir_all(&old);
    }
    written.with_context(|| format!("cannot write {}", folder.display()))?;
    Ok(files.len())
}

fn write(folder: &Path, files: &[(PathBuf, String)]) -> std::io::Result<()> {
    let folders: BTreeSet<PathBuf> = files
        .iter()
        .filter_map(|(path, _)| folder.join(path).parent().map(Path::to_owned))
        .collect();
    for folder in folders {
        std::fs::create_dir_all(folder)?;
    }
    for (path, text) in files {
        std::fs::write(folder.join(path), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_needs_nothing_of_this_workspace() {
        let files = files().unwrap();
        let of = |path: &str| {
            let found = files.iter().find(|(one, _)| one == Path::new(path));
            found.map(|(_, text)| text.clone()).unwrap()
        };
        for manifest in ["Cargo.toml", "macros/Cargo.toml"] {
            let text = of(manifest);
            assert!(!text.contains("workspace"), "{text}");
            assert!(!text.contains("git ="), "{text}");
        }
        assert!(of("Cargo.toml").contains("path = \"macros\""));
        assert!(of("Cargo.toml").contains(&format!("version = \"{VERSION}\"")));
        for needed in [
            "LICENSE",
            "src/lib.rs",
            "macros/src/lib.rs",
            "wit/pelton.wit",
        ] {
            assert!(!of(needed).is_empty(), "{needed}");
        }
        assert!(files.iter().all(|(path, _)| !path.starts_with("tests")));
    }

    #[test]
    fn another_copy_is_noticed_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(difference(root), None);
        replace(root).unwrap();
        assert_eq!(difference(root), None);

        let manifest = root.join(FOLDER).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let of = |version: &str| text.replace(VERSION, version);
        std::fs::write(&manifest, of("0.0.9")).unwrap();
        let older = difference(root).unwrap();
        assert_eq!(older, Difference::Older("0.0.9".into()));
        assert!(older.to_string().contains("pelton vendor"));
        std::fs::write(&manifest, of("99.0.0")).unwrap();
        assert_eq!(difference(root), Some(Difference::Newer("99.0.0".into())));

        std::fs::write(root.join(FOLDER).join("src/stale.rs"), "").unwrap();
        replace(root).unwrap();
        assert_eq!(difference(root), None);
        assert!(!root.join(FOLDER).join("src/stale.rs").exists());
        std::fs::write(root.join(FOLDER).join("src/lib.rs"), "// mine").unwrap();
        assert_eq!(difference(root), Some(Difference::Changed));
        let left: Vec<_> = std::fs::read_dir(root.join("vendor")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_is_no_copy_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        std::fs::write(root.path().join(FOLDER).join("mine"), "").unwrap();
        let error = replace(root.path()).unwrap_err().to_string();
        assert!(error.contains("is not a copy"), "{error}");
        assert!(root.path().join(FOLDER).join("mine").exists());
    }
}
