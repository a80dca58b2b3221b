//! Core module to component: what wasm32-unknown-unknown gives, wrapped as wit-bindgen's section in it describes.

use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use super::{ComponentError, HOW_TO_BUILD, damaged};

/// wit-bindgen's sections begin so.
const SECTION: &str = "component-type";
/// What a module built against WASI's first preview imports.
const PREVIEW1: &str = "wasi_snapshot_preview1";

pub(super) fn to_component(bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let mut described = false;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| damaged(&error))? {
            Payload::CustomSection(section) if section.name().starts_with(SECTION) => {
                described = true;
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| damaged(&error))?;
                    refuse_preview1(import.module)?;
                }
            }
            _ => {}
        }
    }
    if !described {
        return Err(ComponentError(format!(
            "this is a core module without wit-bindgen's section `{SECTION}`, so nothing says what it takes and gives; {HOW_TO_BUILD}"
        )));
    }
    ComponentEncoder::default()
        .validate(true)
        .module(bytes)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| {
            ComponentError(format!(
                "the core module does not become a component: {error:#}; {HOW_TO_BUILD}"
            ))
        })
}

fn refuse_preview1(module: &str) -> Result<(), ComponentError> {
    if module != PREVIEW1 {
        return Ok(());
    }
    Err(ComponentError(format!(
        "the module imports {PREVIEW1}, which needs an adapter that Pelton does not bring: build for \
         wasm32-unknown-unknown or wasm32-wasip2, or make it a component with your language's tools"
    )))
}
