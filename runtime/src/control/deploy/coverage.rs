//! Which streams hold which subjects, pure: patterns against the subjects of streams.

use std::collections::BTreeMap;

use super::survey::StreamView;
use crate::config::canonical;
use crate::event::subject::{covers, overlaps};
use crate::names::OWN_PREFIX;
use crate::records::Input;

/// How a pattern lies on the streams.
pub(super) struct Covered {
    /// The streams that hold some of it, and which part.
    pub(super) parts: Vec<(String, Vec<String>)>,
    /// Whether one of them holds all of it.
    pub(super) whole: bool,
}

/// Finds the streams for a pattern. Pelton's own are left out: `>` asks for events, not for the registry.
pub(super) fn cover(pattern: &str, streams: &BTreeMap<String, StreamView>) -> Covered {
    let mut covered = Covered {
        parts: Vec::new(),
        whole: false,
    };
    for (name, stream) in streams
        .iter()
        .filter(|(name, stream)| !internal(name, stream))
    {
        let parts: Vec<String> = stream
            .subjects
            .iter()
            .filter_map(|subject| common(pattern, subject))
            .collect();
        covered.whole |= stream
            .subjects
            .iter()
            .any(|subject| covers(subject, pattern));
        if !parts.is_empty() {
            covered.parts.push((name.clone(), parts));
        }
    }
    covered
}

/// Whether a stream is one of Pelton's own.
pub(super) fn internal(name: &str, stream: &StreamView) -> bool {
    ["PELTON_", "KV_PELTON_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || stream
            .subjects
            .iter()
            .any(|subject| subject.starts_with(OWN_PREFIX))
}

/// The pattern of what matches both, if anything does.
pub(super) fn common(left: &str, right: &str) -> Option<String> {
    if !overlaps(left, right) {
        return None;
    }
    let (mut left, mut right) = (left.split('.').peekable(), right.split('.').peekable());
    let mut tokens = Vec::new();
    loop {
        match (left.peek().copied(), right.peek().copied()) {
            (Some(">"), _) => {
                tokens.extend(right);
                break;
            }
            (_, Some(">")) => {
                tokens.extend(left);
                break;
            }
            (Some("*"), Some(token)) | (Some(token), Some(_)) => tokens.push(token),
            _ => break,
        }
        left.next();
        right.next();
    }
    Some(tokens.join("."))
}

/// Subjects of each input stream, sorted, none within another.
pub(super) fn inputs(parts: Vec<(String, Vec<String>)>) -> Vec<Input> {
    let mut by_stream: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (stream, subjects) in parts {
        let kept = by_stream.entry(stream).or_default();
        for subject in subjects {
            if !kept.iter().any(|other| covers(other, &subject)) {
                kept.retain(|other| !covers(&subject, other));
                kept.push(subject);
            }
        }
    }
    by_stream
        .into_iter()
        .map(|(stream, subjects)| Input {
            stream,
            subjects: canonical(subjects),
            start: 0,
            begun: false,
            resets: 0,
            created: 0,
        })
        .collect()
}

/// Two filters of one input that share subjects without one covering the other: the server refuses them.
pub(super) fn entangled(inputs: &[Input]) -> Option<(&str, &str)> {
    inputs.iter().find_map(|input| {
        let mut rest = input.subjects.as_slice();
        while let [first, others @ ..] = rest {
            if let Some(other) = others.iter().find(|other| overlaps(first, other)) {
                return Some((first.as_str(), other.as_str()));
            }
            rest = others;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_patterns_share() {
        for (left, right, expected) in [
            ("orders.>", "orders.*.paid", Some("orders.*.paid")),
            ("orders.*.paid", "orders.o-1.>", Some("orders.o-1.paid")),
            ("*.b", "a.*", Some("a.b")),
            (">", "a.*.>", Some("a.*.>")),
            ("a.*", "b.*", None),
        ] {
            assert_eq!(common(left, right).as_deref(), expected, "{left} {right}");
            assert_eq!(common(right, left).as_deref(), expected, "{right} {left}");
        }
    }

    #[test]
    fn filters_are_merged_and_entangled_ones_found() {
        let part = |subjects: &[&str]| {
            let subjects = subjects.iter().map(ToString::to_string).collect();
            ("S".to_owned(), subjects)
        };
        let merged = inputs(vec![part(&["a.b"]), part(&["a.>"]), part(&["c"])]);
        assert_eq!(merged[0].subjects, ["a.>", "c"]);
        assert_eq!(entangled(&merged), None);
        let bad = inputs(vec![part(&["a.*"]), part(&["*.b"])]);
        assert_eq!(entangled(&bad), Some(("*.b", "a.*")));
    }
}
