//! The file itself: TOML to checked values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::FunctionSettings;
use super::parse::{self, Parsed};
use super::reader::Findings;
use super::tree::{self, Entries, Lines, Value};
use super::{DeliveryMode, OnExhausted};

/// A whole `pelton.toml`, checked.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The app's name.
    pub app: String,
    /// The environment that is laid over the file; none: the file as it is.
    pub environment: Option<String>,
    /// Apps of the file's other environments, and which each is of; none: of the file as it is.
    pub siblings: BTreeMap<String, Option<String>>,
    /// Folder of the file: relative paths start here.
    pub root: PathBuf,
    /// By stream name.
    pub streams: BTreeMap<String, StreamManifest>,
    /// How long dead letters are kept.
    pub dead_letters: DeadLetterLimits,
    /// By function name.
    pub functions: BTreeMap<String, FunctionManifest>,
    /// The file, for errors found later.
    file: PathBuf,
    /// Line and column of everything that the file says, by dotted path.
    places: BTreeMap<String, (usize, usize)>,
}

/// `[streams.NAME]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamManifest {
    /// Subjects that it covers.
    pub subjects: Vec<String>,
    /// Copies in the cluster; none: one, or as it is.
    pub replicas: Option<u32>,
    /// Age at which messages go, milliseconds.
    pub max_age_ms: Option<u64>,
    /// Bytes at which the oldest go.
    pub max_bytes: Option<u64>,
    /// Largest message, bytes; none: the server's `max_payload` alone counts.
    pub max_msg_size: Option<u32>,
    /// Window in which a repeated `Nats-Msg-Id` is dropped, milliseconds.
    pub duplicate_window_ms: Option<u64>,
    /// Let Pelton add its source to a stream that it did not create.
    pub adopt: bool,
}

/// `[dead-letters]`: the oldest go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterLimits {
    /// Age at which they go, milliseconds.
    pub max_age_ms: u64,
    /// Bytes at which the oldest go.
    pub max_bytes: u64,
}

impl Default for DeadLetterLimits {
    fn default() -> Self {
        Self {
            max_age_ms: 30 * 24 * 3_600_000,
            // A server sets so much aside of what the account may store.
            max_bytes: 256 << 20,
        }
    }
}

/// `[functions.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionManifest {
    /// A crate's folder or a `.wasm` file, relative to [`Manifest::root`].
    pub component: PathBuf,
    /// Subjects given in the file; none: what the handlers announce.
    pub subjects: Option<Vec<String>>,
    /// Limits and policies.
    pub settings: FunctionSettings,
}

/// One thing wrong in one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {what}\n  fix: {fix}", file = file.display())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong and why.
    pub what: String,
    /// How to mend it.
    pub fix: String,
}

impl Manifest {
    /// Reads and checks a file, with `[env.<env>]` laid over it when `env` is given. The other environments are
    /// checked too: a mistake in one of them should not wait for its first deploy.
    ///
    /// # Errors
    /// Every error found, in the order of the file.
    pub fn load(path: &Path, env: Option<&str>) -> Result<Self, Vec<ConfigError>> {
        let text = std::fs::read_to_string(path).map_err(|why| {
            let missing = "go to the app's folder, or make an app with `pelton new NAME`";
            vec![unreadable(path, &why, missing)]
        })?;
        let lines = Lines {
            file: path,
            text: &text,
        };
        let base = tree::parse(&lines)?;
        let mut findings = Findings::new(lines.clone());
        let environments = environments(&mut findings, &base);
        if let Some(name) = env.filter(|name| !environments.contains_key(name)) {
            unknown_environment(&mut findings, &base, name, &environments);
        }

        let chosen = env.and_then(|name| environments.get(name));
        let (parsed, effective) = with_overlay(&mut findings, &base, chosen.copied());
        let mut found = findings.into_inner();
        for (name, overlay) in &environments {
            if Some(*name) != env {
                found.extend(within(&lines, &base, overlay));
            }
        }
        if !found.is_empty() {
            return Err(in_order(found));
        }
        let mut offsets = BTreeMap::new();
        tree::places("", &effective, &mut offsets);
        Ok(Self {
            environment: env.map(str::to_owned),
            siblings: siblings(&base, &environments, &parsed.app),
            app: parsed.app,
            root: folder(path),
            streams: parsed.streams,
            dead_letters: parsed.dead_letters,
            functions: parsed.functions,
            file: path.to_owned(),
            places: offsets
                .into_iter()
                .map(|(path, at)| (path, lines.place(at)))
                .collect(),
        })
    }

