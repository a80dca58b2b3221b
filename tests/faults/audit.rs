//! Whether what happened could have been the work of one handler at a time, each delivery once. Pure: from what is in the streams
//! to a list of what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use crate::positions;
use crate::timers;
use crate::workload::{MILLION, OVERSIZED};
use crate::world::{Delivery, Fact, Input, World};

/// A write of the outside client.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    /// The value it added a million to.
    pub id: String,
    /// Its place among all commits; `None`: its answer was lost, and it was found stored.
    pub at: Option<u64>,
}

/// What is known beside what is in the streams.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub outside: Vec<Outside>,
    /// Numbers of events whose producer was told that they are stored, and where.
    pub acked: Vec<(u64, u64)>,
    /// From which commit to which one functions may have been forbidden to emit to `out.*`.
    pub narrow: Vec<(u64, u64)>,
}

/// Something that must not be.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// The key or value that it is about.
    pub about: String,
    /// What.
    pub what: String,
}

/// What is to become of a delivery.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Receipt,
    Dead(&'static str),
    /// Nothing that can be seen.
    Silence,
}

fn due(input: &Input) -> Due {
    if input.act["bytes"] == OVERSIZED {
        return Due::Dead("pelton-limit");
    }
    match (input.act["do"].as_str(), input.fail["how"].as_str()) {
        (Some("judge"), _) => Due::Dead("judged"),
        (_, Some("reject")) => Due::Dead("told"),
        (Some("hush" | "look"), _) => Due::Silence,
        _ => Due::Receipt,
    }
}

/// Everything that is wrong.
pub(crate) fn audit(world: &World, known: &Known) -> Vec<Violation> {
    let inputs: BTreeMap<Delivery, &Input> = world
        .inputs
        .iter()
        .flat_map(|input| {
            input
                .functions()
                .iter()
                .map(move |to| (input.to(to), input))
        })
        .collect();
    let mut found: Vec<Violation> = Vec::new();
    let mut add = |about: &str, what: String| {
        found.push(Violation {
            about: about.to_owned(),
            what,
        });
    };
    for twice in &world.twice {
        add("", format!("an event arrived twice: {twice}"));
    }
    stored(world, &known.acked, &mut add);
    once(world, &inputs, &known.narrow, &mut add);
    order(world, &inputs, &mut add);
    emitted(world, &inputs, &mut add);
    timers::fired(world, &mut add);
    let state = replay(world, &known.outside, &mut add);
    last_state(world, &state, &mut add);
    conserved(&state, &mut add);
    for left in &world.commits.leftovers {
        add("", format!("left over: {left}"));
    }
    for (delivery, key) in positions::missing(&world.inputs, &world.commits) {
        add(&key, format!("no position covers {delivery}"));
    }
    found
}

type Inputs<'a> = BTreeMap<Delivery, &'a Input>;

/// What its producer was told to be stored is there.
fn stored(world: &World, acked: &[(u64, u64)], add: &mut impl FnMut(&str, String)) {
    let work = world.inputs.iter().filter(|input| input.stream == "WORK");
    let ids: BTreeMap<u64, &str> = work
        .filter_map(|input| Some((input.sequence, input.id.as_deref()?)))
        .collect();
    for (n, sequence) in acked {
        let found = ids.get(sequence).copied();
        if found != Some(format!("e{n}").as_str()) {
            add(
                "",
                format!("event {n} was stored at WORK:{sequence}, where {found:?} is"),
            );
        }
    }
}

/// Every delivery has ended once, and as it should.
fn once(
    world: &World,
    inputs: &Inputs<'_>,
    narrow: &[(u64, u64)],
    add: &mut impl FnMut(&str, String),
) {
    let mut ends: BTreeMap<&Delivery, Vec<&Fact>> = BTreeMap::new();
    for fact in &world.facts {
        ends.entry(&fact.delivery).or_default().push(fact);
    }
    for (delivery, facts) in &ends {
        let Some(input) = inputs.get(delivery) else {
            add("", format!("{delivery} ended and is no delivery"));
            continue;
        };
        if facts.len() > 1 {
            let at: Vec<u64> = facts.iter().map(|fact| fact.at).collect();
            add(
                &input.key,
                format!("{delivery} ended {} times, at {at:?}", at.len()),
            );
        }
        let due = due(input);
        for fact in facts {
            let right = match (&due, fact.code.as_deref()) {
                (Due::Receipt, None) => true,
                (Due::Dead(code), Some(found)) if *code == found => true,
                (_, Some("pelton-not-allowed")) => {
                    let emits = matches!(input.act["do"].as_str(), Some("tell" | "later"));
                    let mut narrow = narrow.iter();
                    emits && narrow.any(|(from, to)| (*from..=*to).contains(&fact.at))
                }
                _ => false,
            };
            if !right {
                let ended = fact.code.as_deref().unwrap_or("committed");
                add(
                    &input.key,
                    format!("{delivery} should end as {due:?} and is {ended}"),
                );
            }
        }
    }
    for (delivery, input) in inputs {
        if due(input) != Due::Silence && !ends.contains_key(delivery) {
            add(
                &input.key,
                format!(
                    "{delivery} has not ended, partition {}",
                    positions::partition(&input.key)
                ),
            );
        }
    }
}

