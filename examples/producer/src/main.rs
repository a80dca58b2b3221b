//! `producer-example [ORDERS]`: publishes the lives of so many orders, several at once, to the NATS at `$NATS_URL`.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::time::Instant;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use producer_example::{EventSource, Order};
use uuid::Uuid;

/// Orders whose events are on their way at the same time.
const AT_ONCE: usize = 32;

#[tokio::main]
async fn main() -> Result<()> {
    let orders: u32 = match std::env::args().nth(1) {
        Some(count) => count.parse().with_context(|| {
            format!("`{count}` is no number of orders; usage: producer-example [ORDERS]")
        })?,
        None => 10,
    };
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into());
    let client = async_nats::connect(&url).await.with_context(|| {
        format!("no NATS at {url}; set NATS_URL, or start one with `pelton dev`")
    })?;
    let source = EventSource::new(client, "/shop/checkout");

    let began = Instant::now();
    stream::iter(0..orders)
        .map(|_| tell(&source))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    let events = orders * 4;
    println!(
        "{events} events of {orders} orders stored in {seconds:.2} s: P(E) = {:.0}/s",
        f64::from(events) / seconds
    );
    Ok(())
}

/// One order, its steps one after another.
async fn tell(source: &EventSource) -> Result<()> {
    let order = Order::new(format!("o-{}", Uuid::now_v7()), "alice", "129.90");
    for event in order.life() {
        let ack = source.publish(&event).await?;
        println!("{} #{} {}", ack.stream, ack.sequence, event.subject);
    }
    Ok(())
}
