//! An order's life as events: created, paid, shipped, completed.

use serde_json::json;

use crate::Event;

/// An order as its producer knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// One subject token, such as `o-1`.
    pub id: String,
    /// Who ordered.
    pub customer: String,
    /// A decimal as text: a JSON number would go through binary floating point on its way.
    pub total: String,
}

impl Order {
    /// An order of `customer` over `total`.
    pub fn new(
        id: impl Into<String>,
        customer: impl Into<String>,
        total: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            customer: customer.into(),
            total: total.into(),
        }
    }

    /// The order was placed.
    pub fn created(&self) -> Event {
        self.event(
            "created",
            json!({"order_id": self.id, "customer_id": self.customer, "total_price": self.total}),
        )
    }

    /// A payment was tried; only the status `success` pays.
    pub fn paid(&self, status: &str) -> Event {
        self.paid_by(&format!("payment-{}", self.id), status)
    }

    /// The same with a payment of another id.
    pub fn paid_by(&self, payment: &str, status: &str) -> Event {
        self.event("paid", self.step("payment", payment, status))
    }

    /// The parcel left.
    pub fn shipped(&self) -> Event {
        let shipping = format!("shipping-{}", self.id);
        self.event("shipped", self.step("shipping", &shipping, "in-transit"))
    }

    /// The parcel arrived.
    pub fn completed(&self) -> Event {
        let delivery = format!("delivery-{}", self.id);
        self.event("completed", self.step("delivery", &delivery, "delivered"))
    }

    /// The whole of a life without trouble, in its order.
    pub fn life(&self) -> [Event; 4] {
        [
            self.created(),
            self.paid("success"),
            self.shipped(),
            self.completed(),
        ]
    }

    fn step(&self, what: &str, id: &str, status: &str) -> serde_json::Value {
        json!({
            "order_id": self.id,
            "customer_id": self.customer,
            format!("{what}_id"): id,
            format!("{what}_status"): status,
        })
    }

    fn event(&self, step: &str, data: serde_json::Value) -> Event {
        Event::new(
            format!("orders.{}.{step}", self.id),
            format!("order_{step}"),
            &data,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_has_four_steps_in_their_order() {
        let life = Order::new("o-1", "alice", "129.90").life();
        let subjects: Vec<_> = life.iter().map(|event| event.subject.as_str()).collect();
        assert_eq!(
            subjects,
            [
                "orders.o-1.created",
                "orders.o-1.paid",
                "orders.o-1.shipped",
                "orders.o-1.completed"
            ]
        );
        assert!(life.is_sorted_by_key(|event| event.time));
    }

    #[test]
    fn a_price_keeps_its_digits() {
        let created = Order::new("o-1", "alice", "0.10").created();
        let data: serde_json::Value = serde_json::from_slice(&created.data).unwrap();
        assert_eq!(data["total_price"], "0.10");
    }
}
