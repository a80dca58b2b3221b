//! Who writes from outside: the producer of the events, and a client that changes state under the functions' hands.
//!
//! Both go on through every outage, and know in the end what is stored: the producer by ids that the stream takes once, the
//! client by conditions on revisions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use pelton_tests::Nats;
use serde_json::json;
use tokio::task::JoinSet;

use crate::audit::Outside;
use crate::workload::{Event, MILLION, OUTSIDE, Workload};

/// Publishes on their way at the same time.
const IN_FLIGHT: usize = 64;
/// Answers that may be owed before the producer waits: enough that every fault meets work, few enough to drain.
const BACKLOG: u64 = 2000;
/// How long one publish is tried: longer than any outage here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What was published, and what it leads to.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Events that are stored.
    pub events: AtomicU64,
    /// Receipts and dead letters to come of them.
    pub answers: AtomicU64,
    /// Numbers of the events that are said to be stored, and where.
    pub acked: Mutex<Vec<(u64, u64)>>,
    /// No more are to be published.
    pub stop: AtomicBool,
}

/// Publishes at most `rate` a second until `inputs` are stored or it is to stop, then what is owed to those that wait.
///
/// # Errors
/// One could not be stored.
pub(crate) async fn produce(
    nats: Nats,
    mut workload: Workload,
    rate: u64,
    inputs: u64,
    published: Arc<Published>,
) -> Result<()> {
    let begun = Instant::now();
    let mut under_way = JoinSet::new();
    let mut made = 0;
    while made < inputs && !published.stop.load(Ordering::Relaxed) {
        let owed = published.answers.load(Ordering::Relaxed);
        if made % 200 == 0 && owed > answered(&nats).await.unwrap_or(0) + BACKLOG {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let due = Duration::from_micros(made * 1_000_000 / rate.max(1));
        tokio::time::sleep_until((begun + due).into()).await;
        let event = workload.next();
        under_way.spawn(publish(nats.clone(), made, event, published.clone()));
        made += 1;
        while under_way.len() >= IN_FLIGHT {
            under_way.join_next().await.context("no task")???;
        }
    }
    for event in workload.rest() {
        under_way.spawn(publish(nats.clone(), made, event, published.clone()));
        made += 1;
    }
    while let Some(one) = under_way.join_next().await {
        one??;
    }
    Ok(())
}

async fn answered(nats: &Nats) -> Result<u64> {
    Ok(nats.count("AUDIT").await? + nats.count("PELTON_DEAD_faults").await?)
}

async fn publish(nats: Nats, n: u64, event: Event, published: Arc<Published>) -> Result<()> {
    let begun = Instant::now();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("e{n}"));
    let sequence = loop {
        let (subject, headers) = (event.subject.clone(), headers.clone());
        let sent = nats
            .js
            .publish_with_headers(subject, headers, event.data.to_string().into())
            .await;
        let stored = match sent {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(ack) => break ack.sequence,
            Err(error) if begun.elapsed() > PATIENCE => bail!("event {n} is not stored: {error}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    published
        .acked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((n, sequence));
    published.events.fetch_add(1, Ordering::Relaxed);
    published
        .answers
        .fetch_add(event.answers, Ordering::Relaxed);
    Ok(())
}

/// Adds a million to one value after another, each under the condition of the revision it saw, until it is to stop.
///
/// # Errors
/// A value is none.
pub(crate) async fn interfere(
    nats: Nats,
    seed: u64,
    published: Arc<Published>,
) -> Result<Vec<Outside>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    while !published.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(rng.u64(20..150))).await;
        let id = format!("outside-{}", rng.usize(..OUTSIDE));
        done.push(add(&nats, &id).await?);
    }
    Ok(done)
}

async fn add(nats: &Nats, id: &str) -> Result<Outside> {
    let subject = format!("$KV.faults.v.{id}");
    let begun = Instant::now();
    let mut before: Option<i64> = None;
    loop {
        if begun.elapsed() > PATIENCE {
            bail!("{id} could not be changed from outside");
        }
        let Ok((value, revision)) = last(nats, &subject).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // One without an answer may have been stored all the same: nobody else adds millions.
        let millions = value / MILLION;
        if *before.get_or_insert(millions) != millions {
            return Ok(Outside {
                id: id.to_owned(),
                at: None,
            });
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        let payload = (value + MILLION).to_string().into();
        let sent = nats
            .js
            .publish_with_headers(subject.clone(), headers, payload)
            .await;
        if let Ok(ack) = sent
            && let Ok(ack) = ack.await
        {
            return Ok(Outside {
                id: id.to_owned(),
                at: Some(ack.sequence),
            });
        }
    }
}

/// A value and its revision, as the stream's leader knows them; 0 and 0 when there is none.
async fn last(nats: &Nats, subject: &str) -> Result<(i64, u64)> {
    let stream = nats.js.get_stream_no_info("KV_faults").await?;
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok((serde_json::from_slice(&message.payload)?, message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, 0)),
        Err(error) => Err(error.into()),
    }
}

/// One event through each target, after all others.
///
/// # Errors
/// It could not be stored.
pub(crate) async fn finish(nats: &Nats) -> Result<()> {
    let acts = [
        (
            "tell",
            json!({ "do": "tell", "to": "out.last", "times": 1 }),
        ),
        ("judge", json!({ "do": "judge", "id": "last" })),
        (
            "chain",
            json!({ "do": "chain", "id": "last", "to": "chain.last", "hops": 1 }),
        ),
    ];
    for (n, (kind, act)) in acts.into_iter().enumerate() {
        let event = Event {
            subject: format!("work.last.{kind}"),
            data: json!({ "act": act }),
            answers: 1,
        };
        let n = u64::MAX - n as u64;
        publish(nats.clone(), n, event, Arc::default()).await?;
    }
    Ok(())
}
