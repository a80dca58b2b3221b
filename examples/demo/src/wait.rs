//! Waiting for a condition, never for a time: asked again until it holds or the deadline has passed.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// What holds within a second on an idle machine; the rest is for a busy one.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
///
/// # Errors
/// The deadline passed; says what was awaited, and the last trouble if there was any.
pub(crate) async fn until<T, F, Fut>(what: &str, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        let trouble = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if start.elapsed() > DEADLINE {
            bail!(
                "waited {} s in vain for {what}{trouble}",
                DEADLINE.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}
