//! What counts as an event: any message, of any size that the server takes, CloudEvents or not.

use anyhow::{Result, ensure};
use async_nats::jetstream::stream;
use pelton_tests::{Nats, NatsServer, Node, Pelton, Project, Scene, build, eventually, project};
use serde_json::{Value, json};

/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

async fn scene() -> Result<Scene> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::function(
        "hostile",
        &build::component("hostile")?,
        project::QUICK_RETRY,
    );
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Scene::start(&text).await
}

async fn value(scene: &Scene, key: &str) -> Result<Value> {
    eventually(&format!("the state {key}"), || {
        scene.nats.value("shop", key)
    })
    .await
}

#[tokio::test]
async fn events_of_one_byte_and_of_900_kb() -> Result<()> {
    let scene = scene().await?;
    for size in [1, 900_000, 0] {
        let sequence = scene.nats.publish("hostile.raw", vec![b'x'; size]).await?;
        let done = value(&scene, &format!("done.HOSTILE=3A{sequence}")).await?;
        assert_eq!(done["bytes"], size);
    }
    // Given up on, a large event is still whole.
    let sequence = scene
        .nats
        .publish("hostile.act.now", vec![b'x'; 900_000])
        .await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
    assert_eq!(dead.code(), "payload-invalid");
    assert_eq!(dead.payload.len(), 900_000);
    Ok(())
}

/// Of 1 MiB, the default of `max_payload`, nothing is left for what a dead letter adds, and a work queue keeps nothing.
#[tokio::test]
async fn an_event_as_large_as_the_server_takes() -> Result<()> {
    let component = build::component("hostile")?;
    let allow = "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    let project = Project::new(&project::function("hostile", &component, allow))?;
    let server = NatsServer::start().await?;
    let nats = Nats::connect(&server.url()).await?;
    let jobs = stream::Config {
        name: "JOBS".into(),
        subjects: vec!["hostile.>".into()],
        retention: stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    nats.js.create_stream(jobs).await?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton.ok(&["deploy"]).await?;
    let _node = Node::start(&pelton, &[])?;
    nats.serving("hostile", None, 1).await?;
    let sent = vec![b'x'; (1 << 20) - 1024];
    let sequence = nats
        .publish_with("hostile.act.now", &[("note", "kept")], sent.clone())
        .await?;
    let dead = nats.dead_of("shop", "JOBS", sequence).await?;
    assert_eq!(dead.code(), "payload-invalid");
    assert_eq!(dead.payload.len(), 0);
    assert_eq!(dead.header("Pelton-Parts"), "2");
    eventually("the job to be let go", || async {
        Ok((nats.count("JOBS").await? == 0).then_some(()))
    })
    .await?;

    let at = dead.sequence.to_string();
    let shown = pelton.json(&["dead-letter", "show", &at]).await?;
    assert_eq!(shown["body"].as_str().map(str::len), Some(sent.len()));
    assert_eq!(shown["headers"], serde_json::json!([["note", "kept"]]));

    pelton.ok(&["dead-letter", "replay", &at]).await?;
    // It is given up on again, whole again; nothing of the first letter is left.
    let again = nats.dead_of("shop", "JOBS", sequence + 1).await?;
    assert_eq!(again.header("Pelton-Parts"), "2");
    assert_eq!(nats.count("PELTON_DEAD_shop").await?, 3);
    Ok(())
}

#[tokio::test]
async fn binary_structured_and_plain_messages() -> Result<()> {
    let scene = scene().await?;
    let binary = [
        ("CE-SpecVersion", "1.0"),
        ("ce-id", "b-1"),
        ("ce-source", "/the%20shop"),
        ("Ce-Type", "looked"),
        ("ce-time", "2026-05-04T03:02:01Z"),
        ("ce-subject", "caf%C3%A9"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    scene
        .nats
        .publish_with("hostile.look", &binary, "one")
        .await?;
    let seen = value(&scene, "looks.b-1").await?;
    assert_eq!(seen["source"], "/the shop", "{seen}");
    assert_eq!(seen["type"], "looked", "{seen}");
    assert_eq!(seen["subject"], "café", "{seen}");
    assert_eq!(seen["time"], "1777863721000000000", "{seen}");
    assert_eq!(seen["data"], "one", "{seen}");

    let structured = json!({
        "specversion": "1.0", "id": "s-1", "source": "shop", "type": "looked",
        "data": { "n": 1 }, "extra": "more",
    });
    let headers = [(
        "Content-Type",
        "application/cloudevents+json; charset=utf-8",
    )];
    scene
        .nats
        .publish_with("hostile.look", &headers, structured.to_string())
        .await?;
    let seen = value(&scene, "looks.s-1").await?;
    assert_eq!(seen["extra"], "more", "{seen}");
    let data: Value = serde_json::from_str(seen["data"].as_str().unwrap_or(""))?;
    assert_eq!(data, json!({ "n": 1 }));

    let headers = [("Nats-Msg-Id", "p-1")];
    scene
        .nats
        .publish_with("hostile.look", &headers, "plain")
        .await?;
    let seen = value(&scene, "looks.p-1").await?;
    assert_eq!(seen["source"], "HOSTILE", "{seen}");
    assert_eq!(seen["type"], "hostile.look", "{seen}");
    Ok(())
}

#[tokio::test]
async fn malformed_cloudevents_are_dead_letters() -> Result<()> {
    let mut scene = scene().await?;
    let json_type = ("Content-Type", "application/cloudevents+json");
    let version = ("ce-specversion", "1.0");
    let (id, source, ty) = (("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t"));
    let cases: [(Headers, &str, &str); 7] = [
        (&[version, source, ty], "{}", "id"),
        (&[version, ("ce-id", ""), source, ty], "{}", "id"),
        (&[("ce-specversion", "9.9"), id, source, ty], "{}", "9.9"),
        (
            &[version, id, source, ty, ("ce-time", "yesterday")],
            "{}",
            "time",
        ),
        (
            &[version, id, source, ty, ("ce-time", "1500-01-01T00:00:00Z")],
            "{}",
            "time",
        ),
        (&[json_type], "{\"specversion\":\"1.0\"}", "id"),
        (&[json_type], "no json", "JSON"),
    ];
    for (headers, body, word) in cases {
        let sequence = scene
            .nats
            .publish_with("hostile.look", headers, body)
            .await?;
        let dead = scene.nats.dead_of("shop", "HOSTILE", sequence).await?;
        let reason = dead.reason().to_owned();
        assert_eq!(
            dead.code(),
            "pelton-event-malformed",
            "{headers:?}: {reason}"
        );
        let held = reason.to_lowercase().contains(&word.to_lowercase());
        ensure!(held, "{headers:?}: {reason}");
        assert_eq!(dead.payload, body);
        // The original headers are kept as they were.
        let kept: Vec<(String, String)> = serde_json::from_str(dead.header("Pelton-Headers"))?;
        for (name, value) in headers {
            let found = kept
                .iter()
                .any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value);
            ensure!(found, "{name} is not in {kept:?}");
        }
    }
    scene.nats.publish("hostile.raw", "x").await?;
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;
    assert!(scene.node.alive()?);
    Ok(())
}
