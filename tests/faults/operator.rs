//! Whoever operates the app while all of this goes on: deploys new versions, at once or to a share of the keys, and takes them back; takes
//! a right to emit and gives it back; pauses functions; fills a target and makes room again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pelton_tests::{Nats, Pelton, Project};

use crate::settings::{self, FUNCTIONS};
use crate::world::APP;

/// How long something is tried again: longer than any outage here.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(300);
/// Until every node has heard of a new version, those that sleep included.
const HEARD: Duration = Duration::from_secs(10);
/// What functions emit to, the dead letters among it.
const TARGETS: [&str; 4] = ["OUT", "AUDIT", "CHAIN", "PELTON_DEAD_faults"];

/// It is done, and nodes that are away have not said so.
const UNHEARD: &[&str] = &["not confirmed by"];

/// One at a time: two that deploy would only wait for each other.
pub(crate) struct Operator {
    pelton: Pelton,
    project: Project,
    nats: Nats,
    replicas: usize,
    generation: AtomicU64,
    narrow: Mutex<Vec<(u64, u64)>>,
    /// Attempts during canaries: see [`shares`](Self::shares).
    old: AtomicU64,
    new: AtomicU64,
    /// Held by who changes streams or functions: what one read the other must not change before it is written.
    busy: tokio::sync::Mutex<()>,
}

impl Operator {
    /// Deploys the app for the first time.
    ///
    /// # Errors
    /// It is refused.
    pub(crate) async fn new(url: &str, nats: &Nats, replicas: usize) -> Result<Self> {
        let project = Project::verbatim(&settings::manifest(replicas, 0, true)?)?;
        let pelton = Pelton::new(url, project.path())?;
        pelton.ok(&["deploy"]).await?;
        Ok(Self {
            pelton,
            project,
            nats: nats.clone(),
            replicas,
            generation: AtomicU64::new(0),
            narrow: Mutex::default(),
            old: AtomicU64::new(0),
            new: AtomicU64::new(0),
            busy: tokio::sync::Mutex::default(),
        })
    }

    /// The app's folder.
    pub(crate) fn project(&self) -> &Project {
        &self.project
    }

    /// From which commit to which one functions may have been forbidden to emit to `out.*`.
    pub(crate) fn narrow(&self) -> Vec<(u64, u64)> {
        let narrow = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        narrow.clone()
    }

    /// New versions of all functions.
    ///
    /// # Errors
    /// They are refused for good.
    pub(crate) async fn deploy(&self) -> Result<()> {
        let _busy = self.busy.lock().await;
        self.versions(true).await
    }

    /// New versions of all functions get a share of the keys for a while, and then all of them or, if `lost`, none.
    ///
    /// # Errors
    /// They are refused for good.
    pub(crate) async fn canary(&self, lost: bool, lasts: Duration) -> Result<()> {
        let _busy = self.busy.lock().await;
        self.write(true)?;
        // Nodes that sleep do not try it, and need not.
        let deploy = ["deploy", "--canary", "40%", "--no-judge", "--wait", "3s"];
        self.does(&deploy, &["error: deployed, but"], &[]).await?;
        tokio::time::sleep(lasts).await;
        let end = if lost { "abort" } else { "promote" };
        for (function, _) in FUNCTIONS {
            self.note_shares(function).await;
            // It may have been ended by a try whose answer was lost.
            let over = "is being tried";
            let end = ["rollout", function, end, "--wait", "1s"];
            self.does(&end, &["error: deployed, but"], &[over]).await?;
        }
        Ok(())
    }

    /// Adds what both versions of a function have tried, as far as the nodes say it now.
    async fn note_shares(&self, function: &str) {
        if let Ok(status) = self.pelton.json(&["rollout", function, "status"]).await {
            let attempts = |which: &str| status["trial"][which]["attempts"].as_u64().unwrap_or(0);
            self.old.fetch_add(attempts("old"), Ordering::Relaxed);
            self.new.fetch_add(attempts("new"), Ordering::Relaxed);
        }
    }

    /// Attempts during canaries: of the active versions, and of those that were tried.
    pub(crate) fn shares(&self) -> (u64, u64) {
        let load = |one: &AtomicU64| one.load(Ordering::Relaxed);
        (load(&self.old), load(&self.new))
    }

