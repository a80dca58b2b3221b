//! `pelton function pause|resume|set`: what operators set of a function that runs. Each waits until every live node has confirmed.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use pelton_runtime::control::nodes::{self, Rollout, Wanted};
use pelton_runtime::control::{functions, hold};
use pelton_runtime::nats;
use pelton_runtime::records::{Controls, FunctionRecord};
use schemars::JsonSchema;
use serde::Serialize;

use super::provenance;
use crate::global::Global;
use crate::output::{Output, failure};

/// Which function, and how long to wait for the nodes.
#[derive(Debug, Args)]
pub struct OneFunction {
    /// The function.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// Of which app. Default: the manifest's, else the only one there is.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// How long to wait until every live node has confirmed; what runs may take up to 30 s to end.
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// What is set of a function now, and what the nodes say.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ControlReport {
    /// The function.
    pub function: String,
    /// Its version.
    pub version: u64,
    /// What is set.
    pub controls: Controls,
    /// What the live nodes made of it.
    pub nodes: Rollout,
}

/// `pelton function pause`.
pub async fn pause(which: OneFunction, global: &Global) -> anyhow::Result<()> {
    let place = Place::open(which, global).await?;
    let by = provenance::who();
    let record = hold::pause(&place.js, &place.app, &place.function, &by).await?;
    place.confirmed(&record, |report| {
        format!(
            "{} takes no more events, and nothing of it is under way on {} nodes; what comes waits in its streams. `pelton function resume {}` lets it go on",
            report.function, report.nodes.nodes, report.function
        )
    })
    .await
}

/// `pelton function resume`.
pub async fn resume(which: OneFunction, global: &Global) -> anyhow::Result<()> {
    let place = Place::open(which, global).await?;
    let record = hold::resume(&place.js, &place.app, &place.function).await?;
    place
        .confirmed(&record, |report| {
            format!(
                "{} takes events again on {} nodes",
                report.function, report.nodes.nodes
            )
        })
        .await
}

/// `pelton function set`; no concurrency: as deployed.
pub async fn set(
    which: OneFunction,
    concurrency: Option<u32>,
    global: &Global,
) -> anyhow::Result<()> {
    let place = Place::open(which, global).await?;
    let record = hold::set_concurrency(&place.js, &place.app, &place.function, concurrency).await?;
    let deployed = record.settings.concurrency;
    place
        .confirmed(&record, |report| {
            let (function, nodes) = (&report.function, report.nodes.nodes);
            match report.controls.concurrency {
                Some(now) => format!(
                    "{function} has up to {now} attempts in flight on each of {nodes} nodes, in place of {deployed}, until a new version is deployed"
                ),
                None => format!(
                    "{function} has up to {deployed} attempts in flight on each of {nodes} nodes, as deployed"
                ),
            }
        })
        .await
}

/// A function, and the way to it.
struct Place {
    js: jetstream::Context,
    output: Output,
    app: String,
    function: String,
    wait: Duration,
}

impl Place {
    async fn open(which: OneFunction, global: &Global) -> anyhow::Result<Self> {
        let js = nats::jetstream(&global.connect().await?);
        let app = global.app(which.app, &js).await?;
        // One that is not there is told before anything waits.
        functions::record(&js, &app, &which.function).await?;
        Ok(Self {
            js,
            output: global.output(),
            app,
            function: which.function,
            wait: which.wait,
        })
    }

    async fn confirmed(
        &self,
        record: &FunctionRecord,
        text: impl FnOnce(&ControlReport) -> String,
    ) -> anyhow::Result<()> {
        let progress = self.output.progress("waiting for the nodes");
        let wanted = BTreeMap::from([(self.function.clone(), Wanted::of(record))]);
        let nodes = nodes::wait(&self.js, &self.app, &wanted, self.wait).await?;
        drop(progress);
        let trouble = unconfirmed(&nodes, self.wait);
        let report = ControlReport {
            function: self.function.clone(),
            version: record.version,
            controls: record.controls.clone(),
            nodes,
        };
        match trouble {
            None => self.output.document(&report, text),
            Some(trouble) => {
                if self.output.is_json() {
                    self.output.document(&report, text)?;
                }
                Err(trouble)
            }
        }
    }
}

/// What a script must not overlook: nodes that have not confirmed, by name.
pub fn unconfirmed(nodes: &Rollout, waited: Duration) -> Option<anyhow::Error> {
    let failed = nodes
        .failed
        .iter()
        .map(|one| format!("{} ({}): {}", one.host, one.node, one.why));
    let silent = nodes
        .silent
        .iter()
        .map(|node| format!("{node}: not within {}", humantime::format_duration(waited)));
    let gone = nodes
        .gone
        .iter()
        .map(|node| format!("{node}: it is not heard from any more"));
    let all: Vec<String> = failed.chain(silent).chain(gone).collect();
    (!all.is_empty()).then(|| {
        failure(
            format!("it is set, but not confirmed by {}", all.join("; ")),
            "they follow when they can; see `pelton node ls` and their logs, or wait longer with --wait",
        )
    })
}
