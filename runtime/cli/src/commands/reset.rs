//! `pelton function reset`: has a function begin elsewhere in its inputs.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use pelton_runtime::control::nodes::{self, Rollout, Wanted};
use pelton_runtime::control::reset::{self, Reset, ResetTo};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;

use super::{hold, provenance};
use crate::confirm::{self, Consent};
use crate::global::Global;
use crate::output::Output;

/// What to reset, and to where.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The function.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// `start`, `new`, the sequence of the first event to handle, or the time from which on events are to be handled (RFC 3339).
    #[arg(long, value_name = "WHERE", value_parser = to)]
    to: ResetTo,
    /// Only in this input stream. Default: in all.
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Show what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
    /// How long the nodes may take to let go of what runs, and then to take it up again.
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// What a reset did, or would do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ResetReport {
    /// What it means.
    pub reset: Reset,
    /// Whether it was carried out.
    pub applied: bool,
    /// What the live nodes made of it.
    pub nodes: Option<Rollout>,
}

/// Resets.
pub async fn run(args: ResetArgs, global: &Global) -> anyhow::Result<()> {
    let output = global.output();
    let js = nats::jetstream(&global.connect().await?);
    let app = global.app(args.app, &js).await?;
    let (function, stream) = (args.function.as_str(), args.stream.as_deref());
    let reset = reset::find(&js, &app, function, stream, &args.to).await?;
    let mut report = ResetReport {
        reset,
        applied: false,
        nodes: None,
    };
    if args.dry_run {
        return output.document(&report, |report| text(&output, report));
    }
    let question = format!("{}\nreset {function}?", text(&output, &report));
    confirm::ask(&question, args.consent)?;
    let progress = output.progress(&format!("resetting {function}"));
    let by = provenance::who();
    let carried_out = reset::carry_out(&js, report.reset, &args.to, &by, args.wait, |step| {
        progress.step(step);
    });
    let (reset, record) = carried_out.await?;
    progress.step("waiting for the nodes");
    let wanted = BTreeMap::from([(record.function.clone(), Wanted::of(&record))]);
    let nodes = nodes::wait(&js, &app, &wanted, args.wait).await?;
    drop(progress);
    let trouble = hold::unconfirmed(&nodes, args.wait);
    report = ResetReport {
        reset,
        applied: true,
        nodes: Some(nodes),
    };
    output.document(&report, |report| text(&output, report))?;
    trouble.map_or(Ok(()), Err)
}

fn text(output: &Output, report: &ResetReport) -> String {
    let rows = report.reset.inputs.iter().map(|input| {
        vec![
            input.stream.clone(),
            input.from.to_string(),
            input.to.to_string(),
            input.again.to_string(),
            input.passed_by.to_string(),
            input.begun_anew.to_string(),
        ]
    });
    let header = [
        "STREAM",
        "WAS DONE TO",
        "IS DONE TO",
        "HANDLED AGAIN",
        "PASSED BY",
        "BEGUN ANEW",
    ];
    let table = output.table(&header, rows.collect());
    let told = match report.applied {
        true => {
            "what is handled again is another delivery: its state writes and events are made once more"
        }
        false => {
            "nothing was changed yet; what is handled again is another delivery: its state writes and events would be made once more"
        }
    };
    format!("{table}\n{told}")
}

fn to(text: &str) -> Result<ResetTo, String> {
    match text {
        "start" => Ok(ResetTo::Start),
        "new" => Ok(ResetTo::New),
        _ => match text.parse() {
            Ok(0) => Err("sequences begin at 1".into()),
            Ok(sequence) => Ok(ResetTo::Sequence(sequence)),
            Err(_) if text.contains('T') => Ok(ResetTo::Time(text.to_owned())),
            Err(_) => {
                Err("`start`, `new`, a sequence, or a time such as 2026-01-31T08:00:00Z".into())
            }
        },
    }
}
