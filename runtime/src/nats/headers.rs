//! Headers as the client library has them, and as events have them.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::event::Headers;

/// To be sent. The client panics over names and values that a header cannot hold: line breaks in a
/// value become spaces, and a header without a valid name is left out.
pub(crate) fn header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    append(&mut map, headers);
    map
}

/// Adds headers to be sent, as [`header_map`] does.
pub(crate) fn append(map: &mut HeaderMap, headers: &Headers) {
    for (name, value) in headers {
        match HeaderName::from_str(name) {
            Ok(name) => map.append(name, header_value(value)),
            Err(error) => tracing::debug!(name, %error, "a header is left out"),
        }
    }
}

/// A value that a header can hold: line breaks become spaces.
pub(crate) fn header_value(value: &str) -> HeaderValue {
    let lines = value.replace(['\r', '\n'], " ");
    HeaderValue::from_str(&lines).unwrap_or_default()
}

/// As they came; none is the same as empty. See [`sort`] for their order.
pub(crate) fn headers(map: Option<&HeaderMap>) -> Headers {
    let all = map.into_iter().flat_map(HeaderMap::iter);
    let mut all: Headers = all
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect();
    sort(&mut all);
    all
}

/// Orders headers by name, regardless of case; values of one name stay in the order of the message.
///
/// The client keeps headers in a hash map, which forgets how names followed each other. This order
/// depends on nothing but the message, so all nodes see, and decide, the same.
pub(super) fn sort(headers: &mut Headers) {
    fn lower(name: &str) -> impl Iterator<Item = u8> {
        name.bytes().map(|byte| byte.to_ascii_lowercase())
    }
    headers.sort_by(|(a, _), (b, _)| lower(a).cmp(lower(b)).then_with(|| a.cmp(b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_headers_depends_on_the_message_alone() {
        let names = ["b", "A", "a", "Content-Type", "content-type", "x-1", "X-2"];
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..64 {
            // Each map has a hash of its own.
            let mut map = HeaderMap::new();
            for name in names {
                map.append(name, "1");
                map.append(name, "0");
            }
            orders.insert(headers(Some(&map)));
        }
        let order = orders.pop_first().unwrap();
        assert_eq!(orders.len(), 0);
        let names: Vec<&str> = order.iter().step_by(2).map(|(name, _)| &**name).collect();
        let expected = ["A", "a", "b", "Content-Type", "content-type", "x-1", "X-2"];
        assert_eq!(names, expected);
        assert!(
            order
                .chunks(2)
                .all(|pair| pair[0].1 == "1" && pair[1].1 == "0")
        );
    }

    #[test]
    fn what_no_header_can_hold_is_not_sent() {
        let given = [("A", "one\r\ntwo"), ("B C", "x"), ("\u{e9}", "x")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sent = headers(Some(&header_map(&given.to_vec())));
        assert_eq!(sent, [("A".to_owned(), "one  two".to_owned())]);
    }
}
