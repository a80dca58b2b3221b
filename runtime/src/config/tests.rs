//! What the file may say and what is refused, each with its line.

use std::path::Path;

use super::*;
use crate::event::timestamp;

mod steps;
mod whole;

fn load(text: &str, env: Option<&str>) -> Result<Manifest, Vec<ConfigError>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pelton.toml");
    std::fs::write(&path, text).unwrap();
    Manifest::load(&path, env)
}

/// `text` behind a head of two lines, so that its first line is the third.
fn body(text: &str) -> String {
    format!("pelton = 1\napp = \"shop\"\n{text}\n")
}

/// The errors as `line:column what | fix`.
fn errors(text: &str, env: Option<&str>) -> Vec<String> {
    load(text, env)
        .unwrap_err()
        .iter()
        .map(|e| format!("{}:{} {} | {}", e.line, e.column, e.what, e.fix))
        .collect()
}

/// The file has exactly these errors: where each begins, and words of it.
#[track_caller]
fn check(text: &str, expect: &[(&str, &str)]) {
    let found = errors(text, None);
    let fits = found.len() == expect.len()
        && found.iter().zip(expect).all(|(error, (place, words))| {
            error.starts_with(&format!("{place} ")) && error.contains(words)
        });
    assert!(
        fits,
        "{text}\nfound:\n{}\nexpected: {expect:#?}",
        found.join("\n")
    );
}

/// One function with this line in it, as the fifth of the file.
#[track_caller]
fn check_function(line: &str, column: usize, words: &str) {
    let text = body(&format!("[functions.f]\ncomponent = \"f\"\n{line}"));
    check(&text, &[(&format!("5:{column}"), words)]);
}

/// One stream with this line in it, as the fifth of the file.
#[track_caller]
fn check_stream(line: &str, column: usize, words: &str) {
    let text = body(&format!("[streams.S]\nsubjects = [\"s.>\"]\n{line}"));
    check(&text, &[(&format!("5:{column}"), words)]);
}

#[test]
fn the_manifest_of_this_repository() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pelton.toml");
    let manifest = Manifest::load(&path, None).unwrap();
    assert_eq!(manifest.app, "shop");
    assert_eq!(manifest.streams["ORDERS"].subjects, ["orders.>"]);
    let orders = &manifest.functions["orders"];
    assert_eq!(orders.settings.delivery, DeliveryMode::ExactlyOnce);
    assert_eq!(orders.settings.key, Some(KeySource::Token(2)));
    assert_eq!(orders.settings.config["currency"], "EUR");
    assert_eq!(orders.settings.allow.emit, ["orders.*.payment-failed"]);
    assert_eq!(manifest.unsupported(), []);
    assert_eq!(manifest.check_components(), []);
}

