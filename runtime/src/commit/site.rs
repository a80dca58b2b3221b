//! Checks that no other JetStream stores what this site writes.
//!
//! Two sites with the same app, joined by a leaf connection, keep apart because nats-server does
//! not
//! carry `$KV` over it. A setting can undo that (`default_js_domain`, an exported or mapped `$KV`).
//! Both commit streams would then store both sites' records and refuse each other's batches.
//!
//! The check sends a message that every stream with its subject must refuse: it expects a stream
//! that does not exist. The number of refusals is the number of streams. Nothing is stored, and no
//! commit waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::names::AppNames;
use crate::nats::Connection;

/// How long the first refusal may take.
const FIRST: Duration = Duration::from_secs(2);
/// How long others are waited for before a function starts, or a deploy writes. Longer than a round
/// trip over most leaf connections; what comes later is found by the repeated check.
pub const BRIEF: Duration = Duration::from_millis(250);
/// The same while functions run, where nobody waits for it.
pub const PATIENT: Duration = Duration::from_secs(2);
/// More than two tell nothing new.
const ENOUGH: usize = 2;
/// No stream with these subjects has this name.
const NO_STREAM: &str = "-";

/// How many streams store messages with this subject, as far as they answered in time; 2 means two
/// or more, `None` that nobody answered.
pub async fn streams_with(client: &Client, subject: &str, window: Duration) -> Option<usize> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.ok()?;
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_STREAM, NO_STREAM);
    let sent =
        client.publish_with_reply_and_headers(subject.to_owned(), inbox, headers, Bytes::new());
    sent.await.ok()?;
    let first = timeout(FIRST, answers.next()).await.ok()??;
    if first.status == Some(StatusCode::NO_RESPONDERS) {
        return Some(0);
    }
    let end = Instant::now() + window;
    let mut found = 1;
    while found < ENOUGH
        && let Ok(Some(_)) = timeout_at(end, answers.next()).await
    {
        found += 1;
    }
    Some(found)
}

/// How to keep two sites apart again.
pub const FIX: &str = "find what carries `$KV` between the two: nats-server does so only where default_js_domain or \
    an account's exports, imports or mappings say so, and take it out there (docs/operations.md, \"Leaf nodes and sites\")";

/// What is wrong, and why it matters.
pub fn shared(app: &str, subjects: &str) -> String {
    format!(
        "another JetStream also stores what is written to {subjects} here, so two sites with app {app} would write \
         into each other's state"
    )
}

/// One app, as one node sees it.
#[derive(Debug)]
pub struct Site {
    nats: Connection,
    names: AppNames,
    checked: OnceCell<()>,
    refusal: watch::Sender<Option<Arc<str>>>,
}

impl Site {
    fn new(nats: Connection, names: AppNames) -> Self {
        Self {
            nats,
            names,
            checked: OnceCell::new(),
            refusal: watch::Sender::new(None),
        }
    }

    /// Waits for the first check, which the first caller makes.
    ///
    /// # Errors
    /// Another JetStream stores the app's records.
    pub async fn admit(&self) -> Result<(), Arc<str>> {
        self.checked.get_or_init(|| self.check(BRIEF)).await;
        self.refusal().map_or(Ok(()), Err)
    }

    /// Why nothing of the app may be written.
    pub fn refusal(&self) -> Option<Arc<str>> {
        self.refusal.borrow().clone()
    }

    /// Waits until nothing of the app may be written: why.
    pub async fn refused(&self) -> Arc<str> {
        let mut refusal = self.refusal.subscribe();
        loop {
            if let Some(why) = refusal.borrow_and_update().clone() {
                return why;
            }
            if refusal.changed().await.is_err() {
                // Not while `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Checks again. A leader that has just lost its office may answer beside the new one, so one
    /// answer too many counts only if it comes twice.
    pub async fn check(&self, window: Duration) {
        let subject = self.names.site_check();
        let mut found = streams_with(&self.nats.client(), &subject, window).await;
        if found == Some(ENOUGH) {
            found = streams_with(&self.nats.client(), &subject, window).await;
        }
        match found {
            // NATS does not answer: what was known stays.
            None => {}
            Some(ENOUGH..) if self.refusal().is_none() => {
                let app = self.names.app();
                let why = shared(app, &self.names.own_subjects());
                tracing::error!(app, fix = FIX, "{why}; the app's functions are paused here");
                self.refusal
                    .send_replace(Some(format!("{why}; {FIX}").into()));
            }
            Some(ENOUGH..) => {}
            Some(_) if self.refusal().is_some() => {
                tracing::info!(
                    app = self.names.app(),
                    "no other JetStream stores the app's records any more; its functions go on"
                );
                self.refusal.send_replace(None);
            }
            Some(_) => {}
        }
    }
}

/// The apps of one node.
#[derive(Debug)]
pub struct Sites {
    nats: Connection,
    apps: Mutex<BTreeMap<String, Arc<Site>>>,
}

impl Sites {
    /// None yet.
    pub fn new(nats: Connection) -> Self {
        Self {
            nats,
            apps: Mutex::default(),
        }
    }

    /// This app's.
    pub fn of(&self, names: &AppNames) -> Arc<Site> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Site::new(self.nats.clone(), names.clone()));
        apps.entry(names.app().to_owned())
            .or_insert_with(make)
            .clone()
    }

    /// All that were asked for.
    pub fn all(&self) -> Vec<Arc<Site>> {
        let apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        apps.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream;

    use super::*;
    use crate::commit::stream::ensure_commit_stream;
    use crate::dev::fresh_server;
    use crate::nats::connect;

    #[tokio::test]
    async fn streams_are_counted_and_nothing_is_stored() {
        let (server, _data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client.clone());
        let names = AppNames::new("shop");
        let count = async || streams_with(&client, &names.site_check(), BRIEF).await;

        assert_eq!(count().await, Some(0));
        ensure_commit_stream(&js, &names, 1).await.unwrap();
        assert_eq!(count().await, Some(1));
        let sites = Sites::new(client.clone().into());
        assert_eq!(sites.of(&names).admit().await, Ok(()));

        // What another site's stream would do: it answers, too.
        let mut asked = client.subscribe(names.site_check()).await.unwrap();
        let echo = client.clone();
        tokio::spawn(async move {
            while let Some(message) = asked.next().await {
                let inbox = message.reply.unwrap();
                echo.publish(inbox, "{}".into()).await.unwrap();
            }
        });
        client.flush().await.unwrap();
        assert_eq!(count().await, Some(2));
        let site = sites.of(&names);
        site.check(BRIEF).await;
        let refusal = site.admit().await.unwrap_err();
        assert!(refusal.contains("$KV.PELTON_shop.>"), "{refusal}");
        assert_eq!(site.refused().await, refusal);

        let stream = js.get_stream(names.commit_stream()).await.unwrap();
        assert_eq!(stream.cached_info().state.messages, 0);
    }
}
