//! What was built: turns a core module into a component, and reads what a component announces and imports.
//!
//! No guest code runs here: `build`, `check` and `deploy` learn all they need from the bytes.

mod handlers;
mod imports;
mod module;

use sha2::{Digest, Sha256};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

use crate::records::Handler;

pub(crate) use imports::{check as check_imports, is_http};

/// The export that makes a component a function; its version follows.
pub(crate) const HANDLER_EXPORT: &str = "pelton:function/handler@";
/// How a function is built, for those whose bytes are none.
const HOW_TO_BUILD: &str = "build it with `pelton build`, or for wasm32-unknown-unknown with the Pelton SDK \
     (Rust), or with your language's component tools from sdk/wit (world `function`)";

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

impl Component {
    /// Whether it can only run where the manifest has `allow.http`.
    pub fn needs_http(&self) -> bool {
        self.imports.iter().any(|name| is_http(name))
    }
}

/// Why bytes are no component that Pelton can run: what, why, how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ComponentError(pub String);

/// Accepts a component, or a core module that carries wit-bindgen's section. The same bytes always give the same component.
///
/// # Errors
/// Bytes that are neither, a component without the export, imports that no node links.
pub fn read(bytes: &[u8]) -> Result<Component, ComponentError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(ComponentError(format!(
            "this is no WebAssembly: it does not begin with \\0asm; {HOW_TO_BUILD}"
        )));
    }
    let bytes = match encoding(bytes)? {
        Encoding::Component => bytes.to_vec(),
        Encoding::Module => module::to_component(bytes)?,
    };
    let surface = surface(&bytes)?;
    let contract = contract(&surface.exports)?;
    imports::check(&surface.imports)?;
    Ok(Component {
        digest: hex::encode(Sha256::digest(&bytes)),
        handlers: handlers::read(&bytes)?,
        contract,
        imports: surface.imports,
        bytes,
    })
}

/// Announces handlers in a component whose language cannot: appends the custom section `pelton:handlers`.
/// Handlers that are announced already are not announced again.
///
/// # Errors
/// As [`read`].
pub fn add_handlers(bytes: &[u8], added: &[Handler]) -> Result<Component, ComponentError> {
    let component = read(bytes)?;
    let missing: Vec<&Handler> = added
        .iter()
        .filter(|handler| !component.handlers.contains(handler))
        .collect();
    if missing.is_empty() {
        return Ok(component);
    }
    read(&handlers::append(component.bytes, &missing)?)
}

/// Component or core module, from the header; the rest is validated later.
fn encoding(bytes: &[u8]) -> Result<Encoding, ComponentError> {
    match Parser::new(0).parse_all(bytes).next() {
        Some(Ok(Payload::Version { encoding, .. })) => Ok(encoding),
        Some(Err(error)) => Err(damaged(&error)),
        _ => Err(ComponentError(format!(
            "these bytes end after WebAssembly's first word; {HOW_TO_BUILD}"
        ))),
    }
}

/// What a component imports and exports.
struct Surface {
    imports: Vec<String>,
    exports: Vec<String>,
}

fn surface(bytes: &[u8]) -> Result<Surface, ComponentError> {
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(bytes)
        .map_err(|error| damaged(&error))?;
    let mut found = Surface {
        imports: Vec::new(),
        exports: Vec::new(),
    };
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| damaged(&error))? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import.map_err(|error| damaged(&error))?;
                    found.imports.push(import.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(|error| damaged(&error))?;
                    found.exports.push(export.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The version of the contract that is exported.
fn contract(exports: &[String]) -> Result<String, ComponentError> {
    let versions: Vec<&str> = exports
        .iter()
        .filter_map(|name| name.strip_prefix(HANDLER_EXPORT))
        .collect();
    if let Some(version) = versions.iter().find(|version| version.starts_with("0.1.")) {
        return Ok((*version).to_owned());
    }
    match versions.first() {
        Some(version) => Err(ComponentError(format!(
            "the component exports {HANDLER_EXPORT}{version}, and this release of Pelton serves 0.1: \
             use a release of Pelton that serves it, or build against pelton:function@0.1.0"
        ))),
        None => Err(ComponentError(format!(
            "the component does not export {HANDLER_EXPORT}0.1.0, so there is nothing to call (it exports {}); {HOW_TO_BUILD}",
            if exports.is_empty() {
                "nothing".to_owned()
            } else {
                exports.join(", ")
            }
        ))),
    }
}

fn damaged(error: &wasmparser::BinaryReaderError) -> ComponentError {
    ComponentError(format!(
        "the WebAssembly is damaged or cut short at byte {}: {}; build it again",
        error.offset(),
        error.message()
    ))
}

#[cfg(test)]
mod tests;
