//! `pelton schema` (hidden): the JSON schemas of everything that `--json` prints, as `docs/schemas` publishes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use pelton_runtime::control::{call, dead_letters, functions, logs, publish, state, versions};
use pelton_runtime::records::NodeRecord;
use schemars::{Schema, schema_for};

use crate::global::Global;

/// Write the JSON schemas of all output
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton schema docs/schemas")]
pub struct SchemaArgs {
    /// The folder to write to. Default: print them as one JSON object.
    folder: Option<PathBuf>,
}

/// Writes or prints the schemas.
pub async fn run(args: SchemaArgs, global: &Global) -> anyhow::Result<()> {
    let Some(folder) = args.folder else {
        return global.output().document(&schemas(), |all| {
            serde_json::to_string_pretty(all).unwrap_or_default()
        });
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made", folder.display()))?;
    for (name, schema) in schemas() {
        let path = folder.join(format!("{name}.json"));
        std::fs::write(&path, file(&schema)?)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// By the command that prints it.
fn schemas() -> BTreeMap<&'static str, Schema> {
    BTreeMap::from([
        ("new", schema_for!(super::new::Created)),
        ("add", schema_for!(super::new::Created)),
        ("vendor", schema_for!(super::vendor::Vendored)),
        ("build", schema_for!(Vec<super::build::BuiltFunction>)),
        ("check", schema_for!(super::check::CheckReport)),
        ("dev", schema_for!(super::dev::DevEvent)),
        (
            "run-print-config",
            schema_for!(crate::node::show::NodeSettings),
        ),
        ("deploy", schema_for!(super::deploy::DeployReport)),
        ("rollback", schema_for!(super::rollback::RollbackReport)),
        ("rollout", schema_for!(super::rollout::RolloutStatus)),
        ("publish", schema_for!(publish::Published)),
        ("call", schema_for!(call::Called)),
        ("logs", schema_for!(logs::LogRecord)),
        ("function-ls", schema_for!(Vec<functions::FunctionStatus>)),
        ("function-pause", schema_for!(super::hold::ControlReport)),
        ("function-resume", schema_for!(super::hold::ControlReport)),
        ("function-reset", schema_for!(super::reset::ResetReport)),
        ("function-rm", schema_for!(super::remove::RemovalReport)),
        ("function-set", schema_for!(super::hold::ControlReport)),
        ("node-ls", schema_for!(Vec<NodeRecord>)),
        ("node-drain", schema_for!(NodeRecord)),
        (
            "function-versions",
            schema_for!(Vec<versions::VersionStatus>),
        ),
        ("function-info", schema_for!(functions::FunctionInfo)),
        ("state-ls", schema_for!(Vec<state::Key>)),
        ("state-get", schema_for!(super::state::StateEntry)),
        ("state-put", schema_for!(super::state::StateChange)),
        ("state-del", schema_for!(super::state::StateChange)),
        ("state-watch", schema_for!(super::state::StateEntry)),
        ("dead-letter-ls", schema_for!(Vec<dead_letters::DeadLetter>)),
        (
            "dead-letter-show",
            schema_for!(dead_letters::WholeDeadLetter),
        ),
        (
            "dead-letter-replay",
            schema_for!(super::dead_letter::ReplayReport),
        ),
        (
            "dead-letter-rm",
            schema_for!(super::dead_letter::RemovalReport),
        ),
    ])
}

fn file(schema: &Schema) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(schema)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schemas_are_current() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/schemas"));
        for (name, schema) in schemas() {
            let path = folder.join(format!("{name}.json"));
            let published = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                published == file(&schema).unwrap(),
                "{} is out of date; run `cargo run --release -p pelton -- schema docs/schemas`",
                path.display()
            );
        }
    }
}
