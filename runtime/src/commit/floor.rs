//! The commit stream's floor: which of its messages are alive, up to a sequence.
//!
//! A server that is killed rebuilds a stream from its blocks, and finds there every message that a
//! later one of its subject replaced, unless that later one is still there. Two records say what of
//! all that is found is alive: `floor` up to where they know it, `alive` which sequences below it
//! are. Whatever else lies below the floor is dead, whoever brought it back.

use std::sync::Arc;

use async_nats::{Client, jetstream};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::batch::{self, BatchError, BatchMessage};
use super::stream::StreamError;
use super::transaction::expecting;
use super::transport::message;
use crate::names::AppNames;
use crate::records::{FORMAT, FloorRecord};

/// Tries to read two records that belong together while others write them.
const TRIES: usize = 3;
/// Bytes of the list of what is alive, at most: it is one message, and each node reads it. Two
/// bytes are enough for most runs.
const MAX_LIST: usize = 768 << 10;

/// A floor and what is alive below it; cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Everything is known of what is stored before it.
    pub(crate) sequence: u64,
    /// What is alive there: first and last of each run, ascending.
    runs: Arc<[(u64, u64)]>,
}

impl Floor {
    /// Whether a message at this sequence is dead, whatever it says.
    pub(crate) fn is_dead(&self, sequence: u64) -> bool {
        let behind = self.runs.partition_point(|(_, last)| *last < sequence);
        let alive = self
            .runs
            .get(behind)
            .is_some_and(|(first, _)| *first <= sequence);
        sequence < self.sequence && !alive
    }

    /// How many messages are alive below it.
    pub(crate) fn alive(&self) -> u64 {
        self.runs.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// As numbers: the format, the floor, then how many sequences are dead and how many alive in
    /// turn, from sequence 1 on.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_number(&mut bytes, u64::from(FORMAT));
        push_number(&mut bytes, self.sequence);
        let mut behind = 0;
        for (first, last) in self.runs.iter() {
            push_number(&mut bytes, first - behind - 1);
            push_number(&mut bytes, last - first + 1);
            behind = *last;
        }
        bytes
    }

