//! Contexts that the `nats` CLI saved: `~/.config/nats/context/<name>.json`, the selected one named in `context.txt`.
//!
//! What a context asks for and Pelton cannot do is refused rather than left out: a connection that ignores half of
//! its settings reaches the wrong place.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConnectOptions, DEFAULT_SERVER, NatsError};

/// What is needed to connect, from options and context together.
#[derive(Default)]
pub(super) struct Resolved {
    /// URLs, comma separated.
    pub(super) server: String,
    /// Name of the context that took part.
    pub(super) context: Option<String>,
    /// User name, or token when there is no password.
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) token: Option<String>,
    pub(super) creds: Option<PathBuf>,
    pub(super) nkey: Option<PathBuf>,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) tls_ca: Option<PathBuf>,
    pub(super) tls_first: bool,
    pub(super) inbox_prefix: Option<String>,
}

/// A context file. Fields that do not concern a connection (description, colours) are passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    url: String,
    user: String,
    password: String,
    token: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    tls_first: bool,
    inbox_prefix: String,
    nsc: String,
    user_jwt: String,
    user_seed: String,
    socks_proxy: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    windows_cert_store: String,
}

/// Folder of the `nats` CLI's settings: `$XDG_CONFIG_HOME/nats`, else `~/.config/nats`.
pub fn config_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = match var("XDG_CONFIG_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(var("HOME")?).join(".config"),
    };
    Some(base.join("nats"))
}

/// What the context says that these options name, or else the selected one, with its name; none: there is none.
///
/// # Errors
/// It does not exist, cannot be read, or asks for what Pelton does not do.
pub fn saved(options: &ConnectOptions) -> Result<Option<(String, ConnectOptions)>, NatsError> {
    saved_in(options, config_dir().as_deref())
}

fn saved_in(
    options: &ConnectOptions,
    dir: Option<&Path>,
) -> Result<Option<(String, ConnectOptions)>, NatsError> {
    let Some((name, path)) = chosen(options, dir)? else {
        return Ok(None);
    };
    let file = read(&name, &path)?;
    Ok(Some((name, file.options())))
}

/// Options over context over default.
pub(super) fn resolve(options: &ConnectOptions, dir: Option<&Path>) -> Result<Resolved, NatsError> {
    let (name, context) = match saved_in(options, dir)? {
        Some((name, context)) => (Some(name), context),
        None => (None, ConnectOptions::default()),
    };
    let all = options.clone().over(context);
    Ok(Resolved {
        server: all.server.unwrap_or_else(|| DEFAULT_SERVER.into()),
        context: name,
        user: all.user,
        password: all.password,
        token: all.token,
        creds: all.creds,
        nkey: all.nkey,
        tls_cert: all.tls_cert,
        tls_key: all.tls_key,
        tls_ca: all.tls_ca,
        tls_first: all.tls_first.unwrap_or_default(),
        inbox_prefix: all.inbox_prefix,
    })
}

impl File {
    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            server: given(&self.url),
            context: None,
            no_context: false,
            user: given(&self.user),
            password: given(&self.password),
            token: given(&self.token),
            creds: path(&self.creds),
            nkey: path(&self.nkey),
            tls_cert: path(&self.cert),
            tls_key: path(&self.key),
            tls_ca: path(&self.ca),
            tls_first: self.tls_first.then_some(true),
            inbox_prefix: given(&self.inbox_prefix),
            ..ConnectOptions::default()
        }
    }
}

/// The context asked for, else the selected one.
fn chosen(
    options: &ConnectOptions,
    dir: Option<&Path>,
) -> Result<Option<(String, PathBuf)>, NatsError> {
    if let Some(asked) = &options.context {
        let as_path = Path::new(asked);
        if as_path.components().count() > 1 || asked.ends_with(".json") {
            return Ok(Some((asked.clone(), as_path.to_owned())));
        }
        return named(asked, dir, "").map(Some);
    }
    if options.no_context {
        return Ok(None);
    }
    let selected = dir
        .and_then(|dir| std::fs::read_to_string(dir.join("context.txt")).ok())
        .map(|text| text.trim().to_owned())
        .filter(|name| !name.is_empty());
    match selected {
        Some(name) => named(&name, dir, "selected ").map(Some),
        None => Ok(None),
    }
}

