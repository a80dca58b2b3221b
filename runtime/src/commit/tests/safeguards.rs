//! What each safeguard of a commit is there for: `make mutations` takes it away, and its test here must fail.

use std::pin::pin;

use super::*;

#[tokio::test]
async fn what_another_wrote_since_it_was_read_is_not_written_over() {
    let scene = Scene::start().await;
    let seen = scene.write("k").await;
    let later = scene.write("k").await;
    let ended = scene.commit(transaction(1, &[("k", seen)], &["k"])).await;
    let now = scene.revision("k").await;
    assert_eq!((ended, now), (Err(changed("k")), later));
}

/// Groups are free of conflicts; should two that are not meet in one all the same, the order of its messages has the server
/// refuse it.
#[tokio::test]
async fn two_that_write_what_the_other_read_are_not_stored_together() {
    let scene = Scene::start().await;
    let (a, b) = (scene.write("a").await, scene.write("b").await);
    let both = [
        transaction(1, &[("a", a)], &["b"]),
        transaction(2, &[("b", b)], &["a"]),
    ];
    let both = both.map(|one| Entry::new(Arc::new(one), &scene.names, ()));
    let laid_out = layout(&both, &scene.names).unwrap();
    let stored = batch::publish(&scene.client, laid_out.messages).await;
    assert!(stored.is_err(), "neither saw the other: {stored:?}");
    let now = (scene.revision("a").await, scene.revision("b").await);
    assert_eq!(now, (a, b));
}

#[tokio::test]
async fn who_finds_the_stream_busy_is_told_so_in_time() {
    let scene = Scene::start().await;
    scene.crowd().await;
    let ended = scene.commit(transaction(1, &[], &["a"])).await;
    assert!(
        matches!(ended, Err(CommitError::Unavailable(_))),
        "{ended:?}"
    );
}

/// The leader judges conditions, and any server that holds a copy says what is there: one that lags behind must not be believed.
#[tokio::test]
async fn who_is_to_blame_is_not_said_by_a_server_that_lags_behind() {
    let scene = Scene::start().await;
    let at = scene.write("k").await;
    // As if a server had said it that is three messages ahead of this one.
    let seen = at + 3;
    let mut ended = pin!(scene.commit(transaction(1, &[("k", seen)], &["a"])));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut ended).await;
    assert!(early.is_err(), "{early:?}");
    scene.write("other").await;
    scene.write("other").await;
    assert_eq!(scene.write("k").await, seen);
    assert_eq!(ended.await, Ok(()));
}

#[tokio::test]
async fn a_source_is_not_edited_in_place_and_nothing_arrives_twice() {
    let scene = Scene::start().await;
    let source = jetstream::stream::Source {
        name: scene.names.commit_stream(),
        subject_transforms: vec![jetstream::stream::SubjectTransform {
            source: "$KV.PELTON_shop.out.OUT.*.*.out.>".into(),
            destination: "out.>".into(),
        }],
        ..Default::default()
    };
    let config = jetstream::stream::Config {
        name: "OUT".into(),
        sources: Some(vec![source]),
        ..Default::default()
    };
    scene.js.create_stream(config).await.unwrap();
    for n in 0..20 {
        emit(&scene, n, &format!("out.{n}")).await;
    }
    assert_eq!(arrived(&scene, "out.19").await, 20);
    let ensured = stream::ensure_target(&scene.js, &scene.names, "OUT", true).await;
    // Whatever the source does over again, it does before it comes to this one.
    emit(&scene, 20, "out.last").await;
    assert_eq!(arrived(&scene, "out.last").await, 21);
    let why = ensured.unwrap_err().to_string();
    assert!(
        why.contains("a change in place would double events"),
        "{why}"
    );
}

fn changed(key: &str) -> CommitError {
    CommitError::Conflict(vec![key.to_owned()])
}

async fn emit(scene: &Scene, n: usize, subject: &str) {
    let subject = scene.names.outbox("OUT", &format!("txn{n}"), 0, subject);
    let stored = scene.js.publish(subject, "".into()).await.unwrap();
    stored.await.unwrap();
}

/// How many have arrived once one of this subject has.
async fn arrived(scene: &Scene, subject: &str) -> u64 {
    let mut target = scene.js.get_stream("OUT").await.unwrap();
    while target
        .get_last_raw_message_by_subject(subject)
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    target.info().await.unwrap().state.messages
}
