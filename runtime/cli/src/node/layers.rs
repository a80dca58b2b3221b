//! Which one counts when a setting is given more than once: a flag before a variable, a variable before the file, the
//! file before the default.

use std::collections::BTreeMap;

use clap::ArgMatches;
use clap::parser::ValueSource;
use schemars::JsonSchema;
use serde::Serialize;

/// Where a setting comes from, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Nobody gave it.
    Default,
    /// A saved context of the `nats` CLI.
    Context,
    /// The node's file.
    File,
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

/// A setting that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// What it is.
    pub value: T,
    /// Who said so.
    pub source: Source,
}

/// The one that counts; none: nobody gave it.
pub fn layered<T>(flag: Option<T>, variable: Option<T>, file: Option<T>) -> Option<Setting<T>> {
    [
        (flag, Source::Flag),
        (variable, Source::Environment),
        (file, Source::File),
    ]
    .into_iter()
    .find_map(|(value, source)| {
        Some(Setting {
            value: value?,
            source,
        })
    })
}

impl<T> Setting<T> {
    /// What counts when nobody gave it.
    pub fn default(value: T) -> Self {
        Self {
            value,
            source: Source::Default,
        }
    }
}

/// Which arguments were given by flag and which by variable: the parsed values alone do not tell.
#[derive(Debug, Clone, Default)]
pub struct Given(BTreeMap<String, Source>);

impl Given {
    /// Of a whole command line, its subcommands included.
    pub fn of(matches: &ArgMatches) -> Self {
        let mut given = BTreeMap::new();
        let mut level = Some(matches);
        while let Some(matches) = level {
            for id in matches.ids() {
                let source = match matches.value_source(id.as_str()) {
                    Some(ValueSource::CommandLine) => Source::Flag,
                    Some(ValueSource::EnvVariable) => Source::Environment,
                    _ => continue,
                };
                let known = given.entry(id.to_string()).or_insert(source);
                *known = source.max(*known);
            }
            level = matches.subcommand().map(|(_, matches)| matches);
        }
        Self(given)
    }

    /// An argument's value, if it was given by `source`.
    pub fn by<T>(&self, source: Source, id: &str, value: Option<T>) -> Option<T> {
        value.filter(|_| self.0.get(id) == Some(&source))
    }

    /// What counts of an argument (its value is what clap made of flag and variable) and the file.
    pub fn over<T: Clone>(
        &self,
        id: &str,
        value: Option<T>,
        file: Option<T>,
    ) -> Option<Setting<T>> {
        layered(
            self.by(Source::Flag, id, value.clone()),
            self.by(Source::Environment, id, value),
            file,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn flag_over_variable_over_file() {
        use Source::{Environment, File, Flag};
        for (file, variable, flag, expect) in [
            (None, None, None, None),
            (Some(1), None, None, Some((1, File))),
            (None, Some(2), None, Some((2, Environment))),
            (None, None, Some(3), Some((3, Flag))),
            (Some(1), Some(2), None, Some((2, Environment))),
            (Some(1), None, Some(3), Some((3, Flag))),
            (None, Some(2), Some(3), Some((3, Flag))),
            (Some(1), Some(2), Some(3), Some((3, Flag))),
        ] {
            let counts = layered(flag, variable, file);
            let counts = counts.map(|setting| (setting.value, setting.source));
            assert_eq!(
                counts, expect,
                "file {file:?}, variable {variable:?}, flag {flag:?}"
            );
        }
    }

    #[test]
    fn what_was_not_given_comes_from_the_file() {
        let line = [
            "pelton",
            "--server",
            "nats://h:1",
            "run",
            "--drain",
            "3s",
            "--tls-first",
        ];
        let given = Given::of(&Cli::command().get_matches_from(line));
        for id in ["server", "drain", "tls_first"] {
            let setting = given.over(id, Some("flag"), Some("file")).unwrap();
            assert_eq!(
                (setting.value, setting.source),
                ("flag", Source::Flag),
                "{id}"
            );
        }
        let setting = given.over("name", None, Some("file")).unwrap();
        assert_eq!((setting.value, setting.source), ("file", Source::File));
    }
}
