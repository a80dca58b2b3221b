//! What can be seen from outside, with an ordinary NATS client: the state bucket, streams, live nodes; and with `pelton function ls`
//! what is pending.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, message::StreamMessage};
use futures::TryStreamExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use crate::node::binary;
use crate::wait::until;

/// The app of the repository's `pelton.toml`.
const APP: &str = "shop";

/// Looks; changes nothing.
pub(crate) struct Observer {
    js: jetstream::Context,
    url: String,
}

/// Everything that the story should have come to.
pub(crate) struct Seen {
    /// Orders by key, from the KV bucket.
    pub(crate) orders: Vec<(String, Order)>,
    /// The stream NOTIFICATIONS.
    pub(crate) mails: Vec<Mail>,
    /// The stream of dead letters.
    pub(crate) dead: Vec<DeadLetter>,
    /// `payment-failed` events in the stream ORDERS.
    pub(crate) payment_failed: Vec<StreamMessage>,
}

/// An order's state as the function keeps it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Order {
    pub(crate) order_id: String,
    pub(crate) customer_id: String,
    pub(crate) total_price: Value,
    pub(crate) status: String,
    pub(crate) payment: Option<Step>,
    pub(crate) shipping: Option<Step>,
    pub(crate) delivery: Option<Step>,
}

/// What a step attached.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Step {
    pub(crate) id: String,
    pub(crate) status: String,
}

/// An e-mail to be sent; of its fields, what tells which event it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Mail {
    pub(crate) order_id: String,
    pub(crate) kind: String,
}

impl Mail {
    pub(crate) fn new(order_id: &str, kind: &str) -> Self {
        Self {
            order_id: order_id.into(),
            kind: kind.into(),
        }
    }
}

/// A delivery given up on.
pub(crate) struct DeadLetter {
    pub(crate) function: String,
    pub(crate) subject: String,
    pub(crate) code: String,
    pub(crate) reason: String,
    pub(crate) attempts: usize,
    pub(crate) event_id: String,
}

#[derive(Deserialize)]
struct NodeEntry {
    functions: Vec<Serving>,
}

#[derive(Deserialize)]
struct Serving {
    function: String,
    version: u64,
    status: String,
}

impl Observer {
    pub(crate) fn new(client: async_nats::Client, url: &str) -> Self {
        Self {
            js: jetstream::new(client),
            url: url.to_owned(),
        }
    }

    /// Waits until a live node says that it runs these functions; their versions, for people.
    pub(crate) async fn serving(&self, functions: &[&str]) -> Result<String> {
        until("a node that serves all functions", || async {
            let bucket = self.js.get_key_value("PELTON_NODES").await?;
            let mut running = Vec::new();
            for key in bucket.keys().await?.try_collect::<Vec<_>>().await? {
                let Some(entry) = bucket.get(&key).await? else {
                    continue;
                };
                let node: NodeEntry = serde_json::from_slice(&entry)?;
                for Serving {
                    function,
                    version,
                    status,
                } in node.functions
                {
                    ensure!(!status.starts_with("failed"), "{function} {status}");
                    if status == "running" && functions.contains(&function.as_str()) {
                        running.push(format!("{function} v{version}"));
                    }
                }
            }
            running.sort();
            Ok((running.len() == functions.len()).then(|| running.join(" and ")))
        })
        .await
    }

    /// An order's state; none when there is none.
    pub(crate) async fn order(&self, id: &str) -> Result<Option<Order>> {
        let bucket = self.js.get_key_value(APP).await?;
        let key = format!("orders.{id}");
        let value = bucket.get(&key).await?;
        value
            .map(|value| {
                serde_json::from_slice(&value).with_context(|| format!("{key} holds no order"))
            })
            .transpose()
    }

    /// Waits until an order has this status.
    pub(crate) async fn becomes(&self, id: &str, status: &str) -> Result<()> {
        until(&format!("{id} to be {status}"), || async {
            Ok(self
                .order(id)
                .await?
                .filter(|order| order.status == status)
                .map(|_| ()))
        })
        .await
    }

