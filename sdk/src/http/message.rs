//! Requests and responses, and what an answer that is no success means for the event.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use super::url::Url;
use crate::{Context, Error, Result};

/// A request to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// `http://` or `https://`, host, path and query.
    pub url: String,
    /// Names and values; names may repeat.
    pub headers: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: Vec<u8>,
    /// Longest wait for a connection, for the answer to begin, and between two pieces of it: each by itself.
    pub timeout: Duration,
    /// Longest body that is taken as an answer, bytes.
    pub max_body: usize,
    error: Option<Error>,
}

impl Request {
    /// A request with any method; it waits 10 s and takes an answer of 4 MiB.
    pub fn new(method: &str, url: impl Into<String>) -> Self {
        Self {
            method: method.to_owned(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: Duration::from_secs(10),
            max_body: 4 << 20,
            error: None,
        }
    }

    /// A `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    /// A `POST`.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new("POST", url)
    }

    /// A `PUT`.
    pub fn put(url: impl Into<String>) -> Self {
        Self::new("PUT", url)
    }

    /// A `DELETE`.
    pub fn delete(url: impl Into<String>) -> Self {
        Self::new("DELETE", url)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets a JSON body and its media type. Should it not serialize, sending it says so.
    pub fn json(mut self, data: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(data) {
            Ok(body) => self.body = body,
            Err(error) => self.error = Some(Error::reject("data-invalid", error.to_string())),
        }
        self.header("content-type", "application/json")
    }

    /// Sets how long to wait for a connection, for the answer to begin, and between two pieces of it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long an answer may be, bytes.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sends it and waits for the whole answer. Any status is an answer; see [`Response::success`].
    ///
    /// # Errors
    /// Rejects: `http-invalid` (no URL, a malformed header), `http-not-allowed` (the manifest's `allow.http`),
    /// `http-too-large` (the answer). Retries: `http-timeout`, `http-failed`.
    pub fn send(mut self, ctx: &mut Context) -> Result<Response> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let url = Url::parse(&self.url).ok_or_else(|| {
            Error::reject(
                "http-invalid",
                ["`", &self.url, "` is no http URL"].concat(),
            )
        })?;
        let response = ctx.host.http(&self, &url)?;
        if response.body.len() > self.max_body {
            return Err(too_large(&self));
        }
        Ok(response)
    }
}

pub(super) fn too_large(request: &Request) -> Error {
    let limit = request.max_body.to_string();
    let text = [
        "the answer of ",
        &request.url,
        " has more than ",
        &limit,
        " bytes",
    ];
    Error::reject("http-too-large", text.concat())
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values; names may repeat.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer without headers.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (Vec::new(), body.into());
        Self {
            status,
            headers,
            body,
        }
    }

    /// The first header of this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The answer itself when its status is 2xx.
    ///
    /// # Errors
    /// Code `http-status`: a retry for 408, 425, 429 and 5xx (no sooner than `retry-after` says), a reject for all others.
    pub fn success(self) -> Result<Self> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let shown = self
            .body
            .get(..self.body.len().min(256))
            .unwrap_or_default();
        let status = self.status.to_string();
        let text = ["status ", &status, ": ", &String::from_utf8_lossy(shown)].concat();
        if !matches!(self.status, 408 | 425 | 429 | 500..=599) {
            return Err(Error::reject("http-status", text));
        }
        let seconds = self
            .header("retry-after")
            .and_then(|value| value.trim().parse().ok());
        Err(match seconds {
            Some(seconds) => Error::retry_after(Duration::from_secs(seconds), "http-status", text),
            None => Error::retry("http-status", text),
        })
    }

    /// The body, read from its JSON.
    ///
    /// # Errors
    /// A reject with code `http-body-invalid`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        crate::json::from_slice(&self.body).map_err(|text| Error::reject("http-body-invalid", text))
    }

    /// The body as text.
    ///
    /// # Errors
    /// A reject with code `http-body-invalid`.
    pub fn text(self) -> Result<String> {
        String::from_utf8(self.body)
            .map_err(|error| Error::reject("http-body-invalid", error.to_string()))
    }
}
