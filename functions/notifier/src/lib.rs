//! The function `notifier`: tells customers about their orders, one e-mail per event however often the event comes.
//!
//! It hears the same events as `orders` and knows nothing of it: an event says what happened, not whether `orders`
//! accepts it. Sending the mail is the business of whoever takes `notifications.email`.

mod email;
#[cfg(test)]
mod tests;

use pelton_sdk::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Events that were told, by id: what a duplicate is recognized by.
static TOLD: Table<Told> = Table::new("told");

/// Longest `<source>/<id>` that is a table's id as it is: escaped, it still fits a key.
const MAX_ID: usize = 64;

/// What was told.
#[derive(Serialize, Deserialize)]
struct Told {
    order_id: String,
    kind: String,
}

/// What the events of an order may say; each step has its own fields.
#[derive(Deserialize)]
pub struct OrderEvent {
    order_id: Option<String>,
    customer_id: Option<String>,
    payment_status: Option<String>,
    shipping_id: Option<String>,
}

/// An e-mail to be sent.
#[derive(Debug, Serialize)]
struct Email<'a> {
    /// The customer's id, which the sender knows an address for; none when the event does not tell.
    to: Option<&'a str>,
    order_id: &'a str,
    kind: &'a str,
    subject: &'a str,
    body: &'a str,
}

/// One e-mail for each event of an order.
#[handler("orders.>")]
pub fn notify(event: Event<OrderEvent>, ctx: &mut Context) -> Result {
    let data = &event.data;
    let token = event.token(2).unwrap_or_default();
    let order_id = data.order_id.as_deref().unwrap_or(token);
    if order_id.is_empty() {
        reject!(
            "order-id-missing",
            "neither the data nor the subject says which order"
        );
    }
    let kind = event.subject.rsplit('.').next().unwrap_or_default();
    let id = told_id(&event.source, &lasting_id(&event.id, event.time.0, ctx));
    if TOLD.get(ctx, &id)?.is_some() {
        return Ok(());
    }
    // A payment without success is told when `payment-failed` says so: once, by whoever judged it.
    if kind == "paid"
        && data
            .payment_status
            .as_deref()
            .is_some_and(|status| status != "success")
    {
        return Ok(());
    }
    let text = email::text(kind, order_id, data.shipping_id.as_deref());
    let email = Email {
        to: data.customer_id.as_deref(),
        order_id,
        kind,
        subject: &text.subject,
        body: &text.body,
    };
    ctx.emit(Draft::new("notifications.email", &email).ty("email_requested"))?;
    let told = Told {
        order_id: order_id.to_owned(),
        kind: kind.to_owned(),
    };
    TOLD.set(ctx, &id, &told)
}

handlers![notify];

/// A plain message without a `Nats-Msg-Id` is called by its place in the stream, which a stream made anew gives away
/// again; together with the time at which it was stored that stays unique.
fn lasting_id(id: &str, time: i64, ctx: &Context) -> String {
    let place = ctx.delivery().position.as_ref();
    let by_place =
        place.is_some_and(|at| id == [&at.stream, ":", &at.sequence.to_string()].concat());
    if by_place {
        [id, "@", &time.to_string()].concat()
    } else {
        id.to_owned()
    }
}

/// An id is unique per source; one that is long is told by its hash, since a key has an end.
fn told_id(source: &str, id: &str) -> String {
    let whole = [source, "/", id].concat();
    if whole.len() <= MAX_ID {
        return whole;
    }
    ["sha256/", &hex::encode(Sha256::digest(whole))].concat()
}
