//! `pelton dead-letter`: what was given up on, why, and a second chance for it.

use async_nats::jetstream;
use clap::{Args, Subcommand};
use pelton_runtime::control::dead_letters::{
    self, DeadLetter, Filter, MAX_LISTED, Removed, Replayed, WholeDeadLetter,
};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;

use crate::confirm::{self, Consent};
use crate::global::Global;
use crate::output::{Output, failure};
use crate::zone::local_time;

/// Look at dead letters, replay them, or remove them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton dead-letter ls --function orders\n  pelton dlq show 7\n  \
    pelton dlq replay --all --code order-unknown\n  pelton dlq rm 7"
)]
pub struct DeadLetterArgs {
    /// Whose dead letters. Default: the manifest's app, else the only one there is.
    #[arg(long, global = true, value_name = "NAME")]
    app: Option<String>,
    #[command(subcommand)]
    command: DeadLetterCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLetterCommand {
    /// List dead letters, the latest last
    #[command(after_help = "Examples:\n  pelton dead-letter ls\n  \
        pelton dlq ls --function orders --code pelton-timeout --limit 20 --json")]
    Ls {
        #[command(flatten)]
        filter: FilterArgs,
        /// At most the latest N.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Show one dead letter: cause, attempts, headers and body
    #[command(after_help = "Examples:\n  pelton dead-letter show 7\n  pelton dlq show 7 --json")]
    Show {
        /// Its sequence, as `ls` prints it.
        sequence: u64,
    },
    /// Put events back for the function that gave them up, and delete their dead letters
    ///
    /// The original message is published once more on its original subject, with the header
    /// `Pelton-Only: APP/FUNCTION`: no other function takes it. Its stream stores it as a new
    /// message, though, so that everything else that reads the stream or subscribes to the subject
    /// gets it once more; it can tell a replay by that header, and the event by its id, which is
    /// the same. A call or a tick goes back to its function alone; a delayed event that could not
    /// leave goes to its stream, for all who read that.
    #[command(
        after_help = "Examples:\n  pelton dead-letter replay 7\n  pelton dlq replay --all --dry-run\n  \
        pelton dlq replay --all --function orders --code payment-unknown"
    )]
    Replay {
        /// Sequences, as `ls` prints them.
        #[arg(required_unless_present = "all")]
        sequences: Vec<u64>,
        /// All that match the filters.
        #[arg(long, conflicts_with = "sequences")]
        all: bool,
        #[command(flatten)]
        filter: FilterArgs,
        /// Show what would be replayed and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove dead letters for good; it asks first
    #[command(
        after_help = "Examples:\n  pelton dead-letter rm 7 8\n  pelton dlq rm --function orders --dry-run\n  \
        pelton dlq rm --all --yes"
    )]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Sequences, as `ls` prints them.
    #[arg(required_unless_present_any = ["all", "function", "code"])]
    sequences: Vec<u64>,
    /// All of the app.
    #[arg(long, conflicts_with = "sequences")]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Show what would be removed and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

/// What a removal did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RemovalReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Removed, in order.
    pub removed: Vec<Removed>,
    /// Those that could not be removed.
    pub failed: Vec<NotReplayed>,
    /// What a dry run would remove.
    pub would_remove: Vec<DeadLetter>,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Of one function.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// With this code, such as pelton-timeout.
    #[arg(long)]
    code: Option<String>,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        Self {
            function: args.function,
            code: args.code,
        }
    }
}

/// What a replay did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReplayReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Put back, in order.
    pub replayed: Vec<Replayed>,
    /// Those that could not be put back; they stay.
    pub failed: Vec<NotReplayed>,
    /// What a dry run would put back.
    pub would_replay: Vec<DeadLetter>,
}

/// A dead letter that could not be put back, or removed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NotReplayed {
    /// Its sequence.
    pub sequence: u64,
    /// Why.
    pub error: String,
}

/// Bytes of a subject that a table on a terminal shows.
const MAX_SUBJECT: usize = 80;

