//! JSON into typed values, read by a small reader of our own.
//!
//! serde_json would do (and does all writing), but it formats the text of every error at once, floats included, which
//! makes the component `orders` 55 KB larger, above its budget, and does not say which field holds a wrong value.
//! ARCHITECTURE.md has what was measured. This reader tracks the path, and links what a type needs.
//! It takes what serde_json takes, but a struct is an object, never an array, and nothing malformed passes for being ignored.

mod access;
mod reader;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;

use reader::Reader;

/// Reads all of `json`.
///
/// # Errors
/// What is wrong, at which field, line and column.
pub(crate) fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let text = match std::str::from_utf8(json) {
        Ok(text) => text,
        Err(error) => return Err(not_text(error.valid_up_to())),
    };
    let mut reader = Reader::new(text);
    match T::deserialize(&mut reader) {
        Ok(value) => reader.end().map(|()| value),
        Err(fault) => Err(reader.explain(&fault)),
    }
}

#[cold]
fn not_text(at: usize) -> String {
    ["not UTF-8 from byte ", &at.to_string(), " on"].concat()
}
