//! `pelton check`: every mistake in a manifest is refused with its place and a way to mend it.

use anyhow::{Context, Result, ensure};
use pelton_tests::{Pelton, Project, modules};

/// A manifest without a mistake; line numbers of the cases below count from its first line.
const GOOD: &str = r#"pelton = 1
app = "shop"

[streams.PLAIN]
subjects = ["plain.>"]

[functions.plain]
component = "plain.wasm"
delivery = "at-least-once"
timeout = "5s"
memory = "64MiB"
retry = { max-attempts = 5 }
"#;

async fn check(project: &Project) -> Result<pelton_tests::Output> {
    // Nobody listens there, and nobody is asked.
    Pelton::new("nats://127.0.0.1:1", project.path())?
        .run(&["check", "--offline"])
        .await
}

#[tokio::test]
async fn a_good_manifest_passes_without_a_server() -> Result<()> {
    let project = Project::verbatim(GOOD)?;
    project.file("plain.wasm", &modules::component()?)?;
    let output = check(&project).await?;
    ensure!(output.code == Some(0), "{output:#?}");
    Ok(())
}

#[tokio::test]
async fn each_mistake_has_its_line() -> Result<()> {
    let cases: [(&str, &str, usize, &str); 13] = [
        ("pelton = 1", "pelton = 9", 1, "pelton"),
        ("app = \"shop\"", "app = \"a shop\"", 2, "a shop"),
        ("app = \"shop\"", "app = ", 2, ""),
        (
            "app = \"shop\"",
            "app = \"shop\"\ncolour = \"red\"",
            3,
            "colour",
        ),
        (
            "subjects = [\"plain.>\"]",
            "subjects = [\"plain..x\"]",
            5,
            "plain..x",
        ),
        (
            "subjects = [\"plain.>\"]",
            "subject = [\"plain.>\"]",
            5,
            "subject",
        ),
        ("timeout = \"5s\"", "timeout = \"5 parsecs\"", 10, "parsecs"),
        ("timeout = \"5s\"", "timeout = 5", 10, "timeout"),
        ("memory = \"64MiB\"", "memory = \"64TiB\"", 11, "memory"),
        ("\"at-least-once\"", "\"at-most-once\"", 9, "at-most-once"),
        (
            "max-attempts = 5",
            "on-exhausted = \"pause\"",
            12,
            "dead-letter",
        ),
        ("max-attempts = 5", "max-attempt = 5", 12, "max-attempt"),
        (
            "timeout = \"5s\"",
            "key = { token = 2 }",
            10,
            "exactly-once",
        ),
    ];
    for (from, to, line, word) in cases {
        let project = Project::verbatim(&GOOD.replace(from, to))?;
        project.file("plain.wasm", &modules::component()?)?;
        let output = check(&project).await?;
        // What is found is what `check` is asked for: data.
        let said = &output.stdout;
        ensure!(
            output.code.is_some_and(|code| code != 0),
            "{to}: {output:#?}"
        );
        let place = format!("pelton.toml:{line}:");
        ensure!(said.contains(&place), "{to}: no {place} in {output:#?}");
        ensure!(said.contains(word), "{to}: no {word} in {output:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() -> Result<()> {
    let text = GOOD
        .replace("timeout = \"5s\"", "timeout = \"soon\"")
        .replace("memory = \"64MiB\"", "memory = \"much\"");
    let project = Project::verbatim(&text)?;
    project.file("plain.wasm", &modules::component()?)?;
    let output = check(&project).await?;
    for place in ["pelton.toml:10:", "pelton.toml:11:"] {
        ensure!(output.stdout.contains(place), "no {place}: {output:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn handlers_and_subjects_must_agree() -> Result<()> {
    let with = |subjects: &str| {
        GOOD.replace(
            "component = \"plain.wasm\"",
            &format!("component = \"plain.wasm\"\nsubjects = [{subjects}]"),
        )
        .replace("\"plain.>\"]\n\n", "\"plain.>\", \"other.>\"]\n\n")
    };
    let project_of = |text: String| -> Result<Project> {
        let project = Project::verbatim(&text)?;
        project.file("plain.wasm", &modules::component()?)?;
        Ok(project)
    };
    let output = check(&project_of(with("\"plain.>\""))?).await?;
    ensure!(output.code == Some(0), "{output:#?}");
    let output = check(&project_of(with("\"plain.>\", \"other.x\""))?).await?;
    ensure!(
        output.code != Some(0),
        "a subject without a handler: {output:#?}"
    );
    ensure!(output.stdout.contains("other.x"), "{output:#?}");
    let output = check(&project_of(with("\"other.x\""))?).await?;
    ensure!(
        output.code != Some(0),
        "a handler without a subject: {output:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn without_a_manifest_it_says_where_it_looked() -> Result<()> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let pelton = Pelton::new("nats://127.0.0.1:1", folder.path())?;
    pelton.refused(&["check"], &["pelton.toml"]).await?;
    Ok(())
}
