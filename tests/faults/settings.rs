//! What a run is told by its environment, and the app that it deploys.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton_tests::build;

/// Seconds of the run among the tests.
const SHORT: u64 = 30;
/// Events published a second at most: half of what three nodes do beside three servers on two cores, and faults.
const RATE: u64 = 150;

/// How to run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Decides over work and faults.
    pub seed: u64,
    /// How long faults happen.
    pub duration: Duration,
    /// Servers.
    pub cluster: usize,
    /// Events a second at most.
    pub rate: u64,
    /// Events at most.
    pub inputs: u64,
    /// Inputs that there must have been for a run to say anything.
    pub least: u64,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.duration.as_secs();
        write!(
            f,
            "SEED={} DURATION={seconds} CLUSTER={}",
            self.seed, self.cluster
        )
    }
}

impl Settings {
    /// From the environment; `None`: the tests that were asked for are others.
    ///
    /// # Errors
    /// A value is none.
    pub(crate) fn read() -> Result<Option<Self>> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let named = args.iter().filter(|arg| !arg.starts_with('-'));
        let asked = named.clone().count() == 0
            || named.clone().any(|name| "faults".contains(name.as_str()));
        if !asked || args.iter().any(|arg| arg == "--list") {
            return Ok(None);
        }
        let settings = Self {
            seed: number("SEED", fastrand::u64(1..100_000))?,
            duration: Duration::from_secs(number("DURATION", SHORT)?),
            cluster: usize::try_from(number("CLUSTER", 3)?)?,
            rate: number("RATE", RATE)?,
            inputs: number("INPUTS", u64::MAX)?,
            least: number("LEAST", 0)?,
        };
        let cluster = settings.cluster;
        ensure!(
            matches!(cluster, 1 | 3),
            "CLUSTER is {cluster}; it may be 1 or 3"
        );
        Ok(Some(settings))
    }

    /// Deliveries that must have ended for a run to say anything.
    pub(crate) fn successes(&self) -> u64 {
        (self.duration.as_secs() * self.rate / 6).min(self.inputs)
    }
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .with_context(|| format!("{name} is {text:?} and should be a number")),
        _ => Ok(default),
    }
}

/// Bytes that a told event may have.
const MAX_TOLD: usize = 256 << 10;

/// Its functions, and what each takes.
pub(crate) const FUNCTIONS: [(&str, &str); 3] = [
    ("ledger", "work.*.*"),
    ("twin", "work.*.shared"),
    ("link", "chain.*.*"),
];

/// The app: one component as three functions, over streams with so many copies. Another `generation` makes other versions;
/// they may emit to `out.*` if `out` says so.
///
/// # Errors
/// The component does not build.
pub(crate) fn manifest(replicas: usize, generation: u64, out: bool) -> Result<String> {
    let component = build::component("ledger")?;
    let mut text = "pelton = 1\napp = \"faults\"\n".to_owned();
    for (stream, subject) in [
        ("WORK", "work.>"),
        ("CHAIN", "chain.>"),
        ("OUT", "out.>"),
        ("AUDIT", "audit.>"),
    ] {
        text += &format!("[streams.{stream}]\nsubjects = [{subject:?}]\nreplicas = {replicas}\n");
        if stream == "OUT" {
            text += &format!("max-msg-size = {MAX_TOLD}\n");
        }
    }
    let out = if out { "\"out.*\", " } else { "" };
    for (function, subject) in FUNCTIONS {
        text += &format!(
            "[functions.{function}]\ncomponent = {component:?}\nsubjects = [{subject:?}]\nkey = {{ token = 2 }}\nstart = \"all\"\n\
             retry = {{ max-attempts = 0, initial-delay = \"50ms\", max-delay = \"400ms\" }}\n\
             [functions.{function}.config]\ngeneration = \"{generation}\"\n\
             [functions.{function}.allow]\nemit = [\"audit.*\", {out}\"chain.*.*\"]\n"
        );
    }
    Ok(text)
}
