//! Headers as the client library has them, and as events have them.

use async_nats::HeaderMap;

use crate::event::Headers;

/// To be sent.
pub(crate) fn header_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.as_str(), value.as_str());
    }
    map
}

/// As they came; none is the same as empty.
pub(crate) fn headers(map: Option<&HeaderMap>) -> Headers {
    let all = map.into_iter().flat_map(HeaderMap::iter);
    all.flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect()
}