/// Runs one of its subcommands.
pub async fn run(args: DeadLetterArgs, global: &Global) -> anyhow::Result<()> {
    let js = nats::jetstream(&global.connect().await?);
    let app = global.app(args.app, &js).await?;
    let output = global.output();
    match args.command {
        DeadLetterCommand::Ls { filter, limit } => {
            let letters = dead_letters::list(&js, &app, &filter.into(), limit).await?;
            output.document(&letters, |letters| table(&output, letters))
        }
        DeadLetterCommand::Show { sequence } => {
            let letter = dead_letters::show(&js, &app, sequence).await?;
            output.document(&letter, |letter| whole(&output, letter))
        }
        DeadLetterCommand::Replay {
            sequences,
            all,
            filter,
            dry_run,
        } => {
            let mut letters = dead_letters::list(&js, &app, &filter.into(), MAX_LISTED).await?;
            if !all {
                letters.retain(|letter| sequences.contains(&letter.sequence));
                known(&sequences, &letters)?;
            }
            let report = replay(&js, &app, letters, dry_run, &output).await?;
            output.document(&report, |report| replayed(&output, report))?;
            complete(&report.failed, "replayed")
        }
        DeadLetterCommand::Rm(args) => {
            let report = remove(&js, &app, args, &output).await?;
            output.document(&report, |report| removed(&output, report))?;
            complete(&report.failed, "removed")
        }
    }
}

/// Removes what was asked for, page by page: a listing has an end.
async fn remove(
    js: &jetstream::Context,
    app: &str,
    args: RmArgs,
    output: &Output,
) -> anyhow::Result<RemovalReport> {
    let RmArgs {
        sequences,
        filter,
        dry_run,
        consent,
        ..
    } = args;
    let filter = Filter::from(filter);
    let mut report = RemovalReport {
        dry_run,
        removed: Vec::new(),
        failed: Vec::new(),
        would_remove: Vec::new(),
    };
    let mut asked = false;
    loop {
        let letters = match sequences.is_empty() {
            true => dead_letters::list(js, app, &filter, MAX_LISTED).await?,
            false => these(js, app, &filter, &sequences).await?,
        };
        let more = sequences.is_empty() && letters.len() == MAX_LISTED;
        if dry_run {
            report.would_remove = letters;
            return Ok(report);
        }
        if letters.is_empty() {
            return Ok(report);
        }
        if !asked {
            let count = letters.len();
            let least = if more { "at least " } else { "" };
            let question = format!(
                "{}\nremove {least}{count} dead letter{} of app {app} for good?",
                table(output, &letters),
                if count == 1 { "" } else { "s" },
            );
            confirm::ask(&question, consent)?;
            asked = true;
        }
        let progress = output.progress(&format!("removing {}", letters.len()));
        for letter in &letters {
            match dead_letters::remove(js, letter).await {
                Ok(one) => report.removed.push(one),
                Err(error) => report.failed.push(NotReplayed {
                    sequence: letter.sequence,
                    error: error.to_string(),
                }),
            }
        }
        drop(progress);
        if !more || !report.failed.is_empty() {
            return Ok(report);
        }
    }
}

/// The dead letters at these sequences.
async fn these(
    js: &jetstream::Context,
    app: &str,
    filter: &Filter,
    sequences: &[u64],
) -> anyhow::Result<Vec<DeadLetter>> {
    let mut letters = Vec::new();
    for sequence in sequences {
        letters.extend(dead_letters::find(js, app, filter, *sequence).await?);
    }
    known(sequences, &letters)?;
    Ok(letters)
}

/// Refuses to replay a part of what was asked for.
fn known(asked: &[u64], found: &[DeadLetter]) -> anyhow::Result<()> {
    let missing = asked
        .iter()
        .find(|sequence| !found.iter().any(|letter| letter.sequence == **sequence));
    match missing {
        None => Ok(()),
        Some(sequence) => Err(failure(
            format!("there is no dead letter {sequence} that matches; nothing was changed"),
            "see what there is with `pelton dead-letter ls`",
        )),
    }
}

/// What a script must not overlook.
fn complete(failed: &[NotReplayed], what: &str) -> anyhow::Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    let count = failed.len();
    let plural = if count == 1 { "" } else { "s" };
    Err(failure(
        format!("{count} dead letter{plural} could not be {what}, and stay"),
        "what stands in the way of each is said above",
    ))
}

