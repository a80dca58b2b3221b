//! `pelton new`: an app that builds, passes its tests and deploys as it is, to be changed from there.

pub(crate) mod names;
pub(crate) mod scaffold;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;

use crate::global::Global;
use crate::sdk;

/// Languages that there is a template for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Rust, with the crate pelton-sdk.
    #[default]
    Rust,
}

/// Start an app in a new folder: a manifest and one function, with its test
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton new shop && cd shop && cargo test && pelton dev\n  \
    pelton new shop --sdk ../pelton/sdk"
)]
pub struct NewArgs {
    /// The app, its first function and the folder
    name: String,
    /// Folder of the crate pelton-sdk; default: the SDK of this pelton, copied to vendor/pelton-sdk
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
    /// Language of the function
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

/// What was made: what `pelton new --json` and `pelton add --json` print.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Created {
    /// The app's name.
    pub app: String,
    /// The function's name.
    pub function: String,
    /// The folder that was made.
    pub folder: PathBuf,
    /// Files in it.
    pub files: Vec<PathBuf>,
    /// A subject that its handler takes.
    pub example: String,
}

/// Runs the subcommand.
pub async fn run(args: NewArgs, global: &Global) -> anyhow::Result<()> {
    names::ensure_name(&args.name)?;
    let Language::Rust = args.lang;
    let subject = names::Subject::new(&format!("{}.*.created", args.name))?;
    let files = scaffold::Scaffold {
        app: &args.name,
        function: &args.name,
        subject: &subject,
        sdk: args.sdk.as_deref(),
    }
    .app_files()?;
    let folder = std::env::current_dir()?.join(&args.name);
    scaffold::write(&folder, &files)?;
    let created = Created {
        app: args.name.clone(),
        function: args.name,
        folder,
        files: files.into_iter().map(|(path, _)| path).collect(),
        example: subject.example,
    };
    global.output().document(&created, |created| {
        let mut text = format!("made {}/", created.app);
        let (copied, own): (Vec<_>, Vec<_>) = created
            .files
            .iter()
            .partition(|file| file.starts_with(sdk::FOLDER));
        for file in own {
            text += &format!("\n  {}", file.display());
        }
        if !copied.is_empty() {
            let (folder, count) = (sdk::FOLDER, copied.len());
            text += &format!("\n  {folder}/  (the SDK {}, {count} files)", sdk::VERSION);
        }
        let (name, example) = (&created.app, &created.example);
        text += &format!(
            "\nnext:\n  cd {name}\n  cargo test\n  pelton dev\n  pelton publish {example} '{{\"name\":\"Ada\"}}'   # in a second terminal"
        );
        text
    })
}
