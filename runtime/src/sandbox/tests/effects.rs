//! What guests read, write and emit, as it comes out of the sandbox.

use super::guest::Guest;
use super::{Bench, TRACE, failure, spec};
use crate::effects::{Disposition, Reply, Write};

#[tokio::test]
async fn reads_writes_and_events_come_out_as_data() {
    let bench = Bench::new(4);
    let revision = bench.state.set("orders.o-1", "old");
    let mut guest = Guest::new("").state().events();
    guest.get("orders.o-1");
    guest.get("orders.o-1");
    guest.get("orders.o-2");
    guest.set("orders.o-1", "new");
    guest.set("customers.c-1", "blind");
    guest.emit("orders.o-1.failed", 3);
    guest.emit("orders.o-2.failed", 0);
    guest.pass_on();
    let attempt = bench.run(&guest).await;
    attempt.result.unwrap();
    let effects = attempt.effects;
    assert_eq!(
        effects.reads.into_iter().collect::<Vec<_>>(),
        [
            ("orders.o-1".to_owned(), revision),
            ("orders.o-2".to_owned(), 0)
        ]
    );
    assert_eq!(effects.writes["orders.o-1"], Write::Set("new".into()));
    assert_eq!(effects.writes["customers.c-1"], Write::Set("blind".into()));
    assert_eq!(
        bench.state.round_trips(),
        2,
        "the second read of a key is from the attempt's own memory"
    );
    assert_eq!(effects.emits.len(), 2);
    let emit = &effects.emits[0];
    assert_eq!(
        (&*emit.target, &*emit.subject),
        ("ORDERS", "orders.o-1.failed")
    );
    let header = |name: &str| {
        let found = emit.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    };
    let id = format!("{}.0", crate::names::Txn::sample().id());
    assert_eq!(header("ce-id"), Some(id.as_str()));
    assert_eq!(header("ce-source"), Some("/shop/orders"));
    assert_eq!(header("ce-type"), Some("orders.o-1.failed"));
    assert_eq!(header("ce-traceparent"), Some(TRACE));
}

#[tokio::test]
async fn an_attempt_begins_with_nothing_of_the_last_one() {
    let bench = Bench::new(4);
    let mut guest = Guest::new("").state();
    guest.set("a", "1");
    let function = bench.load(&guest).await;
    for _ in 0..2 {
        let attempt = bench.invoke(&function).await;
        assert_eq!(attempt.effects.writes.len(), 1);
    }
}

#[tokio::test]
async fn a_trap_keeps_its_reads() {
    let bench = Bench::new(4);
    let mut guest = Guest::new("").state();
    guest.get("a");
    guest.then("unreachable");
    let attempt = bench.run(&guest).await;
    assert!(attempt.result.is_err());
    assert_eq!(attempt.effects.reads_only().reads["a"], 0);
}

#[tokio::test]
async fn refusals_reach_the_guest_and_it_passes_them_on() {
    let bench = Bench::new(4);
    for (subject, len, code, says) in [
        (
            "orders.*.failed",
            1,
            "pelton-event-invalid",
            "orders.*.failed",
        ),
        (
            "orders.o-1.paid",
            1,
            "pelton-not-allowed",
            "[functions.orders.allow] emit = [\"orders.o-1.paid\"] in pelton.toml",
        ),
        (
            "nowhere.o-1",
            1,
            "pelton-not-allowed",
            "no stream covers nowhere.o-1",
        ),
        (
            "orders.o-1.failed",
            600 << 10,
            "pelton-limit",
            "stream ORDERS takes at most 523247",
        ),
    ] {
        let mut guest = Guest::new("").pages(16).events();
        guest.emit(subject, len);
        guest.pass_on();
        let attempt = bench.run(&guest).await;
        assert_eq!(failure(&attempt).code, code, "{subject}");
        assert_eq!(failure(&attempt).disposition, Disposition::Reject);
        assert!(
            failure(&attempt).message.contains(says),
            "{}",
            failure(&attempt).message
        );
        assert!(attempt.effects.emits.is_empty());
    }
}

