//! How a deploy's new versions get their events, and what nodes say of them first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use pelton_runtime::control::deploy::{self, FunctionAction, FunctionPlan, Plan, Steps, Way};
use pelton_runtime::control::nodes::Wanted;
use pelton_runtime::control::rollout::{self, Tried};
use pelton_runtime::control::{ControlError, ErrorKind};
use pelton_runtime::records::{FunctionRecord, SHARES};
use pelton_runtime::rollout::Bounds;
use schemars::JsonSchema;
use serde::Serialize;

use crate::output::{Output, Progress, failure};

/// Flags of a deploy that say so.
#[derive(Debug, Clone, Args)]
pub struct StrategyArgs {
    /// Give the new version this share of the keys first, such as 10%.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "no_trial")]
    canary: Option<u32>,
    /// Shares that follow by themselves, ascending, such as 10%,50%,100%. With 100% it becomes the
    /// active version.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = share, requires = "canary")]
    steps: Vec<u32>,
    /// Between two of them.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration, requires = "canary")]
    every: Duration,
    /// Take the canary back when its failure rate exceeds the active version's by more than this.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = rate, requires = "canary")]
    max_failures: f64,
    /// Take it back when its p99 duration is more than this many times the active version's.
    #[arg(long, value_name = "FACTOR", default_value = "2", value_parser = factor, requires = "canary")]
    max_p99: f64,
    /// Attempts of the canary before it is judged.
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u64).range(1..), requires = "canary")]
    min_attempts: u64,
    /// Let nobody judge the canary: it stays until it is promoted or aborted, or its steps are over.
    #[arg(long, requires = "canary")]
    no_judge: bool,
    /// Switch only when every node has the new version ready, and then all at once; the old one stays ready for --keep-warm.
    #[arg(long, conflicts_with_all = ["canary", "no_trial"])]
    blue_green: bool,
    /// How long nodes keep the old version ready after the switch.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration, requires = "blue_green")]
    keep_warm: Duration,
    /// Make the new version active before any node has loaded it.
    #[arg(long)]
    no_trial: bool,
}

/// What became of a function's new version.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Outcome {
    /// The version.
    pub version: u64,
    /// Its share of the keys now, of 10,000; all of them: it is the active one; 0: it was taken back.
    pub share: u32,
    /// What nodes said of it; none: none was asked.
    pub tried: Option<Tried>,
}

/// By function.
pub type Outcomes = BTreeMap<String, Outcome>;

impl StrategyArgs {
    /// How new versions begin.
    pub fn way(&self) -> Way {
        if self.no_trial {
            return Way::AtOnce;
        }
        let first = self.canary.unwrap_or(SHARES);
        let mut shares = vec![first];
        shares.extend(&self.steps);
        Way::Tried(Steps {
            shares,
            every: self.every,
            warm: self.blue_green.then_some(self.keep_warm),
            bounds: self.canary.filter(|_| !self.no_judge).map(|_| Bounds {
                failures: self.max_failures,
                p99: self.max_p99,
                least: self.min_attempts,
            }),
        })
    }

    /// Refuses a canary of what cannot have a share.
    pub fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        let replaced = plan.functions.iter().find(|one| one.changes_delivery());
        if let Some(function) = replaced.filter(|_| self.blue_green) {
            return Err(failure(
                format!(
                    "function {} cannot be switched when all nodes have it ready: `delivery` changes, and the version before cannot go on meanwhile",
                    function.function
                ),
                "deploy it without --blue-green",
            ));
        }
        let Some(first) = self.canary else {
            return Ok(());
        };
        if !std::iter::once(&first)
            .chain(&self.steps)
            .is_sorted_by(|a, b| a < b)
        {
            return Err(failure(
                "the shares of --canary and --steps do not ascend",
                "say for example --canary 10% --steps 25%,50%,100%: no key goes back and forth",
            ));
        }
        let changed = plan.functions.iter();
        for function in changed.filter(|one| one.action != FunctionAction::Unchanged) {
            if let Some(why) = function.obstacle() {
                return Err(failure(
                    format!(
                        "function {} cannot be tried on a share of its events: {why}",
                        function.function
                    ),
                    "deploy it without --canary",
                ));
            }
        }
        Ok(())
    }
}