    /// Waits until an event of ORDERS has been deferred by the function `orders`: its record says how often.
    pub(crate) async fn deferred(&self, sequence: u64) -> Result<()> {
        until("the early event to be deferred", || async {
            let stream = self.js.get_stream(format!("KV_{APP}")).await?;
            let filter = format!("$KV.PELTON_{APP}.park.orders.ORDERS.*.*.{sequence}");
            let parked: Vec<_> = stream
                .info_with_subjects(filter)
                .await?
                .try_collect()
                .await?;
            let Some((subject, _)) = parked.first() else {
                return Ok(None);
            };
            let parked = stream.get_last_raw_message_by_subject(subject).await?;
            let record = parked
                .headers
                .get("Pelton-Attempts")
                .context("no attempts")?;
            let record: Value = serde_json::from_str(record.as_str())?;
            Ok(record["deferrals"]
                .as_u64()
                .filter(|deferrals| *deferrals > 0)
                .map(|_| ()))
        })
        .await
    }

    /// Waits until no function has anything left to do, as `pelton function ls` sees it.
    pub(crate) async fn idle(&self) -> Result<()> {
        until("all functions to be idle", || async {
            let output = Command::new(binary()?)
                .args([
                    "function", "ls", "--json", "--app", APP, "--server", &self.url,
                ])
                .output()
                .await?;
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let functions: Vec<Value> = serde_json::from_slice(&output.stdout)?;
            for function in &functions {
                ensure!(function["pending"] == 0, "{function}");
            }
            Ok((functions.len() == 2).then_some(()))
        })
        .await
    }

    /// Waits until there is an e-mail about this order.
    pub(crate) async fn mailed(&self, order: &str) -> Result<()> {
        until(&format!("the e-mail about {order}"), || async {
            let mails = self.mails().await?;
            Ok(mails
                .iter()
                .any(|mail| mail.order_id == order)
                .then_some(()))
        })
        .await
    }

    /// Waits until the function's `payment-failed` about this order has arrived in ORDERS.
    pub(crate) async fn payment_failed(&self, order: &str) -> Result<()> {
        let subject = format!("orders.{order}.payment-failed");
        until(&subject, || async {
            let orders = self.messages("ORDERS").await?;
            Ok(orders
                .iter()
                .any(|message| message.subject.as_str() == subject)
                .then_some(()))
        })
        .await
    }

    async fn mails(&self) -> Result<Vec<Mail>> {
        let messages = self.messages("NOTIFICATIONS").await?;
        let mails = messages.iter().map(|message| {
            serde_json::from_slice(&message.payload)
                .with_context(|| format!("NOTIFICATIONS #{} is no e-mail", message.sequence))
        });
        mails.collect()
    }

    /// All there is to see.
    pub(crate) async fn everything(&self) -> Result<Seen> {
        let bucket = self.js.get_key_value(APP).await?;
        let mut keys: Vec<String> = bucket.keys().await?.try_collect().await?;
        keys.retain(|key| key.starts_with("orders."));
        keys.sort();
        let mut orders = Vec::new();
        for key in keys {
            let id = key.trim_start_matches("orders.").to_owned();
            let order = self
                .order(&id)
                .await?
                .with_context(|| format!("{key} vanished"))?;
            orders.push((id, order));
        }
        let mut payment_failed = self.messages("ORDERS").await?;
        payment_failed.retain(|message| message.subject.ends_with(".payment-failed"));
        let dead = self.messages(&format!("PELTON_DEAD_{APP}")).await?;
        Ok(Seen {
            orders,
            mails: self.mails().await?,
            dead: dead.iter().map(DeadLetter::read).collect::<Result<_>>()?,
            payment_failed,
        })
    }

    /// All messages of a stream.
    async fn messages(&self, name: &str) -> Result<Vec<StreamMessage>> {
        let mut stream = self
            .js
            .get_stream(name)
            .await
            .with_context(|| format!("stream {name}"))?;
        let state = stream.info().await?.state.clone();
        let mut all = Vec::new();
        if state.messages > 0 {
            for sequence in state.first_sequence..=state.last_sequence {
                all.push(stream.get_raw_message(sequence).await?);
            }
        }
        Ok(all)
    }
}

impl DeadLetter {
    fn read(message: &StreamMessage) -> Result<Self> {
        let header = |name: &str| {
            let value = message
                .headers
                .get(name)
                .map(|value| value.as_str().to_owned());
            value.with_context(|| format!("dead letter {} has no header {name}", message.sequence))
        };
        let attempts: Vec<Value> = serde_json::from_str(&header("Pelton-Attempts")?)?;
        Ok(Self {
            function: header("Pelton-Function")?,
            subject: header("Pelton-Subject")?,
            code: header("Pelton-Code")?,
            reason: header("Pelton-Reason")?,
            attempts: attempts.len(),
            event_id: header("Pelton-Event-Id")?,
        })
    }
}
