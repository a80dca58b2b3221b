//! Modules that are no functions: refused where they are built or deployed, with the reason and the way out.

use anyhow::{Result, ensure};
use pelton_tests::{NatsServer, Pelton, Project, Scene, build, modules, project};

/// A healthy function beside one whose component is `plain.wasm`.
fn manifest(project: &Project) -> Result<String> {
    let orders = build::component("orders")?;
    let mut text = project::SHOP_STREAMS.to_owned();
    text += "[streams.PLAIN]\nsubjects = [\"plain.>\"]\n";
    text += &project::function("orders", &orders, "");
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    text += &project::function("plain", &project.path().join("plain.wasm"), "");
    Ok(text)
}

#[tokio::test]
async fn what_is_no_function_is_refused_and_deploys_nothing() -> Result<()> {
    let server = NatsServer::start().await?;
    let project = Project::new("")?;
    project.change(&manifest(&project)?)?;
    let pelton = Pelton::new(&server.url(), project.path())?;
    let cases: [(&str, Vec<u8>, &[&str]); 5] = [
        (
            "unknown import",
            modules::unknown_import()?,
            &["acme:magic/spell"],
        ),
        ("truncated", modules::truncated()?, &["plain.wasm"]),
        (
            "core without the section",
            modules::core_without_section(),
            &["core module", "pelton build"],
        ),
        ("no wasm at all", b"hello".to_vec(), &["plain.wasm"]),
        ("empty", Vec::new(), &["plain.wasm"]),
    ];
    for (what, bytes, words) in cases {
        project.file("plain.wasm", &bytes)?;
        let mut all = vec!["plain"];
        all.extend(words);
        for command in ["build", "deploy"] {
            let output = pelton.refused(&[command], &all).await;
            output.map_err(|error| error.context(what))?;
        }
    }
    let listed = pelton.json(&["function", "ls"]).await?;
    ensure!(!listed.to_string().contains("orders"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn a_core_module_with_the_section_becomes_a_component() -> Result<()> {
    let project = Project::new("")?;
    for (version, bytes) in [modules::core_with_section()?, modules::component()?]
        .iter()
        .enumerate()
    {
        project.file("plain.wasm", bytes)?;
        let scene = Scene::start(&manifest(&project)?).await?;
        let sequence = scene.nats.publish("plain.x", "anything").await?;
        scene.nats.drained("shop", "plain", "PLAIN").await?;
        ensure!(
            sequence == 1 && scene.nats.dead("shop").await?.is_empty(),
            "{version}"
        );
        scene.nats.life("o-1").await?;
    }
    Ok(())
}

/// The registry may hold what this node cannot run: another release put it there, or the object was damaged.
#[tokio::test]
async fn a_damaged_module_fails_alone() -> Result<()> {
    let project = Project::new("")?;
    project.file("plain.wasm", &modules::component()?)?;
    let mut scene = Scene::start(&manifest(&project)?).await?;
    let record = scene.nats.js.get_key_value("PELTON_REGISTRY").await?;
    let bytes = record.get("function.shop.plain").await?.unwrap_or_default();
    let mut function: serde_json::Value = serde_json::from_slice(&bytes)?;
    let modules = scene.nats.js.get_key_value("PELTON_MODULES").await?;
    let digest = "0".repeat(64);
    let damaged = &b"\0asm damaged"[..];
    let about = serde_json::json!({ "format": 1, "size": damaged.len(), "parts": 1 });
    modules.put(format!("{digest}.0"), damaged.into()).await?;
    modules.put(&digest, about.to_string().into()).await?;
    function["digest"] = digest.into();
    function["version"] = 2.into();
    record
        .put("function.shop.plain", function.to_string().into())
        .await?;
    pelton_tests::eventually("the node to say that it cannot run it", || async {
        let nodes = scene.nats.nodes().await?;
        let text = serde_json::to_string(&nodes)?;
        Ok(text.contains("failed: ").then_some(()))
    })
    .await?;
    scene.nats.life("o-1").await?;
    assert!(scene.node.alive()?);
    Ok(())
}
