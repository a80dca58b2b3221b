//! Who deploys, and what is checked out where the manifest lies.

use std::path::Path;
use std::time::Duration;

use pelton_runtime::config::Manifest;
use pelton_runtime::records::{GitCommit, Provenance};
use tokio::process::Command;

/// Git may take so long: a deploy does not depend on it.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of it here.
pub async fn here(manifest: &Manifest) -> Provenance {
    Provenance {
        by: who(),
        git: git(&manifest.root).await,
        environment: manifest.environment.clone(),
        signatures: Vec::new(),
    }
}

/// User and host.
pub fn who() -> String {
    let user = ["USER", "LOGNAME"];
    let user = user.iter().find_map(|name| std::env::var(name).ok());
    let host = super::run::host_name();
    match user.filter(|user| !user.is_empty()) {
        Some(user) => format!("{user}@{host}"),
        None => host,
    }
}

async fn git(folder: &Path) -> Option<GitCommit> {
    let commit = ask(folder, &["rev-parse", "HEAD"]).await?;
    let changed = ask(
        folder,
        &["status", "--porcelain", "--untracked-files=no", "."],
    )
    .await?;
    Some(GitCommit {
        commit,
        dirty: !changed.is_empty(),
    })
}

async fn ask(folder: &Path, what: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder).args(what).kill_on_drop(true);
    let answered = tokio::time::timeout(PATIENCE, git.output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8(answered.stdout).ok()?;
    answered.status.success().then(|| text.trim().to_owned())
}
