//! What `pelton dev` says: the lines of its output, for people and (with `--json`) for programs.

use std::path::PathBuf;

use pelton_runtime::control::logs::LogRecord;
use pelton_runtime::names::TICK_SUBJECT;
use schemars::JsonSchema;
use serde::Serialize;

use crate::zone::local_clock;

/// A function and the version that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunningFunction {
    /// Its name.
    pub function: String,
    /// Its version.
    pub version: u64,
    /// A subject of events that it takes.
    pub example: Option<String>,
    /// Whether it has a schedule whose ticks a call can bring about.
    pub ticks: bool,
}

/// A line of `pelton dev --json`; the first one is `ready`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum DevEvent {
    /// The server accepts connections and all functions run.
    Ready {
        /// Where the server is.
        url: String,
        /// Folder of its data; none when the server is not ours.
        data: Option<PathBuf>,
        /// The app's name.
        app: String,
        /// What runs.
        functions: Vec<RunningFunction>,
    },
    /// A change was built and deployed.
    Deployed {
        /// What runs now in another version.
        functions: Vec<RunningFunction>,
    },
    /// A change could not be built or deployed; what ran goes on.
    Failed {
        /// Why, and how to fix it.
        error: String,
    },
    /// A function logged a line.
    Log {
        /// The line.
        #[serde(flatten)]
        line: LogRecord,
        /// What `pelton.toml` lacks, if the line says that something was refused.
        hint: Option<String>,
    },
    /// A delivery was given up.
    DeadLetter {
        /// The function.
        function: String,
        /// Subject of the event.
        subject: String,
        /// Why, for programs.
        code: String,
        /// Why, for people.
        reason: String,
        /// What `pelton.toml` lacks, if that is why.
        hint: Option<String>,
    },
}

impl DevEvent {
    /// The same for a person.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Ready {
                url,
                data,
                functions,
                ..
            } => ready(url, data.as_ref(), functions),
            Self::Deployed { functions } if functions.is_empty() => "nothing to deploy".into(),
            Self::Deployed { functions } => format!("deployed {}", versions(functions)),
            Self::Failed { error } => format!("not deployed, what ran goes on: {error}"),
            Self::Log { line, hint } => {
                let time = local_clock(&line.at);
                let text = format!(
                    "{time} {:<5} {}: {}",
                    line.level.to_uppercase(),
                    line.function,
                    line.message
                );
                with_hint(text, hint.as_deref())
            }
            Self::DeadLetter {
                function,
                subject,
                code,
                reason,
                hint,
            } => with_hint(
                format!("dead letter of {function}: {subject}: {code}: {reason}"),
                hint.as_deref(),
            ),
        }
    }
}

fn ready(url: &str, data: Option<&PathBuf>, functions: &[RunningFunction]) -> String {
    let mut text = format!("server     {url}");
    if let Some(data) = data {
        text += &format!("\ndata       {} (--clean empties it)", data.display());
    }
    text += &format!(
        "\nfunctions  {}\ntry, with the data that your handler reads in place of {{}}:",
        versions(functions)
    );
    // Flags only where the plain command would go elsewhere.
    let elsewhere = url != "nats://127.0.0.1:4222" || std::env::var_os("NATS_URL").is_some();
    let server = if elsewhere {
        format!(" --server {url}")
    } else {
        String::new()
    };
    for function in functions {
        if let Some(example) = &function.example {
            text += &format!("\n  pelton publish{server} {example} '{{}}'");
        }
        // No stream has ticks: one that does not wait for the schedule is a call.
        if function.ticks {
            text += &format!(
                "\n  pelton call{server} {} '{{}}' --subject {TICK_SUBJECT}",
                function.function
            );
        }
    }
    text + &format!("\n  pelton function ls{server}\n  pelton state ls{server}")
}

fn versions(functions: &[RunningFunction]) -> String {
    let all = functions.iter();
    all.map(|one| format!("{} (version {})", one.function, one.version))
        .collect::<Vec<_>>()
        .join(", ")
}

fn with_hint(text: String, hint: Option<&str>) -> String {
    match hint {
        None => text,
        Some(hint) => format!(
            "{text}\n  to allow it, have in pelton.toml:\n    {}",
            hint.replace('\n', "\n    ")
        ),
    }
}
