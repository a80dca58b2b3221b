//! One test per rule, each with a context of its own.

use pelton_sdk::{Disposition, Function};
use serde_json::{Value, json};

use super::*;

fn event(id: &str, subject: &str, data: &Value) -> Event<Raw> {
    let mut event = Event::test_bytes(subject, data.to_string());
    event.id = id.to_owned();
    event
}

fn emails(ctx: &Context) -> Vec<Value> {
    let all = ctx.emitted.iter();
    all.map(|draft| draft.json().unwrap()).collect()
}

#[test]
fn every_step_makes_an_email() {
    for (step, words) in [
        ("created", "has been received"),
        ("paid", "is paid"),
        ("payment-failed", "could not be paid"),
        ("shipped", "is on its way"),
        ("completed", "has been delivered"),
        ("refunded", "refunded"),
    ] {
        let mut ctx = Context::test();
        let data = json!({ "order_id": "o-1", "customer_id": "c-1" });
        Handlers::handle(event("e-1", &format!("orders.o-1.{step}"), &data), &mut ctx).unwrap();
        let email = &emails(&ctx)[0];
        assert_eq!(ctx.emitted[0].subject, "notifications.email");
        assert_eq!(email["to"], "c-1");
        assert_eq!(email["order_id"], "o-1");
        assert_eq!(email["kind"], step);
        assert_eq!(email["subject"], format!("Your order o-1 {words}"));
        assert!(!email["body"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_shipping_number_is_passed_on() {
    let mut ctx = Context::test();
    let data = json!({ "order_id": "o-1", "shipping_id": "s-7", "shipping_status": "sent" });
    Handlers::handle(event("e-1", "orders.o-1.shipped", &data), &mut ctx).unwrap();
    assert!(emails(&ctx)[0]["body"].as_str().unwrap().contains("s-7"));
    assert_eq!(
        emails(&ctx)[0]["to"],
        Value::Null,
        "nobody said who the customer is"
    );
}

#[test]
fn a_duplicate_makes_no_second_email() {
    let mut ctx = Context::test();
    let data = json!({ "order_id": "o-1" });
    for id in ["e-1", "e-1", "e-2"] {
        Handlers::handle(event(id, "orders.o-1.created", &data), &mut ctx).unwrap();
    }
    assert_eq!(ctx.emitted.len(), 2);
    let mut other = event("e-1", "orders.o-1.created", &data);
    other.source = "elsewhere".into();
    Handlers::handle(other, &mut ctx).unwrap();
    assert_eq!(ctx.emitted.len(), 3, "ids are unique per source only");
}

#[test]
fn long_ids_are_told_apart_within_a_key() {
    let mut ctx = Context::test();
    let data = json!({ "order_id": "o-1" });
    let long = "ü".repeat(2000);
    for id in [
        long.clone(),
        long.clone(),
        format!("{long}!"),
        "ü".repeat(29),
    ] {
        Handlers::handle(event(&id, "orders.o-1.created", &data), &mut ctx).unwrap();
    }
    assert_eq!(ctx.emitted.len(), 3);
    assert!(ctx.state.keys().all(|key| key.len() <= 256));
}

#[test]
fn a_failed_payment_is_told_by_its_own_event() {
    let mut ctx = Context::test();
    let data = json!({ "order_id": "o-1", "payment_status": "failed" });
    Handlers::handle(event("e-1", "orders.o-1.paid", &data), &mut ctx).unwrap();
    assert!(ctx.emitted.is_empty());
    Handlers::handle(event("e-2", "orders.o-1.payment-failed", &data), &mut ctx).unwrap();
    assert_eq!(emails(&ctx)[0]["kind"], "payment-failed");
}

#[test]
fn the_subject_tells_the_order_when_the_data_does_not() {
    let mut ctx = Context::test();
    Handlers::handle(event("e-1", "orders.o-9.created", &json!({})), &mut ctx).unwrap();
    assert_eq!(emails(&ctx)[0]["order_id"], "o-9");
}

#[test]
fn what_does_not_parse_is_rejected() {
    for data in ["", "{", "\"text\"", "{\"order_id\":1}"] {
        let mut ctx = Context::test();
        let raw = Event::test_bytes("orders.o-1.created", data);
        let error = Handlers::handle(raw, &mut ctx).unwrap_err();
        assert_eq!(error.disposition, Disposition::Reject, "{data}");
        assert_eq!(error.code, "payload-invalid");
        assert!(ctx.emitted.is_empty() && ctx.state.is_empty());
    }
}
