//! What is in the streams in the end: inputs, receipts, dead letters, what was emitted, state, positions, leftovers. The
//! verifier believes these alone, not what its own parts say they did.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures::StreamExt;
use pelton_tests::Nats;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::floor::Floor;

/// Wait for the next message of a stream that has one.
const NEXT: Duration = Duration::from_secs(10);
/// What is under way lies below these tokens.
const LEFT: [&str; 5] = ["park", "out", "at", "due", "timer"];
/// How often the commit stream is read until nobody writes to it meanwhile.
const TRIES: usize = 30;
/// Subjects that the leader is asked about at the same time.
const ASKED_AT_ONCE: usize = 16;
/// The app.
pub(crate) const APP: &str = "faults";

/// A delivery: one message to one function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Delivery {
    pub function: String,
    pub stream: String,
    pub sequence: u64,
}

/// A message of an input.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub stream: String,
    pub sequence: u64,
    pub subject: String,
    /// The ordering key.
    pub key: String,
    /// What it asks for.
    pub act: Value,
    /// How it is to fail.
    pub fail: Value,
    pub time: OffsetDateTime,
    /// Its producer's id.
    pub id: Option<String>,
}

/// Values as a delivery saw or left them; `None`: absent.
pub(crate) type Values = BTreeMap<String, Option<i64>>;

/// How a delivery ended.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    /// The sequence of its outbox message in the commit stream: its place among all commits.
    pub at: u64,
    pub delivery: Delivery,
    pub reads: Values,
    pub writes: Values,
    /// Events emitted beside the receipt.
    pub told: u64,
    /// Timers by name with the milliseconds since 1970 when they are due; `None`: cancelled.
    pub timers: BTreeMap<String, Option<i64>>,
    /// `None`: committed; else a dead letter's code.
    pub code: Option<String>,
    pub attempt: u64,
    pub time: OffsetDateTime,
}

/// An emitted event beside the receipts.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub from: Delivery,
    pub n: u64,
    /// Its place among all commits.
    pub at: u64,
    pub time: OffsetDateTime,
    /// The timer that it was set by, and when it was due.
    pub timer: Option<(String, i64)>,
}

/// The record of a partition.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Position {
    pub sequence: u64,
    #[serde(default)]
    pub done: Vec<u64>,
}

impl Position {
    /// Whether a message is done.
    pub(crate) fn covers(&self, sequence: u64) -> bool {
        let mut at = self.sequence;
        sequence <= at
            || self.done.iter().any(|step| {
                at += step;
                at == sequence
            })
    }
}

/// What the commit stream holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commits {
    /// Values and the sequences of their last writes.
    pub state: BTreeMap<String, (Option<i64>, u64)>,
    /// By subject.
    pub positions: BTreeMap<String, Position>,
    /// Subjects of what lies in outbox, park or among what is due.
    pub leftovers: Vec<String>,
    /// How many a copy holds that is not the leader's.
    pub apart: u64,
    /// Somebody wrote to it while it was read.
    pub moved: bool,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub inputs: Vec<Input>,
    /// In the order of their commits.
    pub facts: Vec<Fact>,
    pub told: Vec<Told>,
    pub commits: Commits,
    /// Origins that a target holds twice or out of order.
    pub twice: Vec<String>,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.function, self.stream, self.sequence)
    }
}

impl Input {
    /// The functions that handle it.
    pub(crate) fn functions(&self) -> &'static [&'static str] {
        match self.stream.as_str() {
            "CHAIN" => &["link"],
            _ if self.subject.ends_with(".shared") => &["ledger", "twin"],
            _ => &["ledger"],
        }
    }

    /// This message's delivery to a function.
    pub(crate) fn to(&self, function: &str) -> Delivery {
        Delivery {
            function: function.to_owned(),
            stream: self.stream.clone(),
            sequence: self.sequence,
        }
    }
}

struct Message {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    sequence: u64,
    time: OffsetDateTime,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The sequence in the commit stream: `Nats-Stream-Source: <stream> <sequence> …`.
    fn origin(&self) -> Result<u64> {
        let source = self.header("Nats-Stream-Source").context("no origin")?;
        let sequence = source.split(' ').nth(1).context("no sequence")?;
        Ok(sequence.parse()?)
    }

    fn function(&self) -> Result<String> {
        let source = self.header("ce-source").context("no source")?;
        Ok(source.rsplit('/').next().unwrap_or_default().to_owned())
    }
}

