//! An event to be: what a handler gives to [`Context::emit`](crate::Context::emit).

use serde::Serialize;

use crate::event::Timestamp;
use crate::{Error, Result};

/// An event to be. What is left out, the node adds, and the trace context with it.
///
/// ```
/// # use pelton_sdk::prelude::*;
/// # fn emit(ctx: &mut Context) -> Result {
/// let email = serde_json::json!({ "to": "c-1", "subject": "Thank you" });
/// ctx.emit(Draft::new("notifications.email", &email).ty("email_requested").attribute("priority", "high"))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a draft does nothing until it is given to `Context::emit`"]
pub struct Draft {
    /// The NATS subject to publish to.
    pub subject: String,
    /// None: made from the delivery and this draft's number, so that every attempt makes the same.
    pub id: Option<String>,
    /// None: `/<app>/<function>`.
    pub source: Option<String>,
    /// The attribute `type`. None: the NATS subject.
    pub ty: Option<String>,
    /// None: now.
    pub time: Option<Timestamp>,
    /// None: `application/json`.
    pub content_type: Option<String>,
    /// `subject`, `dataschema` and extensions: names of 1 to 20 bytes of `a-z 0-9`.
    pub attributes: Vec<(String, String)>,
    /// The data.
    pub data: Vec<u8>,
    error: Option<Error>,
}

impl Draft {
    /// JSON data. Should it not serialize, emitting it says so (a reject with code `data-invalid`).
    pub fn new(subject: impl Into<String>, data: &(impl Serialize + ?Sized)) -> Self {
        Self::from_json(subject.into(), serde_json::to_vec(data))
    }

    /// Data of any media type.
    pub fn bytes(subject: impl Into<String>, content_type: &str, data: impl Into<Vec<u8>>) -> Self {
        let draft = Self::from_json(subject.into(), Ok(data.into()));
        Self {
            content_type: Some(content_type.to_owned()),
            ..draft
        }
    }

    fn from_json(subject: String, json: serde_json::Result<Vec<u8>>) -> Self {
        let (data, error) = match json {
            Ok(data) => (data, None),
            Err(error) => (
                Vec::new(),
                Some(Error::reject("data-invalid", error.to_string())),
            ),
        };
        Self {
            subject,
            id: None,
            source: None,
            ty: None,
            time: None,
            content_type: None,
            attributes: Vec::new(),
            data,
            error,
        }
    }

    /// Sets the id; unique per source.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the source, a URI reference.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sets the attribute `type`.
    pub fn ty(mut self, ty: impl Into<String>) -> Self {
        self.ty = Some(ty.into());
        self
    }

    /// Sets when it happened.
    pub fn time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// Adds an attribute: `subject`, `dataschema` or an extension (1 to 20 bytes of `a-z 0-9`).
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.push((name.into(), value.into()));
        self
    }

    /// For tests: the data, read from its JSON.
    ///
    /// # Errors
    /// As reading an event's data.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        crate::json::from_slice(&self.data).map_err(|text| Error::reject("payload-invalid", text))
    }

    /// What went wrong while it was built.
    pub(crate) fn checked(mut self) -> Result<Self> {
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}
