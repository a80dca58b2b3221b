//! Taking typed values out of the tree. A value that does not fit is noted and its default taken, so that one reading
//! finds everything that is wrong.

use super::ConfigError;
use super::tree::{Entries, Entry, Lines, Value, join};
use super::values;

/// Names closer than this are taken for misspelt.
const SIMILAR: f64 = 0.75;

/// What was found wrong so far.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    lines: Lines<'a>,
    /// With their offsets.
    found: Vec<(usize, ConfigError)>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(lines: Lines<'a>) -> Self {
        Self {
            lines,
            found: Vec::new(),
        }
    }

    /// For reading again what was complained about before.
    pub(super) fn none() -> Self {
        Self::new(Lines {
            file: std::path::Path::new(""),
            text: "",
        })
    }

    pub(super) fn add(&mut self, at: usize, what: impl Into<String>, fix: impl Into<String>) {
        let error = self.lines.error(at, what.into(), fix.into());
        self.found.push((at, error));
    }

    /// With offsets, in the order found.
    pub(super) fn into_inner(self) -> Vec<(usize, ConfigError)> {
        self.found
    }
}

/// A table that is being read.
#[derive(Debug, Clone)]
pub(super) struct Table<'t> {
    /// Dotted; empty for the whole file.
    pub(super) path: String,
    /// Where it begins.
    pub(super) at: usize,
    pub(super) entries: &'t Entries,
}

impl<'t> Table<'t> {
    pub(super) fn root(entries: &'t Entries) -> Self {
        Self {
            path: String::new(),
            at: 0,
            entries,
        }
    }

    /// Notes every key that is not `known`; `later` come with a later release.
    pub(super) fn only(&self, findings: &mut Findings<'_>, known: &[&str], later: &[&str]) {
        for (name, entry) in self.entries {
            if known.contains(&name.as_str()) {
                continue;
            }
            let place = self.shown();
            if later.contains(&name.as_str()) {
                findings.add(
                    entry.at,
                    format!("`{name}` {place} comes with a later release of Pelton"),
                    "remove it for now",
                );
                continue;
            }
            let fix = match nearest(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here are: {}", known.join(", ")),
            };
            findings.add(entry.at, format!("unknown key `{name}` {place}"), fix);
        }
    }

