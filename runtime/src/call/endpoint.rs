//! What callers find on a node: one endpoint of each function, which passes from version to version, so that no request falls
//! between two of them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Message;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desk::{CALLERS, Desk};
use super::service::{Asked, Service};
use crate::commit::site::Site;
use crate::names::AppNames;
use crate::records::FunctionRecord;
use crate::runtime::Connections;

/// What a node that stops may still have in its hands of what the server sent it.
const LEAVING: Duration = Duration::from_secs(1);

/// Pauses before subscriptions that ended with their client are made again.
const RESUBSCRIBE_MIN: Duration = Duration::from_millis(50);
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(1);

/// A function's place for callers on this node, shared by its versions: the newest that is ready answers.
#[derive(Clone, Default)]
pub(crate) struct Endpoint(Arc<Mutex<Option<Open>>>);

struct Open {
    desk: watch::Sender<Arc<Desk>>,
    /// Take no more.
    stop: CancellationToken,
    /// Drop what was taken.
    abort: CancellationToken,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// From now on callers are answered as `record` says.
    ///
    /// # Errors
    /// The connection is closed.
    pub(crate) async fn open(
        &self,
        connections: &Connections,
        site: Arc<Site>,
        record: FunctionRecord,
    ) -> Result<(), async_nats::SubscribeError> {
        let names = AppNames::new(record.app.as_str());
        let desk = Arc::new(Desk {
            nats: connections.commits.clone(),
            site,
            names,
            record,
        });
        let mut open = self.0.lock().await;
        match open.as_ref() {
            Some(open) => {
                open.desk.send_replace(desk);
            }
            None => *open = Some(Open::new(desk, connections).await?),
        }
        Ok(())
    }

    /// Takes no more calls if `record` is the one that answers, and answers those that were taken; drops them at `abort`.
    pub(crate) async fn close(&self, record: &FunctionRecord, abort: &CancellationToken) {
        let mut open = self.0.lock().await;
        let Some(mut open) = open.take_if(|open| open.desk.borrow().record == *record) else {
            return;
        };
        open.stop.cancel();
        tokio::select! {
            _ = &mut open.task => {}
            () = abort.cancelled() => {
                open.abort.cancel();
                let _ = (&mut open.task).await;
            }
        }
    }
}

impl Open {
    async fn new(
        desk: Arc<Desk>,
        connections: &Connections,
    ) -> Result<Self, async_nats::SubscribeError> {
        let service = Service::new(connections, &desk.record);
        let asked = service.subscribe().await?;
        let (desk, current) = watch::channel(desk);
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        let counter = Counter {
            service: Arc::new(service),
            desk: current,
            callers: Arc::new(Semaphore::new(CALLERS)),
            taken: TaskTracker::new(),
            abort: abort.clone(),
        };
        let task = tokio::spawn(counter.run(asked, stop.clone()));
        Ok(Self {
            desk,
            stop,
            abort,
            task,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
        self.abort.cancel();
    }
}

/// Where requests are taken.
struct Counter {
    service: Arc<Service>,
    desk: watch::Receiver<Arc<Desk>>,
    callers: Arc<Semaphore>,
    taken: TaskTracker,
    abort: CancellationToken,
}

impl Counter {
    /// Takes requests until `stop`, then what the server has sent of them already. Subscriptions
    /// end
    /// with their client, which the connection replaces: they are made again then.
    async fn run(self, mut asked: Asked, stop: CancellationToken) {
        while self.serve(&mut asked, &stop).await.is_break() {
            match self.subscribe_again(&stop).await {
                Some(again) => asked = again,
                None => break,
            }
        }
        drop(asked.questions);
        let _ = asked.requests.drain().await;
        let rest = async {
            while let Some(request) = asked.requests.next().await {
                self.take(request);
            }
        };
        let _ = tokio::time::timeout(LEAVING, rest).await;
        self.taken.close();
        self.taken.wait().await;
    }

    /// Until `stop`; breaks off when the subscriptions have ended.
    async fn serve(&self, asked: &mut Asked, stop: &CancellationToken) -> ControlFlow<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return ControlFlow::Continue(()),
                request = asked.requests.next() => match request {
                    Some(request) => self.take(request),
                    None => return ControlFlow::Break(()),
                },
                question = asked.questions.next() => match question {
                    Some(question) => {
                        let desk = self.desk.borrow().clone();
                        self.service.say(question, &desk.record).await;
                    }
                    None => return ControlFlow::Break(()),
                },
            }
        }
    }

    /// `None` once `stop` has come.
    async fn subscribe_again(&self, stop: &CancellationToken) -> Option<Asked> {
        let pauses = ExponentialBuilder::new()
            .with_min_delay(RESUBSCRIBE_MIN)
            .with_max_delay(RESUBSCRIBE_MAX)
            .without_max_times()
            .build();
        for pause in pauses {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            match self.service.subscribe().await {
                Ok(asked) => return Some(asked),
                Err(error) => tracing::debug!(%error, "calls cannot be taken yet"),
            }
        }
        None
    }

    fn take(&self, request: Message) {
        let permit = self.callers.clone().try_acquire_owned().ok();
        let (desk, service) = (self.desk.borrow().clone(), self.service.clone());
        let abort = self.abort.clone();
        self.taken.spawn(async move {
            let since = Instant::now();
            tokio::select! {
                failed = desk.serve(request, permit.is_some()) => service.count(since, failed),
                () = abort.cancelled() => {}
            }
            drop(permit);
        });
    }
}
