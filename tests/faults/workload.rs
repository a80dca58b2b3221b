//! What the functions are given to do: a seeded mix of all that could go wrong between two deliveries, over thousands of keys.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};

/// Values that an outside client writes, too.
pub(crate) const OUTSIDE: usize = 12;
/// What it adds each time; functions add one each, and never so many.
pub(crate) const MILLION: i64 = 1_000_000;
/// Bytes of an event that its target does not take.
pub(crate) const OVERSIZED: usize = 300_000;
/// Events after which one that others wait for is published.
const GATE_OPENS_AFTER: usize = 60;

/// One input.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// `work.<key>.<kind>`.
    pub subject: String,
    /// The data.
    pub data: Value,
    /// Receipts and dead letters that it leads to, those of the events that it sets off included.
    pub answers: u64,
}

/// The source of events.
pub(crate) struct Workload {
    rng: Rng,
    made: usize,
    /// Those that open what others wait for, by when they are due.
    gates: BTreeMap<usize, Event>,
}

impl Workload {
    /// The same seed makes the same events.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            made: 0,
            gates: BTreeMap::new(),
        }
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Event {
        self.made += 1;
        if let Some(due) = self.gates.first_entry()
            && *due.key() <= self.made
        {
            return due.remove();
        }
        let (key, kind, act) = self.act();
        let mut data = json!({ "act": act });
        if self.rng.u32(..100) < 10 {
            data["work"] = self.rng.u32(100..4000).into();
        }
        let silent = matches!(kind, "hush" | "look");
        let hops = act["hops"].as_u64().unwrap_or(0);
        let mut answers = if silent { 0 } else { 1 + hops };
        match self.rng.u32(..1000) {
            0..40 => {
                let how = if self.rng.bool() {
                    "retry"
                } else {
                    "retry-after"
                };
                data["fail"] = json!({ "how": how, "until": self.rng.u32(2..5) });
            }
            40..43 => data["fail"] = json!({ "how": "panic", "until": 2 }),
            43..53 if kind != "await" => {
                data["fail"] = json!({ "how": "reject", "until": 0 });
                answers = 1;
            }
            _ => {}
        }
        if kind == "shared" {
            answers *= 2;
        }
        Event {
            subject: format!("work.{key}.{kind}"),
            data,
            answers,
        }
    }

    /// What is still owed to those that wait.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.gates).into_values().collect()
    }

    fn act(&mut self) -> (String, &'static str, Value) {
        let rng = &mut self.rng;
        match rng.u32(..1000) {
            0..180 => {
                let (lane, id) = (rng.u32(..400), format!("count-{}", rng.u32(..1000)));
                (
                    format!("c{lane}"),
                    "count",
                    json!({ "do": "count", "id": id }),
                )
            }
            180..290 => {
                let n = rng.u32(..1000);
                let id = format!("own-{n}");
                (format!("o{n}"), "own", json!({ "do": "count", "id": id }))
            }
            290..470 => {
                let (from, to) = (rng.u32(..300), rng.u32(..300));
                let amount = rng.i64(1..100);
                let (from, to) = (format!("account-{from}"), format!("account-{to}"));
                let act = json!({ "do": "transfer", "from": from, "to": to, "amount": amount });
                (format!("t{}", rng.u32(..500)), "transfer", act)
            }
            470..580 => self.withdraw(),
            580..650 => {
                let key = format!("e{}", rng.u32(..500));
                let act =
                    json!({ "do": "tell", "to": format!("out.{key}"), "times": rng.u32(1..4) });
                (key, "tell", act)
            }
            650..700 => {
                let (id, value) = (format!("put-{}", rng.u32(..200)), rng.i64(..1 << 40));
                let act = json!({ "do": "put", "id": id, "value": value });
                (format!("p{}", rng.u32(..500)), "put", act)
            }
            700..740 => {
                let (n, value) = (rng.u32(..200), rng.i64(..1 << 40));
                let act = json!({ "do": "hush", "id": format!("hush-{n}"), "value": value });
                (format!("h{n}"), "hush", act)
            }
            740..780 => {
                let id = format!("toggle-{}", rng.u32(..60));
                (
                    format!("g{}", rng.u32(..300)),
                    "toggle",
                    json!({ "do": "toggle", "id": id }),
                )
            }
            _ => self.second(),
        }
    }

    /// Two values that may not be below zero together: each event reads both and writes one.
    fn withdraw(&mut self) -> (String, &'static str, Value) {
        let rng = &mut self.rng;
        let pair = rng.u32(..80);
        let (one, two) = if rng.bool() { ("a", "b") } else { ("b", "a") };
        let (id, other) = (format!("pair-{one}-{pair}"), format!("pair-{two}-{pair}"));
        let amount = rng.i64(-5..9);
        let act = json!({ "do": "withdraw", "id": id, "other": other, "amount": amount });
        (format!("w{}", rng.u32(..300)), "withdraw", act)
    }

    fn second(&mut self) -> (String, &'static str, Value) {
        let rng = &mut self.rng;
        match rng.u32(..250) {
            0..30 => {
                let id = format!("count-{}", rng.u32(..1000));
                (
                    format!("l{}", rng.u32(..300)),
                    "look",
                    json!({ "do": "look", "id": id }),
                )
            }
            30..55 => {
                let id = format!("count-{}", rng.u32(..100));
                (
                    format!("j{}", rng.u32(..300)),
                    "judge",
                    json!({ "do": "judge", "id": id }),
                )
            }
            55..105 => {
                let id = format!("warm-{}", rng.u32(..500));
                let act = json!({ "do": "hot", "id": id, "hot": "hot" });
                (format!("v{}", rng.u32(..500)), "hot", act)
            }
            105..107 => {
                let act = json!({ "do": "put", "id": "hot", "value": rng.i64(..1 << 40) });
                ("fire".to_owned(), "put", act)
            }
            107..155 => {
                let n = rng.u32(..150);
                let id = format!("shared-{n}");
                (
                    format!("s{n}"),
                    "shared",
                    json!({ "do": "count", "id": id }),
                )
            }
            155..185 => {
                let key = format!("x{}", rng.u32(..200));
                let id = format!("link-{}", rng.u32(..200));
                let to = format!("chain.{key}");
                let act = json!({ "do": "chain", "id": id, "to": to, "hops": rng.u32(1..4) });
                (key, "chain", act)
            }
            185..195 => self.wait(),
            195..222 => self.later(),
            222..225 => {
                let key = format!("e{}", rng.u32(..500));
                let act = json!({ "do": "tell", "to": format!("out.{key}"), "times": 1, "bytes": OVERSIZED });
                (key, "huge", act)
            }
            _ => {
                let id = format!("outside-{}", rng.usize(..OUTSIDE));
                (
                    format!("f{}", rng.u32(..300)),
                    "foreign",
                    json!({ "do": "count", "id": id }),
                )
            }
        }
    }

    /// An event at a time: under a name of its own, or one that others set anew and cancel.
    fn later(&mut self) -> (String, &'static str, Value) {
        let rng = &mut self.rng;
        let key = format!("y{}", rng.u32(..200));
        let name = match rng.bool() {
            true => format!("once-{}", self.made),
            false => format!("often-{}", rng.u32(..40)),
        };
        if name.starts_with("often") && rng.u32(..4) == 0 {
            return (key, "cancel", json!({ "do": "cancel", "name": name }));
        }
        let to = format!("out.{key}");
        let act = json!({ "do": "later", "name": name, "to": to, "after": rng.i64(0..6000) });
        (key, "later", act)
    }

    /// One that waits for another one of its key, which comes later.
    fn wait(&mut self) -> (String, &'static str, Value) {
        let (key, id) = (format!("d{}", self.made), format!("gate-{}", self.made));
        let opens = Event {
            subject: format!("work.{key}.open"),
            data: json!({ "act": { "do": "put", "id": id, "value": 1 } }),
            answers: 1,
        };
        self.gates.insert(self.made + GATE_OPENS_AFTER, opens);
        (key, "await", json!({ "do": "await", "id": id }))
    }
}
