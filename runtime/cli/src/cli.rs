//! The command line as a whole: which subcommands there are and in which order `--help` lists them.

use clap::{Parser, Subcommand};

use crate::commands as c;
use crate::global::Global;

/// Functions on NATS JetStream: build, deploy and run event handlers.
#[derive(Debug, Parser)]
#[command(
    name = "pelton",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Examples:\n  pelton new shop && cd shop && pelton dev\n  \
    pelton deploy --server nats://127.0.0.1:4222\n  \
    pelton publish orders.o-1.created '{\"order_id\":\"o-1\"}'"
)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands: first the daily ones, then events, then things.
#[derive(Debug, Subcommand)]
pub enum Command {
    New(c::new::NewArgs),
    Add(c::add::AddArgs),
    Build(c::build::BuildArgs),
    Check(c::check::CheckArgs),
    Dev(c::dev::DevArgs),
    Run(c::run::RunArgs),
    Deploy(c::deploy::DeployArgs),
    #[command(visible_alias = "pub")]
    Publish(c::publish::PublishArgs),
    Logs(c::logs::LogsArgs),
    Function(c::function::FunctionArgs),
    State(c::state::StateArgs),
    #[command(visible_alias = "dlq")]
    DeadLetter(c::dead_letter::DeadLetterArgs),
    Completions(c::completions::CompletionsArgs),
    #[command(hide = true)]
    Schema(c::schema::SchemaArgs),
}
