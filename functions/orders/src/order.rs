//! An order and the rules of its life, without a word about where it is kept.

use pelton_sdk::prelude::*;
use serde::{Deserialize, Serialize};

use crate::price::Price;

/// How far an order has come; each step needs the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Created,
    Paid,
    Shipped,
    Completed,
}

/// A payment, shipping or delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) id: String,
    pub(crate) status: String,
}

impl Step {
    pub(crate) fn new(id: String, status: String) -> Self {
        Self { id, status }
    }
}

/// The state of an order, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) order_id: String,
    pub(crate) customer_id: String,
    pub(crate) total_price: Price,
    pub(crate) status: Status,
    pub(crate) payment: Option<Step>,
    pub(crate) shipping: Option<Step>,
    pub(crate) delivery: Option<Step>,
}

/// What a payment did to its order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Payment {
    /// Nothing: it was attached before.
    Known,
    /// The order is paid.
    Accepted,
    /// Others should know that it did not succeed.
    Failed,
}

impl Order {
    pub(crate) fn new(order_id: String, customer_id: String, total_price: Price) -> Self {
        Self {
            order_id,
            customer_id,
            total_price,
            status: Status::Created,
            payment: None,
            shipping: None,
            delivery: None,
        }
    }

    /// Takes a step, or says false when this very step was taken before.
    pub(crate) fn advance(&mut self, to: Status, step: &Step) -> Result<bool> {
        let (slot, what) = match to {
            Status::Shipped => (&mut self.shipping, "shipped"),
            Status::Completed => (&mut self.delivery, "completed"),
            Status::Created | Status::Paid => (&mut self.payment, "paid"),
        };
        if self.status >= to {
            if slot.as_ref().is_some_and(|taken| taken.id == step.id) {
                return Ok(false);
            }
            let known = slot.as_ref().map_or("", |taken| taken.id.as_str());
            reject!(
                "order-step-illegal",
                "order `{}` is {what} already (`{known}`): `{}` cannot do it again",
                self.order_id,
                step.id
            );
        }
        match (to, self.status) {
            (Status::Shipped, Status::Created) => {
                defer!(
                    "order-not-paid",
                    "order `{}` is not paid yet",
                    self.order_id
                )
            }
            (Status::Completed, Status::Created | Status::Paid) => {
                defer!(
                    "order-not-shipped",
                    "order `{}` is not shipped yet",
                    self.order_id
                )
            }
            _ => {}
        }
        *slot = Some(step.clone());
        self.status = to;
        Ok(true)
    }

    /// Only `success` pays. A failure that arrives behind a success of another payment is told, and changes nothing.
    pub(crate) fn pay(&mut self, step: &Step) -> Result<Payment> {
        if step.status == "success" {
            return Ok(match self.advance(Status::Paid, step)? {
                true => Payment::Accepted,
                false => Payment::Known,
            });
        }
        let paid = self.status >= Status::Paid;
        let known = self.payment.as_ref().filter(|taken| taken.id == step.id);
        if known.is_some_and(|taken| paid || taken.status == step.status) {
            return Ok(Payment::Known);
        }
        if self.status == Status::Completed {
            reject!(
                "order-step-illegal",
                "order `{}` is completed: payment `{}` comes too late",
                self.order_id,
                step.id
            );
        }
        if !paid {
            self.payment = Some(step.clone());
        }
        Ok(Payment::Failed)
    }
}
