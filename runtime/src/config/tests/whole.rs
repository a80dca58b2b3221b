//! The file as a whole: environments, places, what lies beside it.

use super::*;

const WITH_ENVIRONMENTS: &str = r#"pelton = 1
app = "shop"
[streams.S]
subjects = ["a.>"]
[functions.f]
component = "f"
key = { token = 2 }
concurrency = 1
[functions.f.retry]
max-attempts = 9
[env.staging]
app = "shop-staging"
[env.staging.functions.f]
concurrency = 8
key = { data = "/id" }
retry.max-delay = "1m"
[env.staging.functions.g]
component = "g"
[env.prod.streams.S]
replicas = 3
"#;

#[test]
fn environments() {
    let base = load(WITH_ENVIRONMENTS, None).unwrap();
    assert_eq!((base.app.as_str(), base.functions.len()), ("shop", 1));
    let staging = load(WITH_ENVIRONMENTS, Some("staging")).unwrap();
    assert_eq!(
        (staging.app.as_str(), staging.functions.len()),
        ("shop-staging", 2)
    );
    let f = &staging.functions["f"].settings;
    assert_eq!(
        (f.concurrency, f.retry.max_attempts, f.retry.max_delay_ms),
        (8, 9, 60_000)
    );
    assert_eq!(f.key, Some(KeySource::Data("/id".into())));
    assert_eq!(staging.locate("functions.f.concurrency"), (14, 1));
    let prod = load(WITH_ENVIRONMENTS, Some("prod")).unwrap();
    assert_eq!(prod.streams["S"].replicas, Some(3));

    let found = errors(WITH_ENVIRONMENTS, Some("live"));
    assert_eq!(
        found,
        ["11:2 there is no environment `live` | choose one of prod, staging"]
    );
    let found = errors(&body(""), Some("live"));
    assert!(
        found[0].starts_with("1:1 there is no environment `live`"),
        "{found:?}"
    );

    // A mistake in an overlay is found whichever environment is asked for, and once.
    let bad = WITH_ENVIRONMENTS.replace("concurrency = 8", "concurrency = 0");
    for env in [None, Some("staging"), Some("prod")] {
        let found = errors(&bad, env);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("14:15 `functions.f.concurrency` is 0"),
            "{found:?}"
        );
    }
    check(
        &body("[env.x]\npelton = 1"),
        &[("4:1", "unknown key `pelton` in [env.x]")],
    );
}

#[test]
fn places_and_what_this_release_lacks() {
    let text = body(
        "[functions.f]\ncomponent = \"f\"\nkey = { token = 2 }\n[functions.f.retry]\non-exhausted = \"pause\"\n[functions.g]\ncomponent = \"g\"\ndelivery = \"at-least-once\"\nkey = { token = 2 }\n[functions.g.allow]\nemit = [\"a\", \"b\"]",
    );
    let manifest = load(&text, None).unwrap();
    for (path, place) in [
        ("app", (2, 1)),
        ("functions.g.allow.emit", (13, 1)),
        ("functions.g.allow.emit.1", (13, 14)),
        ("functions.g.allow.http", (12, 14)),
        ("functions.g.retry.max-attempts", (8, 12)),
        ("nothing", (1, 1)),
    ] {
        assert_eq!(manifest.locate(path), place, "{path}");
    }
    let found: Vec<String> = manifest
        .unsupported()
        .iter()
        .map(|e| format!("{}:{} {}", e.line, e.column, e.fix))
        .collect();
    // Order per key is what the default is for; a queue has none.
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("7:1 say on-exhausted"), "{found:?}");
    assert!(found[1].starts_with("11:1 remove `key`"), "{found:?}");
    let shown = manifest
        .error_at("functions.g.allow.emit", "w", "f")
        .to_string();
    assert!(shown.ends_with("pelton.toml:13:1: w\n  fix: f"), "{shown}");
}

#[test]
fn components_and_files_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pelton.toml");
    let error = Manifest::load(&path, None).unwrap_err();
    assert!(error[0].what.contains("does not exist"), "{error:?}");
    std::fs::write(&path, b"\xff").unwrap();
    assert!(
        Manifest::load(&path, None).unwrap_err()[0]
            .what
            .contains("UTF-8")
    );

    std::fs::create_dir_all(dir.path().join("crate")).unwrap();
    std::fs::create_dir_all(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("crate/Cargo.toml"), "").unwrap();
    std::fs::write(dir.path().join("m.wasm"), "").unwrap();
    std::fs::write(dir.path().join("m.txt"), "").unwrap();
    let components = ["crate", "m.wasm", "empty", "m.txt", "gone"];
    let mut text = body("");
    for (index, component) in components.iter().enumerate() {
        text += &format!("[functions.f{index}]\ncomponent = \"{component}\"\n");
    }
    std::fs::write(&path, text).unwrap();
    let manifest = Manifest::load(&path, None).unwrap();
    let found = manifest.check_components();
    let lines: Vec<usize> = found.iter().map(|e| e.line).collect();
    assert_eq!(lines, [9, 11, 13]);
    for (error, words) in
        found
            .iter()
            .zip(["without Cargo.toml", "no .wasm file", "does not exist"])
    {
        assert!(error.what.contains(words), "{error}");
    }
}

#[test]
fn nearest_names() {
    use crate::config::reader::nearest;
    let known = ["max-attempts", "max-delay", "max-defer", "multiplier"];
    assert_eq!(nearest("max-delays", &known), Some("max-delay"));
    assert_eq!(nearest("maxDefer", &known), Some("max-defer"));
    assert_eq!(nearest("multiplyer", &known), Some("multiplier"));
    assert_eq!(nearest("colour", &known), None);
}
