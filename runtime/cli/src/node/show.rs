//! `pelton run --print-config`: what counts, and who said so. Secrets are hidden.

use std::path::PathBuf;

use clap::ValueEnum;
use pelton_runtime::config::show_size;
use pelton_runtime::nats::{self, ConnectOptions, DEFAULT_SERVER, REQUEST_TIMEOUT, without_logins};
use schemars::JsonSchema;
use serde::Serialize;

use super::Node;
use super::keys::{self, Typed};
use super::layers::{Setting, Source};
use crate::output::Output;

/// In the place of a secret.
const HIDDEN: &str = "(hidden)";

/// What `pelton run --print-config --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeSettings {
    /// The node's file; none: there is none.
    pub file: Option<PathBuf>,
    /// All settings.
    pub settings: Vec<Shown>,
}

/// One setting.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Shown {
    /// Its key in the file, dotted.
    pub key: String,
    /// What counts, as the file would say it, lists separated by commas; none: nothing. Secrets are `(hidden)`.
    pub value: Option<String>,
    /// Who said so.
    pub source: Source,
    /// Where: line of the file, name of the variable, flag, or context.
    pub place: Option<String>,
}

/// The settings of a node that would start now.
///
/// # Errors
/// The context that takes part cannot be used.
pub fn settings(node: &Node) -> anyhow::Result<NodeSettings> {
    let mut layers = node.layers.clone();
    let context = nats::saved(&node.nats)?;
    let context = context.map(|(name, options)| {
        layers.push((Source::Context, options));
        name
    });
    let nats = super::laid(&layers);
    let shown = keys::typed().into_iter().map(|(key, typed)| {
        let (value, source) = match key.key.strip_prefix("nats.") {
            Some(name) => connection(name, &nats, &layers),
            None => own(key.key, node),
        };
        Shown {
            place: place(node, key.key, &typed, source, context.as_deref()),
            key: key.key.to_owned(),
            value,
            source,
        }
    });
    Ok(NodeSettings {
        settings: shown.collect(),
        file: node.file.as_ref().map(|file| file.file().to_owned()),
    })
}

/// As a table for people.
pub fn text(settings: &NodeSettings, output: &Output) -> String {
    let rows = settings.settings.iter().map(|shown| {
        let source = match shown.source {
            Source::Default => "default",
            Source::Context => "context",
            Source::File => "file",
            Source::Environment => "environment",
            Source::Flag => "flag",
        };
        vec![
            shown.key.clone(),
            shown.value.clone().unwrap_or_default(),
            source.to_owned(),
            shown.place.clone().unwrap_or_default(),
        ]
    });
    output.table(&["KEY", "VALUE", "FROM", "PLACE"], rows.collect())
}

fn place(
    node: &Node,
    key: &str,
    typed: &Typed,
    source: Source,
    context: Option<&str>,
) -> Option<String> {
    match source {
        Source::Default => None,
        Source::Context => context.map(str::to_owned),
        Source::File => {
            let file = node.file.as_ref()?;
            let (line, _) = file.locate(key)?;
            Some(format!("{}:{line}", file.file().display()))
        }
        Source::Environment => Some(typed.variable.clone()),
        Source::Flag => Some(typed.flag.clone()),
    }
}

/// A setting that is not of the connection.
fn own(key: &str, node: &Node) -> (Option<String>, Source) {
    fn said<T>(setting: &Setting<T>, text: impl FnOnce(&T) -> String) -> (Option<String>, Source) {
        let text = text(&setting.value);
        ((!text.is_empty()).then_some(text), setting.source)
    }
    match key {
        "name" => said(&node.name, Clone::clone),
        "apps" => said(&node.apps, |apps| apps.join(",")),
        "drain" => said(&node.drain, |drain| {
            humantime::format_duration(*drain).to_string()
        }),
        "cache" => said(&node.cache, |folder| folder.display().to_string()),
        "max-instances" => said(&node.max_instances, ToString::to_string),
        "max-memory" => said(&node.max_memory, |bytes| show_size(*bytes)),
        "http" => said(&node.http, |http| {
            http.map_or_else(String::new, |at| at.to_string())
        }),
        "log.level" => said(&node.log_level, Clone::clone),
        "log.format" => said(&node.log_format, |format| {
            let value = format.to_possible_value();
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        }),
        _ => (None, Source::Default),
    }
}

/// A setting of the connection: of the strongest layer that has what counts.
fn connection(
    name: &str,
    counts: &ConnectOptions,
    layers: &[(Source, ConnectOptions)],
) -> (Option<String>, Source) {
    let value = plain(name, counts);
    if value.is_none() {
        let usual = match name {
            "server" => Some(DEFAULT_SERVER.to_owned()),
            "tls-first" => Some("false".to_owned()),
            "timeout" => Some(humantime::format_duration(REQUEST_TIMEOUT).to_string()),
            _ => None,
        };
        return (usual, Source::Default);
    }
    let has_it = layers
        .iter()
        .find(|(_, layer)| plain(name, layer) == value)
        .map_or(Source::Default, |(source, _)| *source);
    // A user without a password is a token.
    let secret =
        matches!(name, "password" | "token") || name == "user" && counts.password.is_none();
    let shown = match value {
        Some(_) if secret => Some(HIDDEN.to_owned()),
        Some(list) if name == "server" => Some(without_logins(&list)),
        value => value,
    };
    (shown, has_it)
}

/// Whether these options have this setting.
#[cfg(test)]
pub fn is_given(name: &str, from: &ConnectOptions) -> bool {
    plain(name, from).is_some()
}

fn plain(name: &str, from: &ConnectOptions) -> Option<String> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    match name {
        "server" => from.server.clone(),
        "context" => from.context.clone(),
        "user" => from.user.clone(),
        "password" => from.password.clone(),
        "token" => from.token.clone(),
        "creds" => path(&from.creds),
        "nkey" => path(&from.nkey),
        "tls-cert" => path(&from.tls_cert),
        "tls-key" => path(&from.tls_key),
        "tls-ca" => path(&from.tls_ca),
        "tls-first" => from.tls_first.map(|first| first.to_string()),
        "inbox-prefix" => from.inbox_prefix.clone(),
        "timeout" => from
            .timeout
            .map(|wait| humantime::format_duration(wait).to_string()),
        _ => None,
    }
}
