//! `node.toml`: what a node is told by a file. Flags and variables say the same and count before it; how they are laid
//! over each other is for whoever takes arguments.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ConfigError;
use super::manifest::{folder, in_order, unreadable};
use super::reader::{Findings, Table};
use super::tree::{self, Lines};
use super::values;

/// Shortest and longest drain, milliseconds.
const DRAIN: (u64, u64) = (0, 3_600_000);
/// Least and most memory a function may be granted, bytes: what a function's `memory` may say.
const MEMORY: (u64, u64) = (1 << 20, 4 << 30);
/// Least and most instances at once.
const INSTANCES: (u32, u32) = (1, 100_000);
/// Shortest and longest wait for the answer to a request, milliseconds.
const TIMEOUT: (u64, u64) = (1, 600_000);
/// Longest name of a node, characters.
const NAME: usize = 255;

const ROOT_KEYS: [&str; 7] = [
    "name",
    "apps",
    "drain",
    "cache",
    "max-instances",
    "max-memory",
    "http",
];
const LOG_KEYS: [&str; 2] = ["level", "format"];
const NATS_KEYS: [&str; 13] = [
    "server",
    "context",
    "user",
    "password",
    "token",
    "creds",
    "nkey",
    "tls-cert",
    "tls-key",
    "tls-ca",
    "tls-first",
    "inbox-prefix",
    "timeout",
];
/// Ways to log in, of which a file names one.
const LOGINS: [&str; 4] = ["user", "token", "creds", "nkey"];

/// A whole `node.toml`, checked; what it does not say is none.
#[derive(Debug, Clone, Default)]
pub struct NodeFile {
    /// The node's name in listings.
    pub name: Option<String>,
    /// Apps to serve.
    pub apps: Option<Vec<String>>,
    /// How long running attempts may take to finish when the node stops.
    pub drain: Option<Duration>,
    /// Folder of compiled components.
    pub cache: Option<PathBuf>,
    /// Instances at once.
    pub max_instances: Option<u32>,
    /// Most memory that a function may ask for, bytes.
    pub max_memory: Option<u64>,
    /// Where metrics and health are shown.
    pub http: Option<SocketAddr>,
    /// Which log lines, in the language of `RUST_LOG`.
    pub log_level: Option<String>,
    /// `text` or `json`.
    pub log_format: Option<String>,
    /// Where NATS is and how to log in.
    pub nats: NodeConnection,
    file: PathBuf,
    places: BTreeMap<String, (usize, usize)>,
}

/// `[nats]`; paths are absolute.
#[derive(Clone, Default)]
pub struct NodeConnection {
    /// URLs, comma separated; may hold a login.
    pub server: Option<String>,
    /// Saved context of the `nats` CLI, or the path of its file.
    pub context: Option<String>,
    /// User name, or a token when there is no password.
    pub user: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Token.
    pub token: Option<String>,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// NKey seed file.
    pub nkey: Option<PathBuf>,
    /// Client certificate, PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Certificates to trust, PEM.
    pub tls_ca: Option<PathBuf>,
    /// Begin with TLS.
    pub tls_first: Option<bool>,
    /// Prefix of the subjects on which answers come.
    pub inbox_prefix: Option<String>,
    /// How long a request waits for its answer.
    pub timeout: Option<Duration>,
}

/// Most of it is secret.
impl std::fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConnection").finish_non_exhaustive()
    }
}

