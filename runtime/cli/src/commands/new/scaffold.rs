//! Files of a new app or function, from templates that are part of the binary.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use minijinja::{Environment, UndefinedBehavior, Value, context};
use pelton_runtime::names::TICK_SUBJECT;

use super::names::{Subject, stream_name};
use crate::sdk;

/// Where the project lives.
const HOME: &str = "https://github.com/pelton-dev/pelton";

/// Templates by name.
const TEMPLATES: [(&str, &str); 10] = [
    (
        "workspace",
        include_str!("../../../templates/rust/Cargo.toml.j2"),
    ),
    (
        "gitignore",
        include_str!("../../../templates/rust/gitignore.j2"),
    ),
    (
        "clippy",
        include_str!("../../../templates/rust/clippy.toml.j2"),
    ),
    (
        "manifest",
        include_str!("../../../templates/rust/pelton.toml.j2"),
    ),
    (
        "stream",
        include_str!("../../../templates/rust/stream.toml.j2"),
    ),
    (
        "function",
        include_str!("../../../templates/rust/function.toml.j2"),
    ),
    (
        "readme",
        include_str!("../../../templates/rust/README.md.j2"),
    ),
    (
        "crate",
        include_str!("../../../templates/rust/crate.toml.j2"),
    ),
    ("lib", include_str!("../../../templates/rust/lib.rs.j2")),
    ("tick", include_str!("../../../templates/rust/tick.rs.j2")),
];

/// What is to be written: one app's first function, or one more of it.
pub(crate) struct Scaffold<'a> {
    /// The app's name.
    pub(crate) app: &'a str,
    /// The function's and its crate's name.
    pub(crate) function: &'a str,
    /// What its handler takes.
    pub(crate) subject: &'a Subject,
    /// Folder of the SDK; none: a copy of this binary's, in the app's folder.
    pub(crate) sdk: Option<&'a Path>,
}

impl Scaffold<'_> {
    /// Files of a whole app, by their path in its folder.
    ///
    /// # Errors
    /// None that a user could cause.
    pub(crate) fn app_files(&self) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let mut files = vec![
            (PathBuf::from("pelton.toml"), self.render("manifest")?),
            (PathBuf::from("Cargo.toml"), self.render("workspace")?),
            (PathBuf::from("clippy.toml"), self.render("clippy")?),
            (PathBuf::from(".gitignore"), self.render("gitignore")?),
            (PathBuf::from("README.md"), self.render("readme")?),
        ];
        let folder = Path::new("functions").join(self.function);
        for (path, text) in self.crate_files("{ workspace = true }")? {
            files.push((folder.join(path), text));
        }
        if self.sdk.is_none() {
            let copied = sdk::files()?.into_iter();
            files.extend(copied.map(|(path, text)| (Path::new(sdk::FOLDER).join(path), text)));
        }
        Ok(files)
    }

    /// Files of a function's crate, by their path in its folder; `dependency`: TOML that leads to the SDK.
    ///
    /// # Errors
    /// None that a user could cause.
    pub(crate) fn crate_files(&self, dependency: &str) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let values = context! { sdk_dependency => dependency, ..self.values()? };
        let handler = if self.ticks() { "tick" } else { "lib" };
        Ok(vec![
            (PathBuf::from("Cargo.toml"), render("crate", &values)?),
            (PathBuf::from("src/lib.rs"), self.render(handler)?),
        ])
    }

    /// Whether its handler takes the ticks of a schedule, which come from no stream.
    pub(crate) fn ticks(&self) -> bool {
        self.subject.pattern == TICK_SUBJECT
    }

    /// The manifest's section for the stream.
    ///
    /// # Errors
    /// None that a user could cause.
    pub(crate) fn stream_section(&self) -> anyhow::Result<String> {
        self.render("stream")
    }

    /// The manifest's section for the function.
    ///
    /// # Errors
    /// None that a user could cause.
    pub(crate) fn function_section(&self) -> anyhow::Result<String> {
        self.render("function")
    }

    fn render(&self, template: &str) -> anyhow::Result<String> {
        let mut values = self.values()?;
        if template == "manifest" {
            values = context! {
                stream_section => render("stream", &values)?,
                function_section => render("function", &context! { fresh => true, ..values.clone() })?.trim_end(),
                ..values
            };
        }
        render(template, &values)
    }

    fn values(&self) -> anyhow::Result<Value> {
        let first = self.subject.pattern.split('.').next().unwrap_or_default();
        let covered = if first == "*" || first == ">" || first == self.subject.pattern {
            self.subject.pattern.clone()
        } else {
            format!("{first}.>")
        };
        Ok(context! {
            home => HOME,
            app => self.app,
            function => self.function,
            stream => stream_name(self.function),
            covered => covered,
            subject => self.subject.pattern,
            example => self.subject.example,
            id => self.subject.id,
            example_id => self.subject.example_id,
            key => format!("{}.{}", self.function, self.subject.example_id),
            sdk => sdk_dependency(self.sdk)?,
            ticks => self.ticks(),
            fresh => false,
        })
    }
}

