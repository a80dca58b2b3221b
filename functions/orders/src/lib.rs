//! The function `orders`: keeps each order's state from the events of its life.
//!
//! Those of one order come in the order in which they were published, which need not be the order of its life, and a producer
//! may publish one twice. So each handler decides from the state alone: a step that is done already changes nothing, one whose
//! predecessor is missing waits for it, and one that contradicts what is done is given up.

mod order;
mod price;
#[cfg(test)]
mod tests;

use pelton_sdk::prelude::*;
use serde::{Deserialize, Serialize};

use order::{Order, Payment, Status, Step};
use price::Price;

static ORDERS: Table<Order> = Table::new("orders");

/// Data of `orders.<id>.created`.
#[derive(Deserialize)]
pub struct Created {
    order_id: String,
    customer_id: String,
    total_price: Price,
}

/// Data of `orders.<id>.paid`.
#[derive(Deserialize)]
pub struct Paid {
    order_id: String,
    payment_id: String,
    payment_status: String,
}

/// Data of `orders.<id>.shipped`.
#[derive(Deserialize)]
pub struct Shipped {
    order_id: String,
    shipping_id: String,
    shipping_status: String,
}

/// Data of `orders.<id>.completed`.
#[derive(Deserialize)]
pub struct Completed {
    order_id: String,
    delivery_id: String,
    delivery_status: String,
}

/// Data of `orders.<id>.payment-failed`, which this function emits.
#[derive(Serialize)]
struct PaymentFailed<'a> {
    order_id: &'a str,
    customer_id: &'a str,
    payment_id: &'a str,
    payment_status: &'a str,
}

/// Makes the order, once: whatever it has become since, a second `created` changes nothing.
#[handler("orders.*.created")]
pub fn created(event: Event<Created>, ctx: &mut Context) -> Result {
    let data = event.data;
    same_order(&event.subject, &data.order_id)?;
    if let Some(known) = ORDERS.get(ctx, &data.order_id)? {
        if known.customer_id != data.customer_id || known.total_price != data.total_price {
            ctx.warn("this order was created before, with another customer or price: ignored");
        }
        return Ok(());
    }
    let order = Order::new(data.order_id, data.customer_id, data.total_price);
    ORDERS.set(ctx, &order.order_id, &order)
}

/// Attaches the payment; one that did not succeed leaves the order unpaid and is told to others.
#[handler("orders.*.paid")]
pub fn paid(event: Event<Paid>, ctx: &mut Context) -> Result {
    let data = event.data;
    let mut order = existing(&event.subject, &data.order_id, ctx)?;
    let step = Step::new(data.payment_id, data.payment_status);
    match order.pay(&step)? {
        Payment::Known => Ok(()),
        Payment::Accepted => ORDERS.set(ctx, &order.order_id, &order),
        Payment::Failed => {
            ORDERS.set(ctx, &order.order_id, &order)?;
            ctx.emit(payment_failed(&order, &step))
        }
    }
}

/// Attaches the shipping to a paid order.
#[handler("orders.*.shipped")]
pub fn shipped(event: Event<Shipped>, ctx: &mut Context) -> Result {
    let data = event.data;
    let order = existing(&event.subject, &data.order_id, ctx)?;
    let step = Step::new(data.shipping_id, data.shipping_status);
    advance(order, Status::Shipped, &step, ctx)
}

/// Attaches the delivery to a shipped order, which ends its life.
#[handler("orders.*.completed")]
pub fn completed(event: Event<Completed>, ctx: &mut Context) -> Result {
    let data = event.data;
    let order = existing(&event.subject, &data.order_id, ctx)?;
    let step = Step::new(data.delivery_id, data.delivery_status);
    advance(order, Status::Completed, &step, ctx)
}

handlers![created, paid, shipped, completed];

/// The order in the data must be the one in the subject, by which events are routed and allowed.
fn same_order(subject: &str, order_id: &str) -> Result {
    let token = subject.split('.').nth(1).unwrap_or_default();
    if token != order_id {
        reject!(
            "order-id-mismatch",
            "the subject is about order `{token}`, the data about `{order_id}`"
        );
    }
    Ok(())
}

fn existing(subject: &str, order_id: &str, ctx: &Context) -> Result<Order> {
    same_order(subject, order_id)?;
    match ORDERS.get(ctx, order_id)? {
        Some(order) => Ok(order),
        None => defer!("order-not-created", "order `{order_id}` is not created yet"),
    }
}

fn advance(mut order: Order, to: Status, step: &Step, ctx: &mut Context) -> Result {
    if order.advance(to, step)? {
        ORDERS.set(ctx, &order.order_id, &order)?;
    }
    Ok(())
}

/// Its id is made from what happened, not from the delivery: whoever hears of it twice can tell.
fn payment_failed(order: &Order, step: &Step) -> Draft {
    let data = PaymentFailed {
        order_id: &order.order_id,
        customer_id: &order.customer_id,
        payment_id: &step.id,
        payment_status: &step.status,
    };
    let subject = ["orders.", &order.order_id, ".payment-failed"].concat();
    let id = [&order.order_id, "/", &step.id, "/", &step.status].concat();
    Draft::new(subject, &data).id(id).ty("order_payment_failed")
}
