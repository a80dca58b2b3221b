//! From an entry of the manifest back to its line: problems are found long after the file was read.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Problem;
use crate::config::ConfigError;

/// Says where in the file a problem lies: at its entry, in the overlay of `env` when that has it, or else at the nearest
/// table above it.
pub fn locate(problem: &Problem, file: &Path, text: &str, env: Option<&str>) -> ConfigError {
    let keys: Vec<&str> = problem.keys.iter().map(String::as_str).collect();
    let overlaid = env.and_then(|env| {
        let deeper: Vec<&str> = ["env", env].iter().chain(keys.iter()).copied().collect();
        find(text, &deeper).filter(|(_, depth)| *depth == deeper.len())
    });
    let offset = overlaid
        .or_else(|| find(text, &keys))
        .map_or(0, |(offset, _)| offset);
    let before = text.get(..offset).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    ConfigError {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        what: problem.what.clone(),
        fix: problem.fix.clone(),
    }
}

/// Byte offset of the deepest key that exists, and how many keys deep it is.
fn find(text: &str, keys: &[&str]) -> Option<(usize, usize)> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut found = None;
    for (depth, key) in keys.iter().enumerate() {
        let Some((name, value)) = table.get_key_value(*key) else {
            break;
        };
        found = Some((name.span().start, depth + 1));
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found() {
        let text = "pelton = 1\n[functions.orders]\ncomponent = \"x\"\n  subjects = [\"a\"]\n\
                    [env.staging.functions.orders]\nsubjects = [\"b\"]\n";
        for (keys, env, line, column) in [
            (vec!["functions", "orders", "subjects"], None, 4, 3),
            (
                vec!["functions", "orders", "subjects"],
                Some("staging"),
                6,
                1,
            ),
            (
                vec!["functions", "orders", "component"],
                Some("staging"),
                3,
                1,
            ),
            (vec!["functions", "orders", "start"], None, 2, 12),
            (vec!["streams", "X"], None, 1, 1),
        ] {
            let at = locate(&Problem::new(&keys, "w", "f"), Path::new("p"), text, env);
            assert_eq!((at.line, at.column), (line, column), "{keys:?} {env:?}");
        }
    }
}
