//! `pelton dev`: everything that an app needs, on this machine: a server, a node, and a redeploy at every change.
//! What is shown is what a developer waits for: log lines, dead letters, and what a refusal asks for.

mod cycle;
mod events;
mod follow;
mod hints;
mod server;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use pelton_runtime::config::Manifest;
use pelton_runtime::nats;
use pelton_runtime::runtime::{Runtime, RuntimeOptions};
use time::OffsetDateTime;
use tokio::sync::watch as channel;

pub use events::DevEvent;

use self::server::Server;
use self::watch::Watch;
use super::build;
use crate::global::Global;
use crate::logging::{self, LogFormat};

/// How long running attempts may take to finish when `dev` ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Run the app on this machine: a NATS server, a node, and a redeploy at every change
#[derive(Debug, Args)]
#[command(
    after_help = "With --server URL (or --context NAME) it uses that server instead of one of its own.\n\n\
    Examples:\n  pelton dev\n  pelton dev --port 0 --clean\n  \
    pelton dev --json --no-watch | head -1     # {\"event\":\"ready\",\"url\":…}"
)]
pub struct DevArgs {
    /// Port of the server on 127.0.0.1; 0: any that is free
    #[arg(long, default_value_t = 4222)]
    port: u16,
    /// Folder of the server's data; default: .pelton/nats beside pelton.toml
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Begin with no data: empties the folder, if `dev` made it
    #[arg(long)]
    clean: bool,
    /// Deploy once; do not look for changes
    #[arg(long)]
    no_watch: bool,
}

/// Runs the subcommand.
pub async fn run(args: DevArgs, global: &Global) -> anyhow::Result<()> {
    // What the node says of a dead letter is shown as such.
    logging::init(LogFormat::Text, "warn,pelton_runtime::settle=error");
    let file = std::path::absolute(global.manifest_path()?)?;
    let manifest = global.manifest()?;
    build::note_sdk(&manifest, global);
    let mut stop = stop_signal();
    let mut server = tokio::select! {
        server = serve(&args, &manifest, global) => server?,
        () = stopped(&mut stop) => return Ok(()),
    };
    let ended = with_node(&args, &manifest, &file, &mut server, &mut stop, global).await;
    server.stop().await?;
    ended
}

/// A server of our own, unless a flag names another one. `NATS_URL` alone does not: it may well be production.
async fn serve(args: &DevArgs, manifest: &Manifest, global: &Global) -> anyhow::Result<Server> {
    let output = global.output();
    let flags = ["--server", "-s", "--context"];
    if given(std::env::args(), &flags) {
        return Ok(Server::foreign(global.connect_options()));
    }
    if global.connection.server.is_some() || global.connection.context.is_some() {
        output.note(
            "NATS_URL or NATS_CONTEXT is set; dev starts a server of its own all the same. --server URL uses another one",
        );
    }
    let folder = args
        .data
        .clone()
        .unwrap_or_else(|| manifest.root.join(".pelton/nats"));
    let folder = std::path::absolute(folder)?;
    let server = Server::own(&folder, args.port, args.clean).await?;
    output.note(&format!(
        "nats-server at {}, data in {}",
        server.url,
        folder.display()
    ));
    Ok(server)
}

/// Whether one of these flags stands on the command line, with its value behind it or attached.
fn given(mut arguments: impl Iterator<Item = String>, flags: &[&str]) -> bool {
    arguments.any(|argument| {
        flags.iter().any(|flag| {
            let Some(rest) = argument.strip_prefix(flag) else {
                return false;
            };
            rest.is_empty() || rest.starts_with('=') || !flag.starts_with("--")
        })
    })
}

