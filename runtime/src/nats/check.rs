//! What the server must be able to do, asked once at start: a node that finds out later has already taken events.

use async_nats::jetstream::context::AccountErrorKind;
use semver::Version;

use super::{NatsError, jetstream};
use crate::names::MIN_SERVER;

/// Refuses a server that is older than [`crate::names::MIN_SERVER`] or has no JetStream.
///
/// # Errors
/// Says which version was found, which is needed and what to do.
pub async fn check_server(client: &async_nats::Client) -> Result<(), NatsError> {
    let info = client.server_info();
    let place = format!("{}:{}", info.host, info.port);
    check_version(&info.version).map_err(|why| NatsError(format!("NATS at {place}: {why}")))?;

    match jetstream(client).query_account().await {
        Ok(_) => Ok(()),
        Err(error) => Err(NatsError(match error.kind() {
            AccountErrorKind::JetStreamUnavailable | AccountErrorKind::JetStream(_) => format!(
                "NATS at {place} has no JetStream for this account ({error}); start nats-server with -js, or enable JetStream for the account"
            ),
            AccountErrorKind::TimedOut => format!(
                "JetStream of NATS at {place} did not answer in time; check that its cluster has a leader (`nats server report jetstream`) and that this user may publish to $JS.API.>"
            ),
            AccountErrorKind::Other => {
                format!(
                    "JetStream of NATS at {place} cannot be asked: {error}; check the server's log"
                )
            }
        })),
    }
}

/// Refuses a version older than [`crate::names::MIN_SERVER`]; a pre-release is older than its release.
///
/// # Errors
/// Says which version was found, which is needed and what to do.
pub fn check_version(found: &str) -> Result<Version, NatsError> {
    let version = Version::parse(found.trim().trim_start_matches('v')).map_err(|_| {
        NatsError(format!(
            "nats-server version `{found}` cannot be understood; Pelton needs {MIN_SERVER} or newer"
        ))
    })?;
    if version < MIN_SERVER {
        return Err(NatsError(format!(
            "nats-server {version} is too old, Pelton needs {MIN_SERVER} or newer; upgrade it (https://github.com/nats-io/nats-server/releases)"
        )));
    }
    Ok(version)
}
