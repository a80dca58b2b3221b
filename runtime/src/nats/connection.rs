//! A connection whose client is replaced when its task has ended.
//!
//! async-nats reconnects by itself as long as its connection task runs. When that task ends, every
//! later request fails with "channel closed". Some malformed messages end it. A node must outlive
//! that, so it keeps no `Client` for long: it asks its [`Connection`] for the current one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connect::{connect_watched, reconnect_delay};
use super::{ConnectOptions, NatsError};

/// A connection to NATS; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    client: RwLock<Client>,
    /// Clients that were replaced because their task had ended.
    replaced: AtomicU64,
    /// Connections that broke, those of replaced clients included.
    breaks: Breaks,
    /// The task that replaces the client; none: nobody does.
    supervisor: OnceLock<JoinHandle<()>>,
}

/// How often a connection broke.
#[derive(Debug, Clone)]
pub(super) struct Breaks(Arc<watch::Sender<u64>>);

impl Default for Breaks {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Breaks {
    pub(super) fn count_one(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    fn count(&self) -> u64 {
        *self.0.borrow()
    }
}

impl Connection {
    /// Connects, and watches over the client until the last handle is dropped.
    ///
    /// # Errors
    /// As [`connect`](super::connect): unreachable, refused, or malformed options.
    pub async fn open(options: &ConnectOptions, name: &str) -> Result<Self, NatsError> {
        let breaks = Breaks::default();
        let (client, ended) = connect_watched(options, name, &breaks).await?;
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            client: RwLock::new(client),
            replaced: AtomicU64::new(0),
            breaks,
            supervisor: OnceLock::new(),
        });
        let supervisor = supervise(Arc::downgrade(&inner), options.clone(), ended);
        let _ = inner.supervisor.set(tokio::spawn(supervisor));
        Ok(Self(inner))
    }

    /// The client of the moment. Do not keep it: its successor is another one.
    pub fn client(&self) -> Client {
        let client = self.0.client.read().unwrap_or_else(PoisonError::into_inner);
        client.clone()
    }

    /// JetStream on the client of the moment, with the timeout of requests.
    pub fn jetstream(&self) -> jetstream::Context {
        super::jetstream(&self.client())
    }

    /// Largest message that the server takes, bytes.
    pub fn max_payload(&self) -> usize {
        let client = self.0.client.read().unwrap_or_else(PoisonError::into_inner);
        client.server_info().max_payload
    }

    /// What the connection is called in the server's listing.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether requests reach a server now.
    pub fn is_connected(&self) -> bool {
        self.client().connection_state() == State::Connected
    }

    /// Whether the client is replaced should its task end.
    pub fn is_supervised(&self) -> bool {
        let supervisor = self.0.supervisor.get();
        supervisor.is_some_and(|task| !task.is_finished())
    }

    /// How many clients were replaced because their task had ended.
    pub fn replacements(&self) -> u64 {
        self.0.replaced.load(Ordering::Relaxed)
    }

    /// How often the connection broke.
    pub fn breaks(&self) -> u64 {
        self.0.breaks.count()
    }

    /// Waits until the connection has broken more often than `since` times.
    pub(crate) async fn broken(&self, since: u64) {
        let mut breaks = self.0.breaks.0.subscribe();
        // The sender is in `self`.
        let _ = breaks.wait_for(|count| *count > since).await;
    }
}

/// A client that nobody watches over: for commands, which end soon, and for tests.
impl From<Client> for Connection {
    fn from(client: Client) -> Self {
        Self(Arc::new(Inner {
            name: String::new(),
            client: RwLock::new(client),
            replaced: AtomicU64::new(0),
            breaks: Breaks::default(),
            supervisor: OnceLock::new(),
        }))
    }
}

/// Replaces the client each time that its task ends, until nobody holds the connection.
async fn supervise(inner: Weak<Inner>, options: ConnectOptions, mut ended: CancellationToken) {
    loop {
        ended.cancelled().await;
        let Some(next) = replace(&inner, &options).await else {
            return;
        };
        ended = next;
    }
}

/// Connects again; `None` when nobody holds the connection.
async fn replace(inner: &Weak<Inner>, options: &ConnectOptions) -> Option<CancellationToken> {
    let mut tries = 0;
    loop {
        // While it waits, the task must not keep the connection alive.
        let (name, breaks) = {
            let inner = inner.upgrade()?;
            (inner.name.clone(), inner.breaks.clone())
        };
        if tries == 0 {
            tracing::error!(
                connection = name,
                "the client's connection task has ended; replacing the client"
            );
        }
        match connect_watched(options, &name, &breaks).await {
            Ok((client, ended)) => {
                let inner = inner.upgrade()?;
                *inner.client.write().unwrap_or_else(PoisonError::into_inner) = client;
                inner.replaced.fetch_add(1, Ordering::Relaxed);
                inner.breaks.count_one();
                tracing::warn!(connection = name, "the client was replaced");
                return Some(ended);
            }
            Err(error) => {
                tries += 1;
                tracing::warn!(connection = name, %error, "the client is not replaced yet");
                let pause: Duration = reconnect_delay(tries);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::StreamExt;

    use super::*;
    use crate::dev::fresh_server;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Draining a client ends its connection task as any other end of it does.
    #[tokio::test]
    async fn client_whose_task_has_ended_is_replaced_within_a_second() {
        let (server, _data) = fresh_server().await;
        let connection = Connection::open(&server.options(), "test").await.unwrap();
        let before = connection.client();
        let mut subscribed = before.subscribe("a").await.unwrap();

        before.drain().await.unwrap();
        assert!(subscribed.next().await.is_none());
        let ended = Instant::now();
        while connection.replacements() == 0 {
            assert!(ended.elapsed() < DEADLINE, "the client is not replaced");
            tokio::task::yield_now().await;
        }

        assert!(connection.is_supervised() && connection.is_connected());
        assert_eq!((connection.replacements(), connection.breaks()), (1, 1));
        connection.client().flush().await.unwrap();
        assert!(before.flush().await.is_err(), "the former client is of use");
    }

    #[tokio::test]
    async fn connection_that_nobody_holds_ends() {
        let (server, _data) = fresh_server().await;
        let connection = Connection::open(&server.options(), "test").await.unwrap();
        let inner = Arc::downgrade(&connection.0);
        drop(connection);
        assert!(inner.upgrade().is_none());
    }
}
