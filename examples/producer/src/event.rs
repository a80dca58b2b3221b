//! An event as it goes over the wire: CloudEvents 1.0, NATS binding, binary mode.

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// What happened, ready to be sent any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Names this event for good: consumers tell repetitions by it.
    pub id: String,
    /// What happened, such as `order_paid`.
    pub ty: String,
    /// When it happened.
    pub time: OffsetDateTime,
    /// The NATS subject.
    pub subject: String,
    /// What the stream tells repetitions by, within its duplicate window; the id, unless set otherwise.
    pub dedupe: String,
    /// The body.
    pub data: Vec<u8>,
}

impl Event {
    /// An event that happens now. Ids are UUIDs of version 7, which sort by time.
    pub fn new(
        subject: impl Into<String>,
        ty: impl Into<String>,
        data: &serde_json::Value,
    ) -> Self {
        Self::raw(subject, ty, data.to_string().into_bytes())
    }

    /// The same with a body that is whatever it is.
    pub fn raw(subject: impl Into<String>, ty: impl Into<String>, data: Vec<u8>) -> Self {
        let id = Uuid::now_v7().to_string();
        Self {
            dedupe: id.clone(),
            id,
            ty: ty.into(),
            time: OffsetDateTime::now_utc(),
            subject: subject.into(),
            data,
        }
    }

    /// The message's headers.
    ///
    /// Header values are ASCII here; others would have to be percent-encoded, as the binding says.
    ///
    /// # Errors
    /// A time outside the years that RFC 3339 can write.
    pub fn headers(&self, source: &str) -> anyhow::Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-id", self.id.as_str());
        headers.insert("ce-source", source);
        headers.insert("ce-type", self.ty.as_str());
        headers.insert("ce-time", self.time.format(&Rfc3339)?.as_str());
        headers.insert("content-type", "application/json");
        headers.insert(NATS_MESSAGE_ID, self.dedupe.as_str());
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_carries_its_id_twice() {
        let event = Event::new("orders.o-1.paid", "order_paid", &serde_json::json!({}));
        let headers = event.headers("/shop/checkout").unwrap();
        let header = |name| headers.get(name).unwrap().as_str().to_owned();
        assert_eq!(header("ce-id"), event.id);
        assert_eq!(header("Nats-Msg-Id"), event.id);
        assert_eq!(header("ce-type"), "order_paid");
        assert_eq!(header("ce-source"), "/shop/checkout");
        assert!(header("ce-time").ends_with('Z'));
    }

    #[test]
    fn two_events_have_two_ids() {
        let new = || Event::new("orders.o-1.paid", "order_paid", &serde_json::json!({}));
        assert_ne!(new().id, new().id);
    }
}
