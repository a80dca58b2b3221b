//! What the commit stream holds, by kind, and what must be left of it in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use pelton_tests::{Nats, NatsServer, Pelton, within};

/// Until everything dead is removed: some rounds of the nodes' cleaning, or the life of an answer.
const CLEANED: Duration = Duration::from_secs(300);

/// Messages by kind: `state`, `floor`, `answers`, or a kind of Pelton's own.
pub(crate) type Held = BTreeMap<String, u64>;

/// Looks at the commit stream.
///
/// # Errors
/// NATS does not answer.
pub(crate) async fn held(nats: &Nats) -> Result<Held> {
    let commits = nats.js.get_stream("KV_shop").await?;
    let subjects: Vec<(String, usize)> =
        commits.info_with_subjects(">").await?.try_collect().await?;
    let mut kinds = Held::new();
    for (subject, count) in subjects {
        let kind = match subject.split('.').nth(2) {
            _ if subject.starts_with("$KV.shop.") => "state",
            _ if subject.ends_with(".txn.floor") || subject.ends_with(".txn.alive") => "floor",
            // It carries the condition of the latest batch, for a second.
            _ if subject.ends_with(".check") => continue,
            kind => kind.unwrap_or_default(),
        };
        *kinds.entry(kind.to_owned()).or_default() += count as u64;
    }
    Ok(kinds)
}

/// Messages and MiB of the commit stream.
///
/// # Errors
/// NATS does not answer.
pub(crate) async fn size(nats: &Nats) -> Result<(u64, f64)> {
    let commits = nats.js.get_stream("KV_shop").await?;
    let state = &commits.cached_info().state;
    Ok((state.messages, state.bytes as f64 / f64::from(1 << 20)))
}

/// Waits until the stream holds so many state keys, its positions and its floor, and nothing else,
/// and nothing is listed as pending.
///
/// # Errors
/// Something else stays.
pub(crate) async fn only(nats: &Nats, pelton: &Pelton, state: u64) -> Result<()> {
    let found = within(CLEANED, "only what is alive", || async {
        let mut kinds = held(nats).await?;
        let all = format!("{kinds:?}");
        kinds.remove("pos");
        kinds.remove("floor");
        let keys = kinds.remove("state").unwrap_or(0);
        ensure!(kinds.is_empty() && keys == state, "{all}, of {state} keys");
        Ok(Some(all))
    });
    println!("soak: the commit stream holds {}", found.await?);
    pending(pelton, 0).await
}

/// Waits until a listing says that so many events are pending.
///
/// # Errors
/// It says otherwise.
pub(crate) async fn pending(pelton: &Pelton, count: u64) -> Result<()> {
    within(CLEANED, "nothing pending", || async {
        let listed = pelton.json(&["function", "ls"]).await?;
        let pending = listed[0]["pending"].as_u64().context("a function")?;
        ensure!(pending == count, "{pending} are");
        Ok(Some(()))
    })
    .await
}

/// Kills the server and starts it again on its data.
///
/// # Errors
/// It does not come up.
pub(crate) async fn kill(server: &mut NatsServer, nats: &Nats) -> Result<()> {
    server.kill()?;
    server.restart().await?;
    within(CLEANED, "the server to be back", || async {
        size(nats).await.map(Some)
    })
    .await?;
    Ok(())
}
