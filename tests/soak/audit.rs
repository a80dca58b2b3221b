//! What the app's streams hold in the end: the state and the positions, and nothing that was under way.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use pelton_tests::{Nats, within};

use crate::{INPUT, KEYS};

/// Until what was delivered is cleared away: some rounds of the nodes' clearing.
const CLEARED: Duration = Duration::from_secs(60);
/// Partitions of a function's input.
const PARTITIONS: u64 = 64;
/// Values that are read at once.
const READS: usize = 64;

/// Checks state, commit stream and dead letters after so many events.
///
/// # Errors
/// Says what is not as it must be.
pub(crate) async fn audit(nats: &Nats, count: u64) -> Result<()> {
    let dead = nats.dead("shop").await?;
    ensure!(
        dead.is_empty(),
        "{} dead letters: {:?}",
        dead.len(),
        dead.first()
    );
    let held = within(CLEARED, "nothing but state and positions", || async {
        holds(nats).await.map(Some)
    });
    println!("soak: the commit stream holds {}", held.await?);
    let sum = sum(nats, count / KEYS).await?;
    ensure!(
        sum == count,
        "the state sums up to {sum}, and there were {count} events"
    );
    println!("soak: {count} events, {count} told, the state sums up to {sum}");
    Ok(())
}

/// What the commit stream holds, in words.
async fn holds(nats: &Nats) -> Result<String> {
    let commits = nats.js.get_stream("KV_shop").await?;
    let messages = commits.cached_info().state.messages;
    let subjects: Vec<(String, usize)> =
        commits.info_with_subjects(">").await?.try_collect().await?;
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (subject, held) in &subjects {
        let state = subject.starts_with("$KV.shop.counts.k");
        let position = subject.starts_with(&format!("$KV.PELTON_shop.pos.tally.{INPUT}."));
        let kind = match (state, position) {
            (true, _) => "keys",
            (_, true) => "positions",
            _ => subject.as_str(),
        };
        *kinds.entry(kind).or_default() += *held as u64;
    }
    let keys = kinds.remove("keys").unwrap_or(0);
    let positions = kinds.remove("positions").unwrap_or(0);
    ensure!(
        kinds.is_empty(),
        "{} leftovers, such as {:?}",
        kinds.values().sum::<u64>(),
        kinds.keys().next()
    );
    ensure!(keys == KEYS, "{keys} keys, of {KEYS}");
    ensure!(
        (1..=PARTITIONS).contains(&positions),
        "{positions} positions"
    );
    ensure!(
        messages == keys + positions,
        "{messages} messages under {} subjects",
        subjects.len()
    );
    Ok(format!(
        "{keys} keys, {positions} positions, and nothing else"
    ))
}

/// The sum of the state; each key has as many events.
async fn sum(nats: &Nats, each: u64) -> Result<u64> {
    let state = nats.state("shop").await?;
    let values = stream::iter(0..KEYS).map(async |n| {
        let key = format!("counts.k{n}");
        let value = state.get(&key).await?;
        let value = value.with_context(|| format!("{key} does not exist"))?;
        let value: u64 = serde_json::from_slice(&value)?;
        ensure!(value == each, "{key} is {value}, after {each} events");
        Ok(value)
    });
    values
        .buffer_unordered(READS)
        .try_fold(0, async |sum, value| Ok(sum + value))
        .await
}
