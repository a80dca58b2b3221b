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
    Rollback(c::rollback::RollbackArgs),
    Rollout(c::rollout::RolloutArgs),
    #[command(visible_alias = "pub")]
    Publish(c::publish::PublishArgs),
    Call(c::call::CallArgs),
    Logs(c::logs::LogsArgs),
    Function(c::function::FunctionArgs),
    Node(c::node::NodeArgs),
    State(c::state::StateArgs),
    #[command(visible_alias = "dlq")]
    DeadLetter(c::dead_letter::DeadLetterArgs),
    Completions(c::completions::CompletionsArgs),
    #[command(hide = true)]
    Schema(c::schema::SchemaArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{path} has no example");
            assert!(
                help.contains("pelton"),
                "{path}: an example is a command line"
            );
            assert!(
                command.get_about().is_some(),
                "{path} does not say what it does"
            );
            for inner in command.get_subcommands() {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        check(&Cli::command(), "pelton");
    }

    #[test]
    fn flags_are_those_of_the_nats_cli() {
        let line = "pelton state ls -s nats://h:1 --user u --password p --tlsca ca.pem --tls-cert c --tlskey k --json";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let options = cli.global.connect_options();
        assert_eq!(options.server.as_deref(), Some("nats://h:1"));
        assert_eq!(options.tls_ca.unwrap().to_str(), Some("ca.pem"));
        assert_eq!(options.tls_cert.unwrap().to_str(), Some("c"));
        assert!(cli.global.json);
        assert!(Cli::try_parse_from(["pelton", "state", "ls", "--nonsense"]).is_err());
    }
}
