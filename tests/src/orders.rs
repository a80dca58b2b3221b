//! The order system's events as a producer that knows nothing of Pelton writes them: plain JSON.

use anyhow::Result;
use serde_json::{Value, json};

use crate::client::Nats;

/// The four steps of an order's life, in their order.
pub const STEPS: [&str; 4] = ["created", "paid", "shipped", "completed"];

/// The subject of an order's step.
pub fn subject(id: &str, step: &str) -> String {
    format!("orders.{id}.{step}")
}

/// The data of a step that goes well.
pub fn body(id: &str, step: &str) -> Value {
    let mut body = json!({ "order_id": id, "customer_id": "c-1" });
    let more = match step {
        "created" => json!({ "total_price": "19.90" }),
        "paid" => json!({ "payment_id": format!("p-{id}"), "payment_status": "success" }),
        "shipped" => json!({ "shipping_id": format!("s-{id}"), "shipping_status": "sent" }),
        _ => json!({ "delivery_id": format!("d-{id}"), "delivery_status": "delivered" }),
    };
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    body
}

/// The state that an order has after all four steps.
pub fn completed(id: &str) -> Value {
    json!({
        "order_id": id,
        "customer_id": "c-1",
        "total_price": "19.90",
        "status": "completed",
        "payment": { "id": format!("p-{id}"), "status": "success" },
        "shipping": { "id": format!("s-{id}"), "status": "sent" },
        "delivery": { "id": format!("d-{id}"), "status": "delivered" },
    })
}

impl Nats {
    /// Publishes a step that goes well, without any header.
    ///
    /// # Errors
    /// No stream took it.
    pub async fn step(&self, id: &str, step: &str) -> Result<u64> {
        self.publish(&subject(id, step), body(id, step).to_string())
            .await
    }

    /// Publishes an order's whole life, and waits until it is completed.
    ///
    /// # Errors
    /// It does not come to its end.
    pub async fn life(&self, id: &str) -> Result<()> {
        for step in STEPS {
            self.step(id, step).await?;
        }
        self.order(id, "completed").await?;
        Ok(())
    }
}
