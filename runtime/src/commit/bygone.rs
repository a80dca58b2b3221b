//! Records of timers that are done, and are there again because their server was killed: a message that another one replaced
//! comes back when that one has gone by itself (see the invariants in `ARCHITECTURE.md`).
//!
//! Nobody waits for such a timer, so nobody would find its record. A timer lies as a schedule until its time, then as a message
//! that is due, and the commit that takes that message takes the record along: a record with neither is of one that is done.

use std::collections::BTreeMap;

use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::stream::StreamError;
use super::transport::message;
use crate::event::timestamp;
use crate::names::AppNames;
use crate::records::TimerRecord;

/// Records that one look reads; the next look goes on behind them, so that any number of timers costs the same.
const AT_ONCE: usize = 64;
/// How long after its time a timer is looked for, nanoseconds: longer than a new leader takes to catch up.
const PAST: i64 = 10 * 1_000_000_000;

/// What earlier looks found at one app.
#[derive(Debug, Default)]
pub struct Bygone {
    /// The last record that was read.
    behind: u64,
    /// Whether ticks of schedules are read, or timers of functions.
    ticks: bool,
    /// Records that seemed to be left over, by subject, with their sequences: they are removed if the next look at them says the
    /// same, for by then any batch that was on its way has come to its end.
    suspects: BTreeMap<String, u64>,
}

impl Bygone {
    /// Looks at some records, and removes what two looks found to be left over; the answer is how many.
    ///
    /// # Errors
    /// NATS trouble; the next look tries again.
    pub async fn look(
        &mut self,
        js: &jetstream::Context,
        names: &AppNames,
    ) -> Result<usize, StreamError> {
        let mut removed = 0;
        for (subject, sequence) in std::mem::take(&mut self.suspects) {
            let last = json!({ "last_by_subj": subject });
            let found = message(js, &names.commit_stream(), &last).await?;
            let found = found.filter(|found| found["seq"] == sequence);
            if let Some(found) = found
                && is_bygone(js, names, &found).await?
            {
                purge(js, names, &subject, sequence).await?;
                removed += 1;
            }
        }
        for _ in 0..AT_ONCE {
            let below = match self.ticks {
                true => names.tick("*"),
                false => names.timer(">"),
            };
            let next = json!({ "seq": self.behind + 1, "next_by_subj": below });
            let Some(found) = message(js, &names.commit_stream(), &next).await? else {
                (self.behind, self.ticks) = (0, !self.ticks);
                break;
            };
            self.behind = found["seq"].as_u64().unwrap_or(self.behind + 1);
            let subject = found["subject"].as_str().unwrap_or_default();
            if is_bygone(js, names, &found).await? {
                self.suspects.insert(subject.to_owned(), self.behind);
            }
        }
        Ok(removed)
    }
}

/// Whether a message holds a record that [`is_nowhere`].
async fn is_bygone(
    js: &jetstream::Context,
    names: &AppNames,
    found: &Value,
) -> Result<bool, StreamError> {
    let data = found["data"].as_str().unwrap_or_default();
    let record = STANDARD.decode(data).ok();
    match record.and_then(|data| TimerRecord::read(&data)) {
        Some(record) => is_nowhere(js, names, &record).await,
        None => Ok(false),
    }
}

/// Whether the timer that a record names is long past, and neither scheduled nor due.
///
/// # Errors
/// NATS trouble.
pub async fn is_nowhere(
    js: &jetstream::Context,
    names: &AppNames,
    record: &TimerRecord,
) -> Result<bool, StreamError> {
    let past = timestamp::parse(&record.at).is_some_and(|at| at < timestamp::now() - PAST);
    if !past {
        return Ok(false);
    }
    let commit = names.commit_stream();
    // In this order: it may become due between the two.
    for subject in [names.at(&record.id), names.due("*", &record.id)] {
        let any = json!({ "seq": 1, "next_by_subj": subject });
        if message(js, &commit, &any).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes a record, and none that was written under its name since.
async fn purge(
    js: &jetstream::Context,
    names: &AppNames,
    subject: &str,
    sequence: u64,
) -> Result<(), StreamError> {
    let commit = names.commit_stream();
    let failed =
        |why: &dyn std::fmt::Display| StreamError(format!("cannot purge {subject}: {why}"));
    let stream = js.get_stream_no_info(&commit).await;
    let stream = stream.map_err(|error| failed(&error))?;
    let purge = stream.purge().filter(subject).sequence(sequence + 1);
    purge.await.map(drop).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::stream::ensure_commit_stream;
    use crate::dev::fresh_server;
    use crate::nats::connect;
    use crate::records::FORMAT;

    async fn put(js: &jetstream::Context, subject: String, payload: Vec<u8>) {
        let stored = js.publish(subject, payload.into()).await.unwrap();
        stored.await.unwrap();
    }

    async fn record(js: &jetstream::Context, names: &AppNames, name: &str, seconds: i64) {
        let record = TimerRecord {
            format: FORMAT,
            id: format!("id-{name}"),
            at: timestamp::format(timestamp::now() + seconds * 1_000_000_000),
            ticking: None,
        };
        put(js, names.timer(name), serde_json::to_vec(&record).unwrap()).await;
    }

    #[tokio::test]
    async fn only_the_record_of_a_timer_that_is_nowhere_is_removed() {
        let (server, _data) = fresh_server().await;
        let js = jetstream::new(connect(&server.options(), "test").await.unwrap());
        let names = AppNames::new("shop");
        ensure_commit_stream(&js, &names, 1).await.unwrap();

        record(&js, &names, "done", -60).await;
        record(&js, &names, "done-and-set-anew", -60).await;
        record(&js, &names, "a-moment-ago", -1).await;
        record(&js, &names, "to-come", 600).await;
        record(&js, &names, "late", -60).await;
        put(&js, names.due("f", "id-late"), Vec::new()).await;
        for n in 0..AT_ONCE {
            record(&js, &names, &format!("more-{n}"), 600).await;
        }

        let mut bygone = Bygone::default();
        assert_eq!(bygone.look(&js, &names).await.unwrap(), 0);
        record(&js, &names, "done-and-set-anew", -60).await;
        // The one that was set anew is another record than the one that was found.
        assert_eq!(bygone.look(&js, &names).await.unwrap(), 1);
        let mut left = Vec::new();
        for name in [
            "done",
            "done-and-set-anew",
            "a-moment-ago",
            "to-come",
            "late",
        ] {
            let last = json!({ "last_by_subj": names.timer(name) });
            if message(&js, "KV_shop", &last).await.unwrap().is_some() {
                left.push(name);
            }
        }
        assert_eq!(
            left,
            ["done-and-set-anew", "a-moment-ago", "to-come", "late"]
        );
        let mut removed = 0;
        for _ in 0..6 {
            removed += bygone.look(&js, &names).await.unwrap();
        }
        assert_eq!(removed, 1, "the one set anew, in its turn");
    }
}
