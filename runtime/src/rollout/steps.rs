//! How a function's record changes in a rollout. Pure: records in, records out; whoever stores them does so under the revision that it read.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{AtOnce, Figures, Judgement, judge};
use crate::records::{
    Chapter, Controls, FunctionRecord, NodeRecord, READY, SHARES, TrialRecord, rfc3339,
};

/// Chapters that a function's record keeps: the latest.
const MAX_CHAPTERS: usize = 30;

/// How both versions fare, over all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Both {
    /// The active one, since the other has its share.
    pub old: Figures,
    /// The one that is tried.
    pub new: Figures,
    /// What both have under way.
    pub at_once: AtOnce,
}

impl Both {
    /// As the nodes say.
    pub fn of(record: &FunctionRecord, nodes: &[NodeRecord]) -> Self {
        let mut both = Self::default();
        let Some(tried) = record.trial.as_ref() else {
            return both;
        };
        let entries = nodes
            .iter()
            .filter_map(|node| node.function(&record.app, &record.function));
        // A node that rests, or has not followed yet, or cannot run one of the two, says nothing of how they compare.
        for entry in entries.filter(|entry| entry.version == record.version) {
            let trial = entry.trial.as_ref().filter(|trial| {
                (trial.version, trial.share) == (tried.record.version, tried.share)
                    && trial.status == READY
            });
            let Some((trial, figures)) = trial.zip(entry.figures.as_ref()) else {
                continue;
            };
            both.old.add(figures);
            both.new.add(&trial.figures);
            both.at_once.new += trial.busy;
            both.at_once.all += entry.busy;
            both.at_once.most += entry.concurrency;
        }
        both
    }
}

/// The record of a version that is the active one at once, with what happened before.
pub fn at_once(
    active: Option<&FunctionRecord>,
    record: FunctionRecord,
    what: &str,
    why: &str,
    now: OffsetDateTime,
) -> FunctionRecord {
    let version = record.version;
    let story = active.map_or_else(Vec::new, |active| given_way(active, version, now).story);
    let record = FunctionRecord { story, ..record };
    told(record, what, version, SHARES, why, None, now)
}

/// The record with this version tried beside the active one, on no event yet; of a function without one, itself, pending.
pub fn tried(
    active: Option<&FunctionRecord>,
    trial: TrialRecord,
    now: OffsetDateTime,
) -> FunctionRecord {
    let version = trial.record.version;
    match active.filter(|active| !active.pending) {
        None => FunctionRecord {
            pending: true,
            ..trial.record
        },
        Some(active) => {
            let active = given_way(active, version, now);
            FunctionRecord {
                trial: Some(Box::new(trial)),
                ..told(active, "begun", version, 0, "deployed", None, now)
            }
        }
    }
}

/// The record when `version` takes the place of the one that is tried, if one is.
fn given_way(active: &FunctionRecord, version: u64, now: OffsetDateTime) -> FunctionRecord {
    let why = format!("version {version} takes its place");
    withdrawn(active, "aborted", &why, None, now).unwrap_or_else(|| active.clone())
}

/// The record with the version that is tried as the active one; none: nothing is tried.
pub fn promoted(
    record: &FunctionRecord,
    why: &str,
    both: Option<&Both>,
    now: OffsetDateTime,
) -> Option<FunctionRecord> {
    let at = rfc3339(now);
    if record.pending {
        return Some(FunctionRecord {
            pending: false,
            activated_at: at,
            ..record.clone()
        });
    }
    let trial = record.trial.as_ref()?;
    let version = trial.record.version;
    let before = told(record.clone(), "promoted", version, SHARES, why, both, now);
    Some(FunctionRecord {
        generation: (record.generation() + 1).max(version),
        previous: Some(record.version),
        warm_until: trial
            .warm_ms
            .map_or_else(String::new, |ms| rfc3339(now + Duration::from_millis(ms))),
        activated_at: at,
        story: before.story,
        controls: Controls {
            paused: before.controls.paused,
            concurrency: None,
        },
        ..trial.record.clone()
    })
}

/// The record with the active version alone; none: nothing is tried.
pub fn withdrawn(
    record: &FunctionRecord,
    what: &str,
    why: &str,
    both: Option<&Both>,
    now: OffsetDateTime,
) -> Option<FunctionRecord> {
    let version = record.trial.as_ref()?.record.version;
    Some(FunctionRecord {
        trial: None,
        ..told(record.clone(), what, version, 0, why, both, now)
    })
}

/// The record with the next share, or the version that is tried as the active one after the last; none: nothing is tried.
pub fn stepped(
    record: &FunctionRecord,
    why: &str,
    both: Option<&Both>,
    now: OffsetDateTime,
) -> Option<FunctionRecord> {
    let trial = record.trial.as_ref()?;
    let Some((share, rest)) = trial
        .steps
        .split_first()
        .filter(|(share, _)| **share < SHARES)
    else {
        return promoted(record, why, both, now);
    };
    let next = TrialRecord {
        share: *share,
        since: rfc3339(now),
        steps: rest.to_vec(),
        ..trial.as_ref().clone()
    };
    let version = trial.record.version;
    Some(FunctionRecord {
        trial: Some(Box::new(next)),
        ..told(record.clone(), "step", version, *share, why, both, now)
    })
}

