//! `pelton function rm`: removes a function.

use std::time::Duration;

use clap::Args;
use pelton_runtime::control::remove::{self, Removal};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;

use super::provenance;
use crate::confirm::{self, Consent};
use crate::global::Global;

/// What to remove.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The function.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Show what would become of its things, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
    /// How long the nodes may take to let go of what runs.
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// What a removal did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RemovalReport {
    /// What becomes of its things.
    pub removal: Removal,
    /// Whether it was carried out.
    pub applied: bool,
}

/// Removes.
pub async fn run(args: RemoveArgs, global: &Global) -> anyhow::Result<()> {
    let output = global.output();
    let js = nats::jetstream(&global.connect().await?);
    let app = global.app(args.app, &js).await?;
    let removal = remove::find(&js, &app, &args.function).await?;
    let mut report = RemovalReport {
        removal,
        applied: false,
    };
    if args.dry_run {
        return output.document(&report, text);
    }
    let question = format!("{}\nremove {}?", text(&report), args.function);
    confirm::ask(&question, args.consent)?;
    let progress = output.progress(&format!("removing {}", args.function));
    let by = provenance::who();
    remove::carry_out(&js, &report.removal, &by, args.wait, |step| {
        progress.step(step);
    })
    .await?;
    drop(progress);
    report.applied = true;
    output.document(&report, text)
}

fn text(report: &RemovalReport) -> String {
    let Removal {
        app,
        function,
        version,
        unhandled,
        waiting,
        calls,
        dead_letters,
        versions,
    } = &report.removal;
    let lines = [
        format!(
            "function {function} of app {app}, version {version}, with its {versions} kept versions, its positions and timers"
        ),
        format!(
            "  {unhandled} events of its streams are not handled, {waiting} of which wait for another attempt or another event: they stay in the streams \
             as long as those keep them, and it will not handle them; deployed again, it begins where `start` says"
        ),
        format!(
            "  {calls} calls, ticks and timers that are due are not handled: they go with it, and who waits for a reply gets none"
        ),
        format!("  {dead_letters} dead letters stay, and cannot be replayed without it"),
        format!(
            "  state of app {app} stays, what it wrote, too: `pelton state ls`, `pelton state del`"
        ),
    ];
    let head = match report.applied {
        true => "removed:",
        false => "would be removed:",
    };
    format!("{head} {}", lines.join("\n"))
}
