//! Guests that do not return: each is stopped, named, and its function goes on.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::{Bench, failure, spec};
use crate::effects::{Disposition, MAX_ERROR_BYTES};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_loops_end_at_the_timeout_and_keep_no_thread() {
    let bench = Bench::new(8);
    let mut spec = spec();
    spec.timeout = Duration::from_millis(300);
    let looping = bench
        .load_with(&Guest::new("(loop $on (br $on))"), spec)
        .await
        .unwrap();
    let quick = bench.load(&Guest::new("")).await;
    // More loops than threads: if they kept theirs, nothing else would run.
    let begun = Instant::now();
    let loops: Vec<_> = (0..4)
        .map(|_| {
            let (looping, call) = (looping.clone(), bench.call().0);
            tokio::spawn(async move { looping.invoke(Box::new(call)).await })
        })
        .collect();
    for _ in 0..5 {
        bench.invoke(&quick).await.result.unwrap();
    }
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    for attempt in loops {
        let attempt = attempt.await.unwrap();
        assert_eq!(failure(&attempt).code, "pelton-timeout");
        assert_eq!(failure(&attempt).disposition, Disposition::Retry);
        assert!(failure(&attempt).message.contains("300ms"));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_panic_says_its_last_critical_line() {
    let bench = Bench::new(4);
    let mut guest = Guest::new("").logging();
    let (context, first, last) = (
        guest.text("panic"),
        guest.text("first"),
        guest.text("index out of bounds: the len is 3"),
    );
    guest.then(&format!(
        "(call $log (i32.const 5) {context} {first}) (call $log (i32.const 5) {context} {last}) unreachable"
    ));
    let function = bench.load(&guest).await;
    for _ in 0..3 {
        let (call, lines) = bench.call();
        let attempt = function.invoke(Box::new(call)).await;
        assert_eq!(failure(&attempt).code, "pelton-trap");
        assert_eq!(failure(&attempt).disposition, Disposition::Retry);
        assert_eq!(
            failure(&attempt).message,
            "index out of bounds: the len is 3"
        );
        let line = lines.take().remove(0);
        assert_eq!(
            (line.level, &*line.context, &*line.message),
            ("critical", "panic", "first")
        );
    }
}

#[tokio::test]
async fn a_trap_without_words_says_what_it_was() {
    let bench = Bench::new(4);
    for (body, extra, expected) in [
        ("unreachable", "", "unreachable"),
        (
            "(call $deep)",
            "(func $deep (local i64) (call $deep) (call $deep))",
            "recursed too deeply",
        ),
        (
            "(loop $on (br_if $on (i32.ne (i32.const -1) (memory.grow (i32.const 64))))) unreachable",
            "",
            "the memory limit of 16777216 bytes was reached",
        ),
        ("(drop (i32.load (i32.const -4)))", "", "out of bounds"),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            "",
            "divide by zero",
        ),
    ] {
        let attempt = bench.run(&Guest::new(body).extra(extra)).await;
        assert_eq!(failure(&attempt).code, "pelton-trap", "{body}");
        assert!(
            failure(&attempt).message.contains(expected),
            "{body}: {}",
            failure(&attempt).message
        );
    }
}

#[tokio::test]
async fn a_guest_that_copes_with_a_failed_growth_goes_on() {
    let bench = Bench::new(4);
    let guest = Guest::new("(drop (memory.grow (i32.const 10000)))");
    let function = bench.load(&guest).await;
    bench.invoke(&function).await.result.unwrap();
    bench.invoke(&function).await.result.unwrap();
}

#[tokio::test]
async fn an_instance_is_dropped_after_a_trap_and_kept_otherwise() {
    let bench = Bench::new(4);
    // Fails the third time it is called in one instance.
    let counting = "(global.set $n (i32.add (global.get $n) (i32.const 1)))
        (if (i32.eq (global.get $n) (i32.const 3)) (then unreachable))";
    let guest = Guest::new(counting).extra("(global $n (mut i32) (i32.const 0))");
    let warm = bench.load(&guest).await;
    let mut outcomes = Vec::new();
    for _ in 0..6 {
        outcomes.push(bench.invoke(&warm).await.result.is_ok());
    }
    assert_eq!(outcomes, [true, true, false, true, true, false]);
    let mut spec = spec();
    spec.fresh = true;
    let fresh = bench.load_with(&guest, spec).await.unwrap();
    for _ in 0..6 {
        bench.invoke(&fresh).await.result.unwrap();
    }
}

#[tokio::test]
async fn the_handlers_own_errors_pass_through() {
    let bench = Bench::new(4);
    let hour = 3_600_000;
    for (tag, delay, code, expected, seen) in [
        (0, 0, "try-later", Disposition::Retry, "try-later"),
        (
            1,
            hour,
            "busy",
            Disposition::RetryAfter(Duration::from_secs(3600)),
            "busy",
        ),
        (
            1,
            999 * hour,
            "busy",
            Disposition::RetryAfter(Duration::from_secs(86_400)),
            "busy",
        ),
        (2, 0, "order-unpaid", Disposition::Defer, "order-unpaid"),
        (3, 0, "No Code!", Disposition::Reject, "handler-error"),
    ] {
        let mut guest = Guest::new("");
        guest.fail(tag, delay, code, &"why".repeat(2000));
        let attempt = bench.run(&guest).await;
        assert_eq!(failure(&attempt).disposition, expected);
        assert_eq!(failure(&attempt).code, seen);
        assert_eq!(failure(&attempt).message.len(), MAX_ERROR_BYTES);
    }
}

#[tokio::test]
async fn what_cannot_start_is_refused_at_load() {
    let bench = Bench::new(4);
    for (guest, expected) in [
        (Guest::new("").pages(512), "memory limit of 16777216"),
        (
            Guest::new("").extra("(func $s unreachable) (start $s)"),
            "unreachable",
        ),
    ] {
        let error = bench.load_with(&guest, spec()).await.err().unwrap();
        assert!(error.0.contains("does not start"), "{error}");
        assert!(error.0.contains(expected), "{error}");
    }
    let mut greedy = spec();
    greedy.memory = 1 << 40;
    let error = bench
        .load_with(&Guest::new(""), greedy)
        .await
        .err()
        .unwrap();
    assert!(error.0.contains("more than this node grants"), "{error}");
}