/// All messages of a stream behind a sequence.
async fn read(nats: &Nats, name: &str, behind: u64) -> Result<Vec<Message>> {
    let mut stream = nats.js.get_stream(name).await?;
    let state = stream.info().await?.state.clone();
    if state.messages == 0 || state.last_sequence <= behind {
        return Ok(Vec::new());
    }
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: behind + 1,
        },
        ..Default::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut all = Vec::new();
    loop {
        let next = tokio::time::timeout(NEXT, messages.next()).await;
        let message = next.with_context(|| format!("{name} says nothing after {}", all.len()))?;
        let message = message.context("the reader ended")??;
        let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        let (sequence, time, pending) = (info.stream_sequence, info.published, info.pending);
        let message = message.split().0;
        all.push(Message {
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            payload: message.payload,
            sequence,
            time,
        });
        if pending == 0 {
            return Ok(all);
        }
    }
}

/// Inputs of a stream behind those that are known.
///
/// # Errors
/// NATS does not answer.
pub(crate) async fn inputs(nats: &Nats, stream: &str, behind: u64) -> Result<Vec<Input>> {
    let messages = read(nats, stream, behind).await?;
    let inputs = messages.into_iter().map(|message| {
        let data: Value = serde_json::from_slice(&message.payload)?;
        Ok(Input {
            id: message.header("Nats-Msg-Id").map(str::to_owned),
            stream: stream.to_owned(),
            sequence: message.sequence,
            key: message
                .subject
                .split('.')
                .nth(1)
                .unwrap_or_default()
                .to_owned(),
            act: data["act"].clone(),
            fail: data["fail"].clone(),
            time: message.time,
            subject: message.subject,
        })
    });
    inputs.collect()
}

/// The commit stream as it is.
///
/// # Errors
/// NATS does not answer, or a value is none.
pub(crate) async fn commits(nats: &Nats) -> Result<Commits> {
    let mut commits = Commits::default();
    let before = last(nats).await?;
    let floor = Floor::read(nats).await?;
    for message in read(nats, &format!("KV_{APP}"), 0).await? {
        let subject = message.subject.as_str();
        let kind = subject.split('.').nth(2).unwrap_or_default();
        if let Some(id) = subject.strip_prefix("$KV.faults.v.") {
            let deleted = message.header("KV-Operation").is_some();
            let gone = deleted || floor.is_dead(message.sequence);
            let value = (!gone).then(|| serde_json::from_slice(&message.payload));
            let value = value
                .transpose()
                .with_context(|| format!("value of {id}"))?;
            commits
                .state
                .insert(id.to_owned(), (value, message.sequence));
        } else if kind == "pos" {
            let position = serde_json::from_slice(&message.payload)?;
            commits.positions.insert(subject.to_owned(), position);
        } else if LEFT.contains(&kind) && message.header("KV-Operation").is_none() {
            // What clears one goes by itself within seconds.
            commits.leftovers.push(subject.to_owned());
        }
    }
    let read = std::mem::take(&mut commits.leftovers);
    let read: BTreeSet<String> = read.into_iter().collect();
    led(nats, &read, &mut commits).await?;
    // What moved meanwhile was not gone, but lies elsewhere.
    commits.moved = last(nats).await? != before;
    if commits.moved {
        let led = std::mem::take(&mut commits.leftovers);
        commits.leftovers = read.union(&led.into_iter().collect()).cloned().collect();
        commits.apart = 0;
    }
    Ok(commits)
}

/// The same once nobody writes to it: of one that moves, what a copy that lags behind still has counts as left over.
async fn commits_at_rest(nats: &Nats) -> Result<Commits> {
    for _ in 0..TRIES {
        let commits = commits(nats).await?;
        if !commits.moved {
            return Ok(commits);
        }
    }
    commits(nats).await
}

/// The commit stream's last sequence, as its leader has it.
async fn last(nats: &Nats) -> Result<u64> {
    let stream = nats.js.get_stream(format!("KV_{APP}")).await?;
    Ok(stream.cached_info().state.last_sequence)
}

