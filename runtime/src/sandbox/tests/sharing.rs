//! Functions share a bounded number of instances: none fails for want of one, none keeps another out.

use std::time::Duration;

use super::guest::Guest;
use super::{Bench, spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_wait_for_an_instance_and_idle_ones_give_way() {
    let bench = Bench::new(2);
    let mut functions = Vec::new();
    for body in ["", "nop", "nop nop", "(drop (memory.grow (i32.const 1)))"] {
        functions.push(bench.load(&Guest::new(body)).await);
    }
    let attempts: Vec<_> = (0..200)
        .map(|n| {
            let (function, call) = (functions[n % functions.len()].clone(), bench.call().0);
            tokio::spawn(async move { function.invoke(Box::new(call)).await.result })
        })
        .collect();
    for attempt in attempts {
        let attempt = tokio::time::timeout(Duration::from_secs(20), attempt).await;
        attempt.expect("nobody waits forever").unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_attempt_that_is_given_up_frees_its_place() {
    let bench = Bench::new(1);
    let looping = bench.load(&Guest::new("(loop $on (br $on))")).await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), bench.invoke(&looping)).await;
    assert!(given_up.is_err());
    let quick = bench.load(&Guest::new("")).await;
    bench.invoke(&quick).await.result.unwrap();
}

#[tokio::test]
async fn fresh_instances_do_not_remember() {
    let bench = Bench::new(1);
    let guest = Guest::new(
        "(if (i32.load8_u (i32.const 60000)) (then unreachable)) (i32.store8 (i32.const 60000) (i32.const 1))",
    );
    let mut fresh = spec();
    fresh.fresh = true;
    let function = bench.load_with(&guest, fresh).await.unwrap();
    for _ in 0..20 {
        bench.invoke(&function).await.result.unwrap();
    }
}
