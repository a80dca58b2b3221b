//! Server URLs. A URL may hold a login, and a malformed one may hold a login anywhere: messages
//! show a URL only as far
//! as it was understood, and never its login.

use async_nats::ServerAddr;

use super::NatsError;

/// In the place of a login.
const HIDDEN: &str = "(hidden)";
/// In the place of a list that cannot be understood.
const MALFORMED: &str = "(malformed, hidden)";

/// Parses a comma-separated list of server URLs.
///
/// # Errors
/// One of them is malformed; the message says which and why, and quotes none of it.
pub(super) fn servers(list: &str) -> Result<Vec<ServerAddr>, NatsError> {
    let urls = split(list);
    let count = urls.len();
    let mut servers = Vec::with_capacity(count);
    for (index, url) in urls.into_iter().enumerate() {
        let server = server(url).map_err(|why| {
            let which = match count {
                1 => "the server URL".to_owned(),
                _ => format!("server URL {} of {count}", index + 1),
            };
            NatsError(format!(
                "{which} is malformed: {why}; write it as nats://HOST:PORT (or tls://, ws://, wss://), and in a user or password write , @ : / ? # and % as %2C %40 %3A %2F %3F %23 and %25"
            ))
        })?;
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(NatsError(
            "the server URL is empty; pass --server nats://HOST:PORT, or leave it out for nats://127.0.0.1:4222".into(),
        ));
    }
    // The first part of a login with a comma in it looks like a server.
    let with_login = |server: &ServerAddr| server.username().is_some();
    if servers.iter().any(with_login) && !servers.first().is_some_and(with_login) {
        return Err(NatsError(
            "only a later one of the server URLs has a login; give it to the first one, and write a comma in a user or password as %2C, or the URLs as nats://HOST:PORT with --user and --password".into(),
        ));
    }
    Ok(servers)
}

fn split(list: &str) -> Vec<&str> {
    let urls = list.split(',').map(str::trim);
    urls.filter(|url| !url.is_empty()).collect()
}

/// Parses one URL; the error says what is wrong without quoting it.
fn server(url: &str) -> Result<ServerAddr, &'static str> {
    let known = ["nats", "tls", "ws", "wss"];
    if let Some((scheme, _)) = url.split_once("://")
        && !known.iter().any(|one| scheme.eq_ignore_ascii_case(one))
    {
        return Err("it begins with none of nats://, tls://, ws:// and wss://");
    }
    let server: ServerAddr = url.parse().map_err(|_| "its host or port is invalid")?;
    if server.host().is_empty() {
        return Err("it has no host");
    }
    // The parser ends the login at the first of these characters, and takes its beginning for host
    // and port.
    let parts = server.clone().into_inner();
    let behind = [Some(parts.path()), parts.query(), parts.fragment()];
    if behind.iter().flatten().any(|part| part.contains('@')) {
        return Err("its login holds a / ? or #");
    }
    Ok(server)
}

/// A list of server URLs as it may be shown: without logins.
pub fn without_logins(list: &str) -> String {
    let Ok(servers) = servers(list) else {
        return match split(list).is_empty() {
            true => String::new(),
            false => MALFORMED.to_owned(),
        };
    };
    let shown = split(list).into_iter().zip(&servers).map(|(url, server)| {
        if server.username().is_some() || server.password().is_some() {
            return format!("{}://{HIDDEN}@{}", server.scheme(), address(server));
        }
        url.to_owned()
    });
    shown.collect::<Vec<_>>().join(",")
}

/// Where we connect to, for messages.
pub(super) fn place(servers: &[ServerAddr], context: Option<&str>) -> String {
    let list: Vec<String> = servers
        .iter()
        .map(|server| format!("{}://{}", server.scheme(), address(server)))
        .collect();
    let list = list.join(",");
    match context {
        Some(name) => format!("{list} (context `{name}`)"),
        None => list,
    }
}

fn address(server: &ServerAddr) -> String {
    let (host, port) = (server.host(), server.port());
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// The client does not use a login within the URL; it is taken out so that no log shows it.
pub(super) fn without_login(server: ServerAddr) -> ServerAddr {
    let mut url = server.clone().into_inner();
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return server;
    }
    ServerAddr::from_url(url).unwrap_or(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of a password, none of which occurs in a message by chance.
    const PARTS: [&str; 3] = ["4711", "hush9", "0815"];

    #[test]
    fn no_message_shows_a_part_of_a_password() {
        for special in [
            "@", "/", "%", ":", ",", "?", "#", "\\", " ", "[", "%zz", "//", "&", ";",
        ] {
            let password = PARTS.join(special);
            for url in [
                format!("nats://me:{password}@h.example"),
                format!("nats://{password}@h.example:4222"),
                format!("me:{password}@h.example"),
                format!("{password}@h.example"),
                format!("ftp://me:{password}@h.example"),
                format!("nats://me:{password}@"),
                format!("nats://h.example,nats://me:{password}@i.example"),
                format!("nats://me:{password}@h.example,nats://me:{password}@i.example"),
                format!("wss://me:{password}@h.example/path"),
            ] {
                let shown = without_logins(&url);
                let said = match servers(&url) {
                    Ok(servers) => place(&servers, None),
                    Err(error) => error.0,
                };
                for part in PARTS {
                    assert!(!shown.contains(part), "{url} is shown as {shown}");
                    assert!(!said.contains(part), "{url}: {said}");
                }
            }
        }
    }

    #[test]
    fn encoded_logins_are_understood() {
        let list = "nats://me:a%2Cb%40c%2F%25%3Ad@h:1,tls://t%2C@[::1]:2";
        let servers = servers(list).unwrap();
        assert_eq!(servers[0].password(), Some("a%2Cb%40c%2F%25%3Ad"));
        assert_eq!(
            place(&servers, Some("c")),
            "nats://h:1,tls://[::1]:2 (context `c`)"
        );
        assert_eq!(
            without_logins(list),
            "nats://(hidden)@h:1,tls://(hidden)@[::1]:2"
        );
    }

    #[test]
    fn urls_without_a_login_are_shown_as_they_are() {
        for list in ["nats://h:4222", "h", "wss://h/path", "nats://a,tls://b:1"] {
            assert_eq!(without_logins(list), list);
        }
    }
}