fn changed(plan: &Plan) -> impl Iterator<Item = &FunctionPlan> {
    plan.functions.iter().filter(|one| one.is_tried())
}

/// A version that was taken back before any event went to it: why, and how to mend it.
pub struct Failed {
    what: String,
    fix: String,
}

impl Failed {
    /// One error of all; none: none failed.
    pub fn error(all: &[Self]) -> Option<anyhow::Error> {
        if all.is_empty() {
            return None;
        }
        let whats: Vec<&str> = all.iter().map(|one| one.what.as_str()).collect();
        let fixes: BTreeSet<&str> = all.iter().map(|one| one.fix.as_str()).collect();
        let fixes: Vec<&str> = fixes.into_iter().collect();
        Some(failure(
            format!("not deployed: {}", whats.join("; ")),
            format!("{}; what ran before runs on", fixes.join("; ")),
        ))
    }
}

/// Waits for what nodes say of the new versions, and gives them their first share, or all. What is to run then, and what was taken back.
pub async fn begin(
    js: &jetstream::Context,
    plan: &Plan,
    StrategyArgs { blue_green, .. }: &StrategyArgs,
    within: Duration,
    output: &Output,
) -> anyhow::Result<(Outcomes, BTreeMap<String, Wanted>, Vec<Failed>)> {
    let mut wanted = plan.versions();
    let (mut outcomes, mut failed) = (Outcomes::new(), Vec::new());
    let progress = output.progress("waiting for the nodes to load it");
    for planned in changed(plan) {
        let (function, version) = (&planned.function, planned.version);
        let mut tried = None;
        // Whatever becomes of one, the others are gone on with.
        let begun = begin_one(
            js,
            plan.app.as_str(),
            planned,
            *blue_green,
            within,
            (&progress, &mut tried),
        );
        let share = match begun.await {
            Ok(record) => {
                wanted.insert(function.clone(), Wanted::of(&record));
                record.trial.as_ref().map_or(SHARES, |trial| trial.share)
            }
            Err(ControlError { what, fix, .. }) => {
                wanted.remove(function);
                failed.push(Failed {
                    what: format!("{function} version {version}: {what}"),
                    fix,
                });
                0
            }
        };
        let outcome = Outcome {
            version,
            share,
            tried,
        };
        outcomes.insert(function.clone(), outcome);
    }
    Ok((outcomes, wanted, failed))
}

/// One of them: its record when it has its first share, or all, or why it was taken back. What nodes said goes to `tried`.
async fn begin_one(
    js: &jetstream::Context,
    app: &str,
    planned: &FunctionPlan,
    blue_green: bool,
    within: Duration,
    (progress, heard): (&Progress, &mut Option<Tried>),
) -> Result<FunctionRecord, ControlError> {
    let FunctionPlan {
        function,
        version,
        previous_version,
        ..
    } = planned;
    progress.step(&format!(
        "waiting for the nodes to load version {version} of {function}"
    ));
    let tried = rollout::wait_until_tried(js, app, function, *version, within).await?;
    let tried = heard.insert(tried);
    let enough = if blue_green { tried.nodes } else { 1 };
    let begun = match tried.nodes > 0 && tried.ready < enough {
        true => Err(ControlError {
            kind: ErrorKind::Refused,
            what: reason(tried, within),
            fix: "mend that and deploy again".into(),
        }),
        false => first(js, app, planned, tried, progress).await,
    };
    if let Err(error) = &begun {
        // What cannot be taken back now, or is another's by now, has no event, and gives way to the next deploy.
        let _ = match previous_version {
            Some(_) => rollout::abort(js, app, function, Some(*version), &error.what)
                .await
                .map(drop),
            None => rollout::discard(js, app, function, *version).await,
        };
    }
    begun
}

