//! What a node is told: its file, the environment and its flags, laid over each other.

pub mod keys;
pub mod layers;
pub mod page;
pub mod show;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use pelton_runtime::config::{ConfigError, NodeConnection, NodeFile};
use pelton_runtime::nats::ConnectOptions;
use pelton_runtime::runtime::RuntimeOptions;

use self::layers::{Setting, Source};
use crate::commands::run::{RunArgs, cache_dir, host_name};
use crate::global::Global;
use crate::logging::{self, LogFormat};

/// Read when no other file is named and it is there: what a package or a unit file brings. There is none in the current
/// folder: a node is not to go to another server, or to log in as somebody else, for where it was started.
const USUAL_FILE: &str = "/etc/pelton/node.toml";

/// A node's settings, each with where it comes from.
pub struct Node {
    /// The file, if there is one.
    pub file: Option<NodeFile>,
    /// Name in listings.
    pub name: Setting<String>,
    /// Apps to serve; empty: all.
    pub apps: Setting<Vec<String>>,
    /// Drain deadline.
    pub drain: Setting<Duration>,
    /// Folder of compiled components.
    pub cache: Setting<PathBuf>,
    /// Instances at once.
    pub max_instances: Setting<u32>,
    /// Most memory of a function, bytes.
    pub max_memory: Setting<u64>,
    /// Where metrics and health are shown; none: nowhere.
    pub http: Setting<Option<SocketAddr>>,
    /// Filter of log lines.
    pub log_level: Setting<String>,
    /// How they look.
    pub log_format: Setting<LogFormat>,
    /// How to connect: flags over variables over the file. A context is looked up when the connection is made.
    pub nats: ConnectOptions,
    /// What `nats` is made of, the strongest first.
    layers: Vec<(Source, ConnectOptions)>,
}

impl Node {
    /// Reads the file, if there is one, and lays variables and flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or that the user's cache folder is needed and not known.
    pub fn read(args: &RunArgs, global: &Global) -> anyhow::Result<Self> {
        let file = match file_of(args.config.as_deref(), Path::new(USUAL_FILE)) {
            Some(path) => Some(NodeFile::load(&path, logging::check).map_err(all)?),
            None => None,
        };
        let none = NodeFile::default();
        let said = file.as_ref().unwrap_or(&none);
        let layers = connection(global, &said.nats);
        let unreadable = unreadable_files(said, &layers);
        if !unreadable.is_empty() {
            return Err(all(unreadable));
        }
        let given = &global.given;
        let apps = (!args.app.is_empty()).then(|| args.app.clone());
        // An empty RUST_LOG is none.
        let level = args.log_level.clone().filter(|level| !level.is_empty());
        let format = said.log_format.as_deref();
        let format = format.and_then(|format| LogFormat::from_str(format, true).ok());
        Ok(Self {
            name: given
                .over("name", args.name.clone(), said.name.clone())
                .unwrap_or_else(|| Setting::default(host_name())),
            apps: given
                .over("app", apps, said.apps.clone())
                .unwrap_or_else(|| Setting::default(Vec::new())),
            drain: given
                .over("drain", args.drain, said.drain)
                .unwrap_or_else(|| Setting::default(RuntimeOptions::DRAIN_DEADLINE)),
            cache: match given.over("cache", args.cache.clone(), said.cache.clone()) {
                Some(folder) => folder,
                None => Setting::default(cache_dir()?),
            },
            max_instances: given
                .over("max_instances", args.max_instances, said.max_instances)
                .unwrap_or_else(|| Setting::default(RuntimeOptions::MAX_INSTANCES)),
            max_memory: given
                .over("max_memory", args.max_memory, said.max_memory)
                .unwrap_or_else(|| Setting::default(RuntimeOptions::MAX_MEMORY)),
            http: given
                .over("http", args.http.map(Some), said.http.map(Some))
                .unwrap_or_else(|| Setting::default(None)),
            log_level: given
                .over("log_level", level, said.log_level.clone())
                .unwrap_or_else(|| Setting::default(logging::NODE_LEVEL.to_owned())),
            log_format: given
                .over("log_format", args.log_format, format)
                .unwrap_or_else(|| Setting::default(LogFormat::default())),
            nats: ConnectOptions {
                denials: global.denials.clone(),
                ..laid(&layers)
            },
            layers,
            file,
        })
    }
}

/// The file that was named, else the usual one where it is.
fn file_of(named: Option<&Path>, usual: &Path) -> Option<PathBuf> {
    named.map(Path::to_owned).or_else(|| {
        // What cannot even be looked at is to be complained about, not passed over.
        usual.try_exists().unwrap_or(true).then(|| usual.to_owned())
    })
}

/// The connection as each of them has it, the strongest first. A context that a flag or variable names stands for a
/// connection as a whole, so that nothing of the file's joins it.
fn connection(global: &Global, file: &NodeConnection) -> Vec<(Source, ConnectOptions)> {
    let mut layers: Vec<_> = [Source::Flag, Source::Environment]
        .map(|source| (source, global.layer(source)))
        .into();
    if layers.iter().all(|(_, layer)| layer.context.is_none()) {
        layers.push((Source::File, options(file)));
    }
    layers
}

/// All of them as one.
fn laid(layers: &[(Source, ConnectOptions)]) -> ConnectOptions {
    let weakest_first = layers.iter().rev();
    weakest_first.fold(ConnectOptions::default(), |below, (_, layer)| {
        layer.clone().over(below)
    })
}

fn options(file: &NodeConnection) -> ConnectOptions {
    let file = file.clone();
    ConnectOptions {
        server: file.server,
        context: file.context,
        no_context: false,
        user: file.user,
        password: file.password,
        token: file.token,
        creds: file.creds,
        nkey: file.nkey,
        tls_cert: file.tls_cert,
        tls_key: file.tls_key,
        tls_ca: file.tls_ca,
        tls_first: file.tls_first,
        inbox_prefix: file.inbox_prefix,
        timeout: file.timeout,
        ..ConnectOptions::default()
    }
}

/// What the file names, counts, and cannot be read: said with its line, which whoever connects does not know.
fn unreadable_files(file: &NodeFile, layers: &[(Source, ConnectOptions)]) -> Vec<ConfigError> {
    let counts = laid(layers);
    let mut found: Vec<ConfigError> = [
        ("nats.creds", &file.nats.creds, &counts.creds),
        ("nats.nkey", &file.nats.nkey, &counts.nkey),
        ("nats.tls-cert", &file.nats.tls_cert, &counts.tls_cert),
        ("nats.tls-key", &file.nats.tls_key, &counts.tls_key),
        ("nats.tls-ca", &file.nats.tls_ca, &counts.tls_ca),
    ]
    .into_iter()
    .filter(|(_, said, counts)| said == counts)
    .filter_map(|(key, said, _)| {
        let path = said.as_deref()?;
        let why = std::fs::read(path).err()?;
        Some(file.error_at(
            key,
            format!("`{key}`: {} cannot be read: {why}", path.display()),
            "correct the path, which begins in the folder of this file, or make it readable for the node's user",
        ))
    })
    .collect();
    found.sort_by_key(|error| (error.line, error.column));
    found
}

fn all(errors: Vec<ConfigError>) -> anyhow::Error {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow::anyhow!(all.join("\n"))
}

#[cfg(test)]
mod tests;
