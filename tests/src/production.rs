//! `deploy/nats` as it stands: its accounts, roles and cluster, on ports of this machine and with passwords filled in.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::build;
use crate::pelton::Pelton;
use crate::server::NatsServer;

/// Users of `accounts.conf`, each called by its role.
const USERS: [&str; 7] = [
    "node", "deployer", "operator", "reader", "producer", "caller", "system",
];

/// What servers of a cluster tell each other.
const ROUTE_PASSWORD: &str = "routeSecret1";

/// The password that a server started here has for a user.
pub fn password(user: &str) -> String {
    format!("{user}Secret1")
}

/// Where answers to a role come.
pub fn inbox(role: &str) -> String {
    format!("_INBOX_{role}")
}

/// One server with the accounts and roles of `deploy/nats`. `change` gets the text of `permissions.conf`, for what that tells its reader
/// to change.
///
/// # Errors
/// It does not come up.
pub async fn single(change: impl Fn(String) -> String) -> Result<NatsServer> {
    let folder = tempfile::tempdir()?;
    copy("accounts.conf", folder.path(), |text| text)?;
    copy("permissions.conf", folder.path(), change)?;
    std::fs::write(
        folder.path().join("server.conf"),
        "include \"accounts.conf\"\n",
    )?;
    let servers = NatsServer::configured(vec![(folder, variables("single"))]).await?;
    servers.into_iter().next().context("no server")
}

/// The three servers of `server.conf`.
///
/// # Errors
/// One of them does not come up.
pub async fn cluster() -> Result<Vec<NatsServer>> {
    let names = ["nats-1", "nats-2", "nats-3"];
    // Held until all are known, so that they differ.
    let listeners = names.map(|_| TcpListener::bind("127.0.0.1:0"));
    let mut ports = Vec::new();
    for listener in listeners {
        ports.push(listener?.local_addr()?.port());
    }
    let routes = ports
        .iter()
        .map(|port| format!("nats://route:{ROUTE_PASSWORD}@127.0.0.1:{port}"));
    let routes: Vec<String> = routes.collect();
    let mut servers: Vec<(TempDir, Vec<(String, String)>)> = Vec::new();
    for (name, own) in names.iter().zip(&ports) {
        let folder = tempfile::tempdir()?;
        for file in ["accounts.conf", "permissions.conf"] {
            copy(file, folder.path(), |text| text)?;
        }
        copy("server.conf", folder.path(), |text| {
            let text = text.replace("0.0.0.0:6222", &format!("127.0.0.1:{own}"));
            // Where it stores is told to the server by a flag here.
            let text = text.replace("store_dir: \"/var/lib/nats\"", "");
            text.replace("127.0.0.1:8222", "127.0.0.1:-1")
        })?;
        let mut variables = variables(name);
        variables.push(("PELTON_ROUTES".to_owned(), format!("{routes:?}")));
        servers.push((folder, variables));
    }
    NatsServer::configured(servers).await
}

/// Commands in `folder` as the user that has this role.
///
/// # Errors
/// No temporary folder can be made.
pub fn pelton(url: &str, folder: &Path, role: &str) -> Result<Pelton> {
    let mut pelton = Pelton::new(url, folder)?;
    pelton.set_env("NATS_USER", role);
    pelton.set_env("NATS_PASSWORD", password(role));
    pelton.set_env("NATS_INBOX_PREFIX", inbox(role));
    Ok(pelton)
}

/// What the files read from the environment.
fn variables(name: &str) -> Vec<(String, String)> {
    let passwords = USERS.iter().map(|user| {
        let variable = format!("PELTON_{}_PASSWORD", user.to_uppercase());
        (variable, password(user))
    });
    let own = [
        ("PELTON_SERVER_NAME", name),
        ("PELTON_ROUTE_PASSWORD", ROUTE_PASSWORD),
    ];
    let own = own.map(|(variable, value)| (variable.to_owned(), value.to_owned()));
    passwords.chain(own).collect()
}

fn copy(file: &str, to: &Path, change: impl Fn(String) -> String) -> Result<()> {
    let path = build::root()?.join("deploy/nats").join(file);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(!text.is_empty(), "{} is empty", path.display());
    Ok(std::fs::write(to.join(file), change(text))?)
}
