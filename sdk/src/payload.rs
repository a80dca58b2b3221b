//! From an event's bytes to the handler's type, and, when that fails, to words that name the field and its place.

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// What the data of an [`Event`](crate::Event) can be: any type that serde can read from JSON, or [`Raw`].
///
/// No data at all is read as JSON's `null`, so that `Event<()>` and `Event<Option<T>>` take it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an event's data",
    label = "neither `serde::Deserialize` nor `pelton_sdk::Raw`",
    note = "derive it: #[derive(serde::Deserialize)], or take `Event<Raw>` for bytes as they came"
)]
pub trait Payload: Sized {
    /// Reads the data.
    ///
    /// # Errors
    /// A reject with code `payload-invalid` that names field and position.
    fn decode(data: Vec<u8>) -> Result<Self>;
}

/// An event's data as it came, JSON or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Raw(pub Vec<u8>);

impl Payload for Raw {
    fn decode(data: Vec<u8>) -> Result<Self> {
        Ok(Self(data))
    }
}

impl<T: DeserializeOwned> Payload for T {
    fn decode(data: Vec<u8>) -> Result<Self> {
        let json = if data.is_empty() { b"null" } else { &data[..] };
        serde_json::from_slice(json).map_err(|error| invalid(json, &error))
    }
}

/// The error for data that does not parse.
#[cold]
fn invalid(json: &[u8], error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let field = field_at(json, error.line(), error.column(), missing(&text));
    let message = match field.is_empty() {
        true => text,
        false => ["field `", &field, "`: ", &text].concat(),
    };
    Error::reject("payload-invalid", message)
}

/// The field that serde says is missing: its name is in the text alone.
fn missing(text: &str) -> Option<&str> {
    text.strip_prefix("missing field `")?.split('`').next()
}

/// One object or array around the place of the error.
struct Level {
    object: bool,
    key: String,
    index: usize,
    awaits_key: bool,
}

/// The path to the value that ends at this line and column (both from 1), such as `items[2].price`.
fn field_at(json: &[u8], line: usize, column: usize, missing: Option<&str>) -> String {
    let start: usize = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    // The last byte is not walked over, so that the value which it ends is still open.
    let end = (start + column).saturating_sub(1).min(json.len());
    let mut levels = walk(json.get(..end).unwrap_or(json));
    if let (Some(level), Some(name)) = (levels.last_mut(), missing) {
        level.key = name.to_owned();
    }
    let mut path = String::new();
    for level in &levels {
        if !level.object {
            path.push('[');
            path.push_str(&level.index.to_string());
            path.push(']');
        } else if !level.key.is_empty() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&level.key);
        }
    }
    path
}

/// The objects and arrays that are open at the end of `json`, outermost first.
fn walk(json: &[u8]) -> Vec<Level> {
    let mut levels: Vec<Level> = Vec::new();
    let mut bytes = json.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => levels.push(Level {
                object: byte == b'{',
                key: String::new(),
                index: 0,
                awaits_key: byte == b'{',
            }),
            b'}' | b']' => drop(levels.pop()),
            b'"' => {
                let text = string(&mut bytes);
                if let Some(level) = levels.last_mut().filter(|level| level.awaits_key) {
                    level.key = text;
                    level.awaits_key = false;
                }
            }
            b',' => {
                if let Some(level) = levels.last_mut() {
                    level.index += 1;
                    level.awaits_key = level.object;
                }
            }
            _ => {}
        }
    }
    levels
}

/// The rest of a string, escapes as they stand; it may lack its end.
fn string(bytes: &mut impl Iterator<Item = u8>) -> String {
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => {
                text.push(byte);
                text.extend(bytes.next());
            }
            _ => text.push(byte),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disposition;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Order {
        order_id: String,
        payment: Payment,
        #[serde(default)]
        items: Vec<Payment>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Payment {
        id: String,
        cents: u32,
    }

    #[test]
    fn errors_name_field_and_position() {
        for (json, field, position) in [
            (r#"{"order_id":5}"#, "`order_id`: invalid type", "column 13"),
            (
                r#"{"order_id":"o-1"}"#,
                "`payment`: missing field",
                "column 18",
            ),
            (
                r#"{"order_id":"o","payment":{"id":"p"}}"#,
                "`payment.cents`: missing field",
                "line 1",
            ),
            (
                "{\"order_id\":\"o\",\n \"payment\":{\"id\":\"p,}\\\"\", \"cents\":-1}}",
                "`payment.cents`: invalid value",
                "line 2 column 36",
            ),
            (
                r#"{"order_id":"o","payment":{"id":"p","cents":1},"items":[{"id":"a","cents":2},{"id":null}]}"#,
                "`items[1].id`: invalid type",
                "line 1",
            ),
            ("not json", "expected ident", "line 1 column 2"),
            ("", "invalid type: null", ""),
        ] {
            let error = Order::decode(json.as_bytes().to_vec()).unwrap_err();
            assert_eq!(error.disposition, Disposition::Reject);
            assert_eq!(error.code, "payload-invalid");
            assert!(error.message.contains(field), "{json}: {}", error.message);
            assert!(
                error.message.contains(position),
                "{json}: {}",
                error.message
            );
        }
    }

    #[test]
    fn no_data_is_null() {
        <()>::decode(Vec::new()).unwrap();
        assert_eq!(Option::<u8>::decode(Vec::new()).unwrap(), None);
        assert_eq!(Raw::decode(vec![0xff]).unwrap(), Raw(vec![0xff]));
    }
}
