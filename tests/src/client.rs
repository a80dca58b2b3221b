//! A plain NATS client's view: publishing, the state bucket, dead letters, consumers, live nodes. It knows the stored
//! names and nothing of the code that stores them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::PullConsumer, kv, stream};
use bytes::Bytes;
use serde_json::Value;

use crate::production;
use crate::wait::{SOON, eventually, within};

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Nats {
    /// Core connection.
    pub core: async_nats::Client,
    /// JetStream on it.
    pub js: jetstream::Context,
}

/// A dead letter as it lies in its stream.
#[derive(Debug, Clone)]
pub struct Dead {
    /// Sequence in the dead-letter stream.
    pub sequence: u64,
    /// All headers.
    pub headers: HeaderMap,
    /// The original payload.
    pub payload: Bytes,
}

impl Dead {
    /// A header that every dead letter has; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }

    /// Why it was given up, as a stable code.
    pub fn code(&self) -> &str {
        self.header("Pelton-Code")
    }

    /// Why it was given up, for a person.
    pub fn reason(&self) -> &str {
        self.header("Pelton-Reason")
    }

    /// Every attempt's number, code, message and time.
    ///
    /// # Errors
    /// The header is missing or malformed.
    pub fn attempts(&self) -> Result<Vec<Value>> {
        let text = self.header("Pelton-Attempts");
        serde_json::from_str(text).with_context(|| format!("Pelton-Attempts: {text:?}"))
    }
}

