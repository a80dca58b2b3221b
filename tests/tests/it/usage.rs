//! What somebody meets who types a command for the first time: help, shares, ids, times,
//! environments.

use anyhow::{Context, Result, ensure};
use pelton_tests::{Pelton, Project, Scene, build, eventually, project};
use serde_json::{Value, json};

/// One function in order per the second token of the subject; `more` is further keys and tables of
/// it.
fn hostile(more: &str) -> Result<String> {
    let mut text = "[streams.HOSTILE]\nsubjects = [\"hostile.>\"]\n".to_owned();
    text += &project::keyed("hostile", &build::component("hostile")?, 2, more);
    text += "[functions.hostile.allow]\nhttp = [\"127.0.0.1:9\"]\n";
    Ok(text)
}

#[tokio::test]
async fn help_shows_connection_options_only_when_asked_for_all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    for (command, own) in [
        (&["deploy"][..], "--canary"),
        (&["function", "info"], "--app"),
        (&["dead-letter", "replay"], "--dry-run"),
        (&["run"], "--max-memory"),
        (&[], "Commands:"),
    ] {
        let help = |flag: &'static str| {
            let args: Vec<&str> = command.iter().copied().chain([flag]).collect();
            let pelton = &pelton;
            async move { anyhow::Ok(pelton.ok(&args).await?.stdout) }
        };
        for flag in ["-h", "--help"] {
            let short = help(flag).await?;
            ensure!(short.contains(own), "{command:?} {flag}: {short}");
            ensure!(short.contains("--help=all"), "{command:?} {flag}: {short}");
            for hidden in ["--tlscert", "NATS_CREDS", "--inbox-prefix", "Connection"] {
                ensure!(!short.contains(hidden), "{command:?} {flag}: {short}");
            }
        }
        let all = help("--help=all").await?;
        let at = |text: &str| all.find(text).with_context(|| format!("{text} in {all}"));
        ensure!(at(own)? < at("--tlscert")?, "{command:?}: {all}");
        at("NATS_CREDS")?;
    }
    // An option that the help hides works as ever, and what follows `--` is no option.
    pelton
        .refused(
            &["function", "ls", "--server", "nats://127.0.0.1:2"],
            &["127.0.0.1:2"],
        )
        .await?;
    pelton
        .refused(&["publish", "a.b", "--", "--help=all"], &["127.0.0.1:1"])
        .await?;
    let replay = pelton.ok(&["dead-letter", "replay", "--help"]).await?;
    ensure!(replay.stdout.contains("Pelton-Only"), "{replay:#?}");
    Ok(())
}

