//! Which contract a component speaks. One variant for each, chosen once from its export, so that another
//! version of the contract, or an adapter for a foreign one, is one more variant and one more file.

use futures::TryFutureExt;
use wasmtime::Store;
use wasmtime::component::{Component, ComponentExportIndex, Instance, TypedFunc};

use super::host::Host;
use super::types;
use crate::component::HANDLER_EXPORT;
use crate::effects::Failure;
use crate::event::Delivery;

type Handle = TypedFunc<(types::Delivery,), (Result<(), types::Error>,)>;

/// Where a component's handler is found.
pub(super) enum Export {
    /// `pelton:function/handler@0.1.x`
    V0_1(ComponentExportIndex),
}

/// A handler that can be called.
pub(super) enum Guest {
    /// `pelton:function/handler@0.1.x`
    V0_1(Handle),
}

impl Export {
    /// None when the component exports no contract that this node serves.
    pub(super) fn find(component: &Component) -> Option<Self> {
        let ty = component.component_type();
        let name = ty
            .exports(component.engine())
            .map(|(name, _)| name.to_owned())
            .find(|name| {
                name.strip_prefix(HANDLER_EXPORT)
                    .is_some_and(|version| version.starts_with("0.1."))
            })?;
        let interface = component.get_export_index(None, name.as_str())?;
        let handle = component.get_export_index(Some(&interface), "handle")?;
        Some(Self::V0_1(handle))
    }

    /// The handler of one instance.
    pub(super) fn of(
        &self,
        store: &mut Store<Host>,
        instance: &Instance,
    ) -> wasmtime::Result<Guest> {
        match self {
            Self::V0_1(index) => Ok(Guest::V0_1(instance.get_typed_func(store, index)?)),
        }
    }
}

impl Guest {
    /// Hands a delivery over; the outer error is a trap.
    pub(super) fn call<'a>(
        &'a self,
        store: &'a mut Store<Host>,
        delivery: Delivery,
    ) -> impl Future<Output = wasmtime::Result<Result<(), Failure>>> + Send + 'a {
        match self {
            Self::V0_1(handle) => handle
                .call_async(store, (delivery.into(),))
                .map_ok(|(result,)| result.map_err(Failure::from)),
        }
    }
}