    /// Line and column of a key by its dotted path, such as `functions.orders.allow.emit`; of what holds it when the
    /// file does not say it.
    pub fn locate(&self, path: &str) -> (usize, usize) {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rsplit_once('.') {
                Some((holder, _)) => path = holder,
                None => return (1, 1),
            }
        }
    }

    /// An error at a key (see [`locate`](Self::locate)), for what is found out only later.
    pub fn error_at(
        &self,
        path: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> ConfigError {
        let (line, column) = self.locate(path);
        ConfigError {
            file: self.file.clone(),
            line,
            column,
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// The file that this was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the file may say and no engine of this release does; to be refused by whatever would run or deploy it.
    pub fn unsupported(&self) -> Vec<ConfigError> {
        let mut found = Vec::new();
        for (name, function) in &self.functions {
            let at = |key: &str| format!("functions.{name}.{key}");
            let settings = &function.settings;
            if settings.delivery == DeliveryMode::AtLeastOnce && settings.key.is_some() {
                found.push(self.error_at(
                    &at("key"),
                    format!("function {name}: delivery = \"at-least-once\" has no order, so `key` would order nothing"),
                    "remove `key`, or `delivery`: the default, \"exactly-once\", keeps the order",
                ));
            }
            if settings.max_in_flight.is_some() {
                found.push(self.error_at(
                    &at("max-in-flight"),
                    format!("function {name}: max-in-flight comes with a later release: a shared consumer counts events that wait for a retry or for another event, and would block the very events they wait for"),
                    "remove `max-in-flight`; `concurrency` bounds each node",
                ));
            }
            if settings.retry.on_exhausted == OnExhausted::Pause {
                found.push(self.error_at(
                    &at("retry.on-exhausted"),
                    format!("function {name}: on-exhausted = \"pause\" comes with a later release"),
                    "say on-exhausted = \"dead-letter\"",
                ));
            }
        }
        found.sort_by_key(|error| (error.line, error.column));
        found
    }

    /// Whether every component is there: a crate's folder or a `.wasm` file. Apart from [`load`](Self::load), because
    /// many commands need no component.
    pub fn check_components(&self) -> Vec<ConfigError> {
        let mut found: Vec<ConfigError> = self
            .functions
            .iter()
            .filter_map(|(name, function)| {
                let path = self.root.join(&function.component);
                let (what, fix) = match missing(&path)? {
                    Missing::Nothing => (
                        format!(
                            "component {} of function {name} does not exist",
                            path.display()
                        ),
                        "correct the path, or make the crate with `pelton add`",
                    ),
                    Missing::Crate => (
                        format!(
                            "component {} of function {name} is a folder without Cargo.toml",
                            path.display()
                        ),
                        "name a crate's folder, or a .wasm file",
                    ),
                    Missing::Wasm => (
                        format!(
                            "component {} of function {name} is no .wasm file",
                            path.display()
                        ),
                        "name a crate's folder, or a .wasm file",
                    ),
                };
                Some(self.error_at(&format!("functions.{name}.component"), what, fix))
            })
            .collect();
        found.sort_by_key(|error| (error.line, error.column));
        found
    }
}

enum Missing {
    Nothing,
    Crate,
    Wasm,
}

fn missing(path: &Path) -> Option<Missing> {
    if path.is_dir() {
        return (!path.join("Cargo.toml").is_file()).then_some(Missing::Crate);
    }
    if !path.is_file() {
        return Some(Missing::Nothing);
    }
    let wasm = path
        .extension()
        .is_some_and(|extension| extension == "wasm");
    (!wasm).then_some(Missing::Wasm)
}

/// `missing`: what to do when there is no such file.
pub(super) fn unreadable(path: &Path, why: &std::io::Error, missing: &str) -> ConfigError {
    let (what, fix) = match why.kind() {
        std::io::ErrorKind::NotFound => ("this file does not exist".to_owned(), missing),
        std::io::ErrorKind::InvalidData => {
            ("this file is not UTF-8".to_owned(), "save it as UTF-8 text")
        }
        _ => (
            format!("this file cannot be read: {why}"),
            "make it readable",
        ),
    };
    ConfigError {
        file: path.to_owned(),
        line: 1,
        column: 1,
        what,
        fix: fix.into(),
    }
}

/// The file's folder, absolute, so that it stays right wherever it is used.
pub(super) fn folder(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map(Path::to_owned).unwrap_or(absolute)
}

/// `[env.NAME]` by name.
fn environments<'t>(
    findings: &mut Findings<'_>,
    base: &'t Entries,
) -> BTreeMap<&'t str, &'t Entries> {
    let root = super::reader::Table::root(base);
    root.tables(findings, "env")
        .into_iter()
        .filter_map(|(name, table)| {
            table.only(
                findings,
                &["app", "streams", "dead-letters", "functions"],
                &[],
            );
            let (name, _) = base.get("env").and_then(|env| match &env.value {
                Value::Table(all) => all.get_key_value(&name),
                _ => None,
            })?;
            Some((name.as_str(), table.entries))
        })
        .collect()
}

/// Apps other than `own` that the file and its environments are about.
fn siblings(
    base: &Entries,
    environments: &BTreeMap<&str, &Entries>,
    own: &str,
) -> BTreeMap<String, Option<String>> {
    let app = |entries: &Entries| match &entries.get("app")?.value {
        Value::Text(app) => Some(app.clone()),
        _ => None,
    };
    let named = environments.iter();
    let named = named.filter_map(|(name, over)| Some((app(over)?, Some((*name).to_owned()))));
    let mut all: BTreeMap<_, _> = named.collect();
    all.extend(app(base).map(|app| (app, None)));
    all.remove(own);
    all
}

fn unknown_environment(
    findings: &mut Findings<'_>,
    base: &Entries,
    name: &str,
    known: &BTreeMap<&str, &Entries>,
) {
    let names: Vec<&str> = known.keys().copied().collect();
    let fix = if names.is_empty() {
        format!("add a table such as [env.{name}.functions.orders], or leave out --env")
    } else {
        format!("choose one of {}", names.join(", "))
    };
    findings.add(
        base.get("env").map_or(0, |entry| entry.at),
        format!("there is no environment `{name}`"),
        fix,
    );
}

fn with_overlay(
    findings: &mut Findings<'_>,
    base: &Entries,
    over: Option<&Entries>,
) -> (Parsed, Entries) {
    let mut entries = base.clone();
    entries.remove("env");
    if let Some(over) = over {
        tree::overlay(&mut entries, over);
    }
    (parse::file(findings, &entries), entries)
}

/// What is wrong inside an overlay that was not asked for: errors elsewhere are the file's own, and known.
fn within(lines: &Lines<'_>, base: &Entries, over: &Entries) -> Vec<(usize, ConfigError)> {
    let mut findings = Findings::new(lines.clone());
    with_overlay(&mut findings, base, Some(over));
    let mut offsets = Vec::new();
    tree::offsets(over, &mut offsets);
    findings
        .into_inner()
        .into_iter()
        .filter(|(at, _)| offsets.contains(at))
        .collect()
}

pub(super) fn in_order(mut found: Vec<(usize, ConfigError)>) -> Vec<ConfigError> {
    found.sort_by_key(|(at, _)| *at);
    let mut errors: Vec<ConfigError> = found.into_iter().map(|(_, error)| error).collect();
    errors.dedup();
    errors
}
