//! What functions log and what is given up, shown as it happens.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull};
use futures::StreamExt as _;
use pelton_runtime::config::Manifest;
use pelton_runtime::control::logs::{self, LogQuery};
use pelton_runtime::names::AppNames;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::events::DevEvent;
use super::hints::hint;
use crate::output::Output;

/// Pause before a subscription that ended is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// What both followers need.
#[derive(Clone)]
struct Follower {
    js: jetstream::Context,
    manifest: watch::Receiver<Manifest>,
    output: Output,
    since: OffsetDateTime,
}

/// Follows until the set is dropped, from `since` on.
pub(super) fn start(
    js: &jetstream::Context,
    manifest: watch::Receiver<Manifest>,
    output: Output,
    since: OffsetDateTime,
) -> JoinSet<()> {
    let follower = Follower {
        js: js.clone(),
        manifest,
        output,
        since,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.clone().lines());
    tasks.spawn(follower.dead_letters());
    tasks
}

impl Follower {
    async fn lines(mut self) {
        loop {
            let query = LogQuery {
                app: Some(self.app()),
                since: Some(self.since),
                follow: true,
                ..LogQuery::default()
            };
            let js = self.js.clone();
            let ended: anyhow::Result<()> = logs::tail(&js, &query, |line| {
                let hint = self.hint(&line.message);
                self.show(&DevEvent::Log { line, hint })
            })
            .await;
            self.again(ended).await;
        }
    }

    async fn dead_letters(mut self) {
        loop {
            let ended = self.read_dead_letters().await;
            self.again(ended).await;
        }
    }

    async fn read_dead_letters(&self) -> anyhow::Result<()> {
        let names = AppNames::new(self.app());
        let stream = self.js.get_stream(names.dead_stream()).await?;
        let consumer = stream
            .create_consumer(pull::OrderedConfig {
                description: Some("pelton dev".into()),
                deliver_policy: DeliverPolicy::ByStartTime {
                    start_time: self.since,
                },
                headers_only: true,
                filter_subject: names.dead_subject("*"),
                ..Default::default()
            })
            .await?;
        let mut messages = consumer.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let header = |name: &str| {
                let headers = message.headers.as_ref();
                let value = headers.and_then(|headers| headers.get(name));
                value.map_or_else(String::new, ToString::to_string)
            };
            let reason = header("Pelton-Reason");
            self.show(&DevEvent::DeadLetter {
                function: header("Pelton-Function"),
                subject: header("Pelton-Subject"),
                code: header("Pelton-Code"),
                hint: self.hint(&reason),
                reason,
            })?;
        }
        Ok(())
    }

    fn app(&self) -> String {
        self.manifest.borrow().app.clone()
    }

    fn hint(&self, message: &str) -> Option<String> {
        hint(message, &self.manifest.borrow())
    }

    fn show(&self, event: &DevEvent) -> anyhow::Result<()> {
        self.output.item(event, DevEvent::text)
    }

    /// A connection may be gone for a while; what came meanwhile is shown then.
    async fn again(&mut self, ended: anyhow::Result<()>) {
        if let Err(error) = ended {
            tracing::debug!(%error, "cannot follow");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