impl NodeFile {
    /// Reads and checks a file. `log_level` says what is wrong with a log filter: this library prints no log, and
    /// leaves its language to who does.
    ///
    /// # Errors
    /// Every error found, in the order of the file.
    pub fn load(
        path: &Path,
        log_level: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Self, Vec<ConfigError>> {
        let text = std::fs::read_to_string(path).map_err(|why| {
            let missing = "correct --config or PELTON_CONFIG; `pelton run` needs no file when variables and flags say enough";
            vec![unreadable(path, &why, missing)]
        })?;
        let lines = Lines {
            file: path,
            text: &text,
        };
        let entries = tree::parse(&lines)?;
        let mut findings = Findings::new(lines.clone());
        let root = Table::root(&entries);
        let mut read = if let Some(app) = root.get("pelton").or_else(|| root.get("functions")) {
            findings.add(
                app.at,
                "this is the pelton.toml of an app, not the settings of a node",
                "name it with --file, and with --config a file as docs/node.md has it",
            );
            Self::default()
        } else {
            file(&mut findings, &root, &folder(path), log_level)
        };
        let found = findings.into_inner();
        if !found.is_empty() {
            return Err(in_order(found));
        }
        let mut offsets = BTreeMap::new();
        tree::places("", &entries, &mut offsets);
        read.file = path.to_owned();
        read.places = offsets
            .into_iter()
            .map(|(key, at)| (key, lines.place(at)))
            .collect();
        Ok(read)
    }

    /// The file that this was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Line and column of a key by its dotted path, from 1; none: the file does not say it.
    pub fn locate(&self, key: &str) -> Option<(usize, usize)> {
        self.places.get(key).copied()
    }

    /// An error at a key, for what is found out only later.
    pub fn error_at(
        &self,
        key: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> ConfigError {
        let (line, column) = self.locate(key).unwrap_or((1, 1));
        ConfigError {
            file: self.file.clone(),
            line,
            column,
            what: what.into(),
            fix: fix.into(),
        }
    }
}

/// Every key that a file may hold, dotted.
pub fn node_keys() -> Vec<String> {
    let tables: [(&str, &[&str]); 3] = [("", &ROOT_KEYS), ("log", &LOG_KEYS), ("nats", &NATS_KEYS)];
    tables
        .iter()
        .flat_map(|(table, keys)| keys.iter().map(|key| tree::join(table, key)))
        .collect()
}

/// A drain deadline, as a flag or variable says it.
///
/// # Errors
/// What would do.
pub fn node_drain(text: &str) -> Result<Duration, String> {
    values::duration(text)
        .ok()
        .filter(|ms| (DRAIN.0..=DRAIN.1).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!(
                "write a duration up to {}, such as 30s",
                values::show_duration(DRAIN.1)
            )
        })
}

/// How long a request waits for its answer, as a flag or variable says it.
///
/// # Errors
/// What would do.
pub fn node_timeout(text: &str) -> Result<Duration, String> {
    values::duration(text)
        .ok()
        .filter(|ms| (TIMEOUT.0..=TIMEOUT.1).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!(
                "write a duration up to {}, such as 10s",
                values::show_duration(TIMEOUT.1)
            )
        })
}

/// Bytes of memory, as a flag or variable says them: within what a function's `memory` may be.
///
/// # Errors
/// What would do.
pub fn node_memory(text: &str) -> Result<u64, String> {
    values::size(text)
        .filter(|bytes| (MEMORY.0..=MEMORY.1).contains(bytes))
        .ok_or_else(|| {
            format!(
                "write a size from {} to {}, such as 512MiB",
                values::show_size(MEMORY.0),
                values::show_size(MEMORY.1)
            )
        })
}

/// Instances at once, as a flag or variable says them.
///
/// # Errors
/// What would do.
pub fn node_instances(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count| (INSTANCES.0..=INSTANCES.1).contains(count))
        .ok_or_else(|| format!("write a number from {} to {}", INSTANCES.0, INSTANCES.1))
}

/// An address to listen at, as a flag or variable says it.
///
/// # Errors
/// What would do.
pub fn node_http(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:9090 or [::1]:9090".to_owned()
    })
}

/// A node's name: it is shown in one line of a listing.
///
/// # Errors
/// What would do.
pub fn node_name(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty()
        && text.chars().count() <= NAME
        && !text.contains(|c: char| c.is_control());
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "write 1 to {NAME} characters, none of them a line end or tabulator"
        ))
    }
}

fn file(
    findings: &mut Findings<'_>,
    root: &Table<'_>,
    folder: &Path,
    log_level: impl Fn(&str) -> Result<(), String>,
) -> NodeFile {
    let mut known = ROOT_KEYS.to_vec();
    known.extend(["log", "nats"]);
    root.only(findings, &known, &[]);
    let mut read = NodeFile {
        name: root
            .text(findings, "name", "node-1")
            .and_then(|(text, at)| {
                checked(
                    findings,
                    at,
                    "`name` does not fit in a listing",
                    node_name(text),
                )
            }),
        apps: apps(findings, root),
        drain: root
            .duration(findings, "drain", DRAIN.0, DRAIN.1)
            .map(Duration::from_millis),
        cache: path(findings, root, "cache", "/var/cache/pelton", folder),
        max_instances: root.integer(findings, "max-instances", INSTANCES.0, INSTANCES.1),
        max_memory: root.size(findings, "max-memory", MEMORY.0, MEMORY.1),
        http: root
            .text(findings, "http", "127.0.0.1:9090")
            .and_then(|(text, at)| {
                let what = format!("`http` is {text:?}, no address to listen at");
                checked(findings, at, &what, node_http(text))
            }),
        ..NodeFile::default()
    };
    if let Some(log) = root.table(findings, "log") {
        log.only(findings, &LOG_KEYS, &[]);
        read.log_level = log.text(findings, "level", "info").and_then(|(text, at)| {
            let what = format!("`log.level` is {text:?}, no filter of log lines");
            checked(
                findings,
                at,
                &what,
                log_level(text).map(|()| text.to_owned()),
            )
        });
        let formats = [("text", "text"), ("json", "json")];
        read.log_format = log.choice(findings, "format", &formats).map(str::to_owned);
    }
    if let Some(nats) = root.table(findings, "nats") {
        read.nats = connection(findings, &nats, folder);
    }
    read
}

