//! `pelton add`: one more function for an app: its crate, and its section at the end of `pelton.toml`, whose
//! other lines stay as they are. Either all of it works or nothing has changed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use pelton_runtime::config::Manifest;
use pelton_runtime::event::subject::covers;

use super::build;
use super::new::names::{Subject, ensure_name, stream_name};
use super::new::scaffold::{self, Scaffold};
use super::new::{Created, Language};
use crate::global::Global;

/// Add a function to this app: a crate with a test, and its section in pelton.toml
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton add payments\n  pelton add mailer --subject 'orders.*.paid'\n  \
    pelton add report --subject schedule.tick"
)]
pub struct AddArgs {
    /// The function, its crate and its folder below functions/
    function: String,
    /// What its handler takes; default: FUNCTION.*.created. `schedule.tick`: the ticks of a
    /// schedule
    #[arg(long, value_name = "PATTERN")]
    subject: Option<String>,
    /// Folder of the crate pelton-sdk; default: the workspace's dependency
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
    /// Language of the function
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

/// Runs the subcommand.
pub async fn run(args: AddArgs, global: &Global) -> anyhow::Result<()> {
    ensure_name(&args.function)?;
    let Language::Rust = args.lang;
    let file = global.manifest_path()?;
    let manifest = global.manifest()?;
    ensure!(
        !manifest.functions.contains_key(&args.function),
        "{} has a function {:?} already\n  fix: take another name",
        file.display(),
        args.function
    );
    let pattern = args
        .subject
        .unwrap_or_else(|| format!("{}.*.created", args.function));
    let subject = Subject::new(&pattern)?;
    let scaffold = Scaffold {
        app: &manifest.app,
        function: &args.function,
        subject: &subject,
        sdk: args.sdk.as_deref(),
    };
    let dependency = match args.sdk.as_deref() {
        Some(folder) => scaffold::sdk_dependency(Some(folder))?,
        None => "{ workspace = true }".to_owned(),
    };
    let files = scaffold.crate_files(&dependency)?;
    let sections = sections(&manifest, &scaffold)?;
    let folder = manifest.root.join("functions").join(&args.function);
    scaffold::write(&folder, &files)?;
    let before = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    if let Err(error) = extend(&file, &before, &sections, &folder, global).await {
        std::fs::remove_dir_all(&folder)
            .and_then(|()| std::fs::write(&file, &before))
            .with_context(|| format!("{error:#}; and {} is half done", folder.display()))?;
        return Err(error.context("nothing was changed"));
    }
    let created = Created {
        app: manifest.app,
        function: args.function,
        folder,
        files: files.into_iter().map(|(path, _)| path).collect(),
        example: subject.example,
    };
    global.output().document(&created, |created| {
        format!(
            "made functions/{}/ and added to {}:\n\n{}\nnext:\n  cargo test -p {}\n  pelton check",
            created.function,
            file.display(),
            sections.trim(),
            created.function
        )
    })
}

/// What is to be added: the function, and a stream when none covers its subject. Ticks of a
/// schedule come from no stream.
fn sections(manifest: &Manifest, scaffold: &Scaffold<'_>) -> anyhow::Result<String> {
    let covered = manifest
        .streams
        .values()
        .flat_map(|stream| &stream.subjects)
        .any(|subject| covers(subject, &scaffold.subject.pattern));
    let mut sections = String::new();
    if !covered && !scaffold.ticks() {
        let stream = stream_name(scaffold.function);
        if manifest.streams.contains_key(&stream) {
            bail!(
                "no stream in pelton.toml covers {:?}, and one called {stream} exists\n  fix: add the subject to a stream first",
                scaffold.subject.pattern
            );
        }
        sections += &scaffold.stream_section()?;
        sections.push('\n');
    }
    sections += &scaffold.function_section()?;
    Ok(sections)
}

/// Appends, and sees whether the manifest and the workspace accept it.
async fn extend(
    file: &Path,
    before: &str,
    sections: &str,
    folder: &Path,
    global: &Global,
) -> anyhow::Result<()> {
    let gap = if before.ends_with('\n') { "\n" } else { "\n\n" };
    std::fs::write(file, format!("{before}{gap}{sections}"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    global.manifest()?;
    build::inspect(folder).await.context(
        "cargo does not accept the new crate: `members` and [workspace.dependencies] of the workspace must let it in \
         (or give --sdk PATH)",
    )
}
