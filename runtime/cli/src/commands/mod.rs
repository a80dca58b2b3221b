//! One file per subcommand: its arguments and `run`.

pub mod add;
pub mod build;
pub mod call;
pub mod check;
pub mod completions;
pub mod dead_letter;
pub mod deploy;
mod deploy_text;
pub mod dev;
pub mod docs;
pub mod function;
pub mod hold;
pub mod logs;
pub mod new;
pub mod node;
mod provenance;
pub mod publish;
pub mod remove;
pub mod reset;
pub mod rollback;
pub mod rollout;
pub mod run;
pub mod schema;
pub mod state;
mod strategy;
pub mod vendor;

use crate::cli::Command;
use crate::global::Global;

/// Runs the chosen subcommand to its end, or until the server refuses something that it does: that has no answer, and would only
/// ever be late. A node and `dev` go on, and log it.
pub async fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    let goes_on = matches!(command, Command::Run(_) | Command::Dev(_));
    tokio::select! {
        biased;
        denied = global.denials.first(), if !goes_on => Err(denied.into()),
        ended = dispatch(command, global) => ended,
    }
}

async fn dispatch(command: Command, global: &Global) -> anyhow::Result<()> {
    match command {
        Command::New(args) => new::run(args, global).await,
        Command::Add(args) => add::run(args, global).await,
        Command::Vendor(args) => vendor::run(args, global).await,
        Command::Build(args) => build::run(args, global).await,
        Command::Check(args) => check::run(args, global).await,
        Command::Dev(args) => dev::run(args, global).await,
        Command::Run(args) => run::run(args, global).await,
        Command::Deploy(args) => deploy::run(args, global).await,
        Command::Rollout(args) => rollout::run(args, global).await,
        Command::Rollback(args) => rollback::run(args, global).await,
        Command::Publish(args) => publish::run(args, global).await,
        Command::Call(args) => call::run(args, global).await,
        Command::Logs(args) => logs::run(args, global).await,
        Command::Function(args) => function::run(args, global).await,
        Command::Node(args) => node::run(args, global).await,
        Command::State(args) => state::run(args, global).await,
        Command::DeadLetter(args) => dead_letter::run(args, global).await,
        Command::Completions(args) => completions::run(args, global).await,
        Command::Schema(args) => schema::run(args, global).await,
        Command::Docs(args) => docs::run(args, global).await,
    }
}