async fn replay(
    js: &jetstream::Context,
    app: &str,
    letters: Vec<DeadLetter>,
    dry_run: bool,
    output: &Output,
) -> anyhow::Result<ReplayReport> {
    if dry_run {
        return Ok(ReplayReport {
            dry_run,
            replayed: Vec::new(),
            failed: Vec::new(),
            would_replay: letters,
        });
    }
    let progress = output.progress(&format!("replaying {}", letters.len()));
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for letter in letters {
        let sequence = letter.sequence;
        match dead_letters::replay(js, app, sequence).await {
            Ok(replayed) => done.push(replayed),
            // One that cannot go back does not keep the others from their second chance.
            Err(error) => failed.push(NotReplayed {
                sequence,
                error: error.to_string(),
            }),
        }
    }
    drop(progress);
    Ok(ReplayReport {
        dry_run,
        replayed: done,
        failed,
        would_replay: Vec::new(),
    })
}

fn table(output: &Output, letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return "no dead letters".into();
    }
    let rows = letters.iter().map(|letter| {
        vec![
            letter.sequence.to_string(),
            local_time(&letter.at),
            letter.function.clone(),
            letter.code.clone(),
            output.short(&letter.subject, MAX_SUBJECT),
            letter.attempts.len().to_string(),
            letter.reason.clone(),
        ]
    });
    let header = [
        "SEQ", "TIME", "FUNCTION", "CODE", "SUBJECT", "ATTEMPTS", "REASON",
    ];
    output.table(&header, rows.collect())
}

fn whole(output: &Output, whole: &WholeDeadLetter) -> String {
    let letter = &whole.letter;
    let mut parts = vec![output.fields(&[
        ("sequence", letter.sequence.to_string()),
        (
            "function",
            format!(
                "{} v{} of app {}",
                letter.function, letter.version, letter.app
            ),
        ),
        ("code", letter.code.clone()),
        ("reason", letter.reason.clone()),
        ("given up", local_time(&letter.at)),
        ("event", letter.event_id.clone()),
        ("subject", letter.subject.clone()),
        (
            "stored",
            format!(
                "{} in {} at {}",
                local_time(&letter.stored_at),
                letter.stream,
                letter.stream_sequence
            ),
        ),
    ])];
    if !letter.attempts.is_empty() {
        let attempts = letter.attempts.iter().map(|one| {
            vec![
                one.attempt.to_string(),
                local_time(&one.at),
                format!("v{}", one.version),
                one.code.clone(),
                one.message.clone(),
            ]
        });
        let header = ["ATTEMPT", "TIME", "VERSION", "CODE", "MESSAGE"];
        parts.push(output.table(&header, attempts.collect()));
    }
    if !letter.headers.is_empty() {
        let headers = letter
            .headers
            .iter()
            .map(|(name, value)| vec![name.clone(), value.clone()]);
        parts.push(output.table(&["HEADER", "VALUE"], headers.collect()));
    }
    let base64 = || whole.body_base64.as_deref().unwrap_or_default();
    let body = whole.body.clone();
    parts.push(body.unwrap_or_else(|| format!("body, Base64: {}", base64())));
    parts.join("\n\n")
}

fn replayed(output: &Output, report: &ReplayReport) -> String {
    if report.dry_run {
        let count = report.would_replay.len();
        return format!(
            "{}\ndry run: {count} would be replayed",
            table(output, &report.would_replay)
        );
    }
    if report.replayed.is_empty() && report.failed.is_empty() {
        return "nothing to replay".into();
    }
    let lines = report.replayed.iter().map(|one| {
        format!(
            "{} replayed for {}: {} stored in {} at {}",
            one.sequence, one.function, one.subject, one.stream, one.stream_sequence
        )
    });
    let failed = report.failed.iter();
    let failed = failed.map(|one| format!("{} not replayed: {}", one.sequence, one.error));
    lines.chain(failed).collect::<Vec<_>>().join("\n")
}

fn removed(output: &Output, report: &RemovalReport) -> String {
    if report.dry_run {
        let count = report.would_remove.len();
        return format!(
            "{}\ndry run: {count} would be removed",
            table(output, &report.would_remove)
        );
    }
    if report.removed.is_empty() && report.failed.is_empty() {
        return "nothing to remove".into();
    }
    let lines = report.removed.iter();
    let lines = lines.map(|one| format!("{} removed: {} {}", one.sequence, one.function, one.code));
    let failed = report.failed.iter();
    let failed = failed.map(|one| format!("{} not removed: {}", one.sequence, one.error));
    lines.chain(failed).collect::<Vec<_>>().join("\n")
}
