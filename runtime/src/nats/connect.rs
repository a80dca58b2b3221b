//! Making the connection, and saying in one line why there is none.
//!
//! The first connection is bounded: a person waits for it. After that the client reconnects for ever, with a bounded
//! delay: a node outlives its server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{ConnectErrorKind, Event, ServerAddr, ServerError};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::Breaks;
use super::context::{Resolved, config_dir, resolve};
use super::login::Login;
use super::urls::{place, servers, without_login};
use super::{ConnectOptions, Denials, Denied, NatsError};

/// How long the first connection may take; below the 3 s after which every command has said what is wrong.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(2500);
/// How long a request waits for its answer unless the options say otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one address may take, so that another one of the list has its turn.
const ADDRESS_LIMIT: Duration = Duration::from_secs(2);
/// Delay before the first attempt to reconnect, and the longest one.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// Connects within 3 s or says why not.
///
/// # Errors
/// Unreachable, refused, a context or file that is missing or malformed.
pub async fn connect(
    options: &ConnectOptions,
    name: &str,
) -> Result<async_nats::Client, NatsError> {
    let breaks = Breaks::default();
    let (client, _) = connect_watched(options, name, &breaks).await?;
    Ok(client)
}

/// Connects, and tells when the client's connection task has ended: the token is cancelled then.
/// Each break of the connection is counted in `breaks`.
pub(super) async fn connect_watched(
    options: &ConnectOptions,
    name: &str,
    breaks: &Breaks,
) -> Result<(async_nats::Client, CancellationToken), NatsError> {
    let resolved = resolve(options, config_dir().as_deref())?;
    let servers = servers(&resolved.server)?;
    let place = place(&servers, resolved.context.as_deref());
    let connected = Arc::new(AtomicBool::new(false));
    let refusals = Refusals {
        denials: options.denials.clone(),
        place: place.clone(),
        // Without a password it is a token, which belongs in no message.
        user: resolved.password.as_ref().and(resolved.user.clone()),
    };
    let ended = CancellationToken::new();
    let watch = ClientWatch {
        first_done: Arc::clone(&connected),
        breaks: breaks.clone(),
        _ended: ended.clone().drop_guard(),
    };
    let settings = Login::read(options, &resolved, &servers)?.settings();
    let settings = settings.request_timeout(Some(options.timeout.unwrap_or(REQUEST_TIMEOUT)));
    let settings = client_settings(settings, name, watch, refusals);
    let settings = encrypt(settings, &resolved)?;
    let in_url = servers.iter().any(|server| server.username().is_some());
    let addresses: Vec<ServerAddr> = servers.into_iter().map(without_login).collect();

    let attempt = tokio::time::timeout(CONNECT_LIMIT, settings.connect(addresses)).await;
    let client = match attempt {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(NatsError(explain(&error, &place, &resolved, in_url))),
        Err(_) => return Err(NatsError(no_answer(&place))),
    };
    connected.store(true, Ordering::Relaxed);
    Ok((client, ended))
}

/// What the client's connection task owns, and so drops when it ends, however it ends.
struct ClientWatch {
    /// Whether the first connection was made.
    first_done: Arc<AtomicBool>,
    breaks: Breaks,
    _ended: DropGuard,
}

/// Where what the server does not permit is kept, and what is said with it.
struct Refusals {
    denials: Denials,
    place: String,
    user: Option<String>,
}

/// How often a connection was lost, and whether it is lost now.
struct Losses {
    connection: String,
    now: AtomicBool,
    times: AtomicU64,
}

fn client_settings(
    settings: async_nats::ConnectOptions,
    name: &str,
    watch: ClientWatch,
    refusals: Refusals,
) -> async_nats::ConnectOptions {
    let breaks = watch.breaks.clone();
    let lost = Losses {
        connection: name.to_owned(),
        now: AtomicBool::new(false),
        times: AtomicU64::new(0),
    };
    settings
        .name(name)
        .connection_timeout(ADDRESS_LIMIT)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| {
            // All of it is to live as long as the connection task, not only what is used here.
            let watch = &watch;
            if watch.first_done.load(Ordering::Relaxed) {
                reconnect_delay(attempt)
            } else {
                Duration::ZERO
            }
        })
        .event_callback(move |event| {
            if event == Event::Disconnected {
                breaks.count_one();
            }
            log(&event, &lost, &refusals);
            std::future::ready(())
        })
}

