//! Publishes the events, never far ahead of what is done, and removes from the input what is: so neither the stream nor the disk
//! grows with the length of the run. A limit of the stream would do it, too, but could remove what is still to be done.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::context::PublishAckFuture;
use pelton_tests::Nats;

use crate::{INPUT, KEYS};

/// Events stored at most that are not done: seconds of work, so that the node never waits for some.
const AHEAD: u64 = 20_000;
/// Answers that are owed at most.
const IN_FLIGHT: usize = 500;

/// The producer.
pub(crate) struct Load {
    nats: Nats,
    count: u64,
    published: u64,
    purged: u64,
    acks: VecDeque<(u64, PublishAckFuture)>,
}

impl Load {
    /// Of so many events in all.
    pub(crate) fn new(nats: &Nats, count: u64) -> Self {
        Self {
            nats: nats.clone(),
            count,
            published: 0,
            purged: 0,
            acks: VecDeque::new(),
        }
    }

    /// Publishes until that is far enough ahead of what is done.
    ///
    /// # Errors
    /// One could not be stored, or not in its place.
    pub(crate) async fn ahead_of(&mut self, done: u64) -> Result<()> {
        let upto = self.count.min(done + AHEAD);
        let mut least = IN_FLIGHT;
        while self.published < upto {
            // As many events for one key as for any other, in turn: the sequence says which keys have come how far.
            let subject = format!("tally.k{}", self.published % KEYS);
            let ack = self.nats.js.publish(subject, "".into()).await?;
            self.published += 1;
            self.acks.push_back((self.published, ack));
            self.wait(least).await?;
        }
        if self.published == self.count {
            least = 0;
        }
        self.wait(least).await
    }

    /// Waits for answers until so many are left.
    async fn wait(&mut self, left: usize) -> Result<()> {
        while self.acks.len() > left {
            let (n, ack) = self.acks.pop_front().context("an ack")?;
            let at = ack.await?.sequence;
            ensure!(at == n, "event {n} is stored at {at}");
        }
        Ok(())
    }

    /// Removes the events up to this one, all of which are done.
    ///
    /// # Errors
    /// NATS does not answer.
    pub(crate) async fn purge(&mut self, done: u64) -> Result<()> {
        if done > self.purged {
            let stream = self.nats.js.get_stream_no_info(INPUT).await?;
            stream.purge().sequence(done + 1).await?;
            self.purged = done;
        }
        Ok(())
    }
}
