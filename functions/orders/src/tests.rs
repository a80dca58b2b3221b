//! One test per rule, each with a context of its own.

use pelton_sdk::{Disposition, Function};
use serde_json::{Value, json};

use super::*;

fn raw(step: &str, data: &Value) -> Event<Raw> {
    Event::test_bytes(&format!("orders.o-1.{step}"), data.to_string())
}

/// Comes in as an event from a node would; the data gets the order's id.
fn send(step: &str, mut data: Value, ctx: &mut Context) -> Result {
    data["order_id"] = json!("o-1");
    data["customer_id"] = json!("c-1");
    Handlers::handle(raw(step, &data), ctx)
}

fn create(ctx: &mut Context) -> Result {
    send("created", json!({ "total_price": "12.50" }), ctx)
}

fn pay(id: &str, status: &str, ctx: &mut Context) -> Result {
    send(
        "paid",
        json!({ "payment_id": id, "payment_status": status }),
        ctx,
    )
}

fn ship(id: &str, ctx: &mut Context) -> Result {
    send(
        "shipped",
        json!({ "shipping_id": id, "shipping_status": "sent" }),
        ctx,
    )
}

fn complete(id: &str, ctx: &mut Context) -> Result {
    send(
        "completed",
        json!({ "delivery_id": id, "delivery_status": "delivered" }),
        ctx,
    )
}

/// An order that has taken this many steps.
fn order_after(steps: usize) -> Context {
    let mut ctx = Context::test();
    let all: [fn(&mut Context) -> Result; 4] = [
        create,
        |ctx| pay("p-1", "success", ctx),
        |ctx| ship("s-1", ctx),
        |ctx| complete("d-1", ctx),
    ];
    for step in &all[..steps] {
        step(&mut ctx).unwrap();
    }
    ctx
}

fn state(ctx: &Context) -> Value {
    serde_json::from_slice(&ctx.state["orders.o-1"]).unwrap()
}

fn failure(result: Result) -> (Disposition, String) {
    let error = result.unwrap_err();
    (error.disposition, error.code)
}

fn rejected(code: &str) -> (Disposition, String) {
    (Disposition::Reject, code.to_owned())
}

fn deferred(code: &str) -> (Disposition, String) {
    (Disposition::Defer, code.to_owned())
}

#[test]
fn a_whole_life() {
    let ctx = order_after(4);
    let expected = json!({
        "order_id": "o-1",
        "customer_id": "c-1",
        "total_price": "12.50",
        "status": "completed",
        "payment": { "id": "p-1", "status": "success" },
        "shipping": { "id": "s-1", "status": "sent" },
        "delivery": { "id": "d-1", "status": "delivered" },
    });
    assert_eq!(state(&ctx), expected);
    assert!(ctx.emitted.is_empty());
}

#[test]
fn a_handler_is_a_function() {
    let mut ctx = order_after(1);
    let data = json!({ "order_id": "o-1", "payment_id": "p-1", "payment_status": "success" });
    paid(Event::test("orders.o-1.paid", data), &mut ctx).unwrap();
    assert_eq!(
        ORDERS.get(&ctx, "o-1").unwrap().unwrap().status,
        Status::Paid
    );
}

#[test]
fn each_step_has_its_status() {
    for (steps, status) in [
        (1, "created"),
        (2, "paid"),
        (3, "shipped"),
        (4, "completed"),
    ] {
        assert_eq!(state(&order_after(steps))["status"], status);
    }
}

#[test]
fn a_price_stays_as_it_came() {
    let mut ctx = Context::test();
    let data = br#"{"order_id":"o-1","customer_id":"c-1","total_price":99999999999999999.10}"#;
    Handlers::handle(Event::test_bytes("orders.o-1.created", *data), &mut ctx).unwrap();
    let stored = String::from_utf8(ctx.state["orders.o-1"].clone()).unwrap();
    assert!(
        stored.contains("\"total_price\":99999999999999999.10,"),
        "{stored}"
    );
    pay("p-1", "success", &mut ctx).unwrap();
    let stored = String::from_utf8(ctx.state["orders.o-1"].clone()).unwrap();
    assert!(
        stored.contains("\"total_price\":99999999999999999.10,"),
        "{stored}"
    );
}

#[test]
fn a_price_that_is_none_is_rejected_by_name() {
    let mut ctx = Context::test();
    let error = send("created", json!({ "total_price": "twelve" }), &mut ctx).unwrap_err();
    assert_eq!(
        (error.disposition, error.code.as_str()),
        (Disposition::Reject, "payload-invalid")
    );
    assert!(error.message.contains("`total_price`"), "{error}");
}

#[test]
fn a_step_waits_for_its_predecessor() {
    let ctx = &mut order_after(0);
    assert_eq!(
        failure(pay("p-1", "success", ctx)),
        deferred("order-not-created")
    );
    assert_eq!(
        failure(pay("p-1", "failed", ctx)),
        deferred("order-not-created")
    );
    assert_eq!(failure(ship("s-1", ctx)), deferred("order-not-created"));
    assert_eq!(failure(complete("d-1", ctx)), deferred("order-not-created"));
    let ctx = &mut order_after(1);
    assert_eq!(failure(ship("s-1", ctx)), deferred("order-not-paid"));
    assert_eq!(failure(complete("d-1", ctx)), deferred("order-not-shipped"));
    let ctx = &mut order_after(2);
    assert_eq!(failure(complete("d-1", ctx)), deferred("order-not-shipped"));
}

