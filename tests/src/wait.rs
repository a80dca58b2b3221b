//! Waiting for conditions, never for time: a condition is asked again until it holds or the deadline has passed,
//! and the last answer says what was seen instead.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two questions: short against any deadline, long against the cost of asking.
const PAUSE: Duration = Duration::from_millis(40);

/// Deadline of conditions that hold within a second or two on an idle machine; the rest is for a busy one.
pub const SOON: Duration = Duration::from_secs(45);

/// Bound for what must not wait for a pause or a timeout of minutes: far above what it takes on a
/// busy machine. Benchmarks show how fast it is.
pub const PROMPT: Duration = Duration::from_secs(60);

/// Asks until the answer is `Ok(Some(value))`, for at most [`SOON`].
///
/// # Errors
/// The deadline passed; says `what` was awaited and the last error, if the last answer was one.
pub async fn eventually<T, F, Fut>(what: &str, ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    within(SOON, what, ask).await
}

/// Asks until the answer is `Ok(Some(value))`, for at most `deadline`.
///
/// # Errors
/// As [`eventually`].
pub async fn within<T, F, Fut>(deadline: Duration, what: &str, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}; last answer: {last}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks for a value until it equals `want`.
///
/// # Errors
/// The deadline passed; says the last value.
pub async fn becomes<T, F, Fut>(what: &str, want: &T, mut ask: F) -> Result<()>
where
    T: PartialEq + Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    eventually(what, || {
        let answer = ask();
        async {
            let got = answer.await?;
            anyhow::ensure!(got == *want, "is {got:?}, should become {want:?}");
            Ok(Some(()))
        }
    })
    .await
}
