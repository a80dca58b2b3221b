//! Reads what the function told, as it tells it: of each key the numbers 1, 2, 3 …, no origin twice. What was read is removed: a million
//! events would fill the disk of a small machine.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull;
use futures::StreamExt;
use pelton_tests::Nats;

use crate::{KEYS, TARGET};

/// How long one look waits for the first event, and events that it takes at most.
const WAIT: Duration = Duration::from_millis(20);
const AT_ONCE: usize = 2000;
/// How long nothing more may come in the end: an event told twice would be on its way for less.
const QUIET: Duration = Duration::from_secs(2);

/// What was told so far.
pub(crate) struct Reader {
    nats: Nats,
    messages: pull::Ordered,
    /// The last number of each key.
    numbers: HashMap<String, u64>,
    told: u64,
    origin: u64,
    purged: u64,
}

impl Reader {
    /// From the first event on.
    ///
    /// # Errors
    /// There is no such stream.
    pub(crate) async fn open(nats: &Nats) -> Result<Self> {
        let stream = nats.js.get_stream(TARGET).await?;
        let consumer = stream.create_consumer(pull::OrderedConfig::default());
        Ok(Self {
            nats: nats.clone(),
            messages: consumer.await?.messages().await?,
            numbers: HashMap::new(),
            told: 0,
            origin: 0,
            purged: 0,
        })
    }

    /// Events told, each in its place.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Up to here every event of the input is done, as the keys take turns there.
    pub(crate) fn all_done(&self) -> u64 {
        let all = self.numbers.len() as u64 == KEYS;
        let least = self.numbers.values().min().filter(|_| all);
        least.map_or(0, |rounds| rounds * KEYS)
    }

    /// Takes what is there; whether anything was.
    ///
    /// # Errors
    /// An event was told twice, too early or not at all.
    pub(crate) async fn read(&mut self) -> Result<bool> {
        for n in 0..AT_ONCE {
            let Ok(next) = tokio::time::timeout(WAIT, self.messages.next()).await else {
                return Ok(n > 0);
            };
            self.take(&next.context("the reader ended")??)?;
        }
        Ok(true)
    }

    fn take(&mut self, message: &Message) -> Result<()> {
        let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        let at = info.stream_sequence;
        self.told += 1;
        ensure!(
            at == self.told,
            "{TARGET}:{at} came as number {}",
            self.told
        );
        let headers = message.headers.as_ref().context("no headers")?;
        let source = headers.get("Nats-Stream-Source").context("no origin")?;
        let origin = source.as_str().split(' ').nth(1).context("no sequence")?;
        let origin = origin.parse()?;
        ensure!(
            origin > self.origin,
            "{TARGET}:{at} has origin {origin} after {}: it is there twice",
            self.origin
        );
        self.origin = origin;
        let key = message.subject.strip_prefix("counts.").context("a key")?;
        let number: u64 = serde_json::from_slice(&message.payload)?;
        let last = self.numbers.entry(key.to_owned()).or_default();
        ensure!(
            number == *last + 1,
            "{TARGET}:{at} says that {key} is {number} after {last}"
        );
        *last = number;
        Ok(())
    }

    /// Removes what was read, but the last: the target knows by it how far it has come.
    ///
    /// # Errors
    /// NATS does not answer.
    pub(crate) async fn purge(&mut self) -> Result<()> {
        if self.told > self.purged {
            let stream = self.nats.js.get_stream_no_info(TARGET).await?;
            stream.purge().sequence(self.told).await?;
            self.purged = self.told;
        }
        Ok(())
    }

    /// Whether nothing is told beyond what was asked for.
    ///
    /// # Errors
    /// Something was.
    pub(crate) async fn no_more(&mut self) -> Result<()> {
        let more = tokio::time::timeout(QUIET, self.messages.next()).await;
        ensure!(
            more.is_err(),
            "more was told than there were events: {more:?}"
        );
        Ok(())
    }
}
