//! Logging in. Files, contexts and settings that hold a secret are read again for every connection,
//! since they may have
//! been renewed: a sidecar replaces short-lived credentials long before their node restarts.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Auth, AuthError, ServerAddr};
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;

use super::connect::file;
use super::context::{Resolved, config_dir, resolve};
use super::{ConnectOptions, NatsError, urls};

/// Reads the connection settings again, for a login that is kept where this library does not look:
/// a node's file.
#[derive(Clone, Default)]
pub struct Renewal(Option<Arc<Reread>>);

type Reread = dyn Fn() -> Result<ConnectOptions, NatsError> + Send + Sync;

impl Renewal {
    /// Calls `reread` before every connection. An error keeps the login that was read last.
    pub fn new(
        reread: impl Fn() -> Result<ConnectOptions, NatsError> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(reread)))
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }
}

/// How a login is renewed is no setting: it does not tell connections apart.
impl PartialEq for Renewal {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Renewal {}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").finish_non_exhaustive()
    }
}

/// What proves who connects.
#[derive(Clone)]
enum Secret {
    Nothing,
    Password(String, String),
    Token(String),
    Creds(String, Arc<KeyPair>),
    Nkey(Arc<KeyPair>),
}

/// A connection's login, renewed whenever it connects.
pub(super) struct Login {
    options: ConnectOptions,
    kept: Mutex<Kept>,
}

struct Kept {
    /// The last one that could be read.
    secret: Secret,
    /// Whether the log says already that it cannot be read now.
    said: bool,
}

impl Login {
    /// Reads the login for the first time.
    ///
    /// # Errors
    /// A file is missing or malformed.
    pub(super) fn read(
        options: &ConnectOptions,
        resolved: &Resolved,
        servers: &[ServerAddr],
    ) -> Result<Self, NatsError> {
        let kept = Kept {
            secret: secret(resolved, servers)?,
            said: false,
        };
        Ok(Self {
            options: options.clone(),
            kept: Mutex::new(kept),
        })
    }

    /// Options whose connections all use this login.
    pub(super) fn settings(self) -> async_nats::ConnectOptions {
        let login = Arc::new(self);
        async_nats::ConnectOptions::with_auth_callback(move |nonce| {
            let login = login.clone();
            async move {
                // Files may lie on a network.
                let secret = tokio::task::spawn_blocking(move || login.renewed()).await;
                secret.map_err(AuthError::new)?.prove(&nonce)
            }
        })
    }

    /// The login as it is now, or the last good one: a file may be half written at this moment.
    fn renewed(&self) -> Secret {
        let read = self.reread();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(secret) => {
                *kept = Kept {
                    secret,
                    said: false,
                }
            }
            Err(error) if !std::mem::replace(&mut kept.said, true) => {
                tracing::warn!(%error, "the login cannot be read again; the last good one is used");
            }
            Err(_) => {}
        }
        kept.secret.clone()
    }

    fn reread(&self) -> Result<Secret, NatsError> {
        let again = self.options.renewal.0.as_ref().map(|reread| reread());
        let options = again.transpose()?;
        let options = options.as_ref().unwrap_or(&self.options);
        let resolved = resolve(options, config_dir().as_deref())?;
        secret(&resolved, &urls::servers(&resolved.server)?)
    }
}

impl Secret {
    /// What the server is told, `nonce` signed where there is a key.
    fn prove(self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        match self {
            Self::Nothing => {}
            Self::Password(user, password) => {
                auth.username = Some(user);
                auth.password = Some(password);
            }
            Self::Token(token) => auth.token = Some(token),
            Self::Creds(jwt, key) => {
                auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
            }
            Self::Nkey(key) => {
                auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
                auth.nkey = Some(key.public_key());
            }
        }
        Ok(auth)
    }

    /// A user without a password is a token, as in the `nats` CLI.
    fn of_user(user: String, password: Option<String>) -> Self {
        match password {
            Some(password) => Self::Password(user, password),
            None => Self::Token(user),
        }
    }
}

