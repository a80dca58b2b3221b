//! The shared reader against a real server: what each function gets, and what it may miss for a
//! moment.

use async_nats::jetstream;
use futures::FutureExt;

use super::*;
use crate::commit::stream::ensure_commit_stream;
use crate::dev::{ServerProcess, fresh_server};
use crate::nats::connect;

/// More messages than one function's buffer holds.
const MANY: u64 = 10 * WAITING as u64;
const LONG: Duration = Duration::from_secs(60);

/// A server with the commit stream of an app.
struct Scene {
    _data: tempfile::TempDir,
    _server: ServerProcess,
    js: jetstream::Context,
    names: AppNames,
    inputs: InternalInputs,
}

impl Scene {
    async fn start() -> Self {
        let (server, data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client);
        let names = AppNames::new("shop");
        ensure_commit_stream(&js, &names, 1).await.unwrap();
        Self {
            _data: data,
            _server: server,
            inputs: InternalInputs::start(js.client().into(), names.clone()),
            js,
            names,
        }
    }

    /// Stores messages for a function and returns their sequences.
    async fn store(&self, function: &str, count: u64) -> Vec<u64> {
        let mut stored = Vec::new();
        for n in 0..count {
            let id = format!("{}.{n}", uuid::Uuid::new_v4().simple());
            let subject = self.names.due(function, &id);
            let ack = self.js.publish(subject, "body".into()).await.unwrap();
            stored.push(ack.await.unwrap().sequence);
        }
        stored
    }

    async fn feed(&self, function: &str, from: u64) -> Feed {
        let feed = Feed::open(&self.inputs, &function.into(), from).await;
        feed.unwrap()
    }
}

async fn take(feed: &mut Feed, count: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(LONG, feed.next()).await;
        taken.push(next.unwrap().unwrap().sequence);
    }
    taken
}

/// That the end was reached shows when the next message is asked for.
fn nothing_left(feed: &mut Feed) {
    assert!(feed.next().now_or_never().is_none());
    assert!(feed.is_at_end());
}

#[tokio::test]
async fn slow_function_does_not_stall_others_and_loses_nothing() {
    let scene = Scene::start().await;
    let mut slow = scene.feed("slow", 1).await;
    let mut quick = scene.feed("quick", 1).await;
    let first = scene.store("slow", MANY).await;
    let theirs = scene.store("quick", 5).await;
    assert_eq!(take(&mut quick, 5).await, theirs);
    assert_eq!(take(&mut slow, first.len()).await, first);
    // It has joined again.
    let later = scene.store("slow", 5).await;
    assert_eq!(take(&mut slow, 5).await, later);
    nothing_left(&mut slow);
}

#[tokio::test]
async fn function_reads_messages_stored_before_it_joined() {
    let scene = Scene::start().await;
    let mut other = scene.feed("other", 1).await;
    let before = scene.store("late", 7).await;
    let marker = scene.store("other", 1).await;
    assert_eq!(take(&mut other, 1).await, marker);
    let mut all = scene.feed("late", 1).await;
    let mut some = scene.feed("late", before[3]).await;
    assert_eq!(take(&mut all, 7).await, before);
    assert_eq!(take(&mut some, 4).await, before[3..]);
    let after = scene.store("late", 3).await;
    assert_eq!(take(&mut all, 3).await, after);
    assert_eq!(take(&mut some, 3).await, after);
    nothing_left(&mut all);
    assert!(all.first() > marker[0]);
}

#[tokio::test]
async fn deleted_consumer_is_replaced_without_a_gap() {
    let scene = Scene::start().await;
    let mut feed = scene.feed("orders", 1).await;
    let first = scene.store("orders", 3).await;
    assert_eq!(take(&mut feed, 3).await, first);
    let name = scene.inputs.shared.state().consumer.clone().unwrap();
    let stream = scene.js.get_stream(scene.names.commit_stream()).await;
    stream.unwrap().delete_consumer(&name).await.unwrap();
    let then = scene.store("orders", 3).await;
    assert_eq!(take(&mut feed, 3).await, then);
}