/// The value, or what is wrong with it is noted.
fn checked<T>(
    findings: &mut Findings<'_>,
    at: usize,
    what: &str,
    value: Result<T, String>,
) -> Option<T> {
    value.map_err(|fix| findings.add(at, what, fix)).ok()
}

fn apps(findings: &mut Findings<'_>, root: &Table<'_>) -> Option<Vec<String>> {
    let texts = root.texts(findings, "apps", "shop")?;
    let mut names: Vec<String> = Vec::new();
    for (name, at) in texts {
        if !values::is_name(name) {
            findings.add(
                at,
                format!("app name {name:?} is not 1 to 32 characters of a-z 0-9 -"),
                "name an app as its pelton.toml does",
            );
        } else if names.iter().any(|other| other == name) {
            findings.add(
                at,
                format!("app {name:?} is listed twice"),
                "remove one of them",
            );
        } else {
            names.push(name.to_owned());
        }
    }
    Some(names)
}

fn connection(findings: &mut Findings<'_>, nats: &Table<'_>, folder: &Path) -> NodeConnection {
    nats.only(findings, &NATS_KEYS, &[]);
    let server = text(findings, nats, "server", "nats://127.0.0.1:4222");
    one_login(findings, nats, server.as_deref());
    NodeConnection {
        server,
        context: text(findings, nats, "context", "production")
            .map(|context| context_path(context, folder)),
        user: text(findings, nats, "user", "node"),
        password: text(findings, nats, "password", "…"),
        token: text(findings, nats, "token", "…"),
        creds: path(findings, nats, "creds", "node.creds", folder),
        nkey: path(findings, nats, "nkey", "node.nk", folder),
        tls_cert: path(findings, nats, "tls-cert", "node.pem", folder),
        tls_key: path(findings, nats, "tls-key", "node-key.pem", folder),
        tls_ca: path(findings, nats, "tls-ca", "ca.pem", folder),
        tls_first: nats.boolean(findings, "tls-first"),
        inbox_prefix: text(findings, nats, "inbox-prefix", "_INBOX_node"),
        timeout: nats
            .duration(findings, "timeout", TIMEOUT.0, TIMEOUT.1)
            .map(Duration::from_millis),
    }
}

/// Two ways to log in would be one that counts and one that is thought to.
fn one_login(findings: &mut Findings<'_>, nats: &Table<'_>, server: Option<&str>) {
    let in_url = server.is_some_and(|urls| urls.contains('@'));
    let in_url = in_url.then_some(("server", "the login in `nats.server`".to_owned()));
    let mut given: Vec<(String, usize)> = LOGINS
        .iter()
        .map(|key| (*key, format!("`nats.{key}`")))
        .chain(in_url)
        .filter_map(|(key, named)| Some((named, nats.get(key)?.at)))
        .collect();
    given.sort_by_key(|(_, at)| *at);
    let mut given = given.into_iter();
    let Some((first, _)) = given.next() else {
        return;
    };
    for (named, at) in given {
        findings.add(
            at,
            format!("{named} is a second way to log in, beside {first}"),
            "keep one of them",
        );
    }
}

fn text(
    findings: &mut Findings<'_>,
    table: &Table<'_>,
    key: &str,
    example: &str,
) -> Option<String> {
    let (text, at) = table.text(findings, key, example)?;
    if text.is_empty() {
        findings.add(
            at,
            format!("`{}` is empty", tree::join(&table.path, key)),
            format!("write a value such as {example:?}, or remove the line"),
        );
        return None;
    }
    Some(text.to_owned())
}

/// A path that begins in the file's folder; `~` is the home folder.
fn path(
    findings: &mut Findings<'_>,
    table: &Table<'_>,
    key: &str,
    example: &str,
    folder: &Path,
) -> Option<PathBuf> {
    text(findings, table, key, example).map(|text| absolute(&text, folder))
}

fn absolute(text: &str, folder: &Path) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => folder.join(text),
    }
}

/// A context is named, or is a file of its own.
fn context_path(context: String, folder: &Path) -> String {
    if context.contains('/') || context.ends_with(".json") {
        absolute(&context, folder).display().to_string()
    } else {
        context
    }
}