    fn shown(&self) -> String {
        if self.path.is_empty() {
            "in the file".to_owned()
        } else {
            format!("in [{}]", self.path)
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Entry> {
        self.entries.get(key)
    }

    /// A sub-table, if it is there.
    pub(super) fn table(&self, findings: &mut Findings<'_>, key: &str) -> Option<Table<'t>> {
        let entry = self.get(key)?;
        let Value::Table(entries) = &entry.value else {
            self.wrong(
                findings,
                key,
                entry,
                "a table",
                &format!("write it as [{}]", join(&self.path, key)),
            );
            return None;
        };
        Some(Table {
            path: join(&self.path, key),
            at: entry.at,
            entries,
        })
    }

    /// Sub-tables by name.
    pub(super) fn tables(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
    ) -> Vec<(String, Table<'t>)> {
        let Some(all) = self.table(findings, key) else {
            return Vec::new();
        };
        all.entries
            .keys()
            .filter_map(|name| Some((name.clone(), all.table(findings, name)?)))
            .collect()
    }

    fn wrong(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        entry: &Entry,
        wanted: &str,
        fix: &str,
    ) {
        let path = join(&self.path, key);
        findings.add(
            entry.value_at,
            format!("`{path}` must be {wanted}, not {}", entry.value.kind()),
            fix,
        );
    }

    pub(super) fn text(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        example: &str,
    ) -> Option<(&'t str, usize)> {
        let entry = self.get(key)?;
        if let Value::Text(text) = &entry.value {
            return Some((text, entry.value_at));
        }
        self.wrong(
            findings,
            key,
            entry,
            "a string",
            &format!("write it as {key} = {example:?}"),
        );
        None
    }

    pub(super) fn boolean(&self, findings: &mut Findings<'_>, key: &str) -> Option<bool> {
        let entry = self.get(key)?;
        if let Value::Boolean(value) = entry.value {
            return Some(value);
        }
        self.wrong(
            findings,
            key,
            entry,
            "true or false",
            &format!("write {key} = true or {key} = false"),
        );
        None
    }

    /// An integer from `least` to `most`.
    pub(super) fn integer(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        least: u32,
        most: u32,
    ) -> Option<u32> {
        let entry = self.get(key)?;
        let Value::Integer(number) = entry.value else {
            self.wrong(
                findings,
                key,
                entry,
                "an integer",
                &format!("write a number from {least} to {most}, without quotes"),
            );
            return None;
        };
        let fits = u32::try_from(number)
            .ok()
            .filter(|number| (least..=most).contains(number));
        if fits.is_none() {
            let path = join(&self.path, key);
            findings.add(
                entry.value_at,
                format!("`{path}` is {number}, outside {least} to {most}"),
                format!("choose a number from {least} to {most}"),
            );
        }
        fits
    }

    /// A number from `least` to `most`, with or without a fraction.
    pub(super) fn number(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        least: f64,
        most: f64,
    ) -> Option<f64> {
        let entry = self.get(key)?;
        let number = match entry.value {
            Value::Float(number) => number,
            #[expect(
                clippy::cast_precision_loss,
                reason = "far outside the range when it matters"
            )]
            Value::Integer(number) => number as f64,
            _ => {
                self.wrong(
                    findings,
                    key,
                    entry,
                    "a number",
                    &format!("write a number from {least} to {most}, without quotes"),
                );
                return None;
            }
        };
        if (least..=most).contains(&number) {
            return Some(number);
        }
        let path = join(&self.path, key);
        findings.add(
            entry.value_at,
            format!("`{path}` is {number}, outside {least} to {most}"),
            format!("choose a number from {least} to {most}"),
        );
        None
    }

    /// Milliseconds of a duration from `least` to `most` milliseconds.
    pub(super) fn duration(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let (text, at) = self.text(findings, key, "5s")?;
        let path = join(&self.path, key);
        let range = format!(
            "{} to {}",
            values::show_duration(least),
            values::show_duration(most)
        );
        match values::duration(text) {
            Err(why) => findings.add(
                at,
                format!("`{path}` is {text:?}, no duration: {why}"),
                "write a number and a unit: \"200ms\", \"5s\", \"10m\", \"1h\", \"7d\"",
            ),
            Ok(ms) if (least..=most).contains(&ms) => return Some(ms),
            Ok(_) => findings.add(
                at,
                format!("`{path}` is {text:?}, outside {range}"),
                format!("choose a duration from {range}"),
            ),
        }
        None
    }

    /// Bytes of a size from `least` to `most` bytes; a number without a unit is bytes.
    pub(super) fn size(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let entry = self.get(key)?;
        let (text, bytes) = match &entry.value {
            Value::Text(text) => (format!("{text:?}"), values::size(text)),
            Value::Integer(number) => (number.to_string(), u64::try_from(*number).ok()),
            _ => {
                self.wrong(
                    findings,
                    key,
                    entry,
                    "a size",
                    &format!("write it as {key} = \"64MiB\""),
                );
                return None;
            }
        };
        let path = join(&self.path, key);
        let range = format!(
            "{} to {}",
            values::show_size(least),
            values::show_size(most)
        );
        match bytes {
            None => findings.add(
                entry.value_at,
                format!("`{path}` is {text}, no size"),
                "write a number and a unit: \"512KiB\", \"64MiB\", \"2GiB\"",
            ),
            Some(bytes) if (least..=most).contains(&bytes) => return Some(bytes),
            Some(_) => findings.add(
                entry.value_at,
                format!("`{path}` is {text}, outside {range}"),
                format!("choose a size from {range}"),
            ),
        }
        None
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let example = choices.first().map_or("", |(word, _)| word);
        let (text, at) = self.text(findings, key, example)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        findings.add(
            at,
            format!("`{}` is {text:?}", join(&self.path, key)),
            format!("write {}", words.join(" or ")),
        );
        None
    }

    /// A list of strings with their offsets.
    pub(super) fn texts(
        &self,
        findings: &mut Findings<'_>,
        key: &str,
        example: &str,
    ) -> Option<Vec<(&'t str, usize)>> {
        let entry = self.get(key)?;
        let path = join(&self.path, key);
        let fix = format!("write it as {key} = [{example:?}]");
        let Value::List(list) = &entry.value else {
            self.wrong(findings, key, entry, "a list of strings", &fix);
            return None;
        };
        let mut texts = Vec::new();
        for element in list {
            match &element.value {
                Value::Text(text) => texts.push((text.as_str(), element.value_at)),
                other => findings.add(
                    element.value_at,
                    format!(
                        "`{path}` must be a list of strings; here is {}",
                        other.kind()
                    ),
                    &fix,
                ),
            }
        }
        Some(texts)
    }
}

/// The known name that was probably meant.
pub(super) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    // `max_attempts` and `maxAttempts` are `max-attempts` in another style.
    let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
    known
        .iter()
        .map(|other| (strsim::jaro_winkler(&plain(name), &plain(other)), *other))
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, other)| other)
}
