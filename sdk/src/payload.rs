//! From an event's bytes to the handler's type, and, when that fails, to words that name the field and its place.

use serde::de::DeserializeOwned;

use crate::{Error, Result, json};

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
        let text = if data.is_empty() { b"null" } else { &data[..] };
        json::from_slice(text).map_err(|text| Error::reject("payload-invalid", text))
    }
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
            (
                r#"{"order_id":5}"#,
                "field `order_id`: invalid type: a number, expected a string",
                "line 1 column 13",
            ),
            (
                r#"{"order_id":"o-1"}"#,
                "missing field `payment`",
                "line 1 column 18",
            ),
            (
                r#"{"order_id":"o","payment":{"id":"p"}}"#,
                "field `payment`: missing field `cents`",
                "line 1",
            ),
            (
                "{\"order_id\":\"o\",\n \"payment\":{\"id\":\"p,}\\\"\", \"cents\":-1}}",
                "field `payment.cents`: invalid value: -1, expected u32",
                "line 2 column 37",
            ),
            (
                r#"{"order_id":"o","payment":{"id":"p","cents":1},"items":[{"id":"a","cents":2},{"id":null}]}"#,
                "field `items[1].id`: invalid type: null, expected a string",
                "line 1",
            ),
            ("not json", "no JSON value", "line 1 column 1"),
            ("[]", "invalid type: an array", "line 1"),
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
