//! What a node links, by name, so that a component with other imports is refused before it is stored.

use super::ComponentError;

/// Interfaces of the contract, each with the version's beginning.
const CONTRACT: [(&str, &str); 6] = [
    ("pelton:function/types", "0.1."),
    ("pelton:function/state", "0.1."),
    ("pelton:function/events", "0.1."),
    ("pelton:function/clock", "0.1."),
    ("wasi:logging/logging", "0.1.0-draft"),
    ("wasi:config/store", "0.2.0-rc.1"),
];
/// Packages of WASI 0.2 that every function may import.
const WASI: [&str; 6] = [
    "wasi:io",
    "wasi:clocks",
    "wasi:random",
    "wasi:cli",
    "wasi:filesystem",
    "wasi:sockets",
];
/// Interfaces that a function may import when its manifest allows hosts.
const HTTP: [&str; 2] = ["wasi:http/types", "wasi:http/outgoing-handler"];

/// Whether this import makes HTTP calls.
pub(crate) fn is_http(name: &str) -> bool {
    HTTP.iter().any(|interface| is(name, interface, "0.2."))
}

/// Names every import that no node links.
///
/// # Errors
/// There is one.
pub(crate) fn check(imports: &[String]) -> Result<(), ComponentError> {
    let unknown: Vec<&str> = imports
        .iter()
        .map(String::as_str)
        .filter(|name| !is_known(name))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ComponentError(format!(
        "the component imports {}, which no node offers: build it without; a function may import \
         pelton:function@0.1, wasi:logging@0.1.0-draft, wasi:config@0.2.0-rc.1, and of WASI 0.2 clocks, random, \
         io, cli, filesystem, sockets and (with allow.http) http",
        unknown.join(", ")
    )))
}

fn is_known(name: &str) -> bool {
    CONTRACT
        .iter()
        .any(|(interface, version)| is(name, interface, version))
        || WASI.iter().any(|package| {
            name.strip_prefix(package)
                .and_then(|rest| rest.strip_prefix('/'))
                .and_then(|rest| rest.split_once('@'))
                .is_some_and(|(_, version)| version.starts_with("0.2."))
        })
        || is_http(name)
}

/// Whether `name` is `interface@version…`.
fn is(name: &str, interface: &str, version: &str) -> bool {
    name.strip_prefix(interface)
        .and_then(|rest| rest.strip_prefix('@'))
        .is_some_and(|rest| rest.starts_with(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, known) in [
            ("pelton:function/state@0.1.0", true),
            ("pelton:function/state@0.1.9", true),
            ("pelton:function/state@0.2.0", false),
            ("pelton:function/secrets@0.1.0", false),
            ("wasi:logging/logging@0.1.0-draft", true),
            ("wasi:clocks/wall-clock@0.2.6", true),
            ("wasi:clocks/wall-clock@0.3.0", false),
            ("wasi:clocksmith/wall-clock@0.2.6", false),
            ("wasi:http/outgoing-handler@0.2.3", true),
            ("wasi:http/incoming-handler@0.2.3", false),
            ("wasi:keyvalue/store@0.2.0-draft", false),
            ("env", false),
        ] {
            assert_eq!(is_known(name), known, "{name}");
        }
        let refused = check(&["a:b/c".into(), "wasi:io/poll@0.2.0".into(), "d:e/f".into()]);
        let message = refused.unwrap_err().0;
        assert!(message.contains("a:b/c, d:e/f,"), "{message}");
        assert!(!message.contains("wasi:io/poll"), "{message}");
    }
}
