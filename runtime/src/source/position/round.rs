//! Deliveries begun in one go. Most handlers end without ever waiting: a task for each of them would cost more than they do.
//!
//! What waits goes on by itself, so nobody waits for another's round trip; and who comes after one that takes long is begun
//! elsewhere.

use std::task::Poll;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::job::{Ended, Job};
use super::lanes::Body;
use crate::event::Message;

/// Deliveries of one round at most.
pub(super) const MAX: usize = 32;
/// A round that has taken so long leaves the rest of it to others.
const PATIENCE: Duration = Duration::from_millis(1);

/// A delivery that is to be begun, and those that may go along.
pub(super) struct Next {
    pub(super) job: Job,
    pub(super) body: Body,
    pub(super) more: Vec<Message>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// One that is being taken to its end.
type UnderWay = BoxFuture<'static, Ended>;

/// Deliveries that were begun together. They go on together, too: many of them wait for the same batch.
#[derive(Default)]
pub(super) struct Wave {
    pub(super) ended: Vec<Ended>,
    pub(super) under_way: FuturesUnordered<UnderWay>,
}

/// What a round leaves behind.
#[derive(Default)]
pub(super) struct Round {
    pub(super) wave: Wave,
    /// Not begun.
    pub(super) left: Vec<Next>,
}

/// How many deliveries a round may have: one where handlers take long, for those behind would wait while others are idle.
pub(super) struct Size(usize);

impl Default for Size {
    fn default() -> Self {
        Self(1)
    }
}

impl Size {
    /// Divides what is to be begun into so many parts, or more.
    pub(super) fn divide(
        &self,
        next: Vec<Next>,
        parts: usize,
    ) -> impl Iterator<Item = Vec<Next>> + use<> {
        let size = next.len().div_ceil(parts).clamp(1, self.0);
        let mut next = next.into_iter();
        std::iter::from_fn(move || {
            let some: Vec<Next> = next.by_ref().take(size).collect();
            (!some.is_empty()).then_some(some)
        })
    }

    /// Learns from a round.
    pub(super) fn learn(&mut self, round: &Round) {
        self.0 = match round.left.is_empty() {
            true => (self.0 * 2).min(MAX),
            false => 1,
        };
    }
}

/// Threads that there are.
pub(super) fn threads() -> usize {
    let runtime = tokio::runtime::Handle::current();
    runtime.metrics().num_workers().max(1)
}

/// Begins these, one after the other.
pub(super) async fn begin(next: Vec<Next>) -> Ended {
    let began = Instant::now();
    let mut round = Round::default();
    let mut next = next.into_iter();
    for one in next.by_ref() {
        let mut run = one.run();
        match futures::poll!(&mut run) {
            Poll::Ready(ended) => round.wave.ended.push(ended),
            Poll::Pending => round.wave.under_way.push(run),
        }
        if began.elapsed() >= PATIENCE {
            break;
        }
    }
    round.left = next.collect();
    Ended::Round(round)
}

/// Waits until some of these have ended.
pub(super) async fn go_on(mut under_way: FuturesUnordered<UnderWay>) -> Ended {
    let mut ended: Vec<Ended> = under_way.next().await.into_iter().collect();
    while let Some(Some(one)) = under_way.next().now_or_never() {
        ended.push(one);
    }
    Ended::Wave(Wave { ended, under_way })
}

impl Next {
    /// Takes it to its end.
    pub(super) fn run(self) -> UnderWay {
        Box::pin(self.job.run(self.body, self.more, self.permit))
    }
}