/// Deliveries of one key end in their order, those apart that wait for others.
fn order(world: &World, inputs: &Inputs<'_>, add: &mut impl FnMut(&str, String)) {
    let mut last: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for fact in &world.facts {
        let Some(input) = inputs.get(&fact.delivery) else {
            continue;
        };
        if input.act["do"] == "await" {
            continue;
        }
        let Delivery {
            function,
            stream,
            sequence,
        } = &fact.delivery;
        let last = last.entry((function, stream, &input.key)).or_default();
        if *sequence < *last {
            add(
                &input.key,
                format!("{} ended after {last}, which comes later", fact.delivery),
            );
        }
        *last = *sequence;
    }
}

/// What was emitted beside the receipts is what they say, each once and in order.
fn emitted(world: &World, inputs: &Inputs<'_>, add: &mut impl FnMut(&str, String)) {
    let mut told: BTreeMap<&Delivery, Vec<u64>> = BTreeMap::new();
    for one in world.told.iter().filter(|one| one.timer.is_none()) {
        told.entry(&one.from).or_default().push(one.n);
    }
    for fact in &world.facts {
        let key = inputs
            .get(&fact.delivery)
            .map_or("", |input| input.key.as_str());
        let told = told.remove(&fact.delivery).unwrap_or_default();
        if !told.iter().copied().eq(0..fact.told) {
            let (delivery, count) = (&fact.delivery, fact.told);
            add(
                key,
                format!("{delivery} emitted {count}, and there are {told:?}"),
            );
        }
    }
    for (delivery, told) in told {
        let key = inputs.get(delivery).map_or("", |input| input.key.as_str());
        add(
            key,
            format!("events {told:?} of {delivery}, which did not commit"),
        );
    }
}

type State = BTreeMap<String, i64>;

/// In the order of the commits, each delivery saw what those before it had left.
fn replay(world: &World, outside: &[Outside], add: &mut impl FnMut(&str, String)) -> State {
    let mut state = State::new();
    let mut known: BTreeMap<u64, &str> = BTreeMap::new();
    // Their place is not known: they are applied where somebody saw them.
    let mut floating: BTreeMap<&str, u32> = BTreeMap::new();
    for write in outside {
        match write.at {
            Some(at) => drop(known.insert(at, &write.id)),
            None => *floating.entry(&write.id).or_default() += 1,
        }
    }
    for fact in &world.facts {
        while let Some(entry) = known.first_entry()
            && *entry.key() < fact.at
        {
            *state.entry(entry.remove().to_owned()).or_default() += MILLION;
        }
        for (id, seen) in &fact.reads {
            let is = state.get(id).copied();
            if is == *seen {
                continue;
            }
            let lately = floating.get_mut(id.as_str()).filter(|left| **left > 0);
            match lately {
                Some(left) if Some(is.unwrap_or(0) + MILLION) == *seen => {
                    *left -= 1;
                    state.insert(id.clone(), is.unwrap_or(0) + MILLION);
                }
                _ => add(
                    id,
                    format!(
                        "{} at {} saw {seen:?} where {is:?} was",
                        fact.delivery, fact.at
                    ),
                ),
            }
        }
        for (id, value) in &fact.writes {
            match value {
                Some(value) => drop(state.insert(id.clone(), *value)),
                None => drop(state.remove(id)),
            }
        }
        for pair in fact.writes.keys().filter(|id| id.starts_with("pair-")) {
            let number = pair.rsplit('-').next().unwrap_or_default();
            let of = |side: &str| state.get(&format!("pair-{side}-{number}")).copied();
            let both = of("a").unwrap_or(0) + of("b").unwrap_or(0);
            if both < 0 {
                add(pair, format!("{} left a pair at {both}", fact.delivery));
            }
        }
    }
    for id in known.values().copied().chain(
        floating
            .iter()
            .flat_map(|(id, left)| std::iter::repeat_n(*id, *left as usize)),
    ) {
        *state.entry(id.to_owned()).or_default() += MILLION;
    }
    state
}

/// The state is what the deliveries left.
fn last_state(world: &World, state: &State, add: &mut impl FnMut(&str, String)) {
    let stored = &world.commits.state;
    let ids: BTreeSet<&String> = state.keys().chain(stored.keys()).collect();
    for id in ids.into_iter().filter(|id| !id.starts_with("hush-")) {
        let is = stored.get(id).and_then(|(value, _)| *value);
        let should = state.get(id).copied();
        if is != should {
            add(id, format!("is {is:?} in the end and should be {should:?}"));
        }
    }
    // Written without a receipt, each by one key: the last one counts.
    let mut hushed = BTreeMap::new();
    for input in &world.inputs {
        if input.act["do"] == "hush" && due(input) == Due::Silence {
            let id = input.act["id"].as_str().unwrap_or_default();
            hushed.insert(id, input.act["value"].as_i64());
        }
    }
    for (id, should) in hushed {
        let is = stored.get(id).and_then(|(value, _)| *value);
        if is != should {
            add(id, format!("is {is:?} in the end and should be {should:?}"));
        }
    }
}

/// Transfers neither make nor destroy anything.
fn conserved(state: &State, add: &mut impl FnMut(&str, String)) {
    let accounts = state.iter().filter(|(id, _)| id.starts_with("account-"));
    let sum: i64 = accounts.map(|(_, amount)| amount).sum();
    if sum != 0 {
        add("", format!("the accounts sum up to {sum}"));
    }
}
