//! The one list of a node's settings: the page about them is made of it, `--print-config` follows it, and tests hold it
//! against the parser of the file and against the flags.

use clap::{Command, CommandFactory};

use crate::cli::Cli;

/// A setting of a node.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// In the file, dotted.
    pub key: &'static str,
    /// Of the argument of `pelton run`, which knows flag and variable.
    pub id: &'static str,
    /// Type, unit and limits.
    pub kind: &'static str,
    /// What counts when nobody gives it.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn key(
    key: &'static str,
    id: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        key,
        id,
        kind,
        default,
        meaning,
    }
}

/// All of them, as the page lists them.
pub const KEYS: [Key; 22] = [
    key(
        "name",
        "name",
        "text, 1 to 255 characters",
        "the machine's name",
        "the node's name in listings",
    ),
    key(
        "apps",
        "app",
        "list of app names",
        "all of the account",
        "serve only these; as a flag repeated, as a variable separated by commas",
    ),
    key(
        "drain",
        "drain",
        "duration, up to 1h",
        "10s",
        "how long running attempts may take to finish when the node stops",
    ),
    key(
        "cache",
        "cache",
        "folder",
        "`pelton/components` in the user's cache folder",
        "where compiled components are kept; may be deleted at any time",
    ),
    key(
        "max-instances",
        "max_instances",
        "number, 1 to 100000",
        "512",
        "instances at once, over all functions",
    ),
    key(
        "max-memory",
        "max_memory",
        "size, 1MiB to 4GiB",
        "256MiB",
        "most memory that a function may ask for; the node reserves address space for that much in every instance",
    ),
    key(
        "http",
        "http",
        "IP address and port",
        "nowhere",
        "where the node shows metrics and health ([metrics.md](metrics.md)); there is no login: give a private address",
    ),
    key(
        "log.level",
        "log_level",
        "filter: `error`, `warn`, `info`, `debug`, `trace`, or `TARGET=LEVEL,…`",
        "`info,async_nats=warn`",
        "which log lines the node prints",
    ),
    key(
        "log.format",
        "log_format",
        "`text` or `json`",
        "`text`",
        "how they look: for people, or one JSON object per line",
    ),
    key(
        "nats.server",
        "server",
        "URLs, separated by commas",
        "the context's, else `nats://127.0.0.1:4222`",
        "where NATS is: `nats://`, `tls://`, `ws://`, `wss://`",
    ),
    key(
        "nats.context",
        "context",
        "name, or a file's path",
        "the one that `nats context select` chose",
        "a saved context of the `nats` CLI, which fills in what is not given here",
    ),
    key(
        "nats.user",
        "user",
        "text, **secret** when alone",
        "none",
        "user; without a password it is a token",
    ),
    key(
        "nats.password",
        "password",
        "text, **secret**",
        "none",
        "the user's password",
    ),
    key("nats.token", "token", "text, **secret**", "none", "token"),
    key(
        "nats.creds",
        "creds",
        "file",
        "none",
        "credentials: a user's JWT and its seed",
    ),
    key("nats.nkey", "nkey", "file", "none", "seed of an NKey"),
    key(
        "nats.tls-cert",
        "tls_cert",
        "file, PEM",
        "none",
        "client certificate, where the server asks for one",
    ),
    key("nats.tls-key", "tls_key", "file, PEM", "none", "its key"),
    key(
        "nats.tls-ca",
        "tls_ca",
        "file, PEM",
        "what the system trusts",
        "certificates to trust instead; makes TLS a must",
    ),
    key(
        "nats.tls-first",
        "tls_first",
        "`true` or `false`",
        "`false`",
        "TLS before the server says anything (its `handshake_first`)",
    ),
    key(
        "nats.inbox-prefix",
        "inbox_prefix",
        "subject",
        "`_INBOX`",
        "prefix of the subjects on which answers come",
    ),
    key(
        "nats.timeout",
        "timeout",
        "duration, up to 10m",
        "5s",
        "how long a request waits for its answer",
    ),
];

/// Flag and variable of an argument of `pelton run`, as they are typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    /// With its dashes.
    pub flag: String,
    /// Name of the variable.
    pub variable: String,
}

/// How each key is typed, in the order of [`KEYS`]; what has no flag or no variable is left empty.
pub fn typed() -> Vec<(Key, Typed)> {
    let mut cli = Cli::command();
    // Global arguments reach a subcommand only then.
    cli.build();
    let run = cli.find_subcommand("run");
    KEYS.iter()
        .map(|key| (*key, typed_of(run, key.id)))
        .collect()
}

fn typed_of(run: Option<&Command>, id: &str) -> Typed {
    let arg = run.and_then(|run| run.get_arguments().find(|arg| arg.get_id() == id));
    // Where there are two spellings, the one that is like the key.
    let aliases = arg
        .and_then(clap::Arg::get_visible_aliases)
        .unwrap_or_default();
    let long = aliases
        .first()
        .copied()
        .or_else(|| arg.and_then(clap::Arg::get_long));
    let variable = arg.and_then(clap::Arg::get_env);
    Typed {
        flag: long.map(|long| format!("--{long}")).unwrap_or_default(),
        variable: variable
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pelton_runtime::config::node_keys;

    use super::*;

    #[test]
    fn the_file_knows_these_keys_and_no_others() {
        let listed: BTreeSet<String> = KEYS.iter().map(|key| key.key.to_owned()).collect();
        let read: BTreeSet<String> = node_keys().into_iter().collect();
        assert_eq!(listed, read);
        assert_eq!(listed.len(), KEYS.len(), "one is listed twice");
    }

    #[test]
    fn each_has_a_flag_and_a_variable_of_its_own() {
        let mut taken = BTreeSet::new();
        for (key, typed) in typed() {
            assert!(!typed.flag.is_empty(), "{} has no flag", key.key);
            assert!(!typed.variable.is_empty(), "{} has no variable", key.key);
            assert!(taken.insert(typed.flag), "{}", key.key);
            assert!(taken.insert(typed.variable), "{}", key.key);
        }
    }

    #[test]
    fn run_takes_no_setting_that_is_not_listed() {
        let mut cli = Cli::command();
        cli.build();
        let run = cli.find_subcommand("run").unwrap();
        // How this one invocation reads and prints, and what is every command's.
        let not_settings = [
            "config",
            "print_config",
            "file",
            "environment",
            "json",
            "help",
            "version",
        ];
        for arg in run.get_arguments() {
            let id = arg.get_id().as_str();
            let listed = KEYS.iter().any(|key| key.id == id);
            assert!(listed || not_settings.contains(&id), "{id} is in no list");
        }
    }
}
