//! Reaching NATS: connection settings and contexts as the `nats` CLI has them, and what the server must be able to do.

mod answer;
mod check;
mod connect;
mod connection;
mod context;
mod denied;
mod full;
pub(crate) mod gets;
mod headers;
mod login;
pub(crate) mod raw;
pub(crate) mod tail;
mod urls;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use answer::jetstream;
pub(crate) use answer::{answered, connects};
pub use check::{check_server, check_version};
pub use connect::{CONNECT_LIMIT, REQUEST_TIMEOUT, connect};
pub use connection::Connection;
pub use context::{config_dir, saved};
pub use denied::{Denials, Denied};
pub(crate) use full::{consumer_refused, is_full};
pub(crate) use headers::{append, header_map, header_value, headers};
pub use login::Renewal;
pub use urls::without_logins;

/// Where NATS is when nobody says otherwise.
pub const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// How to connect; what is none comes from the context, then from the default `nats://127.0.0.1:4222`.
#[derive(Clone, Default, PartialEq, Eq)]
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
    /// Roots to trust, PEM.
    pub tls_ca: Option<PathBuf>,
    /// Begin with TLS, before the server says anything; none: as the context says, else not.
    pub tls_first: Option<bool>,
    /// Prefix of the subjects on which answers come.
    pub inbox_prefix: Option<String>,
    /// How long a request waits for its answer; none: [`REQUEST_TIMEOUT`].
    pub timeout: Option<Duration>,
    /// Reads these again before each connection, for the login; none: files and context are read
    /// again as they are named here.
    pub renewal: Renewal,
    /// Where it is kept what the server does not permit.
    pub denials: Denials,
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

    /// These, and what they leave open from `below`.
    ///
    /// A login counts as a whole: whoever names one (a user, a token, credentials, a seed) takes nothing of another
    /// one's. Only a password that stands alone belongs to whichever user there is, as where a file names the user and
    /// a variable the password.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let password = if self.names_login() && below.names_login() {
            self.password.clone()
        } else {
            self.password.clone().or(below.password.clone())
        };
        let login = if self.names_login() { &self } else { &below };
        Self {
            user: login.user.clone(),
            password,
            token: login.token.clone(),
            creds: login.creds.clone(),
            nkey: login.nkey.clone(),
            server: self.server.or(below.server),
            context: self.context.or(below.context),
            no_context: self.no_context || below.no_context,
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            tls_ca: self.tls_ca.or(below.tls_ca),
            tls_first: self.tls_first.or(below.tls_first),
            inbox_prefix: self.inbox_prefix.or(below.inbox_prefix),
            timeout: self.timeout.or(below.timeout),
            renewal: self.renewal.or(below.renewal),
            denials: self.denials,
        }
    }

    fn names_login(&self) -> bool {
        self.user.is_some() || self.token.is_some() || self.creds.is_some() || self.nkey.is_some()
    }
}

/// Says nothing that could be a secret: a user may be a token, a URL may hold a login.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("server", &self.server.as_deref().map(without_logins))
            .field("context", &self.context)
            .field("creds", &self.creds)
            .field("nkey", &self.nkey)
            .finish_non_exhaustive()
    }
}

/// Why NATS cannot be used: what, where, how to fix it; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NatsError(pub String);

#[cfg(test)]
mod tests;