    /// `None`: nothing that this release wrote.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        if take_number(&mut bytes)? != u64::from(FORMAT) {
            return None;
        }
        let sequence = take_number(&mut bytes)?;
        let (mut runs, mut behind) = (Vec::new(), 0_u64);
        while !bytes.is_empty() {
            let first = behind
                .checked_add(take_number(&mut bytes)?)?
                .checked_add(1)?;
            behind = (first - 1).checked_add(take_number(&mut bytes)?)?;
            runs.push((first, behind));
        }
        let runs = runs.into();
        Some(Self { sequence, runs })
    }

    /// As the stream's leader has it; `known` saves reading what has not changed.
    ///
    /// # Errors
    /// NATS trouble, or records that do not belong together.
    pub(crate) async fn read(
        js: &jetstream::Context,
        names: &AppNames,
        known: &Self,
    ) -> Result<Self, StreamError> {
        for _ in 0..TRIES {
            let Some((_, floor)) = stored(js, names).await? else {
                return Ok(Self::default());
            };
            if floor == known.sequence {
                return Ok(known.clone());
            }
            let alive = record(js, names, names.alive()).await?;
            let alive = alive.and_then(|(_, alive)| Self::decode(&alive));
            if let Some(alive) = alive.filter(|alive| alive.sequence == floor) {
                return Ok(alive);
            }
        }
        Err(StreamError(format!(
            "{} and {} do not belong together; restore the commit stream from a backup if somebody altered them",
            names.floor(),
            names.alive()
        )))
    }

    /// Stores this one in place of the one at the sequence `before`; `false`: another node was
    /// faster.
    ///
    /// # Errors
    /// NATS did not confirm it.
    pub(crate) async fn store(
        &self,
        client: &Client,
        js: &jetstream::Context,
        names: &AppNames,
        before: u64,
    ) -> Result<bool, StreamError> {
        let (revision, found) = stored(js, names).await?.unwrap_or((0, 0));
        if found != before {
            return Ok(false);
        }
        let failed =
            |why: &dyn std::fmt::Display| StreamError(format!("cannot raise the floor: {why}"));
        let (format, sequence) = (FORMAT, self.sequence);
        let floor = serde_json::to_vec(&FloorRecord { format, sequence });
        let messages = vec![
            BatchMessage {
                subject: names.floor(),
                headers: expecting(revision),
                payload: floor.map_err(|error| failed(&error))?.into(),
            },
            BatchMessage {
                subject: names.alive(),
                headers: async_nats::HeaderMap::new(),
                payload: self.encode().into(),
            },
        ];
        match batch::publish(client, messages).await {
            Ok(_) => Ok(true),
            Err(BatchError::Condition) => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// The floor's record: its sequence, and the floor.
async fn stored(
    js: &jetstream::Context,
    names: &AppNames,
) -> Result<Option<(u64, u64)>, StreamError> {
    let Some((revision, data)) = record(js, names, names.floor()).await? else {
        return Ok(None);
    };
    let record = serde_json::from_slice::<FloorRecord>(&data).ok();
    let record = record.filter(|record| record.format == FORMAT);
    let record = record.ok_or_else(|| {
        let floor = names.floor();
        StreamError(format!("{floor} holds no record that this release reads"))
    })?;
    Ok(Some((revision, record.sequence)))
}

/// What is stored under a subject, and at which sequence.
async fn record(
    js: &jetstream::Context,
    names: &AppNames,
    subject: String,
) -> Result<Option<(u64, Vec<u8>)>, StreamError> {
    let last = json!({ "last_by_subj": subject });
    let Some(found) = message(js, &names.commit_stream(), &last).await? else {
        return Ok(None);
    };
    let data = STANDARD.decode(found["data"].as_str().unwrap_or_default());
    let data = data.map_err(|error| StreamError(format!("cannot read {subject}: {error}")))?;
    Ok(found["seq"].as_u64().map(|sequence| (sequence, data)))
}

/// A number as seven bits a byte, the lowest first.
fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Bytes that a number takes.
fn size(number: u64) -> usize {
    1 + number.checked_ilog2().unwrap_or(0) as usize / 7
}

/// Makes a floor from what is found alive, in order.
#[derive(Debug, Default)]
pub(super) struct Builder {
    runs: Vec<(u64, u64)>,
    /// About how many characters it takes to write them.
    size: usize,
}

impl Builder {
    /// Takes the next one that is alive; `false`: the list would be too long.
    pub(super) fn push(&mut self, sequence: u64) -> bool {
        match self.runs.last_mut() {
            Some((_, last)) if *last + 1 == sequence => *last = sequence,
            last => {
                // The gap, and a run as long as one of a few hundred bytes each could be.
                self.size += size(sequence - last.map_or(0, |(_, last)| *last)) + 3;
                if self.size > MAX_LIST {
                    return false;
                }
                self.runs.push((sequence, sequence));
            }
        }
        true
    }

    pub(super) fn floor(self, sequence: u64) -> Floor {
        Floor {
            sequence,
            runs: self.runs.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_below_the_floor_is_dead() {
        let mut builder = Builder::default();
        for sequence in [1, 2, 3, 7, 10, 11] {
            assert!(builder.push(sequence));
        }
        let floor = builder.floor(20);
        assert_eq!(floor.encode()[1..], [20, 0, 3, 3, 1, 2, 2]);
        assert_eq!(Floor::decode(&floor.encode()), Some(floor.clone()));
        assert_eq!(floor.alive(), 6);
        let alive: Vec<u64> = (1..=22).filter(|one| !floor.is_dead(*one)).collect();
        assert_eq!(alive, [1, 2, 3, 7, 10, 11, 20, 21, 22]);
        assert!(!Floor::default().is_dead(1));
    }

    #[test]
    fn numbers_come_back_as_they_were_written() {
        for number in [0, 1, 127, 128, 16_383, 16_384, 1 << 35, u64::MAX] {
            let mut bytes = Vec::new();
            push_number(&mut bytes, number);
            assert_eq!(bytes.len(), size(number), "{number}");
            assert_eq!(take_number(&mut bytes.as_slice()), Some(number));
        }
        assert_eq!(take_number(&mut [0x80].as_slice()), None);
        assert_eq!(Floor::decode(b"other"), None);
    }

    #[test]
    fn the_list_has_an_end() {
        let mut builder = Builder::default();
        let listed = (1..).step_by(2).take_while(|one| builder.push(*one));
        assert!(listed.count() > 100_000);
    }
}
