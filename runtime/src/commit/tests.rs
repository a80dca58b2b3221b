//! The committer against a real server.

mod parked;
mod safeguards;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::future::join_all;

use super::batch::{self, BatchError, BatchMessage};
use super::group::{Entry, layout};
use super::position::{self, Partition, claim};
use super::{CommitError, Committer, Fence, NatsState, Origin, Transaction, stream};
use crate::dev::{ServerProcess, fresh_server};
use crate::effects::{Effects, Emit, StateReader, Write};
use crate::names::AppNames;
use crate::nats::connect;
use crate::records::PositionRecord;

struct Scene {
    client: Client,
    js: jetstream::Context,
    names: AppNames,
    state: NatsState,
    committer: Committer,
    _server: ServerProcess,
    _data: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Self {
        let (server, data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client.clone());
        let names = AppNames::new("shop");
        stream::ensure_commit_stream(&js, &names, 1).await.unwrap();
        let state = NatsState::new(client.clone().into(), names.clone());
        let members = tokio::sync::watch::Sender::new(crate::members::Members::default());
        let committer = Committer::start(
            client.clone().into(),
            state.clone(),
            names.clone(),
            members.subscribe(),
            Arc::default(),
        );
        Self {
            client,
            js,
            names,
            state,
            committer,
            _server: server,
            _data: data,
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<(), CommitError> {
        self.committer.commit(Arc::new(transaction)).await
    }

    async fn revision(&self, key: &str) -> u64 {
        let found = self.state.get_many(&[key.to_owned()]).await.unwrap();
        found[0].revision
    }

    /// A write that Pelton does not know of.
    async fn write(&self, key: &str) -> u64 {
        let subject = self.names.state(key);
        let ack = self.js.publish(subject, "foreign".into()).await.unwrap();
        ack.await.unwrap().sequence
    }

    /// Begins as many batches as the server lets be open, and more; it gives them up after ten seconds.
    async fn crowd(&self) {
        for n in 0..60 {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Batch-Id", format!("open{n}").as_str());
            headers.insert("Nats-Batch-Sequence", "1");
            let subject = format!("$KV.shop.open{n}");
            let begun = self
                .client
                .publish_with_headers(subject, headers, Bytes::new());
            begun.await.unwrap();
        }
    }

    /// A batch whose messages are a subject and headers each.
    async fn batch(&self, messages: &[(&str, &[(&str, &str)])]) -> Result<u64, BatchError> {
        let message = |(subject, headers): &(&str, &[(&str, &str)])| {
            let mut map = HeaderMap::new();
            for (name, value) in *headers {
                map.insert(*name, *value);
            }
            BatchMessage {
                subject: (*subject).to_owned(),
                headers: map,
                payload: Bytes::new(),
            }
        };
        let messages = messages.iter().map(message).collect();
        batch::publish(&self.client, messages).await
    }
}

/// A node's hold on one partition of input `IN`, and up to where it has handed out.
async fn claimed(scene: &Scene, node: &str, number: u16) -> (Partition, Arc<AtomicU64>) {
    let subject = scene.names.position("f", "IN", number);
    let found = scene.state.last(vec![subject.clone()]).await.unwrap();
    let last = found.get(&subject);
    let stored = last.map(|last| serde_json::from_slice::<PositionRecord>(&last.payload).unwrap());
    let record = claim(stored.as_ref(), node, 0);
    let at = last.map_or(0, |last| last.sequence);
    let revision = position::put(&scene.client, &subject, &record, at).await;
    let revision = revision.unwrap().unwrap();
    let passed = Arc::new(AtomicU64::new(record.sequence));
    let partition = Partition::claimed(subject, node.into(), &record, revision, passed.clone());
    (partition, passed)
}

/// The same delivery, fenced by a position.
fn positioned(partition: &Partition, mut transaction: Transaction) -> Transaction {
    let stored = i64::try_from(transaction.origin.sequence).unwrap() * 10;
    partition.begin(transaction.origin.sequence);
    transaction.fence = Fence::Position {
        partition: partition.clone(),
        stored: Some(stored),
    };
    transaction
}

/// Reads `reads`, writes `writes`.
fn transaction(sequence: u64, reads: &[(&str, u64)], writes: &[&str]) -> Transaction {
    let mut effects = Effects::default();
    for (key, revision) in reads {
        effects.reads.insert((*key).to_owned(), *revision);
    }
    for key in writes {
        let write = Write::Set(sequence.to_string().into());
        effects.writes.insert((*key).to_owned(), write);
    }
    let origin = Origin {
        function: "f".into(),
        stream: "IN".into(),
        sequence,
        txn: format!("txn{sequence}").into(),
    };
    Transaction {
        effects,
        ..Transaction::new(origin, Fence::Marker)
    }
}

#[tokio::test]
async fn many_at_once_and_all_of_them() {
    let scene = Scene::start().await;
    let keys: Vec<String> = (0..2000).map(|n| format!("k{n}")).collect();
    let one = |n: usize| {
        let mut transaction = transaction(n as u64, &[(&keys[n], 0)], &[&keys[n]]);
        transaction.effects.emits.push(Emit {
            target: "T".into(),
            subject: "t.x".into(),
            headers: Vec::new(),
            payload: Bytes::new(),
        });
        scene.commit(transaction)
    };
    let ended = join_all((0..2000).map(one)).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    let mut stream = scene.js.get_stream("KV_shop").await.unwrap();
    // Each is marker, state and outbox, whole and once.
    assert_eq!(stream.info().await.unwrap().state.last_sequence, 6000);
}

#[tokio::test]
async fn only_who_is_to_blame_is_refused() {
    let scene = Scene::start().await;
    let seen = scene.write("hot").await;
    scene.write("hot").await;
    let keys: Vec<String> = (0..60).map(|n| format!("k{n}")).collect();
    let one = |n: usize| {
        let reads: &[(&str, u64)] = if n == 30 { &[("hot", seen)] } else { &[] };
        scene.commit(transaction(n as u64, reads, &[&keys[n]]))
    };
    let ended = join_all((0..60).map(one)).await;
    for (n, ended) in ended.into_iter().enumerate() {
        let expected = match n {
            30 => Err(CommitError::Conflict(vec!["hot".into()])),
            _ => Ok(()),
        };
        assert_eq!(ended, expected, "{n}");
    }
    assert_eq!(scene.revision("k30").await, 0);
}

#[tokio::test]
async fn one_key_at_once_is_won_by_one() {
    let scene = Scene::start().await;
    let one = |n| scene.commit(transaction(n, &[("k", 0)], &["k"]));
    let ended = join_all((0..50).map(one)).await;
    let won = ended.iter().filter(|ended| ended.is_ok()).count();
    let lost = CommitError::Conflict(vec!["k".into()]);
    assert_eq!(won, 1);
    assert_eq!(
        ended
            .iter()
            .filter(|ended| **ended == Err(lost.clone()))
            .count(),
        49
    );
}

#[tokio::test]
async fn a_hot_key_that_all_read_holds_nobody_up() {
    let scene = Scene::start().await;
    let seen = scene.write("hot").await;
    let keys: Vec<String> = (0..500).map(|n| format!("k{n}")).collect();
    let one = |n: usize| scene.commit(transaction(n as u64, &[("hot", seen)], &[&keys[n]]));
    let ended = join_all((0..500).map(one)).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
}

#[tokio::test]
async fn a_second_copy_is_a_duplicate_and_a_strange_marker_is_none() {
    let scene = Scene::start().await;
    assert_eq!(scene.commit(transaction(1, &[], &["a"])).await, Ok(()));
    let again = scene.commit(transaction(1, &[], &["a"])).await;
    assert_eq!(again, Err(CommitError::Duplicate));
    // The input stream was made anew: the same sequence is another delivery.
    let mut other = transaction(1, &[], &["b"]);
    other.origin.txn = "another".into();
    let both = futures::join!(
        scene.commit(other),
        scene.commit(transaction(2, &[], &["c"]))
    );
    assert_eq!(both, (Ok(()), Ok(())));
}

#[tokio::test]
async fn what_is_too_large_harms_nobody_else() {
    let scene = Scene::start().await;
    let mut large = transaction(1, &[], &[]);
    let value = Write::Set(vec![b'x'; 2 << 20].into());
    large.effects.writes.insert("large".into(), value);
    let mut headers = transaction(2, &[], &[]);
    // The server's limit for headers is none that a client knows of.
    headers.effects.emits.push(Emit {
        target: "T".into(),
        subject: "t.x".into(),
        headers: vec![("ce-long".into(), "x".repeat(70 << 10))],
        payload: Bytes::new(),
    });
    let small = [transaction(3, &[], &["a"]), transaction(4, &[], &["b"])];
    let [third, fourth] = small;
    let ended = futures::join!(
        scene.commit(third),
        scene.commit(large),
        scene.commit(headers),
        scene.commit(fourth)
    );
    assert_eq!((&ended.0, &ended.3), (&Ok(()), &Ok(())));
    assert!(ended.1.unwrap_err().is_size());
    assert!(ended.2.unwrap_err().is_size());
}

/// The refusals that the protocol rests on, each provoked.
#[tokio::test]
async fn refusals_of_the_server() {
    let scene = Scene::start().await;
    let at = scene.write("k").await.to_string();
    let expect = "Nats-Expected-Last-Subject-Sequence";
    let of = "Nats-Expected-Last-Subject-Sequence-Subject";
    let (k, a, check) = ("$KV.shop.k", "$KV.shop.a", "$KV.PELTON_shop.txn.f.check");

    // 10071: a condition failed.
    let stale = scene.batch(&[(a, &[]), (k, &[(expect, "0")])]).await;
    assert_eq!(stale, Err(BatchError::Condition));
    // 10164, here for good: what the batch writes is checked behind the write.
    let wrong_order = scene
        .batch(&[(k, &[]), (check, &[(expect, &at), (of, k)])])
        .await;
    assert!(
        matches!(&wrong_order, Err(BatchError::Busy(why)) if why.contains("10164")),
        "{wrong_order:?}"
    );
    // In the right order it is none.
    let right_order = scene
        .batch(&[(check, &[(expect, &at), (of, k)]), (k, &[])])
        .await;
    assert!(right_order.is_ok(), "{right_order:?}");
    // 10199: more than a batch holds.
    let many: Vec<(&str, &[(&str, &str)])> = vec![(a, &[]); 1001];
    let many = scene.batch(&many).await;
    assert!(
        matches!(many, Err(BatchError::Refused { code: 10199, .. })),
        "{many:?}"
    );

    // 10174: a stream that takes no batches.
    let plain = jetstream::stream::Config {
        name: "PLAIN".into(),
        subjects: vec!["plain.>".into()],
        ..Default::default()
    };
    scene.js.create_stream(plain).await.unwrap();
    let refused = scene.batch(&[("plain.a", &[]), ("plain.b", &[])]).await;
    assert!(
        matches!(refused, Err(BatchError::Refused { code: 10174, .. })),
        "{refused:?}"
    );
    // 10176: a batch that is not on one stream has a gap on each.
    let torn = scene.batch(&[(a, &[]), ("plain.b", &[]), (k, &[])]).await;
    assert!(
        matches!(&torn, Err(BatchError::Busy(why)) if why.contains("10176")),
        "{torn:?}"
    );

    // 10210: fifty are open.
    scene.crowd().await;
    let over = scene.batch(&[(a, &[]), (k, &[])]).await;
    assert!(matches!(over, Err(BatchError::Busy(_))), "{over:?}");
    // The server gives them up after ten seconds; until then a commit says that it may be tried again.
    let mut ended = Err(CommitError::Duplicate);
    for _ in 0..10 {
        ended = scene.commit(transaction(9, &[], &["z"])).await;
        if !matches!(ended, Err(CommitError::Unavailable(_))) {
            break;
        }
    }
    assert_eq!(ended, Ok(()));
}

#[tokio::test]
async fn positions_move_with_what_they_count() {
    let scene = Scene::start().await;
    let (first, passed) = claimed(&scene, "a", 0).await;
    let (second, _) = claimed(&scene, "a", 1).await;
    let keys: Vec<String> = (0..=600).map(|n| format!("k{n}")).collect();
    let transactions: Vec<Transaction> = (1..=600)
        .map(|n: usize| {
            let partition = if n.is_multiple_of(2) { &first } else { &second };
            positioned(partition, transaction(n as u64, &[], &[&keys[n]]))
        })
        .collect();
    passed.store(600, Ordering::Release);
    let ended = join_all(transactions.into_iter().map(|one| scene.commit(one))).await;
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    let subject = first.subject().to_owned();
    let found = scene.state.last(vec![subject.clone()]).await.unwrap();
    let record: PositionRecord = serde_json::from_slice(&found[&subject].payload).unwrap();
    assert_eq!(
        (record.sequence, record.witness, record.witness_stored),
        (600, 600, 6000)
    );
    assert_eq!((record.owner.as_str(), record.done.len()), ("a", 0));
    assert!(!first.is_dirty() && !first.wants(600) && first.wants(602));
}

#[tokio::test]
async fn of_two_owners_one_commits() {
    let scene = Scene::start().await;
    let (old, _) = claimed(&scene, "a", 0).await;
    let (other, _) = claimed(&scene, "a", 1).await;
    let before = scene
        .commit(positioned(&old, transaction(1, &[], &["x"])))
        .await;
    assert_eq!(before, Ok(()));
    let (new, _) = claimed(&scene, "b", 0).await;
    assert!(!new.wants(1) && new.wants(2), "what was done is known");

    // The first node does not know yet. Who shares a batch with the lost partition goes on.
    let both = futures::join!(
        scene.commit(positioned(&old, transaction(2, &[], &["y"]))),
        scene.commit(positioned(&other, transaction(3, &[], &["z"])))
    );
    assert_eq!(both, (Err(CommitError::Lost), Ok(())));
    assert!(old.is_lost() && !other.is_lost());
    let again = scene
        .commit(positioned(&old, transaction(4, &[], &["y"])))
        .await;
    assert_eq!(again, Err(CommitError::Lost));
    let taken_over = scene
        .commit(positioned(&new, transaction(2, &[], &["y"])))
        .await;
    assert_eq!(taken_over, Ok(()));
}

/// Stores a delivery's batch as if its answer had been lost.
async fn unanswered(scene: &Scene, transaction: Transaction) {
    let entry = Entry::new(Arc::new(transaction), &scene.names, ());
    let laid_out = layout(&[entry], &scene.names).unwrap();
    let stored = batch::publish(&scene.client, laid_out.messages).await;
    stored.unwrap();
}

#[tokio::test]
async fn what_a_batch_without_an_answer_did_is_not_done_again() {
    let scene = Scene::start().await;
    let (partition, passed) = claimed(&scene, "a", 0).await;
    let first = positioned(&partition, transaction(1, &[], &["x"]));
    let second = positioned(&partition, transaction(2, &[], &["y"]));
    passed.store(2, Ordering::Release);
    unanswered(&scene, first).await;
    let written = scene.revision("x").await;
    // It ran again, and came to something else.
    let again = positioned(&partition, transaction(1, &[("x", written)], &["x", "z"]));
    let both = futures::join!(scene.commit(again), scene.commit(second));
    assert_eq!(both, (Err(CommitError::Duplicate), Ok(())));
    assert_eq!(scene.revision("x").await, written);
    assert_eq!(scene.revision("z").await, 0);
    assert!(!partition.wants(1) && !partition.wants(2) && partition.is_idle());

    let third = positioned(&partition, transaction(3, &[], &["x"]));
    passed.store(3, Ordering::Release);
    unanswered(&scene, third).await;
    let released = || partition.release(&scene.client, &scene.state);
    assert!(!released().await.unwrap(), "it has moved on");
    assert!(released().await.unwrap());
    let (next, _) = claimed(&scene, "b", 0).await;
    assert!(!next.wants(3) && next.wants(4));
}
