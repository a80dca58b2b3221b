//! The HTTP endpoint of a node: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever supervises it. It has no login and no
//! encryption and tells nothing of events: it belongs on a private address.
//!
//! Everything is bounded: one request per connection, so many connections, a small head, a short time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::RuntimeError;
use super::health::Health;
use super::node::memory;
use super::shared::Shared;
use crate::nats::Connection;
use crate::telemetry::{self, Family, Value, metrics};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// What a connection may take from its first byte to its last.
const LIMIT: Duration = Duration::from_secs(10);
/// What a request's head may take, in time and bytes.
const HEAD: Duration = Duration::from_secs(5);
const HEAD_BYTES: usize = 16 << 10;
/// Pause after a connection could not be accepted: there are no more files to be had.
const PAUSE: Duration = Duration::from_millis(100);

/// What is shown.
pub(super) struct Station {
    pub(super) shared: Arc<Shared>,
    pub(super) health: Arc<Health>,
    /// The node's name in listings.
    pub(super) name: String,
}

type Answer = Response<Full<Bytes>>;

/// Listens where it is told to, before anything else is begun.
///
/// # Errors
/// The address is not to be had.
pub(super) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RuntimeError> {
    let failed = |error: std::io::Error| {
        RuntimeError(format!(
            "metrics and health cannot be shown at {address}: {error}\n  fix: give another address with --http, or port 0 for any that is free"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "metrics and health at http://{address}: /metrics, /healthz, /readyz");
    Ok((listener, address))
}

impl Station {
    /// Answers until it is dropped.
    pub(super) async fn run(self, listener: TcpListener) {
        let station = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // They are never closed.
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((connection, _)) => {
                    let station = station.clone();
                    tokio::spawn(async move {
                        station.serve(connection).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, connection: TcpStream) {
        let service = service_fn(|request| {
            let answer = self.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(connection), service);
        // Whoever asks badly, or hangs up, is told by the protocol; the node goes on.
        let _ = tokio::time::timeout(LIMIT, serving).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Answer {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let why = json!({ "error": "only GET and HEAD are answered" });
            let mut answer = answer_json(StatusCode::METHOD_NOT_ALLOWED, &why);
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
        }
        match request.uri().path() {
            "/metrics" => answer(StatusCode::OK, telemetry::CONTENT_TYPE, self.metrics()),
            "/healthz" => self.health(),
            "/readyz" => {
                let reasons = self.reasons();
                if reasons.is_empty() {
                    return answer_json(StatusCode::OK, &json!({ "status": "ready" }));
                }
                let body = json!({ "status": "not ready", "reasons": reasons });
                answer_json(StatusCode::SERVICE_UNAVAILABLE, &body)
            }
            _ => {
                let paths = ["/metrics", "/healthz", "/readyz"];
                let body = json!({ "error": "there is nothing here", "paths": paths });
                answer_json(StatusCode::NOT_FOUND, &body)
            }
        }
    }

    fn is_connected(&self) -> bool {
        let all = self.shared.connections.all();
        all.into_iter().all(Connection::is_connected)
    }

    fn by_connection(&self, metric: metrics::Metric, count: fn(&Connection) -> u64) -> Family {
        let mut family = Family::new(metric);
        for one in self.shared.connections.all() {
            family.push(&[one.name()], Value::Count(count(one)));
        }
        family
    }

    /// Why the node does not live; empty: it does.
    fn faults(&self) -> Vec<String> {
        let all = self.shared.connections.all().into_iter();
        let unwatched = all.filter(|one| !one.is_supervised()).map(|one| {
            let name = one.name();
            format!("nobody watches over connection {name} any more; restart the node")
        });
        self.health.stalled().into_iter().chain(unwatched).collect()
    }

    fn health(&self) -> Answer {
        let connections = self.shared.connections.all().map(connection);
        let faults = self.faults();
        if faults.is_empty() {
            let body = json!({ "status": "alive", "connections": connections });
            return answer_json(StatusCode::OK, &body);
        }
        let body = json!({ "status": "stalled", "reasons": faults, "connections": connections });
        answer_json(StatusCode::SERVICE_UNAVAILABLE, &body)
    }

    fn reasons(&self) -> Vec<String> {
        self.health.reasons(self.is_connected())
    }

    fn metrics(&self) -> String {
        let mut families = self.shared.meters.families();
        families.extend(self.of_functions());
        families.extend(self.of_node());
        telemetry::write(families)
    }

    fn of_functions(&self) -> [Family; 3] {
        let mut busy = Family::new(metrics::HANDLERS_BUSY);
        let mut limit = Family::new(metrics::HANDLERS_LIMIT);
        let mut ready = Family::new(metrics::FUNCTION_READY);
        for one in self.health.functions() {
            let labels = [one.app.as_str(), &one.function];
            busy.push(&labels, Value::Gauge(f64::from(one.busy)));
            limit.push(&labels, Value::Gauge(f64::from(one.concurrency)));
            ready.push(&labels, Value::Gauge(truth(one.is_ready())));
        }
        [busy, limit, ready]
    }

    fn of_node(&self) -> Vec<Family> {
        let (instances, most) = self.shared.sandbox.instances();
        let one = Family::one;
        let mut info = Family::new(metrics::BUILD_INFO);
        let labels = [env!("CARGO_PKG_VERSION"), &self.shared.node, &self.name];
        info.push(&labels, Value::Gauge(1.0));
        let mut all = vec![
            info,
            one(metrics::INSTANCES, instances as f64),
            one(metrics::INSTANCES_LIMIT, most as f64),
            one(metrics::CONNECTED, truth(self.is_connected())),
            self.by_connection(metrics::CONNECTION_BREAKS, Connection::breaks),
            self.by_connection(metrics::CLIENTS_REPLACED, Connection::replacements),
            one(metrics::READY, truth(self.reasons().is_empty())),
            one(metrics::DRAINING, truth(self.health.is_draining())),
            one(metrics::UPTIME_SECONDS, self.health.uptime().as_secs_f64()),
        ];
        if let Some(bytes) = memory() {
            all.push(one(metrics::MEMORY_BYTES, bytes as f64));
        }
        all
    }
}

/// One line of `/healthz`.
fn connection(connection: &Connection) -> serde_json::Value {
    json!({
        "name": connection.name(),
        "connected": connection.is_connected(),
        "breaks": connection.breaks(),
        "replaced": connection.replacements(),
    })
}

fn truth(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

fn answer_json(status: StatusCode, body: &serde_json::Value) -> Answer {
    answer(status, "application/json", format!("{body}\n"))
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
