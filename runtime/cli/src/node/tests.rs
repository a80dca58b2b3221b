//! What counts when file and flags say different things; that variables lie between them is for the tests that start
//! the binary, which may set some.

use super::*;
use crate::cli::{Cli, Command};

/// A file that says every setting, with what `--print-config` says of each.
const WHOLE: &str = r#"name = "node-1"
apps = ["shop", "bank"]
drain = "30s"
cache = "cache"
max-instances = 64
max-memory = "1GiB"

[log]
level = "warn"
format = "json"

[nats]
server = "nats://10.0.0.5:4222"
user = "node"
password = "hush"
inbox-prefix = "_I"
tls-first = true
"#;

/// What `pelton run` with this file and these flags makes of it.
fn read(file: &str, flags: &[&str]) -> anyhow::Result<Node> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, file).unwrap();
    let config = path.display().to_string();
    let mut line = vec!["pelton", "run", "--config", &config];
    line.extend(flags);
    let cli = Cli::read(line).unwrap();
    let Command::Run(args) = cli.command else {
        panic!("no `pelton run`");
    };
    Node::read(&args, &cli.global)
}

fn refused(file: &str) -> String {
    read(file, &[]).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_file_alone() {
    let node = read(WHOLE, &[]).unwrap();
    assert_eq!(node.name.value, "node-1");
    assert_eq!(node.apps.value, ["shop", "bank"]);
    assert_eq!(node.drain.value, Duration::from_secs(30));
    assert!(node.cache.value.is_absolute() && node.cache.value.ends_with("cache"));
    assert_eq!(node.max_instances.value, 64);
    assert_eq!(node.max_memory.value, 1 << 30);
    assert_eq!(node.log_level.value, "warn");
    assert_eq!(node.log_format.value, LogFormat::Json);
    assert_eq!(node.nats.user.as_deref(), Some("node"));
    assert_eq!(node.nats.tls_first, Some(true));
    assert_eq!(node.drain.source, Source::File);
}

#[test]
fn flags_over_the_file() {
    let flags = ["--drain", "1s", "--app", "mill", "--tls-first=false"];
    let node = read(WHOLE, &flags).unwrap();
    assert_eq!(node.drain.value, Duration::from_secs(1));
    assert_eq!(node.drain.source, Source::Flag);
    assert_eq!(node.apps.value, ["mill"]);
    assert_eq!(node.nats.tls_first, Some(false));
    assert_eq!(node.max_instances.source, Source::File);
}

#[test]
fn a_login_counts_as_a_whole() {
    let token = read(WHOLE, &["--token", "t"]).unwrap().nats;
    assert_eq!(token.token.as_deref(), Some("t"));
    assert_eq!((token.user, token.password), (None, None));
    let other = read(WHOLE, &["--user", "you"]).unwrap().nats;
    assert_eq!((other.user.as_deref(), other.password), (Some("you"), None));
    // The user may stand in the file and the password elsewhere.
    let user = "[nats]\nuser = \"node\"\n";
    let both = read(user, &["--password", "p"]).unwrap().nats;
    assert_eq!(both.user.as_deref(), Some("node"));
    assert_eq!(both.password.as_deref(), Some("p"));
}

#[test]
fn a_context_that_a_flag_names_takes_the_place_of_the_connection() {
    let node = read(WHOLE, &["--context", "prod"]).unwrap();
    assert_eq!((node.nats.server, node.nats.user), (None, None));
    assert_eq!(node.drain.value, Duration::from_secs(30));
}

#[test]
fn everything_wrong_is_told_at_once_with_its_line() {
    let error = refused(
        "nmae = \"x\"\napps = [\"a shop\"]\ndrain = 5\nmax-instances = 0\nmax-memory = \"9GiB\"\n[log]\nlevel = \"loud\"\n\
         [nats]\nuser = \"u\"\ntoken = 7\npasswort = \"hush\"\n",
    );
    for words in [
        "node.toml:1:1: unknown key `nmae` in the file\n  fix: did you mean `name`?",
        "node.toml:2:9: app name \"a shop\"",
        "node.toml:3:9: `drain` must be a string, not an integer",
        "node.toml:4:17: `max-instances` is 0, outside 1 to 100000",
        "node.toml:5:14: `max-memory` is \"9GiB\"",
        "node.toml:7:9: `log.level` is \"loud\"",
        "node.toml:10:1: `nats.token` is a second way to log in, beside `nats.user`",
        "node.toml:10:9: `nats.token` must be a string, not an integer",
        "node.toml:11:1: unknown key `passwort` in [nats]\n  fix: did you mean `password`?",
    ] {
        assert!(error.contains(words), "{words}\nis not in\n{error}");
    }
    assert!(!error.contains("hush"), "{error}");
}

#[test]
fn a_login_within_a_url_is_one_of_the_ways_to_log_in() {
    let error = refused("[nats]\nserver = \"nats://h:1,nats://u:hush@h:2\"\ntoken = \"t\"\n");
    let second =
        "node.toml:3:1: `nats.token` is a second way to log in, beside the login in `nats.server`";
    assert!(error.contains(second), "{error}");
    let error = refused("[nats]\nuser = \"u\"\nserver = \"nats://hush@h:1\"\n");
    let second =
        "node.toml:3:1: the login in `nats.server` is a second way to log in, beside `nats.user`";
    assert!(error.contains(second), "{error}");
    assert!(!error.contains("hush"), "{error}");
    for one in [
        "server = \"nats://u:p@h:1\"",
        "server = \"nats://h:1\"\ntoken = \"t\"",
    ] {
        assert!(read(&format!("[nats]\n{one}\n"), &[]).is_ok(), "{one}");
    }
}

#[test]
fn a_file_that_is_none() {
    assert!(refused("app = ").contains("node.toml:1:"), "no TOML");
    let error = refused("pelton = 1\napp = \"shop\"\n");
    assert!(error.contains("pelton.toml of an app"), "{error}");
    let missing = Path::new("/nowhere/node.toml");
    let error = all(NodeFile::load(missing, logging::check).unwrap_err()).to_string();
    assert!(error.contains("/nowhere/node.toml"), "{error}");
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn a_file_of_credentials_that_is_missing_has_its_line_unless_it_does_not_count() {
    let creds = "[nats]\ncreds = \"me.creds\"\n";
    let error = refused(creds);
    assert!(error.contains("node.toml:2:1: `nats.creds`: /"), "{error}");
    assert!(read(creds, &["--token", "t"]).is_ok());
}

#[test]
fn which_file() {
    let folder = tempfile::tempdir().unwrap();
    let usual = folder.path().join("node.toml");
    assert_eq!(file_of(None, &usual), None);
    let named = Path::new("other.toml");
    assert_eq!(file_of(Some(named), &usual).as_deref(), Some(named));
    std::fs::write(&usual, "").unwrap();
    assert_eq!(file_of(None, &usual), Some(usual.clone()));
    assert_eq!(file_of(Some(named), &usual).as_deref(), Some(named));
}

#[test]
fn what_is_shown_hides_every_secret() {
    let node = read(WHOLE, &["--drain", "1s"]).unwrap();
    let shown = show::settings(&node).unwrap();
    let text = serde_json::to_string(&shown).unwrap();
    assert!(!text.contains("hush"), "{text}");
    let of = |key: &str| shown.settings.iter().find(|one| one.key == key).unwrap();
    assert_eq!(of("nats.password").value.as_deref(), Some("(hidden)"));
    assert_eq!(of("drain").place.as_deref(), Some("--drain"));
    assert_eq!(of("nats.user").value.as_deref(), Some("node"));
    let place = of("max-memory").place.as_deref().unwrap();
    assert!(place.ends_with("node.toml:6"), "{place}");
    // Without a password, a user is a token; and a URL may hold a login.
    for (login, shown) in [
        ("user = \"hush\"", "(hidden)"),
        (
            "server = \"nats://me:hush@10.0.0.5:4222\"",
            "nats://(hidden)@10.0.0.5:4222",
        ),
    ] {
        let node = read(&format!("[nats]\n{login}\n"), &[]).unwrap();
        let text = serde_json::to_string(&show::settings(&node).unwrap()).unwrap();
        assert!(!text.contains("hush") && text.contains(shown), "{text}");
    }
}

#[test]
fn every_setting_is_shown() {
    let mut text = WHOLE.to_owned();
    text += "context = \"/dev/null.json\"\ntls-cert = \"/dev/null\"\ntls-key = \"/dev/null\"\ntls-ca = \"/dev/null\"\ntimeout = \"7s\"\n";
    for login in ["token", "creds", "nkey"] {
        let text = text.replace(
            "user = \"node\"\npassword = \"hush\"",
            &format!("{login} = \"/dev/null\""),
        );
        let node = read(&text, &[]).unwrap();
        let (shown, counts) = (keys::KEYS, super::laid(&node.layers));
        for key in shown.iter().filter(|key| key.key.starts_with("nats.")) {
            let name = key.key.trim_start_matches("nats.");
            let given =
                !["user", "password", "token", "creds", "nkey"].contains(&name) || name == login;
            assert_eq!(show::is_given(name, &counts), given, "{name} with {login}");
        }
    }
}

#[test]
fn debugging_shows_no_secret() {
    let node = read(WHOLE, &[]).unwrap();
    let text = format!("{:?} {:?}", node.nats, node.file);
    assert!(!text.contains("hush"), "{text}");
    let line = ["pelton", "--password", "hush", "--token", "hush", "run"];
    let cli = Cli::read(line).unwrap();
    assert!(!format!("{cli:?}").contains("hush"));
}
