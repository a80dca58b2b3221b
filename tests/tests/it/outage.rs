//! NATS goes away and comes back: the node stays, and nothing is lost.

use anyhow::{Result, ensure};
use pelton_tests::orders::{STEPS, completed};
use pelton_tests::{Scene, build, eventually, project};

#[tokio::test]
async fn a_node_survives_the_loss_of_its_server() -> Result<()> {
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    let mut scene = Scene::start(&project::shop(&orders, &notifier)).await?;
    let pid = scene.node.pid();
    for round in 0..3 {
        let lives = |from: usize| (from..from + 20).map(move |n| format!("o-{round}-{n}"));
        for id in lives(0) {
            for step in STEPS {
                scene.nats.step(&id, step).await?;
            }
        }
        // In the middle of that work.
        scene.server.kill()?;
        scene.server.restart().await?;
        eventually("publishing to work again", || async {
            scene
                .nats
                .step(&format!("o-{round}-again"), "created")
                .await?;
            Ok(Some(()))
        })
        .await?;
        for id in lives(0) {
            let order = scene.nats.order(&id, "completed").await?;
            ensure!(order == completed(&id), "{order}");
        }
        scene.nats.life(&format!("o-{round}-after")).await?;
    }
    ensure!(scene.node.alive()?, "the node ended");
    assert_eq!(scene.node.pid(), pid);
    for function in ["orders", "notifier"] {
        scene.nats.drained("shop", function, "ORDERS").await?;
    }
    let dead = scene.nats.dead("shop").await?;
    ensure!(dead.is_empty(), "{dead:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_starts_before_its_server_says_so_at_once() -> Result<()> {
    let mut scene = Scene::start(&project::shop(
        &build::component("orders")?,
        &build::component("notifier")?,
    ))
    .await?;
    scene.node.kill().await?;
    scene.server.kill()?;
    let refused = scene.pelton.refused(&["run"], &["127.0.0.1"]).await?;
    ensure!(refused.stderr.trim().lines().count() == 1, "{refused:#?}");
    Ok(())
}
