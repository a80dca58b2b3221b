//! `pelton check`: whether manifest, components and (with a server) streams fit together. It decides as `deploy`
//! does, and changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use pelton_runtime::component::Component;
use pelton_runtime::config::{ConfigError, Manifest};
use pelton_runtime::control::deploy::{self, View};
use pelton_runtime::nats;
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::build::{BuiltFunction, build_functions, summary};
use crate::global::Global;
use crate::sdk;

/// Check the manifest, the components and whether they fit together; with a server, the streams too
#[derive(Debug, Args)]
#[command(
    after_help = "Without --server or --context (or NATS_URL, NATS_CONTEXT) no server is asked, and streams that are not in \
    pelton.toml are taken on trust.\n\n\
    Examples:\n  pelton check\n  pelton check --server nats://127.0.0.1:4222\n  pelton check --json | jq .findings"
)]
pub struct CheckArgs {
    /// Ask no server, whatever flags and variables say
    #[arg(long)]
    offline: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A deploy would be refused.
    Error,
    /// Worth knowing.
    Warning,
}

/// Something found.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Line of the manifest, from 1; none when it is about no line.
    pub line: Option<usize>,
    /// Column, from 1.
    pub column: Option<usize>,
    /// What it is and why.
    pub what: String,
    /// How to mend it.
    pub fix: Option<String>,
}

/// What `pelton check --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CheckReport {
    /// The manifest.
    pub file: PathBuf,
    /// Whether a deploy would be accepted, as far as this could be told.
    pub ok: bool,
    /// Whether a server was asked.
    pub online: bool,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What was built; empty when the manifest or the sources have errors.
    pub functions: Vec<BuiltFunction>,
}

impl CheckReport {
    fn add(&mut self, severity: Severity, error: ConfigError) {
        self.findings.push(Finding {
            severity,
            line: Some(error.line),
            column: Some(error.column),
            what: error.what,
            fix: Some(error.fix),
        });
    }

    fn add_text(&mut self, severity: Severity, text: &str) {
        let (what, fix) = match text.split_once("\n  fix: ") {
            Some((what, fix)) => (what, Some(fix.to_owned())),
            None => (text, None),
        };
        self.findings.push(Finding {
            severity,
            line: None,
            column: None,
            what: what.to_owned(),
            fix,
        });
    }

    fn errors(&self) -> usize {
        let all = self.findings.iter();
        all.filter(|one| one.severity == Severity::Error).count()
    }
}

/// Runs the subcommand.
pub async fn run(args: CheckArgs, global: &Global) -> anyhow::Result<()> {
    let file = global.manifest_path()?;
    let connection = &global.connection;
    let online = !args.offline && (connection.server.is_some() || connection.context.is_some());
    let mut report = CheckReport {
        file,
        ok: false,
        online,
        findings: Vec::new(),
        functions: Vec::new(),
    };
    examine(&mut report, global).await?;
    let errors = report.errors();
    report.ok = errors == 0;
    let output = global.output();
    output.document(&report, |report| {
        text(report, &summary(&output, &report.functions))
    })?;
    if errors > 0 {
        bail!(
            "{errors} {} in the way of a deploy",
            if errors == 1 {
                "thing is"
            } else {
                "things are"
            }
        );
    }
    Ok(())
}

async fn examine(report: &mut CheckReport, global: &Global) -> anyhow::Result<()> {
    let manifest = match Manifest::load(&report.file, global.environment.as_deref()) {
        Ok(manifest) => manifest,
        Err(errors) => {
            for error in errors {
                report.add(Severity::Error, error);
            }
            return Ok(());
        }
    };
    // Before a build that takes a while.
    for error in manifest.unsupported() {
        report.add(Severity::Error, error);
    }
    if !report.findings.is_empty() {
        return Ok(());
    }
    if let Some(difference) = sdk::difference(&manifest.root) {
        report.add_text(Severity::Warning, &difference.to_string());
    }
    let components = match build_functions(&manifest, &[]).await {
        Ok(components) => components,
        Err(error) => {
            report.add_text(Severity::Error, &format!("{error:#}"));
            return Ok(());
        }
    };
    let view = if report.online {
        let js = nats::jetstream(&global.connect().await?);
        deploy::survey(&js, &manifest, &components).await?
    } else {
        View::default()
    };
    compare(report, &manifest, &components, &view);
    report.functions = components
        .into_iter()
        .map(|(name, component)| BuiltFunction::new(&manifest, name, component))
        .collect();
    Ok(())
}

fn compare(
    report: &mut CheckReport,
    manifest: &Manifest,
    components: &BTreeMap<String, Component>,
    view: &View,
) {
    match deploy::plan(manifest, components, view, OffsetDateTime::now_utc()) {
        Ok(plan) => {
            for note in plan.notes {
                report.add_text(Severity::Warning, &note);
            }
        }
        Err(problems) => {
            for problem in problems {
                // Without a server a stream that somebody else made cannot be seen.
                let trusted = !report.online && problem.what.contains("no stream covers");
                let severity = if trusted {
                    Severity::Warning
                } else {
                    Severity::Error
                };
                report.add(severity, problem.located(manifest));
            }
        }
    }
}

fn text(report: &CheckReport, functions: &str) -> String {
    let mut lines = Vec::new();
    if !report.functions.is_empty() {
        lines.push(functions.to_owned());
    }
    for finding in &report.findings {
        lines.push(line(finding, &report.file));
    }
    if report.ok {
        lines.push(format!(
            "{} is in order{}",
            report.file.display(),
            if report.online {
                ""
            } else {
                " (no server was asked)"
            }
        ));
    }
    lines.join("\n")
}

fn line(finding: &Finding, file: &Path) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let place = match (finding.line, finding.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}: ", file.display()),
        _ => String::new(),
    };
    let mut text = format!("{severity}: {place}{}", finding.what);
    if let Some(fix) = &finding.fix {
        text += &format!("\n  fix: {fix}");
    }
    text
}
