//! The server of `pelton dev`: a nats-server of its own in a folder of its own, or one that runs already.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use async_nats::Client;
use pelton_runtime::dev::{ServerProcess, find_nats_server};
use pelton_runtime::nats::{self, ConnectOptions};

use crate::output::failure;

/// Marks a folder as one that `pelton dev` made and may empty; holds the server's process id, and the lock.
const MARK: &str = ".pelton-dev";

/// A server to work with.
pub(super) struct Server {
    child: Option<ServerProcess>,
    /// Kept locked: two servers in one folder would destroy it.
    folder: Option<(PathBuf, File)>,
    options: ConnectOptions,
    /// Where it is, for people and programs.
    pub(super) url: String,
}

impl Server {
    /// Starts one of our own.
    ///
    /// # Errors
    /// The folder is no place for it, the port is taken, or there is no nats-server.
    pub(super) async fn own(folder: &Path, port: u16, clean: bool) -> anyhow::Result<Self> {
        ensure_free(port)?;
        let binary = find_nats_server()?;
        let mut mark = claim(folder)?;
        if clean {
            empty(folder)?;
        }
        let wanted = (port != 0).then_some(port);
        let child = ServerProcess::start(&binary, folder, wanted).await?;
        if let Some(pid) = child.pid() {
            mark.set_len(0)?;
            mark.rewind()?;
            write!(mark, "{pid}")?;
        }
        Ok(Self {
            url: child.url().to_owned(),
            options: child.options(),
            child: Some(child),
            folder: Some((folder.to_owned(), mark)),
        })
    }

    /// Takes one that runs already.
    pub(super) fn foreign(options: ConnectOptions) -> Self {
        let url = options.server.as_deref().map(nats::without_logins);
        let url = url.or_else(|| options.context.clone());
        Self {
            child: None,
            folder: None,
            options,
            url: url.unwrap_or_default(),
        }
    }

    /// Where its data is; none when it is not ours.
    pub(super) fn data(&self) -> Option<&Path> {
        self.folder.as_ref().map(|(folder, _)| folder.as_path())
    }

    /// How to connect to it.
    pub(super) fn options(&self) -> ConnectOptions {
        self.options.clone()
    }

    /// A connection of its own, to a server that can do what Pelton needs.
    ///
    /// # Errors
    /// Says why not.
    pub(super) async fn connect(&self, name: &str) -> anyhow::Result<Client> {
        let client = nats::connect(&self.options, name).await?;
        nats::check_server(&client).await?;
        Ok(client)
    }

    /// Waits until our server ends by itself, which it should not: says why. Never, when it is not ours.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        let Some(child) = &mut self.child else {
            return std::future::pending().await;
        };
        match child.ended().await {
            Ok(status) => failure(
                format!("nats-server ended ({status})"),
                format!("see its log, {}", child.log().display()),
            ),
            Err(error) => anyhow::Error::new(error).context("cannot wait for nats-server"),
        }
    }

    /// Stops our server; its data stays.
    ///
    /// # Errors
    /// It does not stop.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        if let Some(child) = self.child {
            child.stop().await.context("cannot stop nats-server")?;
        }
        if let Some((_, mark)) = self.folder {
            mark.set_len(0)?;
        }
        Ok(())
    }
}

/// Says which port is taken before the server's log has to.
fn ensure_free(port: u16) -> anyhow::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .map_err(|error| {
            failure(
                format!("port {port} of 127.0.0.1 cannot be used: {error}"),
                format!(
                    "--port 0 takes any that is free, --port N another one; \
                     --server nats://127.0.0.1:{port} uses the NATS server that is there"
                ),
            )
        })
}

/// Makes the folder, or takes one that `dev` made, and keeps other servers out of it.
fn claim(folder: &Path) -> anyhow::Result<File> {
    let unusable = || format!("cannot use the data folder {}", folder.display());
    let path = folder.join(MARK);
    std::fs::create_dir_all(folder).with_context(unusable)?;
    let foreign = !path.exists() && std::fs::read_dir(folder)?.next().is_some();
    if foreign {
        return Err(failure(
            format!(
                "{} holds files that are not of `pelton dev`",
                folder.display()
            ),
            "give --data a folder that is empty or does not exist yet",
        ));
    }
    let mut mark = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(unusable)?;
    match mark.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(failure(
                format!("another `pelton dev` works in {}", folder.display()),
                "stop that one, or give this one a folder of its own with --data DIR",
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(anyhow::Error::new(error).context(unusable()));
        }
    }
    let mut pid = String::new();
    mark.read_to_string(&mut pid).with_context(unusable)?;
    if left_behind(&pid, folder) {
        return Err(failure(
            format!(
                "a nats-server of an earlier `pelton dev` (process {pid}) still works in {}",
                folder.display()
            ),
            format!("stop it: kill {pid}"),
        ));
    }
    Ok(mark)
}

/// Whether that process still has the folder: a `dev` that was killed could not stop it.
fn left_behind(pid: &str, folder: &Path) -> bool {
    if pid.is_empty() {
        return false;
    }
    // Linux says so; elsewhere the port does.
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let folder = folder.as_os_str().as_encoded_bytes();
    arguments.split(|byte| *byte == 0).any(|one| one == folder)
}

/// Removes what the server kept, and nothing that it did not make.
fn empty(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let removed = if name == "jetstream" {
            std::fs::remove_dir_all(entry.path())
        } else if name == "nats-server.log" {
            std::fs::remove_file(entry.path())
        } else {
            Ok(())
        };
        removed.with_context(|| format!("cannot remove {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join("a/b");
        let first = claim(&ours).unwrap();
        let error = claim(&ours).unwrap_err().to_string();
        assert!(error.contains("another `pelton dev`"), "{error}");
        drop(first);
        std::fs::create_dir(ours.join("jetstream")).unwrap();
        std::fs::write(ours.join("mine.txt"), "").unwrap();
        claim(&ours).unwrap();
        empty(&ours).unwrap();
        assert!(!ours.join("jetstream").exists());
        assert!(ours.join("mine.txt").exists());

        let foreign = root.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("thesis.doc"), "").unwrap();
        let error = claim(&foreign).unwrap_err().to_string();
        assert!(error.contains("are not of `pelton dev`"), "{error}");
    }

    #[test]
    fn a_taken_port_is_named_with_the_flags() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = ensure_free(port).unwrap_err().to_string();
        assert!(error.contains("--port 0"), "{error}");
        ensure_free(0).unwrap();
    }
}
