//! One attempt: an instance, a call bounded in time, and what came of it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use wasmtime::{Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;

use super::guest::Guest;
use super::host::Host;
use super::pool::{Acquired, Instance};
use super::{Call, Function};
use crate::effects::{Attempt, Collector, Effects, Failure};

/// What ends a guest that is over its time; never seen outside this file.
#[derive(Debug, thiserror::Error)]
#[error("over its time")]
struct OverTime;

impl Function {
    /// Runs one attempt to its end, its timeout or its trap.
    ///
    /// Waits for an instance when all that the node may have are busy; that wait is not part of the attempt's time.
    pub async fn invoke(&self, call: Box<Call>) -> Attempt {
        let acquired = match self.inner.pool.acquire(self.inner.spec.fresh).await {
            Ok(acquired) => acquired,
            Err(error) => return failed(Failure::retry("pelton-unavailable", error.to_string())),
        };
        let deadline = Instant::now() + self.inner.spec.timeout;
        let mut instance = match acquired {
            Acquired::Warm(instance) => instance,
            Acquired::Room(permit) => match self.instantiate(permit, deadline, &call).await {
                Ok(instance) => instance,
                Err(failure) => return failed(failure),
            },
        };
        let (result, effects, sound) = self.run(&mut instance, call, deadline).await;
        if sound && !self.inner.spec.fresh {
            self.inner.pool.put_back(instance);
        }
        Attempt { result, effects }
    }

    /// A new instance; its start code counts towards the attempt's time.
    async fn instantiate(
        &self,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
        call: &Call,
    ) -> Result<Instance, Failure> {
        let store = self.store(deadline);
        store.data().logs.open(call.logs.clone());
        self.make(store, permit, deadline).await
    }

    /// A new instance without an attempt: shows at load that the component can be started at all.
    pub(super) async fn warm_up(&self, permit: OwnedSemaphorePermit) -> Result<Instance, Failure> {
        let deadline = Instant::now() + self.inner.spec.timeout;
        self.make(self.store(deadline), permit, deadline).await
    }

    async fn make(
        &self,
        mut store: Store<Host>,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<Instance, Failure> {
        let made = timeout_at(deadline, self.start(&mut store)).await;
        let critical = store.data().logs.close();
        match made {
            Ok(Ok(guest)) => Ok(Instance {
                store,
                guest,
                _permit: permit,
            }),
            Ok(Err(error)) => Err(self.trapped(&store, &error, critical)),
            Err(_) => Err(self.over_time()),
        }
    }

    fn store(&self, deadline: Instant) -> Store<Host> {
        let host = Host::new(Arc::clone(&self.inner.spec));
        let mut store = Store::new(self.inner.pre.engine(), host);
        store.limiter(|host| &mut host.limiter);
        // At every tick the guest yields, so that the other tasks of this thread go on; a loop without
        // end ends here.
        store.epoch_deadline_callback(|store| {
            if Instant::now() >= store.data().deadline {
                return Err(OverTime.into());
            }
            Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(tokio::task::yield_now()),
            ))
        });
        store.set_epoch_deadline(1);
        store.data_mut().begin(deadline);
        store
    }

    async fn start(&self, store: &mut Store<Host>) -> wasmtime::Result<Guest> {
        let instance = self.inner.pre.instantiate_async(&mut *store).await?;
        self.inner.export.of(store, &instance)
    }

    /// The call itself; says, too, whether the instance may be used again.
    async fn run(
        &self,
        instance: &mut Instance,
        call: Box<Call>,
        deadline: Instant,
    ) -> (Result<(), Failure>, Effects, bool) {
        let Instance { store, guest, .. } = instance;
        let outcome = timeout_at(deadline, self.call(store, guest, call, deadline)).await;
        let critical = store.data().logs.close();
        let effects = store.data_mut().attempt.take().map(Collector::finish);
        let effects = effects.unwrap_or_default();
        match outcome {
            Ok(Ok(result)) => (result, effects, true),
            Ok(Err(error)) => (Err(self.trapped(store, &error, critical)), effects, false),
            Err(_) => (Err(self.over_time()), effects, false),
        }
    }

    /// Not part of what waits: the event is in the guest's memory when it begins.
    fn call<'a>(
        &self,
        store: &'a mut Store<Host>,
        guest: &'a Guest,
        call: Box<Call>,
        deadline: Instant,
    ) -> impl Future<Output = wasmtime::Result<Result<(), Failure>>> + Send + 'a {
        let Call {
            delivery,
            txn,
            state,
            logs,
        } = *call;
        let rules = Arc::clone(&self.inner.rules);
        let host = store.data_mut();
        host.begin(deadline);
        host.logs.open(logs);
        host.attempt = Some(Collector::new(rules, state, txn, &delivery));
        store.set_epoch_deadline(1);
        guest.call(store, delivery)
    }

    fn over_time(&self) -> Failure {
        Failure::retry(
            "pelton-timeout",
            format!(
                "the attempt took longer than {}; raise `timeout` of the function in pelton.toml if that can be right",
                humantime::format_duration(self.inner.spec.timeout)
            ),
        )
    }

    /// Says why a guest did not return: what it said itself comes first.
    fn trapped(
        &self,
        store: &Store<Host>,
        error: &wasmtime::Error,
        critical: Option<String>,
    ) -> Failure {
        if error.downcast_ref::<OverTime>().is_some() {
            return self.over_time();
        }
        let why = match (
            error.downcast_ref::<Trap>(),
            error.downcast_ref::<I32Exit>(),
        ) {
            (Some(Trap::StackOverflow), _) => {
                "the handler's stack is exhausted: it recursed too deeply".to_owned()
            }
            (Some(trap), _) => trap.to_string(),
            (None, Some(exit)) => format!("the handler called exit({})", exit.0),
            (None, None) => format!("{:#}", error),
        };
        let message = match (critical, store.data().limiter.refusal()) {
            (Some(critical), Some(refusal)) => format!("{critical} ({refusal})"),
            (Some(critical), None) => critical,
            (None, Some(refusal)) => format!("{refusal}; {why}"),
            (None, None) => why,
        };
        Failure::retry("pelton-trap", message)
    }
}

/// An attempt that never reached its handler.
fn failed(failure: Failure) -> Attempt {
    Attempt {
        result: Err(failure),
        effects: Effects::default(),
    }
}
