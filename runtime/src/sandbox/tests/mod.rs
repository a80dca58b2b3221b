//! The sandbox with real components.

mod cache;
mod effects;
pub(crate) mod guest;
mod sharing;
mod traps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::effects::{Attempt, MemoryState};
use crate::event::Event;
use crate::records::Target;
use guest::Guest;

/// A sandbox whose cache folder goes with it.
pub(super) struct Bench {
    pub(super) sandbox: Sandbox,
    pub(super) folder: tempfile::TempDir,
    pub(super) state: Arc<MemoryState>,
}

impl Bench {
    pub(super) fn new(max_instances: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new(SandboxConfig {
            cache_dir: folder.path().join("cache"),
            max_instances,
            max_memory: 64 << 20,
        })
        .unwrap();
        Self {
            sandbox,
            folder,
            state: Arc::default(),
        }
    }

    pub(super) async fn load(&self, guest: &Guest) -> Function {
        self.load_with(guest, spec()).await.unwrap()
    }

    pub(super) async fn load_with(
        &self,
        guest: &Guest,
        spec: FunctionSpec,
    ) -> Result<Function, SandboxError> {
        self.sandbox.load(&guest.component(), spec).await
    }

    pub(super) fn call(&self) -> (Call, LogLines) {
        let logs = LogLines::default();
        let call = Call {
            delivery: delivery(),
            txn: Txn::sample(),
            state: self.state.clone(),
            logs: logs.clone(),
        };
        (call, logs)
    }

    pub(super) async fn invoke(&self, function: &Function) -> Attempt {
        function.invoke(Box::new(self.call().0)).await
    }

    /// Loads and invokes once.
    pub(super) async fn run(&self, guest: &Guest) -> Attempt {
        let function = self.load(guest).await;
        self.invoke(&function).await
    }
}

pub(super) fn spec() -> FunctionSpec {
    FunctionSpec {
        app: "shop".into(),
        function: "orders".into(),
        memory: 16 << 20,
        timeout: Duration::from_secs(10),
        fresh: false,
        config: BTreeMap::from([("currency".to_owned(), "EUR".to_owned())]),
        http: Vec::new(),
        emit: vec!["orders.*.failed".into(), "nowhere.>".into()],
        targets: vec![Target {
            stream: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            max_message_size: Some(512 << 10),
        }],
        max_payload: 1 << 20,
    }
}

pub(super) fn delivery() -> Delivery {
    Delivery {
        event: Event {
            id: "e-1".into(),
            source: "/shop".into(),
            ty: "order_paid".into(),
            time: 1_700_000_000_000_000_000,
            subject: None,
            datacontenttype: Some("application/json".into()),
            dataschema: None,
            extensions: BTreeMap::from([("traceparent".to_owned(), TRACE.to_owned())]),
            data: Bytes::from_static(br#"{"order_id":"o-1"}"#),
        },
        subject: "orders.o-1.paid".into(),
        position: None,
        key: None,
        headers: vec![("x".into(), "y".into())],
        stored: 1_700_000_001_000_000_000,
        attempt: 1,
        max_attempts: 5,
        timeout: Duration::from_secs(10),
        expects_reply: false,
    }
}

pub(super) const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The failure of an attempt that must have failed.
pub(super) fn failure(attempt: &Attempt) -> &crate::effects::Failure {
    attempt.result.as_ref().unwrap_err()
}
