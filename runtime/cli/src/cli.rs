//! The command line as a whole: which subcommands there are and in which order `--help` lists them.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands as c;
use crate::global::{CONNECTION_HEADING, GLOBAL_HEADING, Global};
use crate::node::layers::Given;

/// Functions on NATS JetStream: build, deploy and run event handlers.
#[derive(Debug, Parser)]
#[command(
    name = "pelton",
    version,
    propagate_version = true,
    disable_help_flag = true,
    max_term_width = 100
)]
#[command(
    after_help = "Examples:\n  pelton new shop && cd shop && pelton dev\n  \
    pelton deploy --server nats://127.0.0.1:4222\n  \
    pelton publish orders.o-1.created '{\"order_id\":\"o-1\"}'\n  \
    pelton --version --verbose     # commit, SDK, contract, wasmtime and NATS versions"
)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub global: Global,
    /// Print help; --help=all shows the connection options, too.
    #[arg(long, short, global = true, action = ArgAction::Help, help_heading = GLOBAL_HEADING)]
    help: Option<bool>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands: first the daily ones, then events, then things.
#[derive(Debug, Subcommand)]
pub enum Command {
    New(c::new::NewArgs),
    Add(c::add::AddArgs),
    Vendor(c::vendor::VendorArgs),
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
    #[command(hide = true)]
    Docs(c::docs::DocsArgs),
}

impl Cli {
    /// Reads a command line, and notes what of it comes from a flag and what from a variable.
    ///
    /// # Errors
    /// What clap says of it; help and version are such errors, too.
    pub fn read<I, T>(line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString>,
    {
        let line: Vec<OsString> = line.into_iter().map(Into::into).collect();
        let (line, all) = asks_for_all(line);
        let mut command = Self::command();
        if !all {
            command = command.mut_args(hide_connection);
        }
        let matches = command
            .try_get_matches_from_mut(line.clone())
            .map_err(|error| naming_variable(error, &command, &line))?;
        let mut cli =
            Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        cli.global.given = Given::of(&matches);
        Ok(cli)
    }
}

/// Spells `--help=all` as clap knows it, and says whether it stood there. What follows `--` is no
/// option.
fn asks_for_all(mut line: Vec<OsString>) -> (Vec<OsString>, bool) {
    let options = line.iter_mut().take_while(|word| *word != "--");
    let mut all = false;
    for word in options.filter(|word| *word == "--help=all") {
        *word = "--help".into();
        all = true;
    }
    (line, all)
}

/// The options of every command that say where NATS is are longer than most commands' own.
fn hide_connection(arg: Arg) -> Arg {
    let connects = arg.get_help_heading() == Some(CONNECTION_HEADING);
    arg.hide(connects)
}

/// clap's error about a variable's value names the flag alone, which nobody typed: this adds the variable.
fn naming_variable(
    mut error: clap::Error,
    command: &clap::Command,
    line: &[OsString],
) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = shown.split([' ', '=', '[']).next().unwrap_or(shown);
    let typed = line
        .iter()
        .any(|word| word.to_string_lossy().starts_with(flag));
    let known = variable_of(command, flag.trim_start_matches('-'));
    if let Some(name) = known.filter(|name| !typed && std::env::var_os(name).is_some()) {
        let tip = format!("this is what the variable {} says", name.to_string_lossy());
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![tip.into()]),
        );
    }
    error
}

/// The variable of a flag, of whichever subcommand has it.
fn variable_of(command: &clap::Command, long: &str) -> Option<OsString> {
    let own = command.get_arguments();
    let own = own
        .filter(|arg| arg.get_long() == Some(long))
        .find_map(|arg| arg.get_env());
    own.map(OsString::from).or_else(|| {
        let mut inner = command.get_subcommands();
        inner.find_map(|inner| variable_of(inner, long))
    })
}

#[cfg(test)]
mod tests {
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
        let cli = Cli::read(line.split(' ')).unwrap();
        let options = cli.global.connect_options();
        assert_eq!(options.server.as_deref(), Some("nats://h:1"));
        assert_eq!(options.tls_ca.unwrap().to_str(), Some("ca.pem"));
        assert_eq!(options.tls_cert.unwrap().to_str(), Some("c"));
        assert!(cli.global.json);
        assert!(Cli::read(["pelton", "state", "ls", "--nonsense"]).is_err());
        for (flag, first) in [("--tls-first", true), ("--tlsfirst=false", false)] {
            let cli = Cli::read(["pelton", "state", "ls", flag]).unwrap();
            assert_eq!(cli.global.connect_options().tls_first, Some(first));
        }
    }
}
