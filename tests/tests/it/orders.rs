//! The order system: what its events come to, whoever publishes them.

use anyhow::{Result, ensure};
use pelton_tests::orders::{STEPS, body, completed, subject};
use pelton_tests::{Scene, build, eventually, foreign, project};
use serde_json::json;

async fn shop() -> Result<Scene> {
    let orders = build::component("orders")?;
    let notifier = build::component("notifier")?;
    Scene::start(&project::shop_in_order(&orders, &notifier)).await
}

/// Waits until a function has nothing left to do.
async fn drained(scene: &Scene, function: &str) -> Result<()> {
    eventually(&format!("{function} to have done all"), || async {
        let info = scene.pelton.json(&["function", "info", function]).await?;
        ensure!(info["status"]["pending"] == 0, "{}", info["status"]);
        Ok(Some(()))
    })
    .await
}

/// How many notifications there are, once `notifier` has nothing left to do.
async fn notified(scene: &Scene) -> Result<u64> {
    drained(scene, "notifier").await?;
    eventually("the outbox to be empty", || async {
        let left = scene
            .nats
            .count_below("KV_shop", "$KV.PELTON_shop.out.>")
            .await?;
        ensure!(left == 0, "{left} messages");
        Ok(Some(()))
    })
    .await?;
    scene.nats.count("NOTIFICATIONS").await
}

#[tokio::test]
async fn a_client_of_another_language_drives_an_order_to_its_end() -> Result<()> {
    let scene = shop().await?;
    let args = [scene.server.url(), "o-1".into()];
    let order = foreign("orders.py", &args).await?;
    assert_eq!(order, completed("o-1"));
    assert!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_duplicate_changes_nothing() -> Result<()> {
    let scene = shop().await?;
    scene.nats.life("o-1").await?;
    let before = scene.nats.state("shop").await?.entry("orders.o-1").await?;
    let first = notified(&scene).await?;
    assert_eq!(first, 4, "one notification per event");

    // The same event again: same id, new message.
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e-1"),
        ("ce-source", "shop"),
        ("ce-type", "order_paid"),
    ];
    let paid = body("o-2", "paid").to_string();
    scene.nats.step("o-2", "created").await?;
    for _ in 0..3 {
        let subject = subject("o-2", "paid");
        scene
            .nats
            .publish_with(&subject, &headers, paid.clone())
            .await?;
    }
    scene.nats.order("o-2", "paid").await?;
    drained(&scene, "orders").await?;
    assert_eq!(
        notified(&scene).await?,
        first + 2,
        "one for `created`, one for the three times `paid`"
    );
    assert!(scene.nats.dead("shop").await?.is_empty());
    // Whoever got nothing changed nothing: the first order lies as it lay.
    let after = scene.nats.state("shop").await?.entry("orders.o-1").await?;
    let revision = |entry: Option<async_nats::jetstream::kv::Entry>| entry.map(|e| e.revision);
    assert_eq!(revision(before), revision(after));
    Ok(())
}

#[tokio::test]
async fn a_step_too_early_waits_for_its_predecessor() -> Result<()> {
    let scene = shop().await?;
    let mut steps = STEPS;
    steps.reverse();
    for step in steps {
        scene.nats.step("o-1", step).await?;
    }
    let order = scene.nats.order("o-1", "completed").await?;
    assert_eq!(order, completed("o-1"));
    assert!(scene.nats.dead("shop").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_illegal_step_is_a_dead_letter_and_changes_nothing() -> Result<()> {
    let scene = shop().await?;
    scene.nats.life("o-1").await?;
    let mut again = body("o-1", "paid");
    if let Some(fields) = again.as_object_mut() {
        fields.insert("payment_id".into(), json!("p-other"));
    }
    let sequence = scene
        .nats
        .publish("orders.o-1.paid", again.to_string())
        .await?;
    let dead = scene.nats.dead_of("shop", "ORDERS", sequence).await?;
    assert_eq!(dead.header("Pelton-Function"), "orders");
    assert_eq!(dead.header("Pelton-Version"), "1");
    assert_eq!(dead.header("Pelton-Subject"), "orders.o-1.paid");
    assert_eq!(dead.header("Pelton-Format"), "1");
    assert_eq!(dead.header("Pelton-App"), "shop");
    assert!(!dead.code().is_empty() && !dead.code().starts_with("pelton-"));
    assert!(dead.reason().contains("o-1"), "{}", dead.reason());
    assert_eq!(dead.payload, again.to_string());
    assert_eq!(dead.attempts()?.len(), 1, "a reject is not tried again");
    let order = scene.nats.order("o-1", "completed").await?;
    assert_eq!(order, completed("o-1"));

    // Other orders go on.
    scene.nats.life("o-2").await
}

#[tokio::test]
async fn a_payment_that_failed_leaves_the_order_unpaid() -> Result<()> {
    let scene = shop().await?;
    scene.nats.step("o-1", "created").await?;
    scene.nats.order("o-1", "created").await?;
    let mut declined = body("o-1", "paid");
    if let Some(fields) = declined.as_object_mut() {
        fields.insert("payment_status".into(), json!("declined"));
    }
    scene
        .nats
        .publish("orders.o-1.paid", declined.to_string())
        .await?;
    eventually("the event payment-failed", || async {
        let all = scene.nats.messages("ORDERS").await?;
        let found = all
            .iter()
            .any(|message| message.subject.as_str() == "orders.o-1.payment-failed");
        Ok(found.then_some(()))
    })
    .await?;
    drained(&scene, "orders").await?;
    scene.nats.order("o-1", "created").await?;

    // A later payment is not too late.
    scene.nats.step("o-1", "paid").await?;
    scene.nats.order("o-1", "paid").await?;
    Ok(())
}

#[tokio::test]
async fn what_does_not_parse_is_a_dead_letter_that_says_where() -> Result<()> {
    let scene = shop().await?;
    for (data, word) in [
        ("{\"order_id\": \"o-1\", ", "line 1"),
        (
            "{\"order_id\": \"o-1\", \"customer_id\": \"c\"}",
            "total_price",
        ),
        ("x", "line 1"),
    ] {
        let sequence = scene.nats.publish("orders.o-1.created", data).await?;
        let dead = scene.nats.dead_of("shop", "ORDERS", sequence).await?;
        let reason = dead.reason();
        assert_eq!(dead.code(), "payload-invalid", "{reason}");
        assert!(reason.contains(word), "{data}: {reason}");
    }
    scene.nats.life("o-1").await
}