/// One way to log in, in the order in which the `nats` CLI looks for it.
fn secret(resolved: &Resolved, servers: &[ServerAddr]) -> Result<Secret, NatsError> {
    if let Some(user) = &resolved.user {
        return Ok(Secret::of_user(user.clone(), resolved.password.clone()));
    }
    if let Some(path) = &resolved.creds {
        return creds(path);
    }
    if let Some(path) = &resolved.nkey {
        return nkey(path);
    }
    if let Some(token) = &resolved.token {
        return Ok(Secret::Token(token.clone()));
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let in_url = servers
        .iter()
        .find_map(|server| Some((server.username()?, server.password())));
    Ok(in_url.map_or(Secret::Nothing, |(user, password)| {
        Secret::of_user(decoded(user), password.map(decoded))
    }))
}

fn creds(path: &Path) -> Result<Secret, NatsError> {
    let text = file("credentials file", "--creds", path)?;
    let malformed = |what: &str| {
        NatsError(format!(
            "credentials file {} is malformed: it holds no {what}; generate it again with `nsc generate creds`",
            path.display()
        ))
    };
    let mut sections = sections(&text);
    let jwt = sections.next().ok_or_else(|| malformed("user JWT"))?;
    let seed = sections.next().ok_or_else(|| malformed("user NKey seed"))?;
    let key = KeyPair::from_seed(seed).map_err(|_| malformed("valid user NKey seed"))?;
    Ok(Secret::Creds(jwt.to_owned(), Arc::new(key)))
}

/// What stands alone on a line between two that begin and end with dashes.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let dashes = |line: &str| line.len() > 6 && line.starts_with("---") && line.ends_with("---");
    let found: Vec<&str> = lines
        .windows(3)
        .filter_map(|three| match three {
            [begin, line, end] if dashes(begin) && dashes(end) => Some(*line),
            _ => None,
        })
        .filter(|line| !line.is_empty() && !dashes(line))
        .collect();
    found.into_iter()
}

fn nkey(path: &Path) -> Result<Secret, NatsError> {
    let text = file("NKey seed file", "--nkey", path)?;
    let seed = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("SU"));
    let key = seed.and_then(|seed| KeyPair::from_seed(seed).ok());
    match key {
        Some(key) => Ok(Secret::Nkey(Arc::new(key))),
        None => Err(NatsError(format!(
            "NKey seed file {} holds no user seed (a line that begins with SU); make one with `nk -gen user`",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that holds an NKey seed, and a login that reads it.
    fn login() -> (tempfile::TempDir, std::path::PathBuf, Login) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.nk");
        std::fs::write(&path, KeyPair::new_user().seed().unwrap()).unwrap();
        let options = ConnectOptions {
            nkey: Some(path.clone()),
            ..ConnectOptions::to("nats://h")
        };
        let resolved = resolve(&options, None).unwrap();
        let login = Login::read(&options, &resolved, &[]).unwrap();
        (folder, path, login)
    }

    fn shown(login: &Login) -> String {
        login.renewed().prove(b"nonce").unwrap().nkey.unwrap()
    }

    #[test]
    fn a_renewed_seed_is_read_and_a_half_written_one_is_not_used() {
        let (_folder, path, login) = login();
        let first = shown(&login);
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        for broken in ["", &seed[..20], "SUAnonsense"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(shown(&login), first, "{broken:?}");
            assert!(login.kept.lock().unwrap().said);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(shown(&login), first);
        std::fs::write(&path, seed).unwrap();
        assert_eq!(shown(&login), key.public_key());
        assert!(!login.kept.lock().unwrap().said);
    }

    #[test]
    fn a_context_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let context = |password: &str| {
            let text = format!(r#"{{"url":"nats://h","user":"me","password":"{password}"}}"#);
            std::fs::write(&path, text).unwrap();
        };
        context("old");
        let options = ConnectOptions {
            context: Some(path.display().to_string()),
            ..ConnectOptions::default()
        };
        let resolved = resolve(&options, None).unwrap();
        let login = Login::read(&options, &resolved, &[]).unwrap();
        let password = || login.renewed().prove(b"").unwrap().password;
        assert_eq!(password().as_deref(), Some("old"));
        context("new");
        assert_eq!(password().as_deref(), Some("new"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(password().as_deref(), Some("new"));
    }

    #[test]
    fn settings_are_asked_for_again() {
        let asked = Mutex::new(["b", "a"].to_vec());
        let options = ConnectOptions {
            renewal: Renewal::new(move || match asked.lock().unwrap().pop() {
                Some(token) => Ok(ConnectOptions {
                    token: Some(token.into()),
                    ..ConnectOptions::to("nats://h")
                }),
                None => Err(NatsError("gone".into())),
            }),
            ..ConnectOptions::to("nats://h")
        };
        let login = Login::read(&options, &Resolved::default(), &[]).unwrap();
        let tokens = [(); 3].map(|()| login.renewed().prove(b"").unwrap().token.unwrap());
        assert_eq!(tokens, ["a", "b", "b"]);
    }

    #[test]
    fn credentials_files_hold_a_jwt_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\r\neyJ.a-b_c.d\r\n------END NATS USER JWT------\r\n\r\n\
            ***** IMPORTANT *****\r\n-----BEGIN USER NKEY SEED-----\r\nSUABC\r\n------END USER NKEY SEED------\r\n";
        let found: Vec<&str> = sections(text).collect();
        assert_eq!(found, ["eyJ.a-b_c.d", "SUABC"]);
        // Cut off anywhere, it is not taken for a whole one.
        let ends = text.rfind("SEED------").unwrap();
        for length in 0..ends {
            assert!(sections(&text[..length]).count() < 2, "{length}");
        }
    }
}
