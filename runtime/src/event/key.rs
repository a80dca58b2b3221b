//! The ordering key of an event.

use super::{Event, Message, decode};
use crate::config::KeySource;

/// Longest key, bytes: it stands in a subject, in Base64, which the server takes up to 4096 bytes with what else is on that line.
pub const MAX_KEY: usize = 1024;

/// The key, as text; `None`: the event has none there, or is malformed. Always the same for the same message.
pub fn key(source: &KeySource, message: &Message) -> Option<String> {
    let found = match source {
        KeySource::Token(at) => {
            let at = usize::try_from(at.checked_sub(1)?).ok()?;
            message.subject.split('.').nth(at)?.to_owned()
        }
        KeySource::Attribute(name) => attribute(decode(message).ok()?.event, name)?,
        KeySource::Data(pointer) => field(&decode(message).ok()?.event, pointer)?,
    };
    (!found.is_empty()).then_some(found)
}

fn attribute(event: Event, name: &str) -> Option<String> {
    match name {
        "id" => Some(event.id),
        "source" => Some(event.source),
        "type" => Some(event.ty),
        "subject" => event.subject,
        "datacontenttype" => event.datacontenttype,
        "dataschema" => event.dataschema,
        _ => event.extensions.get(name).cloned(),
    }
}

/// A string, or a number or boolean as it is written.
fn field(event: &Event, pointer: &str) -> Option<String> {
    let data: serde_json::Value = serde_json::from_slice(&event.data).ok()?;
    match data.pointer(pointer)? {
        serde_json::Value::String(text) => Some(text.clone()),
        found @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => {
            Some(found.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(source: KeySource, headers: &[(&str, &str)], data: &str) -> Option<String> {
        let header = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let message = Message {
            subject: "orders.o-1.paid".into(),
            headers: headers.iter().map(header).collect(),
            payload: data.to_owned().into(),
            stream: "ORDERS".into(),
            sequence: 1,
            stored: 0,
        };
        key(&source, &message)
    }

    #[test]
    fn keys_of_a_message() {
        let event = [
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/s"),
            ("ce-type", "paid"),
            ("ce-subject", "o-2"),
            ("ce-customer", "c-3"),
        ];
        let data = r#"{"order_id":"o-4","n":5,"deep":{"x":"y"},"list":[]}"#;
        let attribute = |name: &str| KeySource::Attribute(name.into());
        let pointer = |path: &str| KeySource::Data(path.into());
        for (source, expected) in [
            (KeySource::Token(2), Some("o-1")),
            (KeySource::Token(4), None),
            (attribute("subject"), Some("o-2")),
            (attribute("customer"), Some("c-3")),
            (attribute("id"), Some("7")),
            (attribute("absent"), None),
            (pointer("/order_id"), Some("o-4")),
            (pointer("/n"), Some("5")),
            (pointer("/deep/x"), Some("y")),
            (pointer("/list"), None),
            (pointer("/absent"), None),
        ] {
            assert_eq!(
                found(source.clone(), &event, data).as_deref(),
                expected,
                "{source:?}"
            );
        }
        assert_eq!(found(pointer("/n"), &[], "no JSON"), None);
        let malformed = [("ce-specversion", "1.0")];
        assert_eq!(found(attribute("id"), &malformed, "{}"), None);
        assert_eq!(
            found(KeySource::Token(1), &malformed, "{}").as_deref(),
            Some("orders")
        );
    }
}
