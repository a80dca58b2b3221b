//! Whether a node's memory stays flat.

use anyhow::{Context, Result, ensure};
use pelton_tests::Node;

/// Events from which on a run says something of the memory: before, a node still fills its caches.
const ENOUGH: u64 = 200_000;
/// What the last quarter may hold, of what the second held.
const MOST: f64 = 1.25;

/// Memory over the events done.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    looks: Vec<(u64, f64)>,
}

impl Memory {
    /// Looks at a node that has done so many events.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn look(&mut self, node: &Node, done: u64) -> Result<()> {
        let mib = node.memory()? as f64 / f64::from(1 << 20);
        self.looks.push((done, mib));
        Ok(())
    }

    /// What the last look saw, MiB.
    pub(crate) fn last_mib(&self) -> f64 {
        self.looks.last().map_or(0.0, |(_, mib)| *mib)
    }

    /// Compares quarters of a run of so many events.
    ///
    /// # Errors
    /// The last one held more than the second.
    pub(crate) fn judge(&self, count: u64) -> Result<()> {
        if count < ENOUGH {
            println!("soak: fewer than {ENOUGH} events say nothing of a node's memory");
            return Ok(());
        }
        let second = self.median(count / 4, count / 2)?;
        let last = self.median(count / 4 * 3, count)?;
        println!(
            "soak: memory of the node: {second:.1} MiB in the second quarter, {last:.1} MiB in the last (medians)"
        );
        ensure!(
            last <= MOST * second,
            "the node's memory grows: {last:.1} MiB in the last quarter, more than {MOST} times the {second:.1} MiB of the second"
        );
        Ok(())
    }

    /// The median while so many events were done.
    fn median(&self, from: u64, to: u64) -> Result<f64> {
        let within = self
            .looks
            .iter()
            .filter(|(done, _)| (from..=to).contains(done));
        let mut all: Vec<f64> = within.map(|(_, mib)| *mib).collect();
        all.sort_by(f64::total_cmp);
        let median = all.get(all.len() / 2);
        median
            .copied()
            .with_context(|| format!("no look at the memory between {from} and {to} events"))
    }
}
