//! Making the connection, and saying in one line why there is none.
//!
//! The first connection is bounded: a person waits for it. After that the client reconnects for ever, with a bounded
//! delay: a node outlives its server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{ConnectErrorKind, Event, ServerAddr, ServerError};
use percent_encoding::percent_decode_str;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::Breaks;
use super::context::{Resolved, config_dir, resolve};
use super::{ConnectOptions, Denials, Denied, NatsError};

/// How long the first connection may take; below the 3 s after which every command has said what is wrong.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(2500);
/// How long a request waits for its answer: one that was in flight when the connection broke is not answered.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one address may take, so that another one of the list has its turn.
const ADDRESS_LIMIT: Duration = Duration::from_secs(2);
/// Delay before the first attempt to reconnect, and the longest one.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// In the place of a login.
const HIDDEN: &str = "(hidden)";

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
    let settings = client_settings(name, watch, refusals);
    let settings = authenticate(settings, &resolved, &servers)?;
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

fn client_settings(
    name: &str,
    watch: ClientWatch,
    refusals: Refusals,
) -> async_nats::ConnectOptions {
    let breaks = watch.breaks.clone();
    let lost = AtomicBool::new(false);
    async_nats::ConnectOptions::new()
        .name(name)
        .connection_timeout(ADDRESS_LIMIT)
        .request_timeout(Some(REQUEST_TIMEOUT))
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
fn log(event: &Event, lost: &AtomicBool, refusals: &Refusals) {
    match event {
        Event::Connected if lost.swap(false, Ordering::Relaxed) => {
            tracing::info!("connected to NATS again");
        }
        Event::Connected => tracing::debug!("connected to NATS"),
        Event::Disconnected => {
            lost.store(true, Ordering::Relaxed);
            tracing::warn!("connection to NATS lost; reconnecting");
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

fn servers(list: &str) -> Result<Vec<ServerAddr>, NatsError> {
    let servers = list
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(|url| {
            url.parse::<ServerAddr>()
                .ok()
                .filter(|server| !server.host().is_empty())
                .ok_or_else(|| {
                    NatsError(format!(
                        "server URL `{}` is malformed; write it as nats://HOST:PORT (or tls://, ws://, wss://)",
                        after_login(url)
                    ))
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        return Err(NatsError(
            "the server URL is empty; pass --server nats://HOST:PORT, or leave it out for nats://127.0.0.1:4222".into(),
        ));
    }
    Ok(servers)
}

/// A URL that did not parse may still hold a password, which belongs in no message.
fn after_login(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, host)| host)
}

/// A list of server URLs as it may be shown: what stands for a login in them is not.
pub fn without_logins(list: &str) -> String {
    let shown: Vec<String> = list
        .split(',')
        .map(str::trim)
        .map(|url| match (url.split_once("://"), after_login(url)) {
            (Some((scheme, _)), host) if host != url => format!("{scheme}://{HIDDEN}@{host}"),
            (None, host) if host != url => format!("{HIDDEN}@{host}"),
            _ => url.to_owned(),
        })
        .collect();
    shown.join(",")
}

/// Where we connect to, for messages.
fn place(servers: &[ServerAddr], context: Option<&str>) -> String {
    let list: Vec<String> = servers
        .iter()
        .map(|server| {
            format!(
                "{}://{}:{}",
                server.scheme(),
                bracketed(server.host()),
                server.port()
            )
        })
        .collect();
    let list = list.join(",");
    match context {
        Some(name) => format!("{list} (context `{name}`)"),
        None => list,
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// The client does not use a login within the URL; it is taken out so that no log shows it.
fn without_login(server: ServerAddr) -> ServerAddr {
    let mut url = server.clone().into_inner();
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return server;
    }
    ServerAddr::from_url(url).unwrap_or(server)
}

/// One way to log in, in the order in which the `nats` CLI looks for it.
fn authenticate(
    settings: async_nats::ConnectOptions,
    resolved: &Resolved,
    servers: &[ServerAddr],
) -> Result<async_nats::ConnectOptions, NatsError> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if let Some(user) = &resolved.user {
        return Ok(login(settings, user.clone(), resolved.password.clone()));
    }
    if let Some(path) = &resolved.creds {
        let text = file("credentials file", "--creds", path)?;
        return settings.credentials(&text).map_err(|why| {
            NatsError(format!(
                "credentials file {} is malformed: {why}; make it anew with `nsc generate creds`",
                path.display()
            ))
        });
    }
    if let Some(path) = &resolved.nkey {
        let seed = file("NKey seed file", "--nkey", path)?;
        let seed = seed
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with("SU"));
        return match seed {
            Some(seed) => Ok(settings.nkey(seed.to_owned())),
            None => Err(NatsError(format!(
                "NKey seed file {} holds no user seed (a line that begins with SU); make one with `nk -gen user`",
                path.display()
            ))),
        };
    }
    if let Some(token) = &resolved.token {
        return Ok(settings.token(token.clone()));
    }
    let in_url = servers
        .iter()
        .find_map(|server| Some((server.username()?, server.password())));
    match in_url {
        Some((user, password)) => Ok(login(settings, decoded(user), password.map(decoded))),
        None => Ok(settings),
    }
}

/// A user without a password is a token, as in the `nats` CLI.
fn login(
    settings: async_nats::ConnectOptions,
    user: String,
    password: Option<String>,
) -> async_nats::ConnectOptions {
    match password {
        Some(password) => settings.user_and_password(user, password),
        None => settings.token(user),
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

fn file(what: &str, flag: &str, path: &Path) -> Result<String, NatsError> {
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
        _ if is_refused(error) => format!(
            "no NATS server at {place} (connection refused); start nats-server there, run `pelton dev`, or name another server with --server or --context"
        ),
        _ => format!("cannot connect to NATS at {place}: {cause}; check --server or the context"),
    }
}

/// What to do about a TLS connection that was not made, by what rustls says of it.
fn tls_fix(cause: &str, resolved: &Resolved) -> &'static str {
    let client = resolved.tls_cert.is_some();
    if cause.contains("certificate or key") {
        "the client certificate and its key do not fit each other, or the certificate is no X.509 v3"
    } else if cause.contains("InvalidContentType") && resolved.tls_first {
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
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string().replace(['\r', '\n'], " ")
}

fn io_cause(error: &async_nats::ConnectError) -> Option<&std::io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn is_refused(error: &async_nats::ConnectError) -> bool {
    io_cause(error).is_some_and(|why| why.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn is_tls(error: &async_nats::ConnectError) -> bool {
    let wrapped = io_cause(error)
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| inner.is::<async_nats::rustls::Error>());
    wrapped || error.kind() == ConnectErrorKind::Tls
}
