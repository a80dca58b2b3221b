//! The outside in native tests.

use std::fmt;

use super::url::Url;
use super::{Request, Response};
use crate::{Error, Result, TestHost};

type Answer = dyn FnMut(&Request) -> Result<Response> + Send;

/// Answers the requests of a test: `ctx.http = Some(TestServer::new(|request| Ok(Response::new(200, "…"))))`.
pub struct TestServer(Box<Answer>);

impl TestServer {
    /// Answers with what `answer` returns.
    pub fn new(answer: impl FnMut(&Request) -> Result<Response> + Send + 'static) -> Self {
        Self(Box::new(answer))
    }
}

impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestServer")
    }
}

impl TestHost {
    pub(crate) fn http(&mut self, request: &Request, url: &Url<'_>) -> Result<Response> {
        match &mut self.http {
            Some(TestServer(answer)) => answer(request),
            None => {
                let text = format!("{}: set `ctx.http` to answer requests", url.authority);
                Err(Error::retry("http-failed", text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Context, Disposition};

    fn answered(status: u16, header: Option<(&str, &str)>) -> Result<Response> {
        let mut ctx = Context::test();
        let mut response = Response::new(status, "text");
        response
            .headers
            .extend(header.map(|(n, v)| (n.to_owned(), v.to_owned())));
        ctx.http = Some(TestServer::new(move |_| Ok(response.clone())));
        Request::get("http://a.example/x").send(&mut ctx)?.success()
    }

    #[test]
    fn a_status_decides() {
        assert_eq!(answered(204, None).unwrap().status, 204);
        let disposition = |status, header| answered(status, header).unwrap_err().disposition;
        assert_eq!(disposition(404, None), Disposition::Reject);
        assert_eq!(disposition(503, None), Disposition::Retry);
        let busy = disposition(429, Some(("retry-after", "7")));
        assert_eq!(busy, Disposition::RetryAfter(Duration::from_secs(7)));
    }

    #[test]
    fn what_cannot_be_sent_is_rejected() {
        let mut ctx = Context::test();
        let code = |request: Request, ctx: &mut Context| request.send(ctx).unwrap_err().code;
        assert_eq!(code(Request::get("nowhere"), &mut ctx), "http-invalid");
        assert_eq!(code(Request::get("http://a"), &mut ctx), "http-failed");
        ctx.http = Some(TestServer::new(|_| Ok(Response::new(200, "12345"))));
        let small = Request::get("http://a").max_body(4);
        assert_eq!(code(small, &mut ctx), "http-too-large");
    }
}
