//! What was built: turns a core module into a component, and reads what a component announces and imports.

use crate::records::Handler;

/// A component that Pelton can run, and what it says of itself.
#[derive(Debug, Clone)]
pub struct Component {
    /// The component's bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 of `bytes`, 64 hex digits.
    pub digest: String,
    /// Version of `pelton:function` that it exports, such as `0.1.0`.
    pub contract: String,
    /// From the custom section `pelton:handlers`, in its order.
    pub handlers: Vec<Handler>,
    /// Interfaces that it imports, such as `wasi:http/outgoing-handler@0.2.6`.
    pub imports: Vec<String>,
}

/// Why bytes are no component that Pelton can run: what, why, how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ComponentError(pub String);

/// Accepts a component, or a core module that carries wit-bindgen's section.
///
/// # Errors
/// Bytes that are neither, a component without the export, imports that no node links.
pub fn read(_bytes: &[u8]) -> Result<Component, ComponentError> {
    Err(ComponentError("not built yet".into()))
}
