//! What is to be said of events at a time: each comes once, never before its time, unless its name was set anew or cancelled
//! before it came.

use std::collections::BTreeMap;

use crate::world::{Fact, Told, World};

/// What a name held, one after the other: commit by commit.
type Story<'a> = BTreeMap<&'a str, Vec<(&'a Fact, Option<i64>)>>;

/// Compares what was set with what came.
pub(crate) fn fired(world: &World, add: &mut impl FnMut(&str, String)) {
    let mut story = Story::new();
    for fact in &world.facts {
        for (name, at) in &fact.timers {
            story.entry(name).or_default().push((fact, *at));
        }
    }
    let mut came: BTreeMap<_, Vec<&Told>> = BTreeMap::new();
    for told in &world.told {
        if let Some((name, _)) = &told.timer {
            came.entry((name.as_str(), &told.from))
                .or_default()
                .push(told);
        }
    }
    for (name, changes) in story {
        for (n, (fact, at)) in changes.iter().enumerate() {
            let before = n.checked_sub(1).and_then(|n| changes.get(n));
            let before = before.map_or(0, |(fact, _)| fact.at);
            let next = changes.get(n + 1).map(|(fact, _)| fact.at);
            let came = came.remove(&(name, &fact.delivery)).unwrap_or_default();
            if let Some(wrong) = wrong(*at, &came, before, next) {
                let (delivery, place) = (&fact.delivery, fact.at);
                add(
                    name,
                    format!("timer {name} of {delivery}, set at {place}: {wrong}"),
                );
            }
        }
    }
    for ((name, delivery), _) in came {
        add(
            name,
            format!("timer {name} of {delivery}, which did not commit, came"),
        );
    }
}

fn wrong(at: Option<i64>, came: &[&Told], before: u64, next: Option<u64>) -> Option<String> {
    let (Some(at), [one, more @ ..]) = (at, came) else {
        return match (at, next) {
            _ if at.is_none() && !came.is_empty() => Some("cancelled, and came".to_owned()),
            (Some(_), None) => Some("did not come".to_owned()),
            _ => None,
        };
    };
    let millis = i64::try_from(one.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
    if !more.is_empty() {
        Some(format!("came {} times", came.len()))
    } else if millis < at {
        Some(format!("came {} ms too early", at - millis))
    } else if one.at <= before || next.is_some_and(|next| one.at >= next) {
        Some(format!(
            "came at {}, not between {before} and {next:?}",
            one.at
        ))
    } else {
        None
    }
}
