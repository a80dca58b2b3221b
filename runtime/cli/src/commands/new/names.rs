//! Names that an app, a function and a crate can all have, since one word becomes all three.

use anyhow::ensure;
use pelton_runtime::config::is_name;
use pelton_runtime::event::subject::is_pattern;

/// Words that Rust keeps for itself, or that a crate of this project depends on.
const TAKEN: [&str; 55] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "pelton",
    "pelton-sdk",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "serde_json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "unsafe",
    "use",
];

/// Refuses a name that cannot be an app, a function and a crate.
///
/// # Errors
/// Says which names can.
pub(crate) fn ensure_name(name: &str) -> anyhow::Result<()> {
    // A crate's name does not begin with a digit, unlike what `pelton.toml` takes.
    let formed = is_name(name) && name.starts_with(|first: char| first.is_ascii_lowercase());
    ensure!(
        formed,
        "{name:?} cannot be a name\n  fix: 1 to 32 of a-z 0-9 -, beginning with a letter, such as order-mails"
    );
    ensure!(
        !TAKEN.contains(&name),
        "{name:?} means something to Rust or Cargo\n  fix: take another name, such as {name}-events"
    );
    Ok(())
}

/// What a template needs to know of a handler's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The pattern itself.
    pub(crate) pattern: String,
    /// A subject that matches it.
    pub(crate) example: String,
    /// Rust that finds what the event is about.
    pub(crate) id: String,
    /// What that is in the example.
    pub(crate) example_id: String,
}

impl Subject {
    /// # Errors
    /// What is no pattern of subjects.
    pub(crate) fn new(pattern: &str) -> anyhow::Result<Self> {
        ensure!(
            is_pattern(pattern) && !pattern.contains(['"', '\\']) && !pattern.starts_with('$'),
            "{pattern:?} is no subject to take events from\n  fix: tokens with dots between, `*` for any token, such as orders.*.paid"
        );
        let tokens = pattern.split('.');
        let wildcard = tokens
            .clone()
            .position(|token| token == "*" || token == ">");
        let example: Vec<&str> = tokens
            .map(|token| {
                if token == "*" || token == ">" {
                    "1"
                } else {
                    token
                }
            })
            .collect();
        Ok(Self {
            pattern: pattern.to_owned(),
            example: example.join("."),
            id: wildcard.map_or_else(
                || "&event.id".to_owned(),
                |at| format!("event.token({}).or_reject(\"id-missing\")?", at + 1),
            ),
            // `Event::test` calls its event so.
            example_id: wildcard.map_or("test-1", |_| "1").to_owned(),
        })
    }
}

/// `order-mails` → `ORDER-MAILS`: how streams are usually called.
pub(crate) fn stream_name(function: &str) -> String {
    function.to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["shop", "order-mails", "a1", &"a".repeat(32)] {
            ensure_name(good).unwrap();
        }
        for bad in [
            "",
            "Shop",
            "1a",
            "a.b",
            "a b",
            "fn",
            "test",
            "serde",
            "../x",
            "x_y",
            &"a".repeat(33),
        ] {
            ensure_name(bad).unwrap_err();
        }
        assert!(TAKEN.is_sorted());
    }

    #[test]
    fn subjects() {
        let of = |pattern| Subject::new(pattern).unwrap();
        assert_eq!(of("orders.*.paid").example, "orders.1.paid");
        assert_eq!(
            of("orders.*.paid").id,
            "event.token(2).or_reject(\"id-missing\")?"
        );
        assert_eq!(of("a.>").example, "a.1");
        assert_eq!(of("a.b").id, "&event.id");
        for bad in ["", "a..b", "a.>.b", "a b", "$KV.x", "a\"b"] {
            Subject::new(bad).unwrap_err();
        }
    }
}
