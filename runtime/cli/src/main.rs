//! The `pelton` binary: arguments in, one subcommand run, an exit code out.
//! What it can do is in `pelton_runtime`; here is only how a person or a script asks for it.

#![allow(
    unreachable_pub,
    reason = "a binary exports nothing: `pub` is for its other modules"
)]

mod cli;
mod commands;
mod confirm;
mod global;
mod logging;
mod node;
mod output;
mod repeats;
mod sdk;
mod version;
mod zone;

use std::process::ExitCode;

/// Each delivery takes and returns some hundred small pieces of memory, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    if version::is_asked(std::env::args_os().skip(1)) {
        let printed = output::Output::new(false).raw(version::verbose().as_bytes());
        return printed.map_or_else(|error| output::report(&error), |()| ExitCode::SUCCESS);
    }
    let cli = cli::Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match commands::run(cli.command, &cli.global).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}
