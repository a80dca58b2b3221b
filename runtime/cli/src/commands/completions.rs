//! `pelton completions`: a script that completes the command line in a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::global::Global;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton completions bash > ~/.local/share/bash-completion/completions/pelton\n  \
    pelton completions zsh > ~/.zfunc/_pelton\n  \
    pelton completions fish > ~/.config/fish/completions/pelton.fish"
)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints the script.
pub async fn run(args: CompletionsArgs, global: &Global) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pelton", &mut script);
    global.output().raw(&script)
}