/// What is left over as the stream's leader has it; `read` is what was read, of any copy. Of what goes by itself, a copy that was killed may
/// hold on to an older message: nobody believes that copy, and once it leads, the nodes clear it, which takes them some seconds. And what a
/// leader holds on to another copy may lack.
async fn led(nats: &Nats, read: &BTreeSet<String>, commits: &mut Commits) -> Result<()> {
    let stream = nats.js.get_stream_no_info(format!("KV_{APP}")).await?;
    // Many are left while there is still work, and then it does not matter which.
    if read.len() > 500 {
        commits.leftovers.extend(read.iter().cloned());
        return Ok(());
    }
    let mut found = read.clone();
    for kind in LEFT {
        let below = format!("$KV.PELTON_{APP}.{kind}.>");
        let mut subjects = stream.info_with_subjects(below).await?;
        while let Some(entry) = subjects.next().await {
            found.insert(entry?.0);
        }
    }
    let asked = found.into_iter().map(|subject| {
        let stream = &stream;
        async move {
            match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(last) => Ok((subject, last.headers.get("KV-Operation").is_none())),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    Ok((subject, false))
                }
                Err(error) => Err(error),
            }
        }
    });
    let mut answers = futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
    while let Some(answer) = answers.next().await {
        match answer? {
            (subject, true) => commits.leftovers.push(subject),
            (subject, false) => commits.apart += u64::from(read.contains(&subject)),
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Receipt {
    stream: String,
    sequence: u64,
    attempt: u64,
    reads: Values,
    writes: Values,
    told: u64,
    timers: BTreeMap<String, Option<i64>>,
}

#[derive(Deserialize)]
struct From {
    stream: String,
    sequence: u64,
    n: u64,
    timer: Option<(String, i64)>,
}

fn receipt(message: &Message) -> Result<Fact> {
    let receipt: Receipt = serde_json::from_slice(&message.payload)?;
    let delivery = Delivery {
        function: message.function()?,
        stream: receipt.stream,
        sequence: receipt.sequence,
    };
    Ok(Fact {
        at: message.origin()?,
        delivery,
        reads: receipt.reads,
        writes: receipt.writes,
        told: receipt.told,
        timers: receipt.timers,
        code: None,
        attempt: receipt.attempt,
        time: message.time,
    })
}

fn dead(message: &Message) -> Result<Fact> {
    let header = |name: &str| message.header(name).with_context(|| format!("no {name}"));
    let delivery = Delivery {
        function: header("Pelton-Function")?.to_owned(),
        stream: header("Pelton-Stream")?.to_owned(),
        sequence: header("Pelton-Sequence")?.parse()?,
    };
    let (code, reason) = (header("Pelton-Code")?.to_owned(), header("Pelton-Reason")?);
    // A judge's reason is what was seen.
    let seen: Vec<(String, Option<i64>)> = match code.as_str() {
        "judged" => serde_json::from_str(reason)?,
        _ => Vec::new(),
    };
    let attempts: Vec<Value> = serde_json::from_str(header("Pelton-Attempts")?)?;
    Ok(Fact {
        at: message.origin()?,
        delivery,
        reads: seen.into_iter().collect(),
        writes: Values::new(),
        told: 0,
        timers: BTreeMap::new(),
        code: Some(code),
        attempt: attempts.len() as u64,
        time: message.time,
    })
}

fn told(message: &Message) -> Result<Told> {
    let from: From = serde_json::from_slice(&message.payload)?;
    let from_delivery = Delivery {
        function: message.function()?,
        stream: from.stream,
        sequence: from.sequence,
    };
    Ok(Told {
        from: from_delivery,
        n: from.n,
        at: message.origin()?,
        time: message.time,
        timer: from.timer,
    })
}

impl World {
    /// Reads everything.
    ///
    /// # Errors
    /// NATS does not answer, or something is not what functions emit.
    pub(crate) async fn read(nats: &Nats) -> Result<Self> {
        let mut world = Self {
            inputs: inputs(nats, "WORK", 0).await?,
            commits: commits_at_rest(nats).await?,
            ..Default::default()
        };
        world.inputs.extend(inputs(nats, "CHAIN", 0).await?);
        for target in ["AUDIT", "PELTON_DEAD_faults", "OUT", "CHAIN"] {
            let mut last = 0;
            for message in read(nats, target, 0).await? {
                let place = format!("{target}:{} ({})", message.sequence, message.subject);
                let origin = message.origin().with_context(|| place.clone())?;
                if origin <= last {
                    world
                        .twice
                        .push(format!("{place} has origin {origin} after {last}"));
                }
                last = origin;
                let fact = match target {
                    "AUDIT" => Some(receipt(&message)),
                    "PELTON_DEAD_faults" => Some(dead(&message)),
                    _ => None,
                };
                match fact {
                    Some(fact) => world.facts.push(fact.with_context(|| place)?),
                    None => world.told.push(told(&message).with_context(|| place)?),
                }
            }
        }
        world.facts.sort_by_key(|fact| fact.at);
        ensure!(!world.facts.is_empty(), "nothing has happened");
        Ok(world)
    }
}
