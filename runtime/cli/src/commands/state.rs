//! `pelton state`: the app's keys and values.

use clap::{Args, Subcommand};
use futures::StreamExt;
use pelton_runtime::control::state::{Entry, Key, State};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;

use super::publish::body;
use crate::global::Global;
use crate::zone::local_time;

/// Read and write an app's state
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton state ls orders\n  pelton state get orders.o-1\n  \
    pelton state put orders.o-1 '{\"status\":\"paid\"}'\n  pelton state watch orders"
)]
pub struct StateArgs {
    /// Whose state. Default: the manifest's app, else the only one there is.
    #[arg(long, global = true, value_name = "NAME")]
    app: Option<String>,
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// List keys
    #[command(after_help = "Examples:\n  pelton state ls\n  pelton state ls orders --json")]
    Ls {
        /// Only keys below these tokens: `orders` finds orders.o-1.
        prefix: Option<String>,
    },
    /// Print a key's value; exit 1 when it does not exist
    #[command(
        after_help = "Examples:\n  pelton state get orders.o-1\n  pelton state get orders.o-1 --json"
    )]
    Get {
        /// The key.
        key: String,
    },
    /// Create or replace a key
    #[command(
        after_help = "Examples:\n  pelton state put orders.o-1 '{\"status\":\"paid\"}'\n  \
        pelton state put orders.o-1 @order.json"
    )]
    Put {
        /// The key.
        key: String,
        /// The value: text, @FILE, or - for standard input.
        value: String,
    },
    /// Delete a key
    #[command(after_help = "Examples:\n  pelton state del orders.o-1")]
    Del {
        /// The key.
        key: String,
    },
    /// Print values and then every change of them
    #[command(after_help = "Examples:\n  pelton state watch\n  pelton state watch orders --json")]
    Watch {
        /// Only keys below these tokens.
        prefix: Option<String>,
    },
}

/// A key and its value.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StateEntry {
    /// The key.
    pub key: String,
    /// The value, when it is JSON or other UTF-8 text; a deleted key has none.
    pub value: Option<serde_json::Value>,
    /// The value's bytes, when they are no text, one number each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// Whether this is a deletion.
    pub deleted: bool,
    /// Its revision.
    pub revision: u64,
    /// When it was written, RFC 3339.
    pub updated_at: String,
    /// When it expires, RFC 3339; none: it does not, or that is not known.
    pub expires_at: Option<String>,
}

/// What `put` and `del` answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StateChange {
    /// The key.
    pub key: String,
    /// The new revision; none for a deletion.
    pub revision: Option<u64>,
}

/// Runs one of its subcommands.
pub async fn run(args: StateArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.connect().await?;
    let js = nats::jetstream(&client);
    let app = global.app(args.app, &js).await?;
    let state = State::open(&js, &app).await?;
    let output = global.output();
    match args.command {
        StateCommand::Ls { prefix } => {
            let keys = state.list(prefix.as_deref()).await?;
            output.document(&keys, |keys| {
                output.table(
                    &["KEY", "REVISION", "BYTES", "UPDATED", "EXPIRES"],
                    keys.iter().map(row).collect(),
                )
            })
        }
        StateCommand::Get { key } => {
            let entry = state.get(&key).await?;
            if output.is_json() {
                return output.document(&shown(entry), |_| String::new());
            }
            output.raw(&entry.value.unwrap_or_default())
        }
        StateCommand::Put { key, value } => {
            let revision = state.put(&key, body(&value).await?).await?;
            let change = StateChange {
                key,
                revision: Some(revision),
            };
            output.document(&change, |change| {
                format!("{} is at revision {revision}", change.key)
            })
        }
        StateCommand::Del { key } => {
            state.delete(&key).await?;
            let change = StateChange {
                key,
                revision: None,
            };
            output.document(&change, |change| format!("{} is deleted", change.key))
        }
        StateCommand::Watch { prefix } => {
            let mut entries = state.watch(prefix.as_deref());
            while let Some(entry) = entries.next().await {
                output.item(&shown(entry?), line)?;
            }
            anyhow::bail!("the watch ended: the connection to NATS is gone")
        }
    }
}

fn row(key: &Key) -> Vec<String> {
    vec![
        key.key.clone(),
        key.revision.to_string(),
        key.bytes.to_string(),
        local_time(&key.updated_at),
        key.expires_at
            .as_deref()
            .map(local_time)
            .unwrap_or_default(),
    ]
}

fn shown(entry: Entry) -> StateEntry {
    let deleted = entry.value.is_none();
    let bytes = entry.value.unwrap_or_default();
    let value = match (deleted, std::str::from_utf8(&bytes)) {
        (true, _) | (_, Err(_)) => None,
        (false, Ok(text)) => {
            Some(serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::from(text)))
        }
    };
    StateEntry {
        key: entry.key,
        bytes: (value.is_none() && !deleted).then(|| bytes.to_vec()),
        value,
        deleted,
        revision: entry.revision,
        updated_at: entry.updated_at,
        expires_at: entry.expires_at,
    }
}

fn line(entry: &StateEntry) -> String {
    let value = match (&entry.value, &entry.bytes) {
        (Some(serde_json::Value::String(text)), _) => text.clone(),
        (Some(value), _) => value.to_string(),
        (None, Some(bytes)) => format!("({} bytes)", bytes.len()),
        (None, None) => "(deleted)".into(),
    };
    format!(
        "{} {} @{} {value}",
        local_time(&entry.updated_at),
        entry.key,
        entry.revision
    )
}
