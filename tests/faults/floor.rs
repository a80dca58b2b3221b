//! What of the commit stream is dead although it is there, as the records of its floor say it to
//! any reader.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use pelton_tests::Nats;
use serde_json::Value;

use crate::world::APP;

/// The floor, and what is alive below it.
#[derive(Debug, Default)]
pub(crate) struct Floor {
    sequence: u64,
    /// First and last sequence of each run.
    alive: Vec<(u64, u64)>,
}

impl Floor {
    /// Reads it; without records nothing is dead.
    pub(crate) async fn read(nats: &Nats) -> Result<Self> {
        let Some(floor) = record(nats, "floor").await? else {
            return Ok(Self::default());
        };
        let floor: Value = serde_json::from_slice(&floor)?;
        let alive = record(nats, "alive")
            .await?
            .context("a list of what is alive")?;
        let mut numbers = numbers(&alive)?.into_iter();
        ensure!(numbers.next() == Some(1), "a format that is not known");
        let sequence = numbers.next().context("a floor")?;
        ensure!(
            floor["sequence"] == sequence,
            "the records do not belong together"
        );
        let (mut runs, mut behind) = (Vec::new(), 0);
        while let (Some(gap), Some(run)) = (numbers.next(), numbers.next()) {
            runs.push((behind + gap + 1, behind + gap + run));
            behind += gap + run;
        }
        let alive = runs;
        Ok(Self { sequence, alive })
    }

    /// Whether a message at this sequence is dead.
    pub(crate) fn is_dead(&self, sequence: u64) -> bool {
        let alive = |(first, last): &(u64, u64)| (*first..=*last).contains(&sequence);
        sequence < self.sequence && !self.alive.iter().any(alive)
    }
}

async fn record(nats: &Nats, name: &str) -> Result<Option<Vec<u8>>> {
    let stream = nats.js.get_stream_no_info(format!("KV_{APP}")).await?;
    let subject = format!("$KV.PELTON_{APP}.txn.{name}");
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(found) => Ok(Some(found.payload.to_vec())),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Numbers of seven bits a byte, the lowest first; the last byte of each has its highest bit clear.
fn numbers(bytes: &[u8]) -> Result<Vec<u64>> {
    let (mut all, mut number, mut shift) = (Vec::new(), 0_u64, 0);
    for byte in bytes {
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            all.push(number);
            (number, shift) = (0, 0);
        }
    }
    ensure!(shift == 0, "a number without an end");
    Ok(all)
}
