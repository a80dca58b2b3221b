//! Asking before what cannot be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use crate::output::failure;

/// Consent that was given beforehand.
#[derive(Debug, Clone, Copy, Args)]
pub struct Consent {
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// Asks on the terminal, unless the answer was given beforehand.
///
/// # Errors
/// The answer is no, or there is nobody to ask.
pub fn ask(question: &str, consent: Consent) -> anyhow::Result<()> {
    if consent.yes {
        return Ok(());
    }
    let mut terminal = io::stderr().lock();
    writeln!(terminal, "{question} [y/N]")?;
    terminal.flush()?;
    if !io::stdin().is_terminal() {
        return Err(failure(
            "nothing was changed: this asks first, and there is no terminal to ask on",
            "look at what it does with --dry-run, then give --yes",
        ));
    }
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(failure("nothing was changed", "answer y, or give --yes")),
    }
}
