//! All that is known about one key or value, in the order in which it happened: what a person needs who looks for the cause.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use crate::audit::Outside;
use crate::nemesis::Log;
use crate::world::{Delivery, World};

/// Lines at most: the latest are left out, since what was wrong first is what matters.
const LINES: usize = 120;

/// What happened to `about`, an ordering key or a value, and the faults meanwhile.
pub(crate) fn history(about: &str, world: &World, outside: &[Outside], log: &Log) -> Vec<String> {
    let of_key = |key: &str| !about.is_empty() && key == about;
    let mut lines: Vec<(OffsetDateTime, String)> = Vec::new();
    let mut deliveries: BTreeSet<Delivery> = BTreeSet::new();
    for input in &world.inputs {
        let names = input
            .act
            .as_object()
            .into_iter()
            .flat_map(|act| act.values());
        let mut names = names.filter_map(|name| name.as_str());
        if of_key(&input.key) || names.any(of_key) {
            let (stream, sequence, subject) = (&input.stream, input.sequence, &input.subject);
            let text = format!("{stream}:{sequence} {subject} {} {}", input.act, input.fail);
            lines.push((input.time, text));
            deliveries.extend(input.functions().iter().map(|to| input.to(to)));
        }
    }
    for fact in &world.facts {
        let mut values = fact.reads.keys().chain(fact.writes.keys());
        if deliveries.contains(&fact.delivery) || values.any(|id| of_key(id)) {
            let ended = fact.code.as_deref().unwrap_or("committed");
            let (reads, writes) = (&fact.reads, &fact.writes);
            lines.push((
                fact.time,
                format!(
                    "  @{} {} {ended}, attempt {}, read {reads:?}, wrote {writes:?}",
                    fact.at, fact.delivery, fact.attempt
                ),
            ));
        }
    }
    let (first, last) = (
        lines.iter().map(|(time, _)| *time).min(),
        lines.iter().map(|(time, _)| *time).max(),
    );
    for (time, _, what) in log.all() {
        if Some(time) >= first && Some(time) <= last {
            lines.push((time, format!("                    {what}")));
        }
    }
    lines.sort_by_key(|(time, _)| *time);
    let mut lines: Vec<String> = lines
        .into_iter()
        .take(LINES)
        .map(|(time, text)| format!("{} {text}", clock(time)))
        .collect();
    for write in outside.iter().filter(|write| of_key(&write.id)) {
        lines.push(format!("a million from outside at {:?}", write.at));
    }
    if let Some((value, at)) = world.commits.state.get(about) {
        lines.push(format!("in the end {value:?}, written at {at}"));
    }
    lines
}

/// Hours to milliseconds.
pub(crate) fn clock(time: OffsetDateTime) -> String {
    let (hour, minute, second, milli) = time.time().as_hms_milli();
    format!("{hour:02}:{minute:02}:{second:02}.{milli:03}")
}
