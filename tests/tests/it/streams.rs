//! Streams that are not there: at deploy, or suddenly no more.

use anyhow::{Result, ensure};
use pelton_tests::{NatsServer, Pelton, Project, Scene, build, eventually, project};

fn hostile(streams: &str) -> Result<String> {
    let mut text = project::SHOP_STREAMS.to_owned() + streams;
    text += &project::function("hostile", &build::component("hostile")?, "start = \"all\"");
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    text += &project::function("orders", &build::component("orders")?, "");
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    Ok(text)
}

#[tokio::test]
async fn a_subject_that_no_stream_covers_is_refused_at_deploy() -> Result<()> {
    let server = NatsServer::start().await?;
    let project = Project::new(&hostile("")?)?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    let words = ["hostile", "stream"];
    pelton.refused(&["deploy"], &words).await?;
    let listed = pelton.json(&["function", "ls"]).await?;
    ensure!(!listed.to_string().contains("orders"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_vanishes_takes_only_its_own_functions_along() -> Result<()> {
    let streams = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n";
    let mut scene = Scene::start(&hostile(streams)?).await?;
    let fine = r#"{"do":"fine"}"#;
    scene.nats.publish("hostile.act.now", fine).await?;
    let key = "done.HOSTILE=3A1";
    let first = eventually("an event", || scene.nats.value("shop", key)).await?;
    assert_eq!(first["attempt"], 1);
    scene.nats.drained("shop", "hostile", "HOSTILE").await?;

    scene.nats.js.delete_stream("HOSTILE").await?;
    scene.nats.life("o-1").await?;
    assert!(scene.node.alive()?);

    // Made again it is a new stream: its first event is no duplicate of the old one's.
    let bucket = scene.nats.state("shop").await?;
    bucket.delete(key).await?;
    scene.pelton.ok(&["deploy"]).await?;
    scene.nats.publish("hostile.act.now", fine).await?;
    eventually("an event of the new stream", || {
        scene.nats.value("shop", key)
    })
    .await?;
    scene.nats.life("o-2").await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_comes_back_by_foreign_hands_is_served_again() -> Result<()> {
    let streams = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n";
    let scene = Scene::start(&hostile(streams)?).await?;
    scene.nats.js.delete_stream("HOSTILE").await?;
    let config = async_nats::jetstream::stream::Config {
        name: "HOSTILE".into(),
        subjects: vec!["hostile.>".into()],
        ..Default::default()
    };
    scene.nats.js.create_stream(config).await?;
    scene
        .nats
        .publish("hostile.act.now", r#"{"do":"fine"}"#)
        .await?;
    let key = "done.HOSTILE=3A1";
    eventually("an event of the new stream", || {
        scene.nats.value("shop", key)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_foreign_stream_is_no_target_without_leave() -> Result<()> {
    let server = NatsServer::start().await?;
    let nats = pelton_tests::Nats::connect(&server.url()).await?;
    let config = async_nats::jetstream::stream::Config {
        name: "NOTIFICATIONS".into(),
        subjects: vec!["notifications.>".into()],
        description: Some("somebody else's".into()),
        ..Default::default()
    };
    nats.js.create_stream(config).await?;
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    let text = project::shop(&orders, &notifier);
    let project = Project::new(&text)?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    pelton
        .refused(&["deploy"], &["NOTIFICATIONS", "adopt"])
        .await?;

    let adopting = text.replace(
        "subjects = [\"notifications.>\"]",
        "subjects = [\"notifications.>\"]\nadopt = true",
    );
    project.change(&adopting)?;
    pelton.ok(&["deploy"]).await?;
    let stream = nats.js.get_stream("NOTIFICATIONS").await?;
    let config = &stream.cached_info().config;
    assert_eq!(config.description.as_deref(), Some("somebody else's"));
    let _node = pelton_tests::Node::start(&pelton, &[])?;
    nats.life("o-1").await?;
    eventually("notifications in the adopted stream", || async {
        Ok((nats.count("NOTIFICATIONS").await? == 4).then_some(()))
    })
    .await?;
    Ok(())
}