/// Doubling, with jitter, so that the nodes of a cluster do not come back in one instant.
pub(super) fn reconnect_delay(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let bound = RECONNECT_MIN
        .saturating_mul(2u32.saturating_pow(doublings))
        .min(RECONNECT_MAX);
    bound
        .mul_f64(0.5 + fastrand::f64() / 2.0)
        .max(RECONNECT_MIN)
}

/// That the first connection was made is for its caller to say, or why it is of no use: this comes at any moment after.
fn log(event: &Event, lost: &Losses, refusals: &Refusals) {
    let Losses {
        connection,
        now,
        times,
    } = lost;
    match event {
        Event::Connected if now.swap(false, Ordering::Relaxed) => {
            tracing::info!(connection, "connected to NATS again");
        }
        Event::Connected => tracing::debug!("connected to NATS"),
        Event::Disconnected => {
            now.store(true, Ordering::Relaxed);
            let times = times.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(connection, times, "connection to NATS lost; reconnecting");
        }
        Event::LameDuckMode => tracing::info!("NATS server is about to stop; moving to another"),
        Event::SlowConsumer(id) => {
            tracing::warn!(subscription = id, "messages were dropped: slow consumer")
        }
        Event::ServerError(ServerError::Other(said)) => {
            let Refusals {
                denials,
                place,
                user,
            } = refusals;
            match Denied::read(said, place, user.as_deref()) {
                Some(denied) => denials.note(denied),
                None => tracing::warn!(error = said, "NATS server reported an error"),
            }
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS server reported an error"),
        Event::ClientError(error) => tracing::warn!(%error, "NATS client reported an error"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
    }
}

fn encrypt(
    mut settings: async_nats::ConnectOptions,
    resolved: &Resolved,
) -> Result<async_nats::ConnectOptions, NatsError> {
    if let Some(ca) = &resolved.tls_ca {
        pem("CA certificate", "--tls-ca", ca, "CERTIFICATE")?;
        settings = settings.add_root_certificates(ca.clone()).require_tls(true);
    }
    match (&resolved.tls_cert, &resolved.tls_key) {
        (Some(cert), Some(key)) => {
            pem("client certificate", "--tls-cert", cert, "CERTIFICATE")?;
            pem("client key", "--tls-key", key, "PRIVATE KEY")?;
            settings = settings
                .add_client_certificate(cert.clone(), key.clone())
                .require_tls(true);
        }
        (None, None) => {}
        (Some(_), None) => {
            return Err(NatsError(
                "a client certificate is given without its key; pass --tls-key FILE too".into(),
            ));
        }
        (None, Some(_)) => {
            return Err(NatsError(
                "a client key is given without its certificate; pass --tls-cert FILE too".into(),
            ));
        }
    }
    if resolved.tls_first {
        settings = settings.tls_first();
    }
    if let Some(prefix) = &resolved.inbox_prefix {
        settings = settings.custom_inbox_prefix(prefix);
    }
    Ok(settings)
}

/// A file that holds at least one block of this kind.
fn pem(what: &str, flag: &str, path: &Path, kind: &str) -> Result<(), NatsError> {
    let text = file(what, flag, path)?;
    let begins = |line: &str| line.starts_with("-----BEGIN") && line.contains(kind);
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(NatsError(format!(
        "{what} {} holds no {kind} in PEM; check {flag} or the context",
        path.display()
    )))
}

pub(super) fn file(what: &str, flag: &str, path: &Path) -> Result<String, NatsError> {
    std::fs::read_to_string(path).map_err(|why| {
        NatsError(format!(
            "{what} {} cannot be read: {why}; check {flag} or the context",
            path.display()
        ))
    })
}

fn no_answer(place: &str) -> String {
    format!(
        "NATS at {place} did not answer within {} s; check the address and that no firewall is in between, name another server with --server, or pass --tls-first if it begins with TLS (`handshake_first`)",
        CONNECT_LIMIT.as_secs_f32()
    )
}

/// What went wrong, where, and what to do. `in_url`: a login was given within a URL.
fn explain(
    error: &async_nats::ConnectError,
    place: &str,
    resolved: &Resolved,
    in_url: bool,
) -> String {
    let cause = cause(error);
    match error.kind() {
        ConnectErrorKind::TimedOut => no_answer(place),
        ConnectErrorKind::Dns => format!(
            "the host name of NATS at {place} cannot be resolved: {cause}; check --server or the context"
        ),
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            let given = if resolved.user.is_some() || resolved.token.is_some() {
                "the user, password or token is wrong"
            } else if resolved.creds.is_some() || resolved.nkey.is_some() {
                "the credentials are unknown there, revoked or expired"
            } else if in_url {
                "the user, password or token in its URL is wrong"
            } else {
                "it asks for a login"
            };
            format!(
                "NATS at {place} refused the login: {given}; pass --creds FILE, --nkey FILE, --token, or --user and --password, or a --context that has them"
            )
        }
        _ if is_tls(error) => format!(
            "no TLS connection to NATS at {place}: {cause}; {}",
            tls_fix(&cause, resolved)
        ),
        // A server that waits for TLS gives up on who waits for its greeting.
        _ if cause.contains("got nothing") => no_answer(place),
        _ if cause.contains("101 Switching Protocols") => format!(
            "no websocket at {place}: {cause}; name the server with wss:// in --server where its websocket has TLS, and check the port"
        ),
        _ if is_refused(error) => format!(
            "no NATS server at {place} (connection refused); start nats-server there, run `pelton dev`, or name another server with --server or --context"
        ),
        _ => format!("cannot connect to NATS at {place}: {cause}; check --server or the context"),
    }
}

/// What to do about a TLS connection that was not made, by what rustls says of it.
fn tls_fix(cause: &str, resolved: &Resolved) -> &'static str {
    let client = resolved.tls_cert.is_some();
    if cause.contains("CaUsedAsEndEntity") {
        "the server presents the certificate of an authority (CA:TRUE, what `openssl req -x509` makes), which may sign others but not stand for a server: have it sign one for the server, or make a self-signed one with `openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=HOST -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:HOST` (for an address, IP:ADDRESS), and pass that with --tls-ca"
    } else if cause.contains("InvalidContentType")
        && !resolved.tls_first
        && resolved.tls_ca.is_some()
    {
        "the server does not offer TLS: leave out --tls-ca, --tls-cert and --tls-key, and name it with nats:// in --server"
    } else if cause.contains("InvalidContentType") && !resolved.tls_first {
        "the server does not offer TLS: name it with nats:// (or ws://) in --server"
    } else if cause.contains("certificate or key") {
        "the client certificate and its key do not fit each other, or the certificate is no X.509 v3"
    } else if cause.contains("InvalidContentType") {
        "the server does not begin with TLS: leave out --tls-first"
    } else if cause.contains("UnknownIssuer") {
        "no authority that is trusted here signed the server's certificate: pass the certificate of the one that did with --tls-ca"
    } else if cause.contains("NotValidForName") {
        "the server's certificate is for another name: name the server as its certificate does"
    } else if cause.contains("alert: CertificateRequired") || cause.contains("alert") && !client {
        "the server asks for a client certificate: pass --tls-cert and --tls-key"
    } else if cause.contains("alert") {
        "the server refuses the client certificate: pass one with --tls-cert and --tls-key that an authority it trusts has signed"
    } else {
        "pass the server's CA with --tls-ca, and --tls-cert and --tls-key if it asks for a client certificate"
    }
}

/// The innermost cause, on one line.
fn cause(error: &async_nats::ConnectError) -> String {
    let inner = causes(error).last().map(ToString::to_string);
    inner.unwrap_or_default().replace(['\r', '\n'], " ")
}

/// An error and what caused it, down to the first cause. Input and output errors hide theirs.
fn causes<'a>(
    error: &'a async_nats::ConnectError,
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| {
        let hidden = error.downcast_ref::<std::io::Error>();
        let hidden = hidden.and_then(std::io::Error::get_ref);
        match hidden {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

fn is_refused(error: &async_nats::ConnectError) -> bool {
    let refused = std::io::ErrorKind::ConnectionRefused;
    let mut ios = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    ios.any(|why| why.kind() == refused)
}

fn is_tls(error: &async_nats::ConnectError) -> bool {
    let by_tls = causes(error).any(|cause| cause.is::<async_nats::rustls::Error>());
    by_tls || error.kind() == ConnectErrorKind::Tls
}
