//! The floor, on a real server that is killed.

use std::path::Path;

use async_nats::HeaderMap;

use super::*;
use crate::commit::NatsState;
use crate::commit::stream::ensure_commit_stream;
use crate::commit::transport::message;
use crate::dev::{ServerProcess, find_nats_server};
use crate::effects::StateReader;
use crate::nats::connect;

struct Scene {
    server: ServerProcess,
    js: jetstream::Context,
    state: NatsState,
    names: AppNames,
}

impl Scene {
    async fn start(data: &Path) -> Self {
        let binary = find_nats_server().unwrap();
        let server = ServerProcess::start_with(&binary, data, None, &[]);
        let server = server.await.unwrap();
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client.clone());
        let names = AppNames::new("shop");
        ensure_commit_stream(&js, &names, 1).await.unwrap();
        let state = NatsState::new(client.into(), names.clone());
        Self {
            server,
            js,
            state,
            names,
        }
    }

    async fn put(&self, subject: String, payload: &'static str, headers: &[(&str, &str)]) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let sent = self.js.publish_with_headers(subject, map, payload.into());
        sent.await.unwrap().await.unwrap();
    }

    async fn value(&self, key: &str) -> Option<String> {
        let found = self.state.get_many(&[key.to_owned()]).await.unwrap();
        let value = found[0].value.as_deref();
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    }

    async fn held(&self) -> u64 {
        bounds(&self.js, &self.names)
            .await
            .unwrap()
            .unwrap()
            .messages
    }

    /// Looks until there is nothing to do.
    async fn clean(&self, vacuum: &mut Vacuum) -> Vec<Look> {
        let (mut looks, mut idle) = (Vec::new(), 0);
        while idle < 3 {
            match vacuum.look(&self.js, &self.names).await.unwrap() {
                Look::Idle => idle += 1,
                look => looks.push(look),
            }
            assert!(looks.len() < 10, "{looks:?}");
        }
        looks
    }
}

#[tokio::test]
async fn a_deleted_key_leaves_nothing_and_does_not_come_back_with_a_killed_server() {
    let data = tempfile::tempdir().unwrap();
    let scene = Scene::start(data.path()).await;
    let names = scene.names.clone();
    let deleted = [("KV-Operation", "DEL")];
    scene
        .put(names.state("old"), "stays", &[("ce-id", "1")])
        .await;
    scene.put(names.position("f", "IN", 3), "{}", &[]).await;
    for n in 0..40 {
        let key = names.state(&format!("row-{n}"));
        scene.put(key.clone(), "one", &[]).await;
        scene.put(key.clone(), "two", &[]).await;
        scene.put(key, "", &deleted).await;
    }
    scene.put(names.state("young"), "stays", &[]).await;

    let hasty = || Vacuum {
        hasty: true,
        ..Vacuum::default()
    };
    let looks = scene.clean(&mut hasty()).await;
    assert!(
        matches!(looks[..], [Look::Raised(_), Look::Removed(40)]),
        "{looks:?}"
    );
    // The two rows, the position, and the floor with what is alive below it.
    assert_eq!(scene.held().await, 5);

    scene.put(names.state("young"), "younger", &[]).await;
    scene.server.kill().await.unwrap();
    let scene = Scene::start(data.path()).await;
    assert!(scene.held().await > 5, "the server brought nothing back");
    // Before anything has removed them.
    assert_eq!(scene.value("row-7").await, None);
    assert!(scene.state.list("", None, 100).await.unwrap() == ["old", "young"]);
    let looks = scene.clean(&mut hasty()).await;
    assert!(matches!(looks[..], [Look::Removed(40), ..]), "{looks:?}");
    assert_eq!(scene.held().await, 5);
    assert_eq!(scene.value("old").await.as_deref(), Some("stays"));
    assert_eq!(scene.value("young").await.as_deref(), Some("younger"));
}

#[tokio::test]
async fn what_is_alive_below_the_floor_stays() {
    let data = tempfile::tempdir().unwrap();
    let scene = Scene::start(data.path()).await;
    let names = scene.names.clone();
    let deleted = [("KV-Operation", "DEL")];
    let alive = [
        names.due("f", "call.x"),
        names.state("between"),
        names.at("t-1"),
        names.position("f", "IN", 1),
    ];
    for (n, subject) in alive.iter().enumerate() {
        scene.put(names.state(&format!("k{n}")), "value", &[]).await;
        scene.put(names.state(&format!("k{n}")), "", &deleted).await;
        scene.put(subject.clone(), "alive", &[]).await;
    }
    let mut vacuum = Vacuum {
        hasty: true,
        ..Vacuum::default()
    };
    let looks = scene.clean(&mut vacuum).await;
    assert!(
        matches!(looks[..], [Look::Raised(_), Look::Removed(4)]),
        "{looks:?}"
    );
    assert_eq!(scene.held().await, 4 + 2);
    for subject in alive {
        let last = json!({ "last_by_subj": subject });
        let found = message(&scene.js, "KV_shop", &last).await.unwrap();
        assert!(found.is_some(), "{subject}");
    }
    assert_eq!(scene.value("between").await.as_deref(), Some("alive"));

    // It may go later, and what is stored in its place may be deleted in turn.
    scene.put(names.state("between"), "", &deleted).await;
    let looks = scene.clean(&mut vacuum).await;
    assert!(
        matches!(looks[..], [Look::Raised(_), Look::Removed(1)]),
        "{looks:?}"
    );
    assert_eq!(scene.held().await, 3 + 2);
}
