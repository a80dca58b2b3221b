//! The four rates under a known load of a minute on three nodes: whether what they count is what was sent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pelton_tests::rates::{Cluster, Rates};

/// Events a second, and for how long.
const PER_SECOND: u64 = 500;
const LASTS: Duration = Duration::from_secs(60);
/// How far a counter may be from what was sent.
const TOLERANCE: f64 = 0.01;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a benchmark prints")]
async fn main() -> Result<()> {
    // As of other benchmarks: all without any name.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let mut wanted = wanted.iter().filter(|one| !one.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|one| "rates".contains(one.as_str())) {
        return Ok(());
    }
    let cluster = Cluster::start(3).await?;
    let sent = PER_SECOND * LASTS.as_secs();
    let began = Instant::now();
    cluster.load(sent, PER_SECOND).await?;
    let took = began.elapsed();
    let wanted = Rates::of(sent);
    let near = |rates: &Rates| rates.off(&wanted).iter().all(|off| *off <= TOLERANCE);
    let rates = cluster.at_rest(&cluster.addresses, near).await?;
    println!(
        "{sent} events in {took:.1?}, taken by two functions that emit one for each, on three nodes"
    );
    let Rates {
        produced,
        consumed,
        handled,
        transported,
    } = rates;
    let counted = [produced, consumed, handled, transported];
    let names = ["produced", "consumed", "handled", "transported"];
    for ((name, count), off) in names.iter().zip(counted).zip(rates.off(&wanted)) {
        println!("{name:<12} {count:>8.0}   off by {:.2}%", 100.0 * off);
    }
    ensure!(near(&rates), "{rates:?}, should be {wanted:?}");
    Ok(())
}