#[tokio::test]
async fn three_hundred_events_are_too_many() {
    let bench = Bench::new(4);
    let mut guest = Guest::new("(global.set $n (i32.const 0)) (loop $on ")
        .extra("(global $n (mut i32) (i32.const 0))")
        .events();
    guest.emit("orders.o-1.failed", 1);
    guest.pass_on();
    guest.then(
        "(global.set $n (i32.add (global.get $n) (i32.const 1)))
         (br_if $on (i32.lt_u (global.get $n) (i32.const 300))))",
    );
    let attempt = bench.run(&guest).await;
    assert_eq!(failure(&attempt).code, "pelton-limit");
    assert_eq!(attempt.effects.emits.len(), 256);
}

#[tokio::test]
async fn imports_that_no_node_offers_are_refused_by_name() {
    let bench = Bench::new(4);
    let http = Guest::new("")
        .world("import wasi:http/types@0.2.3;")
        .import_result("wasi:http/types@0.2.3", "[constructor]fields");
    let error = bench.load_with(&http, spec()).await.err().unwrap();
    assert!(error.0.contains("wasi:http/types@0.2.3"), "{error}");
    assert!(error.0.contains("[functions.orders.allow] http"), "{error}");
    let mut open = spec();
    open.http = vec!["api.example.com".into()];
    bench.load_with(&http, open).await.unwrap();
    let foreign = Guest::new("")
        .world("import acme:rockets/launch@1.0.0;")
        .import("acme:rockets/launch@1.0.0", "go", "");
    let error = crate::component::read(&foreign.module()).unwrap_err();
    assert!(error.0.contains("acme:rockets/launch@1.0.0"), "{error}");
}

#[tokio::test]
async fn every_function_of_the_contract_links() {
    let bench = Bench::new(4);
    let guest = Guest::new("")
        .state()
        .events()
        .logging()
        .import("pelton:function/state@0.1.0", "get-many", "i32 i32 i32")
        .import(
            "pelton:function/state@0.1.0",
            "list",
            "i32 i32 i32 i32 i32 i32 i32",
        )
        .import("pelton:function/state@0.1.0", "delete", "i32 i32 i32")
        .import("pelton:function/events@0.1.0", "emit-at", "i32 i32")
        .import("pelton:function/events@0.1.0", "cancel", "i32 i32 i32")
        .import(
            "pelton:function/events@0.1.0",
            "reply",
            "i32 i32 i32 i32 i32 i32",
        )
        .import(
            "pelton:function/events@0.1.0",
            "reply-error",
            "i32 i32 i32 i32 i32",
        )
        .import_renamed(
            "wasi:config/store@0.2.0-rc.1",
            "get",
            "config_get",
            "i32 i32 i32",
        )
        .import("wasi:config/store@0.2.0-rc.1", "get-all", "i32");
    bench.run(&guest).await.result.unwrap();
}

#[tokio::test]
async fn a_reply_comes_out_for_who_waits_and_for_nobody_else() {
    let bench = Bench::new(4);
    let mut guest = Guest::new("").import(
        "pelton:function/events@0.1.0",
        "reply",
        "i32 i32 i32 i32 i32 i32",
    );
    let (kind, data) = (guest.text("text/plain"), guest.text("done"));
    // The option's case, the two strings, where the answer goes.
    guest.then(&format!(
        "(call $reply (i32.const 1) {kind} {data} (i32.const 2048))"
    ));
    let function = bench.load(&guest).await;
    for expects_reply in [false, true] {
        let mut call = bench.call().0;
        call.delivery.expects_reply = expects_reply;
        let attempt = function.invoke(Box::new(call)).await;
        attempt.result.unwrap();
        let expected = Reply::Data {
            content_type: "text/plain".into(),
            data: "done".into(),
        };
        assert_eq!(attempt.effects.reply, expects_reply.then_some(expected));
    }
}

#[tokio::test]
async fn a_guest_is_told_when_its_message_was_stored_in_every_attempt() {
    let bench = Bench::new(4);
    let expected = super::delivery().stored;
    let now = r#"(import "pelton:function/clock@0.1.0" "now" (func $now (result i64)))"#;
    let body = format!("(if (i64.ne (call $now) (i64.const {expected})) (then unreachable))");
    let function = bench.load(&Guest::new(&body).raw_import(now)).await;
    for attempt in 1..=3 {
        let mut call = bench.call().0;
        call.delivery.attempt = attempt;
        // What a producer says is another matter.
        call.delivery.event.time = i64::MAX;
        function.invoke(Box::new(call)).await.result.unwrap();
    }
}