#[test]
fn defaults() {
    let manifest = load(&body("[functions.f]\ncomponent = \"f.wasm\""), None).unwrap();
    let f = &manifest.functions["f"];
    assert_eq!(f.settings, FunctionSettings::default());
    assert_eq!(
        (f.subjects.clone(), f.component.as_path()),
        (None, Path::new("f.wasm"))
    );
    assert!(manifest.root.is_absolute());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn every_key() {
    let text = body(
        r#"
[streams.S]
subjects = ["a.>", "b"]
replicas = 3
max-age = "7d"
max-bytes = "10GiB"
max-msg-size = 1048576
duplicate-window = "2m"
retention = "limits"
adopt = true
[functions.f]
component = "f"
subjects = ["a.*.x", "b"]
key = { token = 2 }
delivery = "exactly-once"
start = 2026-01-31T12:00:00Z
concurrency = 4096
max-in-flight = 100
timeout = "1h"
memory = "1000001"
instance = "fresh"
secrets = ["API_KEY"]
config = { text = "t", number = 7, float = 1.5, flag = true }
schedule = { cron = "0 */5 * * * *", timezone = "Europe/Zurich" }
sample = { subject = "orders.o-1.created", data = "{}" }
[functions.f.retry]
max-attempts = 0
initial-delay = "1ms"
multiplier = 1
max-delay = "24h"
on-exhausted = "pause"
max-defer = "30days"
[functions.f.allow]
emit = ["a.>"]
http = ["API.example.com", "10.0.0.1:8080", "[::1]:80"]
"#,
    );
    let text = text.replace("\"1000001\"", "\"2000001\"");
    let manifest = load(&text, None).unwrap();
    assert_eq!(
        manifest.streams["S"],
        StreamManifest {
            subjects: vec!["a.>".into(), "b".into()],
            replicas: Some(3),
            max_age_ms: Some(7 * 24 * 3_600_000),
            max_bytes: Some(10 << 30),
            max_msg_size: Some(1 << 20),
            duplicate_window_ms: Some(120_000),
            adopt: true,
        }
    );
    let config = [
        ("flag", "true"),
        ("float", "1.5"),
        ("number", "7"),
        ("text", "t"),
    ];
    assert_eq!(
        manifest.functions["f"].settings,
        FunctionSettings {
            delivery: DeliveryMode::ExactlyOnce,
            key: Some(KeySource::Token(2)),
            start: Some(Start::Time("2026-01-31T12:00:00Z".into())),
            concurrency: 4096,
            max_in_flight: Some(100),
            timeout_ms: 3_600_000,
            memory_bytes: 31 * 65_536,
            instance: InstanceMode::Fresh,
            secrets: vec!["API_KEY".into()],
            config: config.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            retry: RetryPolicy {
                max_attempts: 0,
                initial_delay_ms: 1,
                multiplier: 1.0,
                max_delay_ms: 24 * 3_600_000,
                on_exhausted: OnExhausted::Pause,
                max_defer_ms: 30 * 24 * 3_600_000,
            },
            allow: Allow {
                emit: vec!["a.>".into()],
                http: vec![
                    "10.0.0.1:8080".into(),
                    "[::1]:80".into(),
                    "api.example.com".into()
                ],
            },
            sample: Some(Sample {
                subject: "orders.o-1.created".into(),
                data: "{}".into(),
            }),
            schedule: Some(Schedule {
                cron: "0 */5 * * * *".into(),
                timezone: "Europe/Zurich".into(),
            }),
        }
    );
}

#[test]
fn forms_of_key_and_start() {
    let settings = |line: &str| {
        let text = body(&format!("[functions.f]\ncomponent = \"f\"\n{line}"));
        load(&text, None).unwrap().functions["f"].settings.clone()
    };
    let key = |line: &str| settings(line).key.unwrap();
    assert_eq!(
        key("key = { attribute = \"subject\" }"),
        KeySource::Attribute("subject".into())
    );
    assert_eq!(
        key("key = { data = \"/a/b\" }"),
        KeySource::Data("/a/b".into())
    );
    assert_eq!(settings("start = \"new\"").start, Some(Start::New));
    assert_eq!(settings("start = \"all\"").start, Some(Start::All));
    for time in ["\"2026-01-31T12:00:00+01:00\"", "2026-01-31T12:00:00+01:00"] {
        let Some(Start::Time(text)) = settings(&format!("start = {time}")).start else {
            panic!("no time");
        };
        assert!(timestamp::parse(&text).is_some(), "{text}");
    }
}

#[test]
fn the_head() {
    check(
        "",
        &[
            ("1:1", "`pelton`, the version"),
            ("1:1", "`app`, the app's name, is missing"),
        ],
    );
    check(
        "pelton = 2\napp = \"a\"",
        &[(
            "1:10",
            "has format 2; this release of Pelton reads format 1",
        )],
    );
    check(
        "pelton = \"1\"\napp = \"a\"",
        &[("1:10", "`pelton` must be an integer, not a string")],
    );
    check(
        "pelton = 1\napp = \"My Shop\"",
        &[("2:7", "\"My Shop\" is not 1 to 32 characters of a-z 0-9 -")],
    );
    check(
        "pelton = 1\napp = 7",
        &[("2:7", "`app` must be a string, not an integer")],
    );
    check(
        "pelton = 1\n  apps = \"a\"",
        &[("1:1", "`app`"), ("2:3", "did you mean `app`?")],
    );
    check(
        &body("colour = 1"),
        &[(
            "3:1",
            "known here are: pelton, app, streams, dead-letters, functions, env",
        )],
    );
}

#[test]
fn no_toml() {
    check("pelton = \napp = \"a\"", &[("1:10", "no valid TOML")]);
    check(
        "pelton = 1\napp = \"a\"\napp = \"b\"",
        &[("3:1", "duplicate key")],
    );
    let found = errors("pelton = 1\napp = \"ä\" x\n[streams.\n", None);
    assert!(
        found.len() >= 2 && found[0].starts_with("2:11 "),
        "{found:#?}"
    );
}

#[test]
fn unknown_keys_everywhere() {
    check_stream(
        "subject = [\"x\"]",
        1,
        "unknown key `subject` in [streams.S] | did you mean `subjects`?",
    );
    check_stream("max_age = \"1h\"", 1, "did you mean `max-age`?");
    check_function(
        "concurency = 1",
        1,
        "unknown key `concurency` in [functions.f] | did you mean `concurrency`?",
    );
    check_function("maxInFlight = 1", 1, "did you mean `max-in-flight`?");
    check_function("zzz = 1", 1, "known here are: component, subjects, key");
    check_function(
        "schedule = \"every day\"",
        12,
        "\"every day\" is no schedule",
    );
    check_function(
        "schedule = { cron = \"0 0 3 * * *\", timezone = \"Zurich\" }",
        47,
        "\"Zurich\" is no time zone | name one of the tz database",
    );
    check_function("schedule = { timezone = \"UTC\" }", 12, "has no cron");
    for never in ["0 0 0 30 2 *", "0 0 0 1 1 * 2020"] {
        check_function(
            &format!("schedule = \"{never}\""),
            12,
            "never comes, or not any more",
        );
    }
    check_function(
        "key = { attribute = \"time\" }",
        21,
        "\"time\" is nothing by which events could be kept in order",
    );
    check_function("retry.attempts = 1", 7, "did you mean `max-attempts`?");
    check_function("allow = { emits = [] }", 11, "did you mean `emit`?");
}

#[test]
fn streams() {
    check(
        &body("[streams.\"A.B\"]\nsubjects = [\"a\"]"),
        &[("3:10", "stream name \"A.B\"")],
    );
    check(
        &body("[streams.\"\"]\nsubjects = [\"a\"]"),
        &[("3:10", "stream name \"\"")],
    );
    check(
        &body("[streams.KV_x]\nsubjects = [\"a\"]"),
        &[("3:10", "does not begin with `KV_`")],
    );
    check(
        &body("[streams.S]\nadopt = true"),
        &[("3:10", "stream S has no subjects")],
    );
    check(
        &body("[streams]\nS = 7"),
        &[(
            "4:5",
            "`streams.S` must be a table, not an integer | write it as [streams.S]",
        )],
    );
    check_stream(
        "replicas = 6",
        12,
        "`streams.S.replicas` is 6, outside 1 to 5",
    );
    check_stream(
        "max-age = \"7 fortnights\"",
        11,
        "no duration: unknown time unit",
    );
    check_stream(
        "max-age = 7",
        11,
        "`streams.S.max-age` must be a string, not an integer",
    );
    check_stream("max-age = \"10ms\"", 11, "outside 100ms to");
    check_stream("max-bytes = \"many\"", 13, "is \"many\", no size");
    check_stream("max-bytes = -1", 13, "is -1, no size");
    check_stream(
        "max-msg-size = \"2GiB\"",
        16,
        "outside 1 bytes to 2147483647 bytes",
    );
    check_stream(
        "adopt = \"yes\"",
        9,
        "`streams.S.adopt` must be true or false, not a string",
    );
    check_stream("retention = \"workqueue\"", 13, "write \"limits\"");
    let window = "[streams.S]\nsubjects = [\"s\"]\nmax-age = \"1h\"\nduplicate-window = \"2h\"";
    check(
        &body(window),
        &[(
            "6:20",
            "`streams.S.duplicate-window` is longer than max-age | choose at most 1h",
        )],
    );
}

#[test]
fn subjects() {
    let stream = |list: &str| body(&format!("[streams.S]\nsubjects = {list}"));
    check(&stream("[]"), &[("4:12", "`streams.S.subjects` is empty")]);
    check(
        &stream("\"a\""),
        &[("4:12", "must be a list of strings, not a string")],
    );
    check(&stream("[\"a\", 7]"), &[("4:18", "here is an integer")]);
    check(
        &stream("[\"a..b\"]"),
        &[("4:13", "\"a..b\" is no valid subject")],
    );
    check(&stream("[\"a.>.b\"]"), &[("4:13", "no valid subject")]);
    check(&stream("[\"a b\"]"), &[("4:13", "no valid subject")]);
    check(
        &stream("[\"orders*\"]"),
        &[("4:13", "`*` and `>` stand for whole tokens")],
    );
    check(&stream("[\">\"]"), &[("4:13", "reaches \"$JS.>\"")]);
    check(&stream("[\"$KV.x.>\"]"), &[("4:13", "reaches \"$KV.>\"")]);
    check(
        &stream("[\"a.>\",\n  \"a.b\"]"),
        &[("5:3", "\"a.b\" overlaps \"a.>\" of the same list")],
    );
    check(
        &body("[streams.A]\nsubjects = [\"a.*\"]\n[streams.B]\nsubjects = [\"x\", \"a.b\"]"),
        &[(
            "6:18",
            "subject \"a.b\" of stream B overlaps \"a.*\" of stream A",
        )],
    );
    check_function(
        "subjects = [\"a.>\", \"a.b\"]",
        20,
        "overlaps \"a.>\" of the same list",
    );
    check_function("subjects = [\"$JS.API.>\"]", 13, "reaches \"$JS.>\"");
    check_function(
        "subjects = [\"$KV.PELTON_shop.pos.>\"]",
        13,
        "reaches \"$KV.PELTON_",
    );
    check_function("subjects = []", 12, "`functions.f.subjects` is empty");
    // A bucket of others may be listened to, and a filter may reach further than the streams do.
    for subject in ["$KV.stock.>", "*.*.paid"] {
        let text = format!("[functions.f]\ncomponent = \"f\"\nsubjects = [\"{subject}\"]");
        assert!(load(&body(&text), None).is_ok(), "{subject}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn functions() {
    check(
        &body("[functions.F]\ncomponent = \"f\""),
        &[("3:12", "function name \"F\"")],
    );
    check(
        &body("[functions.a23456789012345678901234567890123]\ncomponent = \"f\""),
        &[("3:12", "is not 1 to 32 characters")],
    );
    check(
        &body("[functions.f]"),
        &[(
            "3:12",
            "function f has no component | add component = \"functions/f\"",
        )],
    );
    check(
        &body("[functions.f]\ncomponent = \"\""),
        &[("4:13", "`functions.f.component` is empty")],
    );
    check_function(
        "delivery = \"at-most-once\"",
        12,
        "write \"exactly-once\" or \"at-least-once\"",
    );
    check_function("instance = \"warm\"", 12, "write \"reuse\" or \"fresh\"");
    check_function(
        "concurrency = 0",
        15,
        "`functions.f.concurrency` is 0, outside 1 to 4096",
    );
    check_function("concurrency = 5000", 15, "outside 1 to 4096");
    check_function(
        "concurrency = \"64\"",
        15,
        "must be an integer, not a string",
    );
    check_function(
        "concurrency = 99999999999999999999",
        15,
        "outside 1 to 4096",
    );
    check_function("max-in-flight = 0", 17, "outside 1 to 1000000");
    check_function("timeout = \"0s\"", 11, "outside 1ms to 1h");
    check_function("timeout = \"61m\"", 11, "outside 1ms to 1h");
    check_function("timeout = \"5\"", 11, "no duration: time unit needed");
    check_function("timeout = \"1500us\"", 11, "the finest unit is ms");
    check_function("memory = \"1023KiB\"", 10, "outside 1 MiB to 4 GiB");
    check_function("memory = \"5GiB\"", 10, "outside 1 MiB to 4 GiB");
    check_function("memory = true", 10, "must be a size, not true or false");
    check_function(
        "start = \"yesterday\"",
        9,
        "`functions.f.start` is \"yesterday\" | write \"new\", \"all\"",
    );
    check_function("start = 2026-01-31", 9, "a time with its zone");
    check_function("key = { token = 0 }", 17, "outside 1 to 64");
    check_function("key = { token = 1, data = \"/a\" }", 7, "exactly one of");
    check_function("key = {}", 7, "exactly one of");
    check_function("key = 2", 7, "`functions.f.key` must be a table");
    check_function(
        "key = { data = \"order_id\" }",
        16,
        "begin it with a slash: \"/order_id\"",
    );
    check_function(
        "key = { attribute = \"My-Attr\" }",
        21,
        "no name of a CloudEvents attribute",
    );
    check_function("secrets = [\"1X\"]", 12, "secret \"1X\"");
    check_function("secrets = [\"A\", \"A\"]", 17, "listed twice");
    check_function(
        "config = { a = [1] }",
        16,
        "`functions.f.config.a` must be a string, a number or a boolean, not a list",
    );
}

#[test]
fn retry_and_allow() {
    check_function("retry.max-attempts = 1001", 22, "outside 0 to 1000");
    check_function("retry.multiplier = 0.5", 20, "is 0.5, outside 1 to 10");
    check_function("retry.multiplier = nan", 20, "outside 1 to 10");
    check_function(
        "retry.multiplier = \"2\"",
        20,
        "must be a number, not a string",
    );
    check_function("retry.max-delay = \"25h\"", 19, "outside 1ms to 1day");
    check_function(
        "retry.max-delay = \"100ms\"",
        19,
        "(100ms) is shorter than initial-delay (200ms)",
    );
    check_function(
        "retry.initial-delay = \"1m\"",
        23,
        "max-delay` (30s) is shorter than initial-delay (1m)",
    );
    check_function("retry.max-defer = \"31d\"", 19, "outside 1s to");
    check_function(
        "retry.on-exhausted = \"stop\"",
        22,
        "write \"dead-letter\" or \"pause\"",
    );
    check_function("allow.emit = [\"a.*x\"]", 15, "whole tokens");
    check_function(
        "allow.emit = [\"$KV.shop.x\"]",
        15,
        "belongs to NATS or Pelton",
    );
    for (host, words) in [
        ("https://api.example.com", "it is a URL"),
        ("*.example.com", "wildcard"),
        ("api.example.com:0", "port"),
        ("api.example.com:http", "port"),
        ("a b", "no host name"),
        ("", "no host name"),
        ("a..b", "no host name"),
        ("[::x]", "no host name"),
    ] {
        check_function(&format!("allow.http = [\"{host}\"]"), 15, words);
    }
}

#[test]
fn all_errors_come_at_once_in_order() {
    let text = body(
        "[functions.b]\ncomponent = \"b\"\ntimeout = \"x\"\n[functions.a]\nconcurrency = 0\nbogus = 1\n[streams.S]\nsubjects = [\"a b\"]",
    );
    check(
        &text,
        &[
            ("5:11", "no duration"),
            ("6:12", "has no component"),
            ("7:15", "outside 1 to 4096"),
            ("8:1", "unknown key `bogus`"),
            ("10:13", "no valid subject"),
        ],
    );
}
