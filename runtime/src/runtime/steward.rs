//! What others ask of this node, by the protocol of NATS micro services (ADR-32): who it is, how it fares, and that it take no more events.

use std::collections::HashMap;

use async_nats::HeaderMap;
use async_nats::service::error::Error;
use async_nats::service::{Request, ServiceExt};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::line::backoff;
use crate::names;
use crate::nats::{Connection, header_value};
use crate::records::{NodeOrder, NodeRecord};

/// Orders on their way to the node: who gives more waits.
const ORDERS: usize = 8;

/// Answers for the node.
pub(super) struct Steward {
    nats: Connection,
    /// The latest heartbeat.
    latest: watch::Receiver<NodeRecord>,
    orders: mpsc::Sender<NodeOrder>,
}

impl Steward {
    /// One, and what it passes on.
    pub(super) fn new(
        nats: Connection,
        latest: watch::Receiver<NodeRecord>,
    ) -> (Self, mpsc::Receiver<NodeOrder>) {
        let (orders, given) = mpsc::channel(ORDERS);
        let steward = Self {
            nats,
            latest,
            orders,
        };
        (steward, given)
    }

    /// Answers until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        for pause in backoff() {
            let Err(error) = self.serve(&stop).await else {
                return;
            };
            tracing::warn!(%error, "this node cannot be asked for anything now; it serves all the same");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn serve(&self, stop: &CancellationToken) -> Result<(), async_nats::Error> {
        let (latest, NodeRecord { node, host, .. }) =
            (self.latest.clone(), self.latest.borrow().clone());
        let metadata = [("pelton-node", &node), ("host", &host)];
        let metadata: HashMap<String, String> = metadata
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        let service = self
            .nats
            .client()
            .service_builder()
            .description("A Pelton node")
            .metadata(metadata)
            .stats_handler(move |_, _| serde_json::to_value(&*latest.borrow()).unwrap_or_default())
            .start(names::NODE_SERVICE, env!("CARGO_PKG_VERSION"))
            .await?;
        let control = service.endpoint_builder().name("control");
        let mut asked = control.add(names::node(&node)).await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                request = asked.next() => match request {
                    Some(request) => self.answer(request).await,
                    None => return Err("the connection's client has ended".into()),
                },
            }
        }
        service.stop().await
    }

    async fn answer(&self, request: Request) {
        let order = serde_json::from_slice::<NodeOrder>(&request.message.payload);
        let told = match order {
            Ok(order) if self.orders.send(order).await.is_ok() => {
                let body = serde_json::to_vec(&order).unwrap_or_default();
                let headers = HeaderMap::new();
                request.respond_with_headers(Ok(body.into()), headers).await
            }
            Ok(_) => refuse(&request, 503, "the node stops".to_owned()).await,
            Err(error) => {
                let why = format!("not understood: {error}; send {{\"drain\": true}} or false");
                refuse(&request, 400, why).await
            }
        };
        if let Err(error) = told {
            tracing::debug!(%error, "who asked this node was not answered");
        }
    }
}

async fn refuse(
    request: &Request,
    code: usize,
    status: String,
) -> Result<(), async_nats::PublishError> {
    // It goes into a header, and may quote what was asked.
    let status = header_value(&status).as_str().to_owned();
    request.respond(Err(Error { code, status })).await
}
