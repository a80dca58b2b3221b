//! The custom section `pelton:handlers`: a JSON object per line says which handler takes which subjects.
//! The linker joins the lines of a crate's handlers; the section stays in the core module inside the component.

use wasm_encoder::{ComponentSectionId, CustomSection, Encode};
use wasmparser::{Parser, Payload};

use super::{ComponentError, damaged};
use crate::config::canonical;
use crate::event::subject;
use crate::records::Handler;

const SECTION: &str = "pelton:handlers";

/// All announcements, those of nested modules too. Their order in the bytes is the linker's choice
/// and has no meaning: they are sorted.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Handler>, ComponentError> {
    let mut handlers = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        if let Payload::CustomSection(section) = payload.map_err(|error| damaged(&error))?
            && section.name() == SECTION
        {
            lines(section.data(), &mut handlers)?;
        }
    }
    Ok(canonical(handlers))
}

/// The bytes with one more section.
pub(super) fn append(mut bytes: Vec<u8>, handlers: &[&Handler]) -> Result<Vec<u8>, ComponentError> {
    let mut data = String::new();
    for handler in handlers {
        let line = serde_json::to_string(handler)
            .map_err(|error| ComponentError(format!("handler {:?}: {error}", handler.handler)))?;
        data.push_str(&line);
        data.push('\n');
    }
    bytes.push(ComponentSectionId::CoreCustom.into());
    CustomSection {
        name: SECTION.into(),
        data: data.into_bytes().into(),
    }
    .encode(&mut bytes);
    Ok(bytes)
}

fn lines(data: &[u8], handlers: &mut Vec<Handler>) -> Result<(), ComponentError> {
    let text = std::str::from_utf8(data)
        .map_err(|error| malformed(1, &format!("not UTF-8: {error}"), ""))?;
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let handler: Handler = serde_json::from_str(line)
            .map_err(|error| malformed(number + 1, &error.to_string(), line))?;
        if handler.handler.is_empty() {
            return Err(malformed(number + 1, "the handler has no name", line));
        }
        if !subject::is_pattern(&handler.subject) {
            return Err(malformed(number + 1, "the subject is none", line));
        }
        handlers.push(handler);
    }
    Ok(())
}

fn malformed(line: usize, why: &str, text: &str) -> ComponentError {
    ComponentError(format!(
        "line {line} of the component's section {SECTION} cannot be read: {why}: {text:?}; it must be like \
         {{\"handler\":\"paid\",\"subject\":\"orders.*.paid\"}}"
    ))
}
