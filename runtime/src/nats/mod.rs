//! Reaching NATS: connection settings and contexts as the `nats` CLI has them, and what the server must be able to do.

mod check;
mod connect;
mod context;
mod headers;

use std::path::PathBuf;

pub use check::{check_server, check_version};
pub use connect::{CONNECT_LIMIT, REQUEST_TIMEOUT, connect};
pub use context::config_dir;
pub(crate) use headers::{header_map, headers};

/// Where NATS is when nobody says otherwise.
pub const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// How to connect; what is none comes from the context, then from the default `nats://127.0.0.1:4222`.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// URLs, comma separated.
    pub server: Option<String>,
    /// Name of a saved context of the `nats` CLI, or a path to its file; none: the selected one, if any.
    pub context: Option<String>,
    /// Leave the selected context alone.
    pub no_context: bool,
    /// User name, or token when there is no password.
    pub user: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// NKey seed file.
    pub nkey: Option<PathBuf>,
    /// Client certificate, PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Roots to trust, PEM.
    pub tls_ca: Option<PathBuf>,
    /// Begin with TLS, before the server says anything.
    pub tls_first: bool,
    /// Prefix of the subjects on which answers come.
    pub inbox_prefix: Option<String>,
}

impl ConnectOptions {
    /// This server and nothing else: no context, no credentials but those in the URL.
    pub fn to(server: impl Into<String>) -> Self {
        Self {
            server: Some(server.into()),
            no_context: true,
            ..Self::default()
        }
    }
}

/// Why NATS cannot be used: what, where, how to fix it; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NatsError(pub String);

#[cfg(test)]
mod tests;