#[test]
fn a_duplicate_changes_nothing_however_late() {
    type Duplicate = fn(&mut Context) -> Result;
    let duplicates: [(usize, Duplicate); 4] = [
        (1, create),
        (2, |ctx| pay("p-1", "success", ctx)),
        (3, |ctx| ship("s-1", ctx)),
        (4, |ctx| complete("d-1", ctx)),
    ];
    for (first, duplicate) in duplicates {
        for steps in first..=4 {
            let mut ctx = order_after(steps);
            let before = state(&ctx);
            duplicate(&mut ctx).unwrap();
            assert_eq!(
                state(&ctx),
                before,
                "duplicate of step {first} after {steps}"
            );
            assert!(ctx.emitted.is_empty());
        }
    }
}

#[test]
fn created_differently_changes_nothing_and_is_noticed() {
    let mut ctx = order_after(2);
    let before = state(&ctx);
    send("created", json!({ "total_price": "1.00" }), &mut ctx).unwrap();
    assert_eq!(state(&ctx), before);
    assert_eq!(ctx.logged.len(), 1);
}

#[test]
fn what_contradicts_a_step_taken_is_rejected() {
    for steps in 2..=4 {
        let ctx = &mut order_after(steps);
        assert_eq!(
            failure(pay("p-2", "success", ctx)),
            rejected("order-step-illegal")
        );
    }
    for steps in 3..=4 {
        let ctx = &mut order_after(steps);
        assert_eq!(failure(ship("s-2", ctx)), rejected("order-step-illegal"));
    }
    let ctx = &mut order_after(4);
    assert_eq!(
        failure(complete("d-2", ctx)),
        rejected("order-step-illegal")
    );
    assert_eq!(
        failure(pay("p-2", "failed", ctx)),
        rejected("order-step-illegal")
    );
}

#[test]
fn only_success_pays() {
    for status in ["failed", "pending", "SUCCESS", ""] {
        let mut ctx = order_after(1);
        pay("p-1", status, &mut ctx).unwrap();
        assert_eq!(state(&ctx)["status"], "created");
        assert_eq!(
            state(&ctx)["payment"],
            json!({ "id": "p-1", "status": status })
        );
        let event = &ctx.emitted[0];
        assert_eq!(event.subject, "orders.o-1.payment-failed");
        assert_eq!(event.ty.as_deref(), Some("order_payment_failed"));
        let expected = json!({
            "order_id": "o-1", "customer_id": "c-1", "payment_id": "p-1", "payment_status": status,
        });
        assert_eq!(event.json::<Value>().unwrap(), expected);
        assert_eq!(failure(ship("s-1", &mut ctx)), deferred("order-not-paid"));
    }
}

#[test]
fn a_failed_payment_is_told_once() {
    let mut ctx = order_after(1);
    pay("p-1", "failed", &mut ctx).unwrap();
    pay("p-1", "failed", &mut ctx).unwrap();
    assert_eq!(ctx.emitted.len(), 1);
    pay("p-2", "failed", &mut ctx).unwrap();
    pay("p-1", "failed", &mut ctx).unwrap();
    let ids: Vec<_> = ctx
        .emitted
        .iter()
        .map(|event| event.id.as_deref().unwrap())
        .collect();
    assert_eq!(ids, ["o-1/p-1/failed", "o-1/p-2/failed", "o-1/p-1/failed"]);
}

#[test]
fn a_payment_may_succeed_after_a_failure() {
    for id in ["p-1", "p-2"] {
        let mut ctx = order_after(1);
        pay("p-1", "failed", &mut ctx).unwrap();
        pay(id, "success", &mut ctx).unwrap();
        assert_eq!(state(&ctx)["status"], "paid");
        assert_eq!(
            state(&ctx)["payment"],
            json!({ "id": id, "status": "success" })
        );
    }
}

#[test]
fn a_failure_that_comes_late_leaves_a_paid_order_paid() {
    for steps in 2..=3 {
        let mut ctx = order_after(steps);
        let before = state(&ctx);
        pay("p-0", "failed", &mut ctx).unwrap();
        assert_eq!(state(&ctx), before);
        assert_eq!(
            ctx.emitted.len(),
            1,
            "another payment failed, and that is told"
        );
        pay("p-1", "failed", &mut ctx).unwrap();
        assert_eq!(state(&ctx), before);
        assert_eq!(ctx.emitted.len(), 1, "the payment that paid did not fail");
    }
}

#[test]
fn subject_and_data_must_agree() {
    let fields = json!({
        "order_id": "o-2", "customer_id": "c-1", "total_price": 1,
        "payment_id": "p", "payment_status": "success", "shipping_id": "s", "shipping_status": "sent",
        "delivery_id": "d", "delivery_status": "delivered",
    });
    for step in ["created", "paid", "shipped", "completed"] {
        let mut ctx = order_after(1);
        let before = ctx.state.clone();
        let result = Handlers::handle(raw(step, &fields), &mut ctx);
        assert_eq!(failure(result), rejected("order-id-mismatch"));
        assert_eq!(ctx.state, before);
    }
}

#[test]
fn what_does_not_parse_is_rejected() {
    for step in ["created", "paid", "shipped", "completed"] {
        for data in ["", "{", "[]", "{}", "{\"order_id\":1}"] {
            let event = Event::test_bytes(&format!("orders.o-1.{step}"), data);
            let result = Handlers::handle(event, &mut order_after(1));
            assert_eq!(
                failure(result),
                rejected("payload-invalid"),
                "{step} {data:?}"
            );
        }
    }
}

#[test]
fn other_subjects_are_not_ours() {
    let result = Handlers::handle(raw("refunded", &json!({})), &mut Context::test());
    assert_eq!(failure(result), rejected("subject-unhandled"));
}