/// A node beside the server, until the signal to stop, the server's end, or an error.
async fn with_node(
    args: &DevArgs,
    manifest: &Manifest,
    file: &Path,
    server: &mut Server,
    stop: &mut Stop,
    global: &Global,
) -> anyhow::Result<()> {
    let client = server.connect("pelton dev").await?;
    let js = nats::jetstream(&client);
    let node = Runtime::start(RuntimeOptions {
        apps: vec![manifest.app.clone()],
        cache_dir: super::run::cache_dir()?,
        drain_deadline: DRAIN,
        node_name: super::run::host_name(),
        ..RuntimeOptions::new(server.options())
    })
    .await?;
    let session = Session {
        url: server.url.clone(),
        data: server.data().map(Path::to_owned),
        file: file.to_owned(),
        global,
        js,
        watch: if args.no_watch {
            None
        } else {
            Some(Watch::new()?)
        },
        manifest: channel::channel(manifest.clone()).0,
    };
    let ended = tokio::select! {
        ended = session.run() => ended,
        error = server.ended() => Err(error),
        () = stopped(stop) => Ok(()),
    };
    node.shutdown().await;
    ended
}

/// Turn after turn.
struct Session<'a> {
    url: String,
    data: Option<PathBuf>,
    file: PathBuf,
    global: &'a Global,
    js: jetstream::Context,
    watch: Option<Watch>,
    manifest: channel::Sender<Manifest>,
}

impl Session<'_> {
    /// Ends only with an error: a first deploy that fails while nobody waits for a change.
    async fn run(mut self) -> anyhow::Result<()> {
        let output = self.global.output();
        let since = OffsetDateTime::now_utc();
        let turn = loop {
            match self.turn().await {
                Ok(turn) => break turn,
                // A program waits for the first line, not for somebody to correct the sources.
                Err(error) if self.watch.is_none() || output.is_json() => return Err(error),
                Err(error) => output.note(&format!("error: {error:#}\nwaiting for a change")),
            }
            self.change().await;
        };
        let ready = DevEvent::Ready {
            url: self.url.clone(),
            data: self.data.clone(),
            app: self.manifest.borrow().app.clone(),
            functions: turn.functions,
        };
        output.item(&ready, DevEvent::text)?;
        let _followers = follow::start(&self.js, self.manifest.subscribe(), output, since);
        loop {
            self.change().await;
            let event = match self.turn().await {
                Ok(turn) => DevEvent::Deployed {
                    functions: turn.changed,
                },
                Err(error) => DevEvent::Failed {
                    error: format!("{error:#}"),
                },
            };
            output.item(&event, DevEvent::text)?;
        }
    }

    /// Reads the manifest anew, builds and deploys. Whatever changes from its beginning on is noticed.
    async fn turn(&mut self) -> anyhow::Result<cycle::Turn> {
        let manifest = self.global.manifest()?;
        if let Some(watch) = &mut self.watch {
            let sources = build::sources(&manifest).await;
            let mut files = sources.files;
            files.push(self.file.clone());
            watch.set(&sources.folders, &files);
        }
        self.manifest.send_replace(manifest.clone());
        cycle::turn(&self.js, &manifest, self.global).await
    }

    async fn change(&mut self) {
        let Some(watch) = &mut self.watch else {
            return std::future::pending().await;
        };
        let path = watch.changed().await;
        self.global
            .output()
            .note(&format!("changed: {}", path.display()));
    }
}

type Stop = channel::Receiver<bool>;

/// Turns true at Ctrl-C or SIGTERM; a second one ends the process at once.
fn stop_signal() -> Stop {
    let (sender, receiver) = channel::channel(false);
    tokio::spawn(async move {
        let _ = super::run::stop_signal().await;
        sender.send_replace(true);
        let _ = super::run::stop_signal().await;
        std::process::exit(130);
    });
    receiver
}

async fn stopped(stop: &mut Stop) {
    // An error means that the task is gone: then nobody can ask any more, and it ends too.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_choose_another_server() {
        let flags = ["--server", "-s", "--context"];
        for (line, expected) in [
            ("pelton dev", false),
            ("pelton dev --server nats://x", true),
            ("pelton -s x dev", true),
            ("pelton dev -sx", true),
            ("pelton dev --context=prod", true),
            ("pelton dev --servers", false),
        ] {
            let words = line.split(' ').map(str::to_owned);
            assert_eq!(given(words, &flags), expected, "{line}");
        }
    }
}
