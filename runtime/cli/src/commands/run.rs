//! `pelton run`: a node. Everything it does is in `pelton_runtime::runtime`; here are its knobs and its signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use etcetera::BaseStrategy;
use pelton_runtime::config;
use pelton_runtime::nats::{NatsError, Renewal};
use pelton_runtime::runtime::{Runtime, RuntimeOptions};

use crate::global::Global;
use crate::logging::{self, LogFormat};
use crate::node::{Node, show};

/// Run a node that serves deployed functions
///
/// Start as many as you like: they share the work. SIGTERM or Ctrl-C stops it cleanly: it takes nothing more, finishes
/// or hands back what runs, and leaves. A second signal ends it at once.
///
/// Every setting may also be given by a variable or in a file (--config). A flag counts before its variable, a
/// variable before the file.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  pelton run\n  \
    pelton run --http 127.0.0.1:9090\n  \
    pelton run --app shop --server nats://10.0.0.5:4222 --log-format json\n  \
    pelton run --config node.toml --print-config\n  \
    RUST_LOG=pelton_runtime=debug pelton run")]
pub struct RunArgs {
    /// The node's file: every setting may stand in it. Default: /etc/pelton/node.toml, if it is there.
    #[arg(long, value_name = "FILE", env = "PELTON_CONFIG")]
    pub config: Option<PathBuf>,
    /// Show all settings and where each comes from, and do not run. Secrets are hidden.
    #[arg(long)]
    pub print_config: bool,
    /// Serve only this app; may be repeated. Default: all of the account.
    #[arg(
        long,
        value_name = "NAME",
        env = "PELTON_APPS",
        value_delimiter = ',',
        value_parser = app
    )]
    pub app: Vec<String>,
    /// The node's name in listings. Default: the machine's name.
    #[arg(long, value_name = "NAME", env = "PELTON_NODE_NAME", value_parser = config::node_name)]
    pub name: Option<String>,
    /// How long running attempts may take to finish when the node stops. Default: 10s.
    #[arg(long, value_name = "DURATION", env = "PELTON_DRAIN", value_parser = config::node_drain)]
    pub drain: Option<Duration>,
    /// Folder for compiled components. Default: the user's cache folder.
    #[arg(long, value_name = "DIR", env = "PELTON_CACHE")]
    pub cache: Option<PathBuf>,
    /// Instances at once, over all functions. Default: 512.
    #[arg(long, value_name = "N", env = "PELTON_MAX_INSTANCES", value_parser = config::node_instances)]
    pub max_instances: Option<u32>,
    /// Most memory that a function may ask for, such as 1GiB. Default: 256MiB. The node reserves address space for
    /// that much in every instance.
    #[arg(long, value_name = "SIZE", env = "PELTON_MAX_MEMORY", value_parser = config::node_memory)]
    pub max_memory: Option<u64>,
    /// Show metrics and health over HTTP at this address: /metrics, /healthz, /readyz. Port 0 takes any that is free, and the log says
    /// which. Default: nowhere. There is no login: give a private address.
    #[arg(long, value_name = "ADDR", env = "PELTON_HTTP", value_parser = config::node_http)]
    pub http: Option<SocketAddr>,
    /// Which log lines: a level, or TARGET=LEVEL for a part. Default: info,async_nats=warn.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", value_parser = logging::level)]
    pub log_level: Option<String>,
    /// How log lines look. Default: text.
    #[arg(long, value_enum, env = "PELTON_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Serves until a signal comes.
pub async fn run(args: RunArgs, global: &Global) -> anyhow::Result<()> {
    let mut node = Node::read(&args, global)?;
    if args.print_config {
        let output = global.output();
        let settings = show::settings(&node)?;
        return output.document(&settings, |settings| show::text(settings, &output));
    }
    logging::init_with(node.log_format.value, &node.log_level.value);
    if let Some(file) = &node.file {
        tracing::debug!(file = %file.file().display(), "settings read");
        node.nats.renewal = renewal(&args, global);
    }
    // What a node needs to start it needs to serve; what is refused later it logs, and goes on with the rest.
    let runtime = tokio::select! {
        biased;
        denied = global.denials.first() => return Err(denied.into()),
        started = start(node) => started?,
    };
    tokio::select! {
        () = runtime.stopped() => anyhow::bail!("the node stopped by itself; its log says why"),
        signal = stop_signal() => tracing::info!(signal = signal?, "stopping"),
    }
    tokio::select! {
        () = runtime.shutdown() => Ok(()),
        signal = stop_signal() => anyhow::bail!(
            "{} came again: left at once; what still ran comes again after its ack wait of 30 s", signal?
        ),
    }
}

/// Reads the node's file again whenever the node connects: it may hold a password or token that was
/// renewed.
fn renewal(args: &RunArgs, global: &Global) -> Renewal {
    let (args, global) = (args.clone(), global.clone());
    Renewal::new(move || match Node::read(&args, &global) {
        Ok(node) => Ok(node.nats),
        Err(error) => Err(NatsError(format!("{error:#}"))),
    })
}

async fn start(node: Node) -> anyhow::Result<Runtime> {
    let mut options = RuntimeOptions::new(node.nats);
    options.apps = node.apps.value;
    options.cache_dir = node.cache.value;
    options.drain_deadline = node.drain.value;
    options.node_name = node.name.value;
    options.max_instances = node.max_instances.value;
    options.max_memory = node.max_memory.value;
    options.http = node.http.value;
    Ok(Runtime::start(options).await?)
}

/// An app's name.
fn app(text: &str) -> Result<String, String> {
    if config::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("the name of an app is 1 to 32 characters of a-z 0-9 -".into())
    }
}

/// Where compiled components are kept between runs.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    let base = etcetera::choose_base_strategy()
        .context("the home folder is not known; give --cache DIR")?;
    Ok(base.cache_dir().join("pelton").join("components"))
}

/// The machine's name, as well as it is known without asking the system.
pub fn host_name() -> String {
    let from_file = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    std::env::var("HOSTNAME")
        .ok()
        .or_else(from_file)
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// Waits for the request to stop: Ctrl-C, or SIGTERM from whoever supervises.
pub async fn stop_signal() -> anyhow::Result<&'static str> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| "SIGINT").map_err(Into::into),
            _ = terminate.recv() => Ok("SIGTERM"),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await?;
        Ok("Ctrl-C")
    }
}
