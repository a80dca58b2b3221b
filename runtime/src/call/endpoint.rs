//! What callers find on a node: one endpoint of each function, which passes from version to version, so that no request falls
//! between two of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::{Client, Message, Subscriber};
use futures::StreamExt;
use futures::stream::SelectAll;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desk::{CALLERS, Desk};
use super::service::Service;
use crate::names::AppNames;
use crate::records::FunctionRecord;

/// What a node that stops may still have in its hands of what the server sent it.
const LEAVING: Duration = Duration::from_secs(1);

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
        client: Client,
        js: jetstream::Context,
        record: FunctionRecord,
    ) -> Result<(), async_nats::SubscribeError> {
        let names = AppNames::new(record.app.as_str());
        let desk = Arc::new(Desk {
            client,
            js,
            names,
            record,
        });
        let mut open = self.0.lock().await;
        match open.as_ref() {
            Some(open) => {
                open.desk.send_replace(desk);
            }
            None => *open = Some(Open::new(desk).await?),
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
    async fn new(desk: Arc<Desk>) -> Result<Self, async_nats::SubscribeError> {
        let (service, questions) = Service::open(desk.client.clone(), &desk.record).await?;
        let requests = service.requests().await?;
        let (desk, current) = watch::channel(desk);
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        let counter = Counter {
            service: Arc::new(service),
            desk: current,
            callers: Arc::new(Semaphore::new(CALLERS)),
            taken: TaskTracker::new(),
            abort: abort.clone(),
        };
        let task = tokio::spawn(counter.serve(requests, questions, stop.clone()));
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
    async fn serve(
        self,
        mut requests: Subscriber,
        mut questions: SelectAll<Subscriber>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(request) = requests.next() => self.take(request),
                Some(asked) = questions.next() => {
                    let desk = self.desk.borrow().clone();
                    self.service.say(asked, &desk.record).await;
                }
                else => break,
            }
        }
        drop(questions);
        let _ = requests.drain().await;
        let rest = async {
            while let Some(request) = requests.next().await {
                self.take(request);
            }
        };
        let _ = tokio::time::timeout(LEAVING, rest).await;
        self.taken.close();
        self.taken.wait().await;
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
