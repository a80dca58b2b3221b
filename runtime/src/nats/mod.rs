//! Reaching NATS: connection settings and contexts as the `nats` CLI has them, and what the server must be able to do.

use std::path::PathBuf;

/// How to connect; what is none comes from the context, then from the default `nats://127.0.0.1:4222`.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// URLs, comma separated.
    pub server: Option<String>,
    /// Name of a saved context of the `nats` CLI, or a path to its file.
    pub context: Option<String>,
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
}

/// Why NATS cannot be used: what, where, how to fix it; one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NatsError(pub String);

/// Connects within 3 s or says why not.
///
/// # Errors
/// Unreachable, refused, a context or file that is missing or malformed.
pub async fn connect(
    _options: &ConnectOptions,
    _name: &str,
) -> Result<async_nats::Client, NatsError> {
    Err(NatsError("not built yet".into()))
}

/// Refuses a server that is older than [`crate::names::MIN_SERVER`] or has no JetStream.
///
/// # Errors
/// Says which version was found, which is needed and what to do.
pub async fn check_server(_client: &async_nats::Client) -> Result<(), NatsError> {
    Err(NatsError("not built yet".into()))
}