/// What follows from how both fare; none: nothing yet.
pub fn decided(
    record: &FunctionRecord,
    both: &Both,
    now: OffsetDateTime,
) -> Option<FunctionRecord> {
    let trial = record.trial.as_ref().filter(|trial| trial.share > 0)?;
    // Time passes there, too, and says nothing.
    if record.controls.paused.is_some() || both.at_once.most == 0 {
        return None;
    }
    let judgement = match &trial.bounds {
        Some(bounds) => judge(&both.old, &both.new, both.at_once, trial.share, bounds),

        None => Judgement::Fine,
    };
    let (old, new) = (&both.old, &both.new);
    let worse = match judgement {
        Judgement::Fails => format!(
            "{:.1} % of its attempts failed, of the active version's {:.1} %",
            new.failure_rate() * 100.0,
            old.failure_rate() * 100.0
        ),
        Judgement::Slow => format!(
            "99 of 100 of its attempts took up to {:.1} ms, of the active version's {:.1} ms",
            new.p99_ms(),
            old.p99_ms()
        ),
        Judgement::Holds => format!(
            "{} of {} attempts that there may be at once are its own, and do not end",
            both.at_once.new, both.at_once.most
        ),
        Judgement::Unknown => return None,
        Judgement::Fine => {
            let since = OffsetDateTime::parse(&trial.since, &Rfc3339).unwrap_or(now);
            let over = now - since >= Duration::from_millis(trial.every_ms);
            // Without steps somebody promotes it.
            let goes_on = over && !trial.steps.is_empty();
            let why = match trial.bounds {
                Some(_) => "it is not worse",
                None => "its time is over, and nobody judges it",
            };
            return goes_on.then(|| stepped(record, why, Some(both), now))?;
        }
    };
    withdrawn(record, "taken-back", &worse, Some(both), now)
}

fn told(
    mut record: FunctionRecord,
    what: &str,
    version: u64,
    share: u32,
    why: &str,
    both: Option<&Both>,
    now: OffsetDateTime,
) -> FunctionRecord {
    record.story.push(Chapter {
        at: rfc3339(now),
        version,
        what: what.to_owned(),
        share,
        why: why.to_owned(),
        old: both.map(|both| (&both.old).into()),
        new: both.map(|both| (&both.new).into()),
    });
    let surplus = record.story.len().saturating_sub(MAX_CHAPTERS);
    record.story.drain(..surplus);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Bounds;

    fn trial(version: u64, share: u32, steps: &[u32]) -> TrialRecord {
        TrialRecord {
            record: FunctionRecord {
                version,
                ..FunctionRecord::sample()
            },
            share,
            since: rfc3339(OffsetDateTime::UNIX_EPOCH),
            steps: steps.to_vec(),
            every_ms: 1000,
            warm_ms: None,
            bounds: Some(Bounds::default()),
        }
    }

    fn both(new_failures: u64) -> Both {
        let figures = |failures| Figures {
            attempts: 100,
            failures,
            durations: vec![100],
        };
        Both {
            old: figures(1),
            new: figures(new_failures),
            at_once: AtOnce {
                new: 1,
                all: 9,
                most: 64,
            },
        }
    }

    #[test]
    fn a_canary_goes_up_its_steps_and_becomes_the_active_version() {
        let active = FunctionRecord::sample();
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let begun = tried(Some(&active), trial(3, 0, &[1000, 5000, SHARES]), at(0));
        assert_eq!((begun.version, begun.generation()), (2, 2));
        assert_eq!(
            decided(&begun, &both(0), at(9)),
            None,
            "it has no share yet"
        );
        let first = stepped(&begun, "ready", None, at(0)).unwrap();
        assert_eq!(first.trial.as_ref().unwrap().share, 1000);
        assert_eq!(
            decided(&first, &Both::default(), at(9)),
            None,
            "it runs nowhere"
        );
        assert_eq!(decided(&first, &both(0), at(0)), None, "too early");
        let second = decided(&first, &both(0), at(1)).unwrap();
        assert_eq!(second.trial.as_ref().unwrap().share, 5000);
        let done = decided(&second, &both(0), at(2)).unwrap();
        assert_eq!(
            (done.version, done.previous, done.generation()),
            (3, Some(2), 3)
        );
        let told: Vec<&str> = done.story.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(told, ["begun", "step", "step", "promoted"]);
        assert!(done.trial.is_none());
    }

    #[test]
    fn one_that_is_worse_is_taken_back_with_its_figures() {
        let active = FunctionRecord::sample();
        let now = OffsetDateTime::UNIX_EPOCH;
        let begun = tried(Some(&active), trial(3, 0, &[2000]), now);
        let running = stepped(&begun, "ready", None, now).unwrap();
        let back = decided(&running, &both(30), now).unwrap();
        assert_eq!((back.version, back.generation()), (2, 2));
        assert!(back.trial.is_none());
        let last = back.story.last().unwrap();
        assert_eq!((last.what.as_str(), last.version), ("taken-back", 3));
        assert_eq!(last.new.as_ref().unwrap().failure_rate, 0.3);
        assert!(last.why.contains("30.0 %"), "{}", last.why);
    }

    #[test]
    fn nothing_is_decided_while_it_is_paused_and_what_gives_way_is_told() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let begun = tried(Some(&FunctionRecord::sample()), trial(3, 0, &[2000]), now);
        let mut running = stepped(&begun, "ready", None, now).unwrap();
        running.controls.paused = Some(Default::default());
        assert_eq!(decided(&running, &both(30), now), None);
        let other = tried(Some(&running), trial(4, 0, &[2000]), now);
        let told: Vec<(&str, u64)> = other
            .story
            .iter()
            .map(|one| (one.what.as_str(), one.version))
            .collect();
        assert_eq!(
            told,
            [("begun", 3), ("step", 3), ("aborted", 3), ("begun", 4)]
        );
    }

    #[test]
    fn a_first_version_waits_until_it_is_loaded() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let pending = tried(None, trial(1, 0, &[]), now);
        assert!(pending.pending && pending.trial.is_none());
        let active = promoted(&pending, "ready", None, now).unwrap();
        assert!(!active.pending);
    }
}
