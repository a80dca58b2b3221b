//! `pelton --version --verbose`: what this binary is made of, for a report of a fault.

use std::ffi::OsString;

use pelton_runtime::names::MIN_SERVER;

use crate::sdk;

/// Whether that is what a command line asks for; `pelton --version` alone is clap's.
pub(crate) fn is_asked(words: impl Iterator<Item = OsString>) -> bool {
    let (mut version, mut verbose) = (false, false);
    for word in words {
        match word.to_str() {
            Some("--version" | "-V") => version = true,
            Some("--verbose" | "-v") => verbose = true,
            Some("-vV" | "-Vv") => (version, verbose) = (true, true),
            _ => return false,
        }
    }
    version && verbose
}

/// One line for each part, `NAME: VALUE`.
pub(crate) fn verbose() -> String {
    let commit = match env!("PELTON_BUILD_COMMIT") {
        "" => "unknown",
        commit => commit,
    };
    let parts = [
        ("commit", commit.to_owned()),
        ("target", env!("PELTON_BUILD_TARGET").to_owned()),
        ("sdk", format!("pelton-sdk {}", sdk::VERSION)),
        (
            "contract",
            format!("{}; nodes serve 0.1.x", sdk::contract()),
        ),
        ("wasmtime", env!("PELTON_BUILD_WASMTIME").to_owned()),
        ("async-nats", env!("PELTON_BUILD_ASYNC_NATS").to_owned()),
        ("nats-server", format!("{MIN_SERVER} or newer")),
    ];
    let mut text = format!("pelton {}\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in parts {
        text += &format!("{name}: {value}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_with_verbose_asks_for_it() {
        for (line, expected) in [
            ("--version --verbose", true),
            ("--verbose -V", true),
            ("-vV", true),
            ("--version", false),
            ("--verbose", false),
            ("", false),
            ("call fn --version --verbose", false),
        ] {
            let words = line.split_whitespace().map(OsString::from);
            assert_eq!(is_asked(words), expected, "{line}");
        }
    }

    #[test]
    fn every_part_is_known() {
        let text = verbose();
        let value = |name: &str| {
            let mut lines = text.lines().map(|line| line.split_once(": "));
            let found = lines.find_map(|line| line.filter(|(one, _)| *one == name));
            found.map(|(_, value)| value.to_owned()).unwrap()
        };
        assert!(text.starts_with("pelton 0."), "{text}");
        for name in ["wasmtime", "async-nats", "nats-server"] {
            let first = value(name);
            let first = first.split(' ').next().unwrap();
            cargo_metadata::semver::Version::parse(first).unwrap();
        }
        assert!(
            value("contract").starts_with("pelton:function@0.1."),
            "{text}"
        );
        assert!(value("target").contains('-'), "{text}");
        assert!(
            !value("commit").is_empty() && value("sdk").contains("0."),
            "{text}"
        );
    }
}
