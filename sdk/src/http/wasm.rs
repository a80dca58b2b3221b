//! One request through `wasi:http`, from headers to the last byte of the answer.

use super::bindings::wasi::http::outgoing_handler;
use super::bindings::wasi::http::types::{
    ErrorCode, Fields, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions,
    Scheme,
};
use super::bindings::wasi::io::streams::StreamError;
use super::message::too_large;
use super::url::Url;
use super::{Request, Response};
use crate::host::Host;
use crate::{Error, Result};

/// What `blocking-write-and-flush` takes at once.
const WRITE: usize = 4096;
/// What one read asks for.
const READ: u64 = 64 << 10;

impl Host {
    pub(crate) fn http(&mut self, request: &Request, url: &Url<'_>) -> Result<Response> {
        let outgoing = outgoing(request, url)?;
        let body = match request.body.is_empty() {
            true => None,
            false => Some(outgoing.body().map_err(|()| invalid("body"))?),
        };
        let answer = outgoing_handler::handle(outgoing, Some(options(request)?));
        let answer = answer.map_err(|code| failed(&code, request, url))?;
        if let Some(body) = body {
            // A server may answer before it has read everything: its answer tells more than this failure.
            let _ = write(body, &request.body);
        }
        answer.subscribe().block();
        match answer.get() {
            Some(Ok(Ok(response))) => read(&response, request, url),
            Some(Ok(Err(code))) => Err(failed(&code, request, url)),
            Some(Err(())) | None => Err(Error::retry("http-failed", "no answer was handed over")),
        }
    }
}

fn invalid(what: &str) -> Error {
    Error::reject(
        "http-invalid",
        ["malformed ", what, " of the request"].concat(),
    )
}

fn outgoing(request: &Request, url: &Url<'_>) -> Result<OutgoingRequest> {
    let bytes = |value: &str| value.as_bytes().to_vec();
    let mut headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), bytes(value)))
        .collect();
    if !request.body.is_empty() || matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
        let length = request.body.len().to_string();
        headers.push(("content-length".to_owned(), length.into_bytes()));
    }
    let headers = Fields::from_list(&headers).map_err(|_| invalid("headers"))?;
    let outgoing = OutgoingRequest::new(headers);
    let method = match request.method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "PATCH" => Method::Patch,
        "OPTIONS" => Method::Options,
        other => Method::Other(other.to_owned()),
    };
    outgoing
        .set_method(&method)
        .map_err(|()| invalid("method"))?;
    let scheme = if url.https {
        Scheme::Https
    } else {
        Scheme::Http
    };
    outgoing
        .set_scheme(Some(&scheme))
        .map_err(|()| invalid("URL"))?;
    outgoing
        .set_authority(Some(url.authority))
        .map_err(|()| invalid("URL"))?;
    outgoing
        .set_path_with_query(Some(&url.path))
        .map_err(|()| invalid("URL"))?;
    Ok(outgoing)
}

fn options(request: &Request) -> Result<RequestOptions> {
    let nanos = u64::try_from(request.timeout.as_nanos()).unwrap_or(u64::MAX);
    let options = RequestOptions::new();
    options
        .set_connect_timeout(Some(nanos))
        .and_then(|()| options.set_first_byte_timeout(Some(nanos)))
        .and_then(|()| options.set_between_bytes_timeout(Some(nanos)))
        .map_err(|()| invalid("timeout"))?;
    Ok(options)
}

fn write(body: OutgoingBody, bytes: &[u8]) -> std::result::Result<(), ()> {
    let stream = body.write()?;
    for piece in bytes.chunks(WRITE) {
        stream.blocking_write_and_flush(piece).map_err(drop)?;
    }
    drop(stream); // A body cannot be finished while its stream lives.
    OutgoingBody::finish(body, None).map_err(drop)
}

fn read(response: &IncomingResponse, request: &Request, url: &Url<'_>) -> Result<Response> {
    let broken = || {
        Error::retry(
            "http-failed",
            [url.authority, ": the answer broke off"].concat(),
        )
    };
    let headers = response.headers().entries();
    let incoming = response.consume().map_err(|()| broken())?;
    let stream = incoming.stream().map_err(|()| broken())?;
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(READ) {
            Ok(piece) => body.extend_from_slice(&piece),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(_)) => return Err(broken()),
        }
        if body.len() > request.max_body {
            return Err(too_large(request));
        }
    }
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), text(value)));
    Ok(Response {
        status: response.status(),
        headers: headers.collect(),
        body,
    })
}

fn failed(code: &ErrorCode, request: &Request, url: &Url<'_>) -> Error {
    match code {
        ErrorCode::HttpRequestDenied => {
            let text = [
                "the function may not call ",
                url.authority,
                ": add it to allow.http in pelton.toml",
            ];
            Error::reject("http-not-allowed", text.concat())
        }
        ErrorCode::HttpRequestUriInvalid | ErrorCode::HttpRequestMethodInvalid => {
            invalid("URL or method")
        }
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout
        | ErrorCode::DnsTimeout => Error::retry(
            "http-timeout",
            [&request.url, ": no answer in time"].concat(),
        ),
        other => Error::retry("http-failed", format!("{}: {other}", request.url)),
    }
}
