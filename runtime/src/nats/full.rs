//! Recognises and explains the server's limit of consumers.

/// Part of the text of every client error that wraps `maximum consumers limit reached`.
const CODE: &str = "error code 10026";

/// Whether an error says that the limit of consumers is reached.
pub(crate) fn is_full(why: &str) -> bool {
    why.contains(CODE)
}

/// Describes why the server refused a consumer, and what to do about the limit.
pub(crate) fn consumer_refused(stream: &str, error: &dyn std::fmt::Display) -> String {
    let why = error.to_string();
    if !is_full(&why) {
        return format!("cannot read stream {stream}: {why}");
    }
    format!(
        "cannot read stream {stream}: it has as many consumers as are allowed ({CODE}, maximum consumers limit reached); delete those that \
         nobody needs (`nats consumer ls {stream}`), or raise the limit: `jetstream {{ limits {{ default_max_consumers }} }}` of the server, \
         `max_consumers` of the stream, or the account's"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumer_limit_is_recognised_and_explained() {
        let said = "JetStream error: maximum consumers limit reached (code 400, error code 10026)";
        let full = consumer_refused("KV_shop", &said);
        assert!(
            is_full(&full) && full.contains("default_max_consumers"),
            "{full}"
        );
        let other = consumer_refused("KV_shop", &"timed out");
        assert_eq!(other, "cannot read stream KV_shop: timed out");
        assert!(!is_full(&other));
    }
}