fn named(name: &str, dir: Option<&Path>, kind: &str) -> Result<(String, PathBuf), NatsError> {
    let folder = dir.map(|dir| dir.join("context"));
    let file = folder.as_ref().map(|dir| dir.join(format!("{name}.json")));
    if let Some(file) = file.filter(|file| !name.contains(['/', '\\']) && file.is_file()) {
        return Ok((name.to_owned(), file));
    }
    let known = folder.as_deref().map(known).unwrap_or_default();
    let known = if known.is_empty() {
        "no context is saved".to_owned()
    } else {
        format!("saved are {}", known.join(", "))
    };
    let place = folder.map_or_else(
        || "(no home directory)".into(),
        |dir| dir.display().to_string(),
    );
    Err(NatsError(format!(
        "{kind}context `{name}` does not exist in {place}: {known}; make it with `nats context add {name}`, or name the server with --server"
    )))
}

/// Names of saved contexts, sorted.
fn known(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_suffix(".json")?.to_owned())
        })
        .collect();
    names.sort();
    names
}

fn read(name: &str, path: &Path) -> Result<File, NatsError> {
    let text = std::fs::read_to_string(path).map_err(|why| {
        NatsError(format!(
            "context `{name}` cannot be read from {}: {why}",
            path.display()
        ))
    })?;
    let file: File = serde_json::from_str(&text).map_err(|why| {
        NatsError(format!(
            // Not `why` itself, which shows the value that it stumbled over: it may be a password.
            "context `{name}` in {} is malformed at line {}, column {}; mend it with `nats context edit {name}`",
            path.display(),
            why.line(),
            why.column()
        ))
    })?;
    refuse_unsupported(name, &file)?;
    Ok(file)
}

fn refuse_unsupported(name: &str, file: &File) -> Result<(), NatsError> {
    for (field, value, instead) in [
        (
            "nsc",
            &file.nsc,
            "export the user with `nsc generate creds` and pass --creds FILE",
        ),
        (
            "user_jwt",
            &file.user_jwt,
            "put the JWT and its seed into a credentials file and pass --creds FILE",
        ),
        (
            "user_seed",
            &file.user_seed,
            "put the seed into a file and pass --nkey FILE",
        ),
        (
            "socks_proxy",
            &file.socks_proxy,
            "name a server that is reached directly with --server",
        ),
        (
            "jetstream_domain",
            &file.jetstream_domain,
            "connect to a server of that domain with --server",
        ),
        (
            "jetstream_api_prefix",
            &file.jetstream_api_prefix,
            "connect with a user of the account that owns the streams",
        ),
        (
            "windows_cert_store",
            &file.windows_cert_store,
            "export the certificate and pass --tls-cert and --tls-key",
        ),
    ] {
        if !value.is_empty() {
            return Err(NatsError(format!(
                "context `{name}` sets `{field}`, which Pelton does not support; {instead}"
            )));
        }
    }
    for (field, value) in [
        ("creds", &file.creds),
        ("nkey", &file.nkey),
        ("token", &file.token),
        ("password", &file.password),
    ] {
        if ["op://", "nsc://", "env://", "data:", "file://"]
            .iter()
            .any(|scheme| value.starts_with(scheme))
        {
            return Err(NatsError(format!(
                "context `{name}` has `{field}` behind a URL, which Pelton does not look up; pass --creds, --nkey, or --user and --password"
            )));
        }
    }
    Ok(())
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A path, with `~` for the home directory.
fn path(text: &str) -> Option<PathBuf> {
    let text = given(text)?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(text.into()),
    }
}
