//! Options that every subcommand takes: where NATS is, which manifest, how to print.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::BoolishValueParser;
use pelton_runtime::config::{self, Manifest};
use pelton_runtime::control::functions;
use pelton_runtime::nats::{self, ConnectOptions, Denials};

use crate::node::layers::{Given, Source};
use crate::output::{Output, failure};

/// Under which the help lists the other options of every command.
pub const GLOBAL_HEADING: &str = "Global options";

/// Options of every subcommand.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Where NATS is.
    #[command(flatten)]
    pub connection: Connection,
    /// The manifest; default: pelton.toml in this folder or the nearest one above.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = GLOBAL_HEADING
    )]
    pub file: Option<PathBuf>,
    /// Lay [env.NAME] of the manifest over it.
    #[arg(
        long = "env",
        global = true,
        value_name = "NAME",
        help_heading = GLOBAL_HEADING
    )]
    pub environment: Option<String>,
    /// Print JSON: one document, or one line per item where output goes on.
    #[arg(long, global = true, help_heading = GLOBAL_HEADING)]
    pub json: bool,
    /// Which of all arguments were given, and how.
    #[arg(skip)]
    pub given: Given,
    /// What the server does not permit to this command's connections.
    #[arg(skip)]
    pub denials: Denials,
}

/// Under which the help lists how to connect, when it is asked for all.
pub const CONNECTION_HEADING: &str = "Connection (as for the nats CLI)";

/// Connection flags and variables, as the `nats` CLI has them.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = CONNECTION_HEADING)]
pub struct Connection {
    /// Server URLs, comma separated; default: the context's, else nats://127.0.0.1:4222.
    #[arg(
        long,
        short,
        global = true,
        env = "NATS_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub server: Option<String>,
    /// Saved context of the nats CLI, or the path of its file.
    #[arg(long, global = true, env = "NATS_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// User name; a token when there is no password.
    #[arg(
        long,
        global = true,
        env = "NATS_USER",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub user: Option<String>,
    /// Password.
    #[arg(
        long,
        global = true,
        env = "NATS_PASSWORD",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub password: Option<String>,
    /// Token.
    #[arg(
        long,
        global = true,
        env = "NATS_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub token: Option<String>,
    /// Credentials file.
    #[arg(long, global = true, env = "NATS_CREDS", value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// NKey seed file.
    #[arg(long, global = true, env = "NATS_NKEY", value_name = "FILE")]
    pub nkey: Option<PathBuf>,
    /// Client certificate, PEM.
    #[arg(
        long = "tlscert",
        visible_alias = "tls-cert",
        global = true,
        env = "NATS_CERT",
        value_name = "FILE"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Key of the client certificate, PEM.
    #[arg(
        long = "tlskey",
        visible_alias = "tls-key",
        global = true,
        env = "NATS_KEY",
        value_name = "FILE"
    )]
    pub tls_key: Option<PathBuf>,
    /// Certificates to trust, PEM.
    #[arg(
        long = "tlsca",
        visible_alias = "tls-ca",
        global = true,
        env = "NATS_CA",
        value_name = "FILE"
    )]
    pub tls_ca: Option<PathBuf>,
    /// Begin with TLS, before the server says anything (`handshake_first` of the server).
    #[arg(
        long = "tlsfirst",
        visible_alias = "tls-first",
        global = true,
        env = "PELTON_TLS_FIRST",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    pub tls_first: Option<bool>,
    /// Prefix of the subjects on which answers come.
    #[arg(long, global = true, env = "NATS_INBOX_PREFIX", value_name = "PREFIX")]
    pub inbox_prefix: Option<String>,
    /// How long to wait for the answer to a request, up to 10m; default: 5s.
    #[arg(
        long,
        global = true,
        env = "NATS_TIMEOUT",
        value_name = "DURATION",
        value_parser = config::node_timeout
    )]
    pub timeout: Option<Duration>,
}

impl Global {
    /// How to print.
    pub fn output(&self) -> Output {
        Output::new(self.json)
    }

    /// What `pelton_runtime::nats::connect` takes: flags over variables.
    pub fn connect_options(&self) -> ConnectOptions {
        self.layer(Source::Flag)
            .over(self.layer(Source::Environment))
    }

    /// What was given by flags alone, or by variables alone.
    pub fn layer(&self, source: Source) -> ConnectOptions {
        let from = self.connection.clone();
        let text = |id, value| self.given.by::<String>(source, id, value);
        let path = |id, value| self.given.by::<PathBuf>(source, id, value);
        ConnectOptions {
            server: text("server", from.server),
            context: text("context", from.context),
            no_context: false,
            user: text("user", from.user),
            password: text("password", from.password),
            token: text("token", from.token),
            creds: path("creds", from.creds),
            nkey: path("nkey", from.nkey),
            tls_cert: path("tls_cert", from.tls_cert),
            tls_key: path("tls_key", from.tls_key),
            tls_ca: path("tls_ca", from.tls_ca),
            tls_first: self.given.by(source, "tls_first", from.tls_first),
            inbox_prefix: text("inbox_prefix", from.inbox_prefix),
            timeout: self.given.by(source, "timeout", from.timeout),
            denials: self.denials.clone(),
            ..ConnectOptions::default()
        }
    }

    /// A connection to a server that can do what Pelton needs; within 3 s or an error of one line.
    pub async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        connect(&self.connect_options()).await
    }

    /// Where the manifest is: `--file`, else the nearest `pelton.toml` upwards.
    pub fn manifest_path(&self) -> anyhow::Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        here.ancestors()
            .map(|folder| folder.join("pelton.toml"))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                failure(
                    format!("no pelton.toml in {} or any folder above it", here.display()),
                    "change to the app's folder, give --file PATH, or start an app with `pelton new NAME`",
                )
            })
    }

    /// The manifest, checked; every error in it is in the message.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        let path = self.manifest_path()?;
        Manifest::load(&path, self.environment.as_deref()).map_err(|errors| {
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!(all.join("\n"))
        })
    }
}

/// Much of it is secret: a user may be a token, a URL may hold a login.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A connection to a server that can do what Pelton needs; within 3 s or an error of one line.
pub async fn connect(options: &ConnectOptions) -> anyhow::Result<async_nats::Client> {
    let client = nats::connect(options, "pelton").await?;
    nats::check_server(&client).await?;
    Ok(client)
}

impl Global {
    /// The manifest's app, when there is a manifest that can be read.
    pub fn manifest_app(&self) -> Option<String> {
        self.manifest_path().ok()?;
        self.manifest().ok().map(|manifest| manifest.app)
    }

    /// The app that a command is about: the one named, else the manifest's, else the only one that is deployed.
    pub async fn app(
        &self,
        named: Option<String>,
        js: &async_nats::jetstream::Context,
    ) -> anyhow::Result<String> {
        if let Some(app) = named {
            return Ok(app);
        }
        if self.file.is_some() || self.manifest_path().is_ok() {
            return Ok(self.manifest()?.app);
        }
        let mut apps = functions::apps(js).await?;
        match (apps.pop(), apps.is_empty()) {
            (Some(app), true) => Ok(app),
            (None, _) => Err(failure(
                "no app is deployed here and there is no pelton.toml",
                "run `pelton deploy` in an app's folder, or give --app NAME",
            )),
            (Some(last), false) => Err(failure(
                format!("which app? There are {}, {last}", apps.join(", ")),
                "give --app NAME, or run this in the app's folder",
            )),
        }
    }
}
