//! A URL in the three parts that `wasi:http` wants; whether the host exists is the node's business.

/// An `http` or `https` URL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url<'a> {
    /// Not plain `http`.
    pub(crate) https: bool,
    /// Host, with its port if any.
    pub(crate) authority: &'a str,
    /// Path and query; begins with `/`.
    pub(crate) path: String,
}

impl<'a> Url<'a> {
    /// None when it is no absolute http URL, or carries a password, which belongs into a header.
    pub(crate) fn parse(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let https = scheme.eq_ignore_ascii_case("https");
        if !https && !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let rest = rest.split('#').next()?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let odd = |c: char| c == '@' || c.is_whitespace() || c.is_control();
        if authority.is_empty() || authority.contains(odd) {
            return None;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self {
            https,
            authority,
            path: [slash, path].concat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        for (url, https, authority, path) in [
            ("https://a.example", true, "a.example", "/"),
            ("HTTP://a:80/x/y?q=1#f", false, "a:80", "/x/y?q=1"),
            ("http://[::1]:8?q", false, "[::1]:8", "/?q"),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(
                (url.https, url.authority, url.path.as_str()),
                (https, authority, path)
            );
        }
        for bad in [
            "",
            "a.example",
            "ftp://a",
            "http://",
            "http:///x",
            "http://u:p@a",
            "http://a b",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad:?}");
        }
    }
}
