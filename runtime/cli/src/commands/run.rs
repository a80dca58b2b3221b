//! `pelton run`: a node. Everything it does is in `pelton_runtime::runtime`; here are its knobs and its signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use etcetera::BaseStrategy;
use pelton_runtime::config;
use pelton_runtime::nats;
use pelton_runtime::runtime::{Runtime, RuntimeOptions};

use crate::global::Global;
use crate::logging::{self, LogFormat};

/// Run a node that serves deployed functions
///
/// Start as many as you like: they share the work. SIGTERM or Ctrl-C stops it cleanly: it takes nothing more, finishes
/// or hands back what runs, and leaves. A second signal ends it at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton run\n  \
    pelton run --http 127.0.0.1:9090\n  \
    pelton run --app shop --server nats://10.0.0.5:4222 --log-format json\n  \
    RUST_LOG=pelton_runtime=debug pelton run")]
pub struct RunArgs {
    /// Serve only this app; may be repeated. Default: all of the account.
    #[arg(long, value_name = "NAME")]
    app: Vec<String>,
    /// The node's name in listings. Default: the machine's name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long running attempts may take to finish when the node stops.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// Folder for compiled components. Default: the user's cache folder.
    #[arg(long, value_name = "DIR", env = "PELTON_CACHE")]
    cache: Option<PathBuf>,
    /// Instances at once, over all functions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_instances: Option<u32>,
    /// Most memory that a function may ask for, such as 1GiB. Default: 256MiB. The node reserves address space for
    /// that much in every instance.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    max_memory: Option<u64>,
    /// Show metrics and health over HTTP at this address: /metrics, /healthz, /readyz. Port 0 takes any that is free, and the log says
    /// which. Default: nowhere. There is no login: give a private address.
    #[arg(long, value_name = "ADDR", env = "PELTON_HTTP", value_parser = address)]
    http: Option<SocketAddr>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Serves until a signal comes.
pub async fn run(args: RunArgs, global: &Global) -> anyhow::Result<()> {
    logging::init(args.log_format, "info,async_nats=warn");
    let client = global.connect().await?;
    let publisher = nats::connect(&global.connect_options(), "pelton-publisher").await?;
    let mut options = RuntimeOptions::new(client);
    options.publisher = Some(publisher);
    options.apps = args.app;
    options.cache_dir = match args.cache {
        Some(folder) => folder,
        None => cache_dir()?,
    };
    options.drain_deadline = args.drain;
    options.node_name = args.name.unwrap_or_else(host_name);
    if let Some(instances) = args.max_instances {
        options.max_instances = instances;
    }
    if let Some(memory) = args.max_memory {
        options.max_memory = memory;
    }
    options.http = args.http;
    let runtime = Runtime::start(options).await?;
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

/// An address to listen at.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an IP address and a port, such as 127.0.0.1:9090 or [::1]:9090".into())
}

/// Bytes, within what a function's `memory` may say.
fn memory(text: &str) -> Result<u64, String> {
    config::parse_size(text)
        .filter(|bytes| (1 << 20..=4 << 30).contains(bytes))
        .ok_or_else(|| "a size from 1MiB to 4GiB, such as 512MiB".into())
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
