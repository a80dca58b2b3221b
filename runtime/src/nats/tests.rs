//! Against a real nats-server, but for the one that is too old: its release cannot be had everywhere, so a listener
//! says what such a server says.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::context::resolve;
use super::*;
use crate::dev::{ServerProcess, find_nats_server};

async fn server(arguments: &[&str]) -> (ServerProcess, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let binary = find_nats_server().unwrap();
    let server = ServerProcess::start_with(&binary, data.path(), None, arguments)
        .await
        .unwrap();
    (server, data)
}

/// The error of a connection that must fail, and in time.
async fn refused(options: &ConnectOptions) -> String {
    let begun = Instant::now();
    let error = connect(options, "test").await.unwrap_err().0;
    assert!(begun.elapsed() < Duration::from_secs(3), "{error}");
    assert!(!error.contains('\n'), "{error}");
    error
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn no_server() {
    let url = format!("nats://127.0.0.1:{}", free_port().await);
    let error = refused(&ConnectOptions::to(&url)).await;
    assert!(
        error.starts_with(&format!("no NATS server at {url}")),
        "{error}"
    );
    assert!(error.contains("pelton dev"), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let error = refused(&ConnectOptions::to(&url)).await;
    assert!(error.contains("did not answer within"), "{error}");
}

#[tokio::test]
async fn no_such_host() {
    let error = refused(&ConnectOptions::to("nats://no-such-host.invalid:4222")).await;
    assert!(error.contains("no-such-host.invalid"), "{error}");
}

#[tokio::test]
async fn malformed_urls_do_not_show_a_password() {
    for url in ["ftp://me:hush@host", "nats://me:hush@:x", "", " , "] {
        let error = refused(&ConnectOptions::to(url)).await;
        assert!(error.contains("nats://HOST:PORT"), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[tokio::test]
async fn logins() {
    let (server, _data) = server(&["--user", "me", "--pass", "p@ss"]).await;
    let error = refused(&server.options()).await;
    assert!(
        error.contains("refused the login: it asks for a login"),
        "{error}"
    );

    let mut options = server.options();
    options.user = Some("me".into());
    options.password = Some("hush".into());
    let error = refused(&options).await;
    assert!(
        error.contains("is wrong") && !error.contains("hush"),
        "{error}"
    );
    options.password = Some("p@ss".into());
    connect(&options, "test").await.unwrap();

    let in_url = format!("nats://me:p%40ss@127.0.0.1:{}", server.port());
    connect(&ConnectOptions::to(in_url), "test").await.unwrap();
}

#[tokio::test]
async fn a_token_is_a_user_without_a_password() {
    let (server, _data) = server(&["--auth", "s3cret"]).await;
    let in_url = format!("nats://s3cret@127.0.0.1:{}", server.port());
    connect(&ConnectOptions::to(in_url), "test").await.unwrap();
    let mut options = server.options();
    options.user = Some("s3cret".into());
    connect(&options, "test").await.unwrap();
}

#[tokio::test]
async fn missing_files_are_named() {
    let missing = std::path::PathBuf::from("/nowhere/f.pem");
    let base = ConnectOptions::to(DEFAULT_SERVER);
    for (options, flag) in [
        (
            ConnectOptions {
                creds: Some(missing.clone()),
                ..base.clone()
            },
            "--creds",
        ),
        (
            ConnectOptions {
                nkey: Some(missing.clone()),
                ..base.clone()
            },
            "--nkey",
        ),
        (
            ConnectOptions {
                tls_ca: Some(missing.clone()),
                ..base.clone()
            },
            "--tls-ca",
        ),
        (
            ConnectOptions {
                tls_cert: Some(missing.clone()),
                ..base.clone()
            },
            "--tls-key",
        ),
        (
            ConnectOptions {
                tls_key: Some(missing.clone()),
                ..base
            },
            "--tls-cert",
        ),
    ] {
        let error = refused(&options).await;
        assert!(error.contains(flag), "{error}");
    }
}

#[tokio::test]
async fn tls_to_a_server_without_it() {
    let (server, _data) = server(&[]).await;
    let url = format!("tls://127.0.0.1:{}", server.port());
    let error = refused(&ConnectOptions::to(url)).await;
    assert!(error.contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_good_server_and_one_without_jetstream() {
    let (with, _data) = server(&[]).await;
    let client = connect(&with.options(), "test").await.unwrap();
    check_server(&client).await.unwrap();

    // A user of an account for which JetStream is not enabled.
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("server.conf");
    std::fs::write(
        &config,
        "accounts { PLAIN { users = [{ user: me, password: p }] } }",
    )
    .unwrap();
    let (without, _data) = server(&["-c", config.to_str().unwrap()]).await;
    let mut options = without.options();
    options.user = Some("me".into());
    options.password = Some("p".into());
    let client = connect(&options, "test").await.unwrap();
    let error = check_server(&client).await.unwrap_err().0;
    assert!(
        error.contains("has no JetStream for this account"),
        "{error}"
    );
}

#[tokio::test]
async fn reconnects_by_itself() {
    let data = tempfile::tempdir().unwrap();
    let binary = find_nats_server().unwrap();
    let first = ServerProcess::start(&binary, data.path(), None)
        .await
        .unwrap();
    let port = first.port();
    let client = connect(&first.options(), "test").await.unwrap();
    first.kill().await.unwrap();
    let _second = ServerProcess::start(&binary, data.path(), Some(port))
        .await
        .unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    while check_server(&client).await.is_err() {
        assert!(Instant::now() < deadline, "did not come back");
        tokio::task::yield_now().await;
    }
}

/// Says what a nats-server of this version says to one client.
async fn old_server(listener: TcpListener, version: &'static str) {
    let (socket, _) = listener.accept().await.unwrap();
    let (read, mut write) = socket.into_split();
    let info = format!(
        "INFO {{\"server_id\":\"OLD\",\"server_name\":\"old\",\"version\":\"{version}\",\"go\":\"go\",\"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\"proto\":1,\"jetstream\":true}}\r\n"
    );
    write.write_all(info.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line == "PING" {
            write.write_all(b"PONG\r\n").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_server_that_is_too_old() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(old_server(listener, "2.14.0"));
    let client = connect(&ConnectOptions::to(url), "test").await.unwrap();
    let error = check_server(&client).await.unwrap_err().0;
    assert!(
        error.contains("nats-server 2.14.0 is too old, Pelton needs 2.15.1 or newer"),
        "{error}"
    );
    server.abort();
}

#[test]
fn versions() {
    for (found, fits) in [
        ("2.15.1", true),
        ("v2.15.1", true),
        ("2.15.2-dev", true),
        ("2.16.0-RC.1", true),
        ("3.0.0", true),
        ("2.15.1-beta.2", false),
        ("2.15.0", false),
        ("2.9.25", false),
        ("", false),
        ("latest", false),
    ] {
        assert_eq!(check_version(found).is_ok(), fits, "{found}");
    }
}

/// A folder of contexts: `prod` is selected.
fn contexts() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("context");
    std::fs::create_dir(&folder).unwrap();
    for (name, body) in [
        (
            "prod",
            r#"{"description":"x","url":"nats://prod:4222","user":"me","password":"p","ca":"/ca.pem","color_scheme":"red"}"#,
        ),
        (
            "creds",
            r#"{"url":"tls://c:1,tls://d:2","creds":"/me.creds","tls_first":true,"inbox_prefix":"_I"}"#,
        ),
        ("nsc", r#"{"nsc":"nsc://o/a/u"}"#),
        ("domain", r#"{"jetstream_domain":"hub"}"#),
        ("vault", r#"{"creds":"op://v/i/f"}"#),
        ("broken", "{"),
    ] {
        std::fs::write(folder.join(format!("{name}.json")), body).unwrap();
    }
    std::fs::write(dir.path().join("context.txt"), "prod\n").unwrap();
    dir
}

#[test]
fn options_over_context_over_default() {
    let dir = contexts();
    let at = Some(dir.path());
    let nothing = ConnectOptions::default();
    let selected = resolve(&nothing, at).unwrap();
    assert_eq!(selected.server, "nats://prod:4222");
    assert_eq!(selected.context.as_deref(), Some("prod"));
    assert_eq!(selected.user.as_deref(), Some("me"));
    assert_eq!(selected.tls_ca.as_deref(), Some(Path::new("/ca.pem")));

    let elsewhere = ConnectOptions {
        server: Some("nats://x".into()),
        ..nothing.clone()
    };
    let elsewhere = resolve(&elsewhere, at).unwrap();
    assert_eq!(elsewhere.server, "nats://x");
    assert_eq!(elsewhere.user.as_deref(), Some("me"));

    let by_name = ConnectOptions {
        context: Some("creds".into()),
        ..nothing.clone()
    };
    let by_name = resolve(&by_name, at).unwrap();
    assert_eq!(by_name.server, "tls://c:1,tls://d:2");
    assert_eq!(by_name.creds.as_deref(), Some(Path::new("/me.creds")));
    assert!(by_name.tls_first && by_name.user.is_none());
    assert_eq!(by_name.inbox_prefix.as_deref(), Some("_I"));

    // One way to log in: the context's password does not join the user given here.
    let other_login = ConnectOptions {
        user: Some("you".into()),
        ..nothing.clone()
    };
    let other_login = resolve(&other_login, at).unwrap();
    assert_eq!(other_login.user.as_deref(), Some("you"));
    assert_eq!(other_login.password, None);

    let file = dir.path().join("context/creds.json").display().to_string();
    let by_path = ConnectOptions {
        context: Some(file),
        ..nothing.clone()
    };
    assert_eq!(
        resolve(&by_path, None).unwrap().server,
        "tls://c:1,tls://d:2"
    );

    let alone = resolve(
        &ConnectOptions {
            no_context: true,
            ..nothing.clone()
        },
        at,
    )
    .unwrap();
    assert_eq!(alone.server, DEFAULT_SERVER);
    assert_eq!(resolve(&nothing, None).unwrap().server, DEFAULT_SERVER);
}

#[test]
fn contexts_that_cannot_be_used() {
    let dir = contexts();
    for (name, expect) in [
        (
            "staging",
            "saved are broken, creds, domain, nsc, prod, vault",
        ),
        ("nsc", "sets `nsc`, which Pelton does not support"),
        ("domain", "sets `jetstream_domain`"),
        ("vault", "behind a URL"),
        ("broken", "is malformed"),
        ("/nowhere/x.json", "cannot be read"),
    ] {
        let options = ConnectOptions {
            context: Some(name.into()),
            ..ConnectOptions::default()
        };
        let error = resolve(&options, Some(dir.path()))
            .map(|_| ())
            .unwrap_err()
            .0;
        assert!(error.contains(expect), "{name}: {error}");
    }
}