impl Nats {
    /// Connects to one of these servers (URLs, separated by commas); stays through outages.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::with(url, async_nats::ConnectOptions::new()).await
    }

    /// As [`connect`](Self::connect), as the user that has this role in `deploy/nats`.
    ///
    /// # Errors
    /// The server is not there, or does not know the user.
    pub async fn connect_as(url: &str, role: &str) -> Result<Self> {
        let options = async_nats::ConnectOptions::new()
            .user_and_password(role.to_owned(), production::password(role))
            .custom_inbox_prefix(production::inbox(role));
        Self::with(url, options).await
    }

    async fn with(url: &str, options: async_nats::ConnectOptions) -> Result<Self> {
        let core = options
            .request_timeout(Some(Duration::from_secs(5)))
            .connect(url.split(',').collect::<Vec<_>>())
            .await?;
        let js = jetstream::new(core.clone());
        Ok(Self { core, js })
    }

    /// Publishes and waits until it is stored; the answer is its sequence.
    ///
    /// # Errors
    /// No stream took it.
    pub async fn publish(&self, subject: &str, body: impl Into<Bytes>) -> Result<u64> {
        let ack = self.js.publish(subject.to_owned(), body.into()).await?;
        Ok(ack.await?.sequence)
    }

    /// As [`publish`](Self::publish), with headers.
    ///
    /// # Errors
    /// No stream took it.
    pub async fn publish_with(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<u64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let ack = self
            .js
            .publish_with_headers(subject.to_owned(), map, body.into())
            .await?;
        Ok(ack.await?.sequence)
    }

    /// The app's state.
    ///
    /// # Errors
    /// There is no such bucket.
    pub async fn state(&self, app: &str) -> Result<kv::Store> {
        Ok(self.js.get_key_value(app).await?)
    }

    /// A JSON value of the state; none when the key does not exist.
    ///
    /// # Errors
    /// There is no bucket, or the value is no JSON.
    pub async fn value(&self, app: &str, key: &str) -> Result<Option<Value>> {
        let bytes = self.state(app).await?.get(key).await?;
        Ok(bytes
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()?)
    }

    /// Waits until an order has this status, and gives it.
    ///
    /// # Errors
    /// It does not get it.
    pub async fn order(&self, id: &str, status: &str) -> Result<Value> {
        let what = format!("order {id} to become {status}");
        eventually(&what, || async {
            let order = self.value("shop", &format!("orders.{id}")).await?;
            let order = order.context("does not exist")?;
            ensure!(order["status"] == status, "is {order}");
            Ok(Some(order))
        })
        .await
    }

    /// Every dead letter of an app; none while it has no dead-letter stream.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn dead(&self, app: &str) -> Result<Vec<Dead>> {
        let mut all = self.messages(&format!("PELTON_DEAD_{app}")).await?;
        // Parts of originals that did not fit into their letters lie beside them.
        all.retain(|message| !message.subject.contains(".part."));
        let dead = all.into_iter().map(|message| Dead {
            sequence: message.sequence,
            headers: message.headers,
            payload: message.payload,
        });
        Ok(dead.collect())
    }

    /// Waits for the dead letter of the message at `sequence` of `stream`.
    ///
    /// # Errors
    /// None comes.
    pub async fn dead_of(&self, app: &str, stream: &str, sequence: u64) -> Result<Dead> {
        let what = format!("the dead letter of {stream}:{sequence}");
        eventually(&what, || async {
            let found = self.dead(app).await?.into_iter().find(|dead| {
                dead.header("Pelton-Stream") == stream
                    && dead.header("Pelton-Sequence") == sequence.to_string()
            });
            Ok(found)
        })
        .await
    }

    /// Deliveries that live nodes have committed since they started, as their heartbeats say.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn committed(&self) -> Result<u64> {
        let nodes = self.nodes().await?;
        let functions = nodes
            .iter()
            .filter_map(|node| node["functions"].as_array())
            .flatten();
        Ok(functions
            .filter_map(|one| one["counts"]["committed"].as_u64())
            .sum())
    }

    /// All messages of a stream; none when there is no such stream.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn messages(&self, name: &str) -> Result<Vec<jetstream::message::StreamMessage>> {
        let Ok(mut stream) = self.js.get_stream(name).await else {
            return Ok(Vec::new());
        };
        let state = stream.info().await?.state.clone();
        let mut all = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            if state.messages == 0 {
                break;
            }
            match stream.get_raw_message(sequence).await {
                Ok(message) => all.push(message),
                // Deleted in between.
                Err(error) if error.kind() == stream::RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    /// How many messages a stream holds.
    ///
    /// # Errors
    /// There is no such stream.
    pub async fn count(&self, stream: &str) -> Result<u64> {
        let mut stream = self.js.get_stream(stream).await?;
        Ok(stream.info().await?.state.messages)
    }

    /// How many messages lie under a subject filter of a stream.
    ///
    /// # Errors
    /// There is no such stream.
    pub async fn count_below(&self, stream: &str, filter: &str) -> Result<usize> {
        use futures::TryStreamExt;
        let stream = self.js.get_stream(stream).await?;
        let subjects = stream.info_with_subjects(filter).await?;
        let all: Vec<(String, usize)> = subjects.try_collect().await?;
        Ok(all.iter().map(|(_, count)| count).sum())
    }

    /// Waits until a function has nothing left to do: nothing pending, nothing unacknowledged.
    ///
    /// # Errors
    /// It goes on having something.
    pub async fn drained(&self, app: &str, function: &str, stream: &str) -> Result<()> {
        self.drained_within(SOON, app, function, stream).await
    }

    /// As [`drained`](Self::drained), with a deadline.
    ///
    /// # Errors
    /// It goes on having something.
    pub async fn drained_within(
        &self,
        deadline: Duration,
        app: &str,
        function: &str,
        stream: &str,
    ) -> Result<()> {
        let what = format!("{function} to have done all of {stream}");
        within(deadline, &what, || async {
            let left = self.pending(app, function, stream).await?;
            ensure!(left == 0, "{left} events to go");
            Ok(Some(()))
        })
        .await
    }

    /// Events that a function has yet to do, those in its hands included.
    ///
    /// # Errors
    /// It has no consumer on that stream.
    pub async fn pending(&self, app: &str, function: &str, stream: &str) -> Result<u64> {
        let name = self.consumer_of(app, function, stream).await?;
        let stream = self.js.get_stream(stream).await?;
        let found = stream.get_consumer(&name).await;
        let mut consumer: PullConsumer = found.map_err(|error| anyhow::anyhow!("{error}"))?;
        let info = consumer.info().await?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }

    /// Name of the consumer through which a function takes from a queue: it ends with the
    /// function's nonce.
    ///
    /// # Errors
    /// There is none on that stream.
    pub async fn consumer_of(&self, app: &str, function: &str, stream: &str) -> Result<String> {
        use futures::TryStreamExt;
        let prefix = format!("pelton_{app}_{function}_");
        let stream = self.js.get_stream(stream).await?;
        let names: Vec<String> = stream.consumer_names().try_collect().await?;
        let found = names.into_iter().find(|name| name.starts_with(&prefix));
        found.with_context(|| format!("no consumer {prefix}…"))
    }

    /// What the live nodes say of themselves.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn nodes(&self) -> Result<Vec<Value>> {
        use futures::TryStreamExt;
        let bucket = self.js.get_key_value("PELTON_NODES").await?;
        let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
        let mut nodes = Vec::new();
        for key in keys {
            if let Some(bytes) = bucket.get(&key).await? {
                nodes.push(serde_json::from_slice(&bytes)?);
            }
        }
        Ok(nodes)
    }

    /// Waits until `count` nodes run a version of a function (none: any version).
    ///
    /// # Errors
    /// They do not.
    pub async fn serving(&self, function: &str, version: Option<u64>, count: usize) -> Result<()> {
        let what = format!("{count} node(s) to serve {function} {version:?}");
        eventually(&what, || async {
            let nodes = self.nodes().await?;
            let serving = nodes.iter().filter(|node| {
                let functions = node["functions"].as_array().cloned().unwrap_or_default();
                functions.iter().any(|found| {
                    found["function"] == function
                        && found["status"] == "running"
                        && version.is_none_or(|version| found["version"] == version)
                })
            });
            ensure!(serving.count() == count, "nodes say {nodes:?}");
            Ok(Some(()))
        })
        .await
    }
}