#[tokio::test]
async fn a_share_that_may_mean_two_things_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    for option in ["--canary=0.2", "--steps=0.2", "--max-failures=0.2"] {
        pelton
            .refused(&["deploy", option], &["20% or 0.2%"])
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_event_that_is_published_twice_with_one_id_is_stored_once() -> Result<()> {
    let scene = Scene::start(&hostile("")?).await?;
    let pelton = &scene.pelton;
    let event = [
        "publish",
        "hostile.act.a",
        r#"{"do":"fine"}"#,
        "--id",
        "e-1",
    ];
    let first = pelton.json(&event).await?;
    assert_eq!(first["duplicate"], false, "{first}");
    let again = pelton.json(&event).await?;
    assert_eq!(again["duplicate"], true, "{again}");
    assert_eq!(again["sequence"], first["sequence"], "{again}");
    let said = pelton.ok(&event).await?.stdout;
    ensure!(said.contains("not stored again"), "{said}");
    assert_eq!(scene.nats.count("HOSTILE").await?, 1);
    // Who gives a Nats-Msg-Id decides what is the same.
    for id in ["Nats-Msg-Id: m-1", "nats-msg-id: m-2"] {
        let mut event = event.to_vec();
        event.extend(["-H", id]);
        assert_eq!(pelton.json(&event).await?["duplicate"], false);
    }
    assert_eq!(scene.nats.count("HOSTILE").await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_canary_is_shown_with_its_share_by_every_listing() -> Result<()> {
    let scene = Scene::start(&hostile("")?).await?;
    let pelton = &scene.pelton;
    let list = pelton.json(&["function", "ls"]).await?;
    ensure!(list[0]["trial"].is_null(), "{list}");
    scene
        .project
        .change(&hostile("[functions.hostile.config]\ntag = \"two\"")?)?;
    pelton
        .ok(&[
            "deploy", "--canary", "20%", "--steps", "50%,100%", "--every", "1h",
        ])
        .await?;

    let list = pelton.json(&["function", "ls"]).await?;
    assert_eq!(list[0]["trial"], json!({ "version": 2, "share": 2000 }));
    let said = pelton.ok(&["function", "ls"]).await?.stdout;
    ensure!(
        said.contains("CANARY") && said.contains("2 (20 %)"),
        "{said}"
    );

    let said = pelton.ok(&["function", "info", "hostile"]).await?.stdout;
    let line = said.lines().find(|line| line.starts_with("canary:"));
    let line = line.with_context(|| format!("no canary: {said}"))?;
    for part in ["version 2 with 20 % of the keys since", "next: 50 %, 100 %"] {
        ensure!(line.contains(part), "{line}");
    }

    let versions = pelton.json(&["function", "versions", "hostile"]).await?;
    let shares: Vec<(&Value, &Value, &Value)> = versions
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (&one["version"], &one["tried"], &one["share"]))
        .collect();
    let (yes, no) = (&json!(true), &json!(false));
    let expected = [
        (&json!(2), yes, &json!(2000)),
        (&json!(1), no, &json!(8000)),
    ];
    assert_eq!(shares, expected);
    let said = pelton.ok(&["function", "versions", "hostile"]).await?;
    for role in ["canary (20 %)", "active (80 %)"] {
        ensure!(said.stdout.contains(role), "{said:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn times_are_local_in_text_and_utc_in_json() -> Result<()> {
    let scene = Scene::start_with(&hostile("")?, &[("TZ", "Asia/Kolkata")]).await?;
    let pelton = &scene.pelton;
    let broken = scene.nats.publish("hostile.act.a", "no json").await?;
    let dead = scene.nats.dead_of("shop", "HOSTILE", broken).await?;
    let dead = dead.sequence.to_string();
    scene
        .nats
        .publish("hostile.act.b", r#"{"do":"fine"}"#)
        .await?;
    eventually("a line of the log", || async {
        let lines = pelton.ok(&["logs", "--json"]).await?.stdout;
        Ok(lines.contains("done: ").then_some(()))
    })
    .await?;
    pelton.ok(&["state", "put", "notes.n-1", "x"]).await?;
    scene.project.change(&hostile("concurrency = 8")?)?;
    pelton.ok(&["deploy"]).await?;
    for command in [
        &["state", "ls"][..],
        &["function", "versions", "hostile"],
        &["function", "info", "hostile"],
        &["dead-letter", "ls"],
        &["dead-letter", "show", &dead],
        &["logs"],
        &["rollout", "hostile", "status"],
    ] {
        let text = pelton.ok(command).await?.stdout;
        let times: Vec<&str> = text
            .split_whitespace()
            .filter(|word| is_time(word))
            .collect();
        ensure!(!times.is_empty(), "{command:?}: {text}");
        for time in times {
            // 2026-01-31T12:00:00.000+05:30
            let local = time.len() == 29 && time.ends_with("+05:30");
            ensure!(local, "{command:?}: {time} in {text}");
        }
        let mut json = command.to_vec();
        json.push("--json");
        let json = pelton.ok(&json).await?.stdout;
        let times: Vec<&str> = json.split('"').filter(|word| is_time(word)).collect();
        let utc = times.iter().all(|time| time.ends_with('Z'));
        ensure!(utc && !times.is_empty(), "{command:?}: {json}");
    }
    Ok(())
}

/// Whether a word begins as times of RFC 3339 do.
fn is_time(word: &str) -> bool {
    let shape = word.bytes().take(11).map(|byte| match byte {
        b'0'..=b'9' => b'0',
        other => other,
    });
    shape.eq(*b"0000-00-00T")
}

#[tokio::test]
async fn dev_suggests_a_call_for_ticks_and_it_works() -> Result<()> {
    let project = Project::new(&hostile("schedule = \"0 0 0 1 1 *\"")?)?;
    let pelton = Pelton::new("nats://127.0.0.1:1", project.path())?;
    let out = project.path().join("out");
    let mut child = pelton
        .command(&["dev", "--no-watch", "--port", "0"])?
        .stdout(std::fs::File::create(&out)?)
        .spawn()?;
    let text = eventually("dev to say what to try", || async {
        let text = std::fs::read_to_string(&out)?;
        Ok(text.contains("pelton state ls").then_some(text))
    })
    .await?;
    ensure!(!text.contains("publish schedule.tick"), "{text}");
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("pelton call "));
    let line = line.with_context(|| format!("no call: {text}"))?;
    ensure!(
        line.ends_with("hostile '{}' --subject schedule.tick"),
        "{line}"
    );
    let words = line.split_whitespace().map(|word| word.trim_matches('\''));
    let call: Vec<&str> = ["call"].into_iter().chain(words).collect();
    pelton.ok(&call).await?;
    child.kill().await?;
    Ok(())
}

#[tokio::test]
async fn environments_that_meet_on_one_account_are_told() -> Result<()> {
    let mut text = hostile("")?;
    text +=
        "[env.staging]\napp = \"shop-staging\"\n[env.large.functions.hostile]\nconcurrency = 128\n";
    let scene = Scene::start(&text).await?;
    let pelton = &scene.pelton;
    let findings = |environment: &'static str| async move {
        let report = pelton.json(&["check", "--env", environment]).await?;
        anyhow::Ok(report["findings"].to_string())
    };
    let staging = findings("staging").await?;
    let both = "app shop, deployed on this account without --env, reads the same events of HOSTILE";
    ensure!(staging.contains(both), "{staging}");
    let large = findings("large").await?;
    let replaces = "this deploy with --env large replaces function hostile";
    ensure!(large.contains(replaces), "{large}");
    let said = pelton.ok(&["deploy", "--env", "large"]).await?.stdout;
    ensure!(said.contains(replaces), "{said}");
    // From then on it is that environment's.
    let large = findings("large").await?;
    ensure!(!large.contains("replaces"), "{large}");
    let info = pelton.json(&["function", "info", "hostile"]).await?;
    assert_eq!(info["record"]["provenance"]["environment"], "large");
    Ok(())
}
