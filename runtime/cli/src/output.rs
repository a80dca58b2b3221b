//! The only place that prints. Data goes to stdout — tables on a terminal, plain columns in a pipe, JSON
//! with `--json` — and everything else to stderr.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use pelton_runtime::records::SHARES;
use serde::Serialize;

/// How this invocation prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    terminal: bool,
}

impl Output {
    /// `json`: what `--json` said.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// Whether data is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a command's one result: pretty JSON, or what `text` makes of it.
    pub fn document<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let shown = if self.json {
            serde_json::to_string_pretty(value)?
        } else {
            text(value)
        };
        print_line(&shown)
    }

    /// Prints one item of output that goes on: a JSON line, or what `text` makes of it.
    pub fn item<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let shown = if self.json {
            serde_json::to_string(value)?
        } else {
            text(value)
        };
        print_line(&shown)
    }

    /// Prints bytes as they are, with a line end after them only on a terminal.
    pub fn raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        if self.terminal && !bytes.ends_with(b"\n") {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()?;
        Ok(())
    }

    /// Lays out rows under a header: a table on a terminal, aligned columns elsewhere.
    pub fn table(&self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.set_header(header.to_vec()).add_rows(rows);
        if self.terminal {
            table
                .load_preset(presets::UTF8_FULL_CONDENSED)
                .set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            plain(&mut table);
        }
        trimmed(&table.to_string())
    }

    /// A text as a cell of a table shows it: on a terminal, the middle of a long one is left out.
    /// Elsewhere it is whole.
    pub fn short(&self, text: &str, max: usize) -> String {
        if self.terminal {
            shortened(text, max)
        } else {
            text.to_owned()
        }
    }

    /// Lays out names and values, one pair per line.
    pub fn fields(&self, pairs: &[(&str, String)]) -> String {
        let mut table = Table::new();
        for (name, value) in pairs {
            table.add_row([format!("{name}:"), value.clone()]);
        }
        plain(&mut table);
        trimmed(&table.to_string())
    }

    /// Says something beside the data: a line on stderr.
    pub fn note(&self, text: &str) {
        // Nobody reads stderr any more: then nothing needs saying.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Shows that something goes on: a spinner on a terminal, lines elsewhere.
    pub fn progress(&self, text: &str) -> Progress {
        if !io::stderr().is_terminal() {
            self.note(text);
            return Progress { bar: None };
        }
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar: Some(bar) }
    }
}

/// Something that goes on; its trace on the terminal is gone when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Says what it does now.
    pub fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => Output::new(false).note(text),
        }
    }

    /// Ends it and leaves a line behind.
    pub fn finish(self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| Output::new(false).note(text)),
            None => Output::new(false).note(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// An error with a way to fix it, in the form that all of Pelton's errors have.
pub fn failure(cause: impl std::fmt::Display, fix: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{cause}\n  fix: {fix}")
}

/// Prints why a command failed and says how to exit. A reader that went away is no failure.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let broken_pipe = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    });
    if broken_pipe {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

fn print_line(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    if !text.is_empty() {
        writeln!(stdout, "{text}")?;
    }
    stdout.flush()?;
    Ok(())
}

/// The beginning and the end of a text that has more than `max` characters: the first tokens of a
/// subject say what it is, the last ones which.
fn shortened(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max {
        return text.to_owned();
    }
    let (head, tail) = (max / 2, max - max / 2 - 1);
    let begin = text.chars().take(head);
    let end = text.chars().skip(count - tail);
    begin.chain(['…']).chain(end).collect()
}

/// Columns without lines, for pipes: a script cuts them at the blanks.
fn plain(table: &mut Table) {
    table.load_preset(presets::NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

/// Columns are padded to the last one's width: nobody wants those blanks.
fn trimmed(table: &str) -> String {
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// A share of [`SHARES`] as a person reads it.
pub fn percent(share: u32) -> String {
    format!("{} %", f64::from(share) * 100.0 / f64::from(SHARES))
}

/// A length of time as a person reads it: its two largest units.
pub fn duration_ms(ms: u64) -> String {
    let rounded = if ms < 1000 {
        Duration::from_millis(ms)
    } else {
        Duration::from_secs(ms / 1000)
    };
    let text = humantime::format_duration(rounded).to_string();
    let units: Vec<&str> = text.split(' ').take(2).collect();
    units.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_both_its_ends() {
        assert_eq!(shortened("orders.o-1", 10), "orders.o-1");
        assert_eq!(shortened("orders.é-very-long-1", 9), "orde…ng-1");
    }
}