/// Gives a version that nodes have loaded its first share, or all.
async fn first(
    js: &jetstream::Context,
    app: &str,
    planned: &FunctionPlan,
    tried: &Tried,
    progress: &Progress,
) -> Result<FunctionRecord, ControlError> {
    let FunctionPlan {
        function, version, ..
    } = planned;
    let why = match tried.nodes {
        0 if tried.older > 0 => format!(
            "the {} nodes alive are of a release that tries no version",
            tried.older
        ),
        0 => "no node is alive to try it".to_owned(),
        nodes => format!("{} of {nodes} nodes have loaded it", tried.ready),
    };
    if planned.changes_delivery() {
        let mut step = |text: &str| progress.step(text);
        return deploy::hand_over(js, app, planned, &why, &mut step).await;
    }
    match planned.previous_version {
        Some(_) => rollout::step(js, app, function, *version, &why).await,
        None => rollout::promote(js, app, function, Some(*version), &why).await,
    }
}

fn reason(tried: &Tried, within: Duration) -> String {
    let Tried { nodes, ready, .. } = tried;
    if tried.failed.is_empty() {
        let silent: Vec<&str> = tried.silent.iter().map(String::as_str).collect();
        return format!(
            "{ready} of {nodes} nodes have loaded it within {}, and not {}",
            humantime::format_duration(within),
            silent.join(", ")
        );
    }
    let whys = tried
        .failed
        .iter()
        .map(|(node, why)| format!("{node}: {why}"));
    let who = match ready {
        0 => "no node can load it".to_owned(),
        _ => format!("{ready} of {nodes} nodes can load it"),
    };
    format!("{who}: {}", whys.collect::<Vec<_>>().join("; "))
}

/// `10%`, or `10`, as a number from 0 to 100. Below 1 it needs its `%`: 0.2 may be meant as a
/// fifth.
fn percent(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, sign) = match text.strip_suffix('%') {
        Some(number) => (number.trim_end(), true),
        None => (text, false),
    };
    let percent: f64 = number
        .parse()
        .map_err(|_| "a share such as 10%".to_owned())?;
    if !sign && percent > 0.0 && percent < 1.0 {
        return Err(format!(
            "it is not clear which share {text} is: write {}% or {text}%",
            shown(percent * 100.0)
        ));
    }
    Ok(percent)
}

/// A number of per cent with at most four digits after the point: more is noise of the
/// multiplication.
fn shown(percent: f64) -> f64 {
    (percent * 1e4).round() / 1e4
}

/// A share as parts of 10,000.
fn share(text: &str) -> Result<u32, String> {
    let percent = percent(text)?;
    if !(0.01..=100.0).contains(&percent) {
        return Err("a share from 0.01% to 100%".into());
    }
    Ok((percent * f64::from(SHARES) / 100.0).round() as u32)
}

/// Not less than 1.
fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text
        .trim()
        .parse()
        .map_err(|_| "a number such as 2".to_owned())?;
    match (1.0..=1000.0).contains(&factor) {
        true => Ok(factor),
        false => Err("a number from 1 to 1000".into()),
    }
}

/// A share as a part of 1.
fn rate(text: &str) -> Result<f64, String> {
    let percent = percent(text)?;
    match (0.0..=100.0).contains(&percent) {
        true => Ok(percent / 100.0),
        false => Err("a share from 0% to 100%".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_below_one_says_whether_it_is_per_cent() {
        assert_eq!(share("10%"), Ok(1000));
        assert_eq!(share("10"), Ok(1000));
        assert_eq!(share("1"), Ok(100));
        assert_eq!(share("0.2%"), Ok(20));
        assert_eq!(share("0.2 %"), Ok(20));
        assert_eq!(rate("0"), Ok(0.0));
        assert_eq!(rate("0.5%"), Ok(0.005));
        for (text, both) in [
            ("0.2", ["20%", "0.2%"]),
            (".5", ["50%", ".5%"]),
            ("0.07", ["7%", "0.07%"]),
        ] {
            for refused in [share(text).unwrap_err(), rate(text).unwrap_err()] {
                for spelling in both {
                    assert!(refused.contains(spelling), "{refused}");
                }
            }
        }
        for wrong in ["x", "-0.2", "101", "0.001%", "NaN", "10%%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