/// TOML that leads to the SDK.
///
/// # Errors
/// A folder that is not the SDK.
pub(crate) fn sdk_dependency(folder: Option<&Path>) -> anyhow::Result<String> {
    let Some(folder) = folder else {
        return Ok(format!("{{ path = \"{}\" }}", sdk::FOLDER));
    };
    let manifest = folder.join("Cargo.toml");
    let named =
        std::fs::read_to_string(&manifest).is_ok_and(|text| text.contains("name = \"pelton-sdk\""));
    ensure!(
        named,
        "--sdk: {} is not the folder of the crate pelton-sdk\n  fix: give the folder `sdk` of a copy of {HOME}",
        folder.display()
    );
    let folder = folder
        .canonicalize()
        .with_context(|| format!("cannot read {}", folder.display()))?;
    // A JSON string is a TOML one too.
    Ok(format!("{{ path = {} }}", serde_json::to_string(&folder)?))
}

fn render(template: &str, values: &Value) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment.get_template(template)?.render(values)?)
}

/// Writes files into a folder that must not exist yet, all of them or none.
///
/// # Errors
/// The folder exists, or cannot be written.
pub(crate) fn write(folder: &Path, files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    let parent = folder.parent().context("a folder has a parent")?;
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot create {}", parent.display()))?;
    std::fs::create_dir(folder).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return anyhow::anyhow!(
                "{} exists already, and nothing is overwritten\n  fix: take another name, or remove it",
                folder.display()
            );
        }
        anyhow::Error::new(error).context(format!("cannot create {}", folder.display()))
    })?;
    let written = files.iter().try_for_each(|(path, text)| {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::File::create_new(&path)?.write_all(text.as_bytes())
    });
    if let Err(error) = written {
        // What this call made goes again; a failure here would only hide the cause.
        let _ = std::fs::remove_dir_all(folder);
        return Err(error).with_context(|| format!("cannot write into {}", folder.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(pattern: &str) -> (String, String, String) {
        let scaffold = Scaffold {
            app: "shop",
            function: "report",
            subject: &Subject::new(pattern).unwrap(),
            sdk: None,
        };
        let manifest = scaffold.app_files().unwrap().remove(0).1;
        let files = scaffold.crate_files("{ workspace = true }").unwrap();
        let function = scaffold.function_section().unwrap();
        (manifest, function, files[1].1.clone())
    }

    #[test]
    fn an_added_function_begins_with_new_events_and_a_new_app_leaves_the_question_open() {
        let (manifest, function, code) = sections("orders.*.paid");
        assert!(function.ends_with("\nstart = \"new\"\n"), "{function}");
        assert!(manifest.contains("\n# start = \"new\""), "{manifest}");
        assert!(!manifest.contains("\nstart"), "{manifest}");
        assert!(code.contains("#[handler(\"orders.*.paid\")]"));
    }

    #[test]
    fn a_handler_of_ticks_gets_a_schedule() {
        let (_, function, code) = sections("schedule.tick");
        assert!(
            function.ends_with("\nschedule = \"0 */5 * * * *\"\n"),
            "{function}"
        );
        assert!(!function.contains("start"), "{function}");
        assert!(code.contains("#[handler(\"schedule.tick\")]"));
    }
}
