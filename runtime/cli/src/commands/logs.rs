//! `pelton logs`: what functions log, wherever they ran.

use std::time::Duration;

use clap::Args;
use pelton_runtime::control::logs::{LogQuery, LogRecord, tail};
use pelton_runtime::nats;

use crate::global::Global;
use crate::zone::local_time;

/// Show what functions log
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pelton logs -f\n  \
    pelton logs --function orders --level warn --since 1h\n  pelton logs -n 20 --json")]
pub struct LogsArgs {
    /// Go on with what comes.
    #[arg(long, short)]
    follow: bool,
    /// Of one function.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Of one app. Default: the manifest's, else all.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// At least this severe: trace, debug, info, warn, error, critical.
    #[arg(long)]
    level: Option<String>,
    /// Not older than this, such as 10m or 2h.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// The last N lines. Default: 100, or all since --since.
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u64>,
}

/// Prints log lines.
pub async fn run(args: LogsArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.connect().await?;
    let output = global.output();
    let last = args.lines.or(args.since.is_none().then_some(100));
    let query = LogQuery {
        app: args.app.or_else(|| global.manifest_app()),
        function: args.function,
        level: args.level,
        since: args.since.map(|age| time::OffsetDateTime::now_utc() - age),
        last,
        follow: args.follow,
    };
    let show = |record: LogRecord| output.item(&record, text);
    tail(&nats::jetstream(&client), &query, show).await
}

/// A line as a person reads it; `dev` prints the same.
pub fn text(record: &LogRecord) -> String {
    let context = if record.context.is_empty() {
        String::new()
    } else {
        format!(" {}:", record.context)
    };
    format!(
        "{} {:<8} {}.{} v{} [{}:{}]{context} {}",
        local_time(&record.at),
        record.level.to_uppercase(),
        record.app,
        record.function,
        record.version,
        record.stream,
        record.sequence,
        record.message.trim_end()
    )
}
