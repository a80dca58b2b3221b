//! Outbound HTTP of a guest: only to hosts that the manifest allows, and never longer than the attempt may take.

use std::sync::Arc;

use http::uri::Authority;
use http_body_util::BodyExt;
use tokio::time::Instant;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks, default_send_request};

use super::FunctionSpec;
use super::logs::Logs;

/// Judges and bounds the calls of one instance.
pub(super) struct Http {
    spec: Arc<FunctionSpec>,
    logs: Arc<Logs>,
    /// When the attempt that runs is over its time.
    pub(super) deadline: Instant,
}

type Exchange = Result<
    (
        http::Response<WasiBody>,
        Box<dyn Future<Output = Result<(), Error>> + Send>,
    ),
    Error,
>;

impl Http {
    /// For one instance of the function.
    pub(super) fn new(spec: Arc<FunctionSpec>, logs: Arc<Logs>) -> Self {
        Self {
            spec,
            logs,
            deadline: Instant::now(),
        }
    }

    fn refuse(&self, authority: &str) {
        self.logs.line(
            "warn",
            "pelton".into(),
            format!(
                "refused an HTTP call to {authority}: add to [functions.{}.allow] http = [\"{authority}\"] \
                 in pelton.toml and deploy, if the handler should make it",
                self.spec.function
            ),
        );
    }
}

impl WasiHttpHooks for Http {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Exchange> + Send> {
        let Some(authority) = request.uri().authority() else {
            return Box::new(async { Err(Error::HttpRequestUriInvalid) });
        };
        let implied = match request.uri().scheme_str() {
            Some("http") => 80,
            _ => 443,
        };
        let port = authority.port_u16().unwrap_or(implied);
        if !self
            .spec
            .http
            .iter()
            .any(|allowed| allows(allowed, authority, port))
        {
            self.refuse(authority.as_str());
            return Box::new(async { Err(Error::HttpRequestDenied) });
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let shorter = |wish: Option<std::time::Duration>| Some(wish.unwrap_or(left).min(left));
        let options = RequestOptions {
            connect_timeout: shorter(options.and_then(|o| o.connect_timeout)),
            first_byte_timeout: shorter(options.and_then(|o| o.first_byte_timeout)),
            between_bytes_timeout: shorter(options.and_then(|o| o.between_bytes_timeout)),
        };
        Box::new(async move {
            let (response, io) = default_send_request(request, Some(options)).await?;
            Ok((
                response.map(BodyExt::boxed_unsync),
                Box::new(io) as Box<dyn Future<Output = _> + Send>,
            ))
        })
    }
}

/// Whether an entry of `allow.http` (`host`: any port; `host:port`) admits a call to `authority`
/// at `port`.
fn allows(allowed: &str, authority: &Authority, port: u16) -> bool {
    let Ok(allowed) = allowed.parse::<Authority>() else {
        return false;
    };
    // `user@host` is not how a host is named; it is how one is disguised.
    !authority.as_str().contains('@')
        && allowed.host().eq_ignore_ascii_case(authority.host())
        && allowed.port_u16().is_none_or(|allowed| allowed == port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (allowed, called, ok) in [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "API.example.com:8443", true),
            ("api.example.com:443", "api.example.com:443", true),
            ("api.example.com:443", "api.example.com", true),
            ("api.example.com:80", "api.example.com", false),
            ("api.example.com:443", "api.example.com:8443", false),
            ("example.com", "api.example.com", false),
            ("example.com", "example.com@evil.org", false),
            ("example.com", "example.com.evil.org", false),
            ("[::1]:80", "[::1]:80", true),
            ("not a host", "api.example.com", false),
        ] {
            let authority: Authority = called.parse().unwrap();
            let port = authority.port_u16().unwrap_or(443);
            assert_eq!(allows(allowed, &authority, port), ok, "{allowed} {called}");
        }
    }
}