    /// New versions of all functions, twice, and the last one of a function is taken back.
    ///
    /// # Errors
    /// They are refused for good.
    pub(crate) async fn roll_back(&self, function: usize) -> Result<()> {
        let _busy = self.busy.lock().await;
        // The one before may emit as this one does.
        self.versions(true).await?;
        self.versions(true).await?;
        let rollback = ["rollback", name(function), "--wait", "1s"];
        // A try whose answer was lost may have done it.
        let over = "was rolled back to";
        self.does(&rollback, &["error: deployed, but"], &[over])
            .await
    }

    /// No node takes events of a function for a while.
    ///
    /// # Errors
    /// It is refused for good.
    pub(crate) async fn suspend(&self, function: usize, lasts: Duration) -> Result<()> {
        let _busy = self.busy.lock().await;
        let say = |what: &'static str| ["function", what, name(function), "--wait", "1s"];
        self.does(&say("pause"), UNHEARD, &[]).await?;
        tokio::time::sleep(lasts).await;
        self.does(&say("resume"), UNHEARD, &[]).await
    }

    /// Functions may not emit to `out.*` for a while.
    ///
    /// # Errors
    /// It is refused for good.
    pub(crate) async fn narrow_for(&self, lasts: Duration) -> Result<()> {
        let _busy = self.busy.lock().await;
        let from = self.committed().await?;
        let narrowed = self.versions(false).await;
        tokio::time::sleep(lasts).await;
        self.versions(true).await?;
        tokio::time::sleep(HEARD).await;
        let to = self.committed().await?;
        let mut narrow = self.narrow.lock().unwrap_or_else(PoisonError::into_inner);
        narrow.push((from, to));
        narrowed
    }

    /// A target takes nothing for a while.
    ///
    /// # Errors
    /// The servers refuse it for good.
    pub(crate) async fn fill(&self, target: usize, lasts: Duration) -> Result<()> {
        let _busy = self.busy.lock().await;
        let target = TARGETS.get(target % TARGETS.len()).copied();
        let target = target.unwrap_or("OUT");
        let config = again(|| self.config(target)).await?;
        again(|| async {
            let held = i64::try_from(self.nats.count(target).await?)?;
            let mut full = config.clone();
            full.max_messages = held.max(1);
            full.discard = DiscardPolicy::New;
            self.change(full).await
        })
        .await?;
        tokio::time::sleep(lasts).await;
        again(|| self.change(config.clone())).await
    }

    async fn config(&self, target: &str) -> Result<Config> {
        Ok(self
            .nats
            .js
            .get_stream(target)
            .await?
            .cached_info()
            .config
            .clone())
    }

    async fn change(&self, config: Config) -> Result<()> {
        self.nats.js.update_stream(config).await?;
        Ok(())
    }

    async fn committed(&self) -> Result<u64> {
        again(|| async {
            let stream = self.nats.js.get_stream(format!("KV_{APP}")).await?;
            Ok(stream.cached_info().state.last_sequence)
        })
        .await
    }

    async fn versions(&self, out: bool) -> Result<()> {
        self.write(out)?;
        // A node that is away does not confirm, and need not.
        self.does(&["deploy", "--no-wait"], &[], &[]).await
    }

    /// Writes the manifest of the next versions.
    fn write(&self, out: bool) -> Result<()> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let text = settings::manifest(self.replicas, generation, out)?;
        self.project.file("pelton.toml", text.as_bytes())?;
        Ok(())
    }

    /// A command, until it goes well, or says one of `or`; after the first try, one of `later`, too.
    async fn does(&self, args: &[&str], or: &[&str], later: &[&str]) -> Result<()> {
        let tries = AtomicU64::new(0);
        again(|| async {
            let first = tries.fetch_add(1, Ordering::Relaxed) == 0;
            let said = self.pelton.run(args).await?;
            let says = |all: &[&str]| all.iter().any(|one| said.stderr.contains(one));
            let well = said.code == Some(0) || says(or) || !first && says(later);
            ensure!(well, "{said:#?}");
            Ok(())
        })
        .await
    }
}

/// One of the functions, counted round.
fn name(function: usize) -> &'static str {
    FUNCTIONS[function % FUNCTIONS.len()].0
}

async fn again<T, F: Future<Output = Result<T>>>(mut what: impl FnMut() -> F) -> Result<T> {
    let begun = Instant::now();
    loop {
        match what().await {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > PATIENCE => {
                bail!("the operator gives up after {PATIENCE:?}: {error:#}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
