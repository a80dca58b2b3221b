//! A batch whose answer was lost may have ended a delivery that its node still takes for parked: whatever that node does then, it is done once.

use super::*;
use crate::commit::Parking;

const SEQUENCE: u64 = 5;

/// A node's hold on a partition with one delivery in its park, the park's subject, and the revision there.
async fn parked(scene: &Scene) -> (Partition, String, u64) {
    let subject = scene.names.position("f", "IN", 1);
    let record = PositionRecord::new("node", SEQUENCE, std::iter::empty(), (0, 0));
    let record = record.with_parked([SEQUENCE].into_iter());
    let revision = position::put(&scene.client, &subject, &record, 0).await;
    let revision = revision.unwrap().unwrap();
    let passed = Arc::new(AtomicU64::new(SEQUENCE));
    let partition = Partition::claimed(subject, "node".into(), &record, revision, passed);
    let place = scene.names.parked("f", "IN", 1, Some("k"), SEQUENCE);
    let ack = scene.js.publish(place.clone(), "waits".into()).await;
    let at = ack.unwrap().await.unwrap().sequence;
    (partition, place, at)
}

/// What the batch left that had no answer: the position does not name the delivery any more.
async fn ended(scene: &Scene, partition: &Partition) {
    let record = PositionRecord::new("node", SEQUENCE, std::iter::empty(), (0, 0));
    let revision = partition.revision().unwrap();
    let put = position::put(&scene.client, partition.subject(), &record, revision).await;
    assert!(put.unwrap().is_some());
}

/// An attempt that writes `key`, and takes the delivery out of the park.
fn attempt(partition: &Partition, place: &str, at: u64) -> Transaction {
    let mut attempt = transaction(SEQUENCE, &[], &["key"]);
    attempt.parking = Some(Parking {
        subject: place.to_owned(),
        revision: at,
        message: None,
    });
    attempt.fence = Fence::Position {
        partition: partition.clone(),
        stored: Some(50),
    };
    attempt
}

/// Puts the delivery back into the park.
fn back(partition: &Partition, place: &str, at: u64) -> Transaction {
    let mut back = transaction(SEQUENCE, &[], &[]);
    back.parking = Some(Parking {
        subject: place.to_owned(),
        revision: at,
        message: Some((Vec::new(), "waits again".into())),
    });
    back.fence = Fence::Position {
        partition: partition.clone(),
        stored: None,
    };
    back
}

async fn purge(scene: &Scene, subject: &str) {
    let stream = scene.js.get_stream("KV_shop").await.unwrap();
    assert_eq!(stream.purge().filter(subject).await.unwrap().purged, 1);
}

async fn is_there(scene: &Scene, subject: &str) -> bool {
    scene.state.newest(subject).await.unwrap().is_some()
}

#[tokio::test]
async fn what_waits_and_has_ended_is_not_done_again() {
    let scene = Scene::start().await;
    let (partition, place, at) = parked(&scene).await;
    ended(&scene, &partition).await;
    let again = scene.commit(attempt(&partition, &place, at)).await;
    assert_eq!(again, Err(CommitError::Duplicate));
    assert_eq!(scene.revision("key").await, 0, "it was written");
    assert!(!partition.is_parked(SEQUENCE), "the node has learned it");
}

#[tokio::test]
async fn what_has_ended_is_not_put_back() {
    let scene = Scene::start().await;
    let (partition, place, _) = parked(&scene).await;
    purge(&scene, &place).await;
    ended(&scene, &partition).await;
    let put = scene.commit(back(&partition, &place, 0)).await;
    assert_eq!(put, Err(CommitError::Duplicate));
    assert!(!is_there(&scene, &place).await);
}

#[tokio::test]
async fn what_is_lost_is_put_back_and_done_once() {
    let scene = Scene::start().await;
    let (partition, place, _) = parked(&scene).await;
    purge(&scene, &place).await;
    assert_eq!(scene.commit(back(&partition, &place, 0)).await, Ok(()));
    assert!(partition.is_parked(SEQUENCE));
    let there = scene.state.newest(&place).await.unwrap().unwrap();
    let done = scene.commit(attempt(&partition, &place, there.sequence));
    assert_eq!(done.await, Ok(()));
    assert!(!partition.is_parked(SEQUENCE));
    let again = scene.commit(attempt(&partition, &place, there.sequence));
    assert_eq!(again.await, Err(CommitError::Duplicate));
}
