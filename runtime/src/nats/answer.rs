//! How long an answer is waited for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use tokio::time::Instant;

use super::REQUEST_TIMEOUT;

/// How often a connection is looked at on which an answer is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// An answer that has not come so long after the connection was made again will not come: what was
/// under way as it broke is
/// lost. What the client had not sent by then, it sends on the new connection.
const GRACE: Duration = Duration::from_secs(1);

/// Why there is no answer. The request may have been carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It is late.
    #[error("NATS did not answer within {0:?}")]
    Late(Duration),
    /// It was on a connection that broke.
    #[error("the connection to NATS broke before the answer came")]
    Lost,
}

/// JetStream with the client's timeout for everything, publish acks included.
pub fn jetstream(client: &Client) -> jetstream::Context {
    let mut js = jetstream::new(client.clone());
    js.set_timeout(timeout(client));
    js
}

/// Waits for an answer: for the client's timeout at most, and less when the connection breaks. The
/// client itself would wait
/// for an answer that was lost with a connection.
pub(crate) async fn answered<T>(
    client: &Client,
    request: impl Future<Output = T>,
) -> Result<T, NoAnswer> {
    let limit = timeout(client);
    let begun = connects(client);
    within(limit, || connects(client) != begun, request).await
}

async fn within<T>(
    limit: Duration,
    broke: impl Fn() -> bool,
    request: impl Future<Output = T>,
) -> Result<T, NoAnswer> {
    tokio::pin!(request);
    let end = Instant::now() + limit;
    let mut lost: Option<Instant> = None;
    loop {
        let next = end.min(Instant::now() + LOOK);
        tokio::select! {
            biased;
            answer = &mut request => return Ok(answer),
            () = tokio::time::sleep_until(next) => {}
        }
        if broke() {
            lost.get_or_insert_with(Instant::now);
        }
        if lost.is_some_and(|since| since.elapsed() >= GRACE) {
            return Err(NoAnswer::Lost);
        }
        if Instant::now() >= end {
            return Err(NoAnswer::Late(limit));
        }
    }
}

fn timeout(client: &Client) -> Duration {
    client.timeout().unwrap_or(REQUEST_TIMEOUT)
}

/// How many connections the client has made.
pub(crate) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(1500);

    #[tokio::test]
    async fn an_answer_on_a_broken_connection_is_not_waited_for() {
        let begun = Instant::now();
        let limit = Duration::from_secs(3600);
        let broke = || begun.elapsed() > LOOK;
        let lost = within(limit, broke, pending::<()>()).await;
        assert_eq!(lost, Err(NoAnswer::Lost));
    }

    #[tokio::test]
    async fn an_answer_is_waited_for_as_long_as_it_may_take() {
        let late = within(LIMIT, || false, pending::<()>()).await;
        assert_eq!(late, Err(NoAnswer::Late(LIMIT)));
        // What was sent on the new connection is answered there.
        let again = within(LIMIT, || true, tokio::time::sleep(GRACE / 2)).await;
        assert_eq!(again, Ok(()));
    }
}
