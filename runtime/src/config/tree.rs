//! TOML as a tree in which everything knows where it stands, so that every complaint can point at its place.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// A value and where it stands: byte offsets into the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Of its key; of the value itself in a list.
    pub(super) at: usize,
    /// Of its value.
    pub(super) value_at: usize,
    pub(super) value: Value,
}

/// Keys of a table.
pub(super) type Entries = BTreeMap<String, Entry>;

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Time(String),
    List(Vec<Entry>),
    Table(Entries),
}

impl Value {
    /// What it is, for a person.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Time(_) => "a date or time",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Turns offsets into lines and columns.
#[derive(Debug, Clone)]
pub(super) struct Lines<'a> {
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
}

impl Lines<'_> {
    /// Line and column of an offset, from 1; a column counts characters.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
        (line, column)
    }

    pub(super) fn error(&self, offset: usize, what: String, fix: String) -> ConfigError {
        let (line, column) = self.place(offset);
        ConfigError {
            file: self.file.to_owned(),
            line,
            column,
            what,
            fix,
        }
    }
}

/// Reads TOML.
///
/// # Errors
/// Every place where it is no TOML.
pub(super) fn parse(lines: &Lines<'_>) -> Result<Entries, Vec<ConfigError>> {
    let (table, errors) = DeTable::parse_recoverable(lines.text);
    if errors.is_empty() {
        return Ok(entries(table.get_ref()));
    }
    Err(errors
        .iter()
        .map(|error| {
            let at = error.span().map_or(0, |span| span.start);
            lines.error(
                at,
                format!("no valid TOML: {}", error.message()),
                "correct the spelling of this line; https://toml.io has the rules".into(),
            )
        })
        .collect())
}

fn entries(table: &DeTable<'_>) -> Entries {
    table
        .iter()
        .map(|(key, value)| {
            let entry = Entry {
                at: key.span().start,
                ..entry(value)
            };
            (key.get_ref().to_string(), entry)
        })
        .collect()
}

fn entry(spanned: &Spanned<DeValue<'_>>) -> Entry {
    let at = spanned.span().start;
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        // Beyond 64 bits is beyond every range here, which then says so.
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX))
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(time) => Value::Time(time.to_string()),
        DeValue::Array(list) => Value::List(list.iter().map(entry).collect()),
        DeValue::Table(table) => Value::Table(entries(table)),
    };
    Entry {
        at,
        value_at: at,
        value,
    }
}

/// Lays one table over another: tables merge, everything else is replaced.
pub(super) fn overlay(base: &mut Entries, over: &Entries) {
    for (name, entry) in over {
        match (
            base.get_mut(name).map(|entry| &mut entry.value),
            &entry.value,
        ) {
            // `key` is a choice of one, not a table to be added to.
            (Some(Value::Table(below)), Value::Table(above)) if name != "key" => {
                overlay(below, above);
            }
            _ => {
                base.insert(name.clone(), entry.clone());
            }
        }
    }
}

/// Offsets of everything in a table, below `prefix`: keys by dotted path, list elements by index.
pub(super) fn places(prefix: &str, entries: &Entries, found: &mut BTreeMap<String, usize>) {
    for (name, entry) in entries {
        let path = join(prefix, name);
        place_of(&path, entry, found);
        found.insert(path, entry.at);
    }
}

fn place_of(path: &str, entry: &Entry, found: &mut BTreeMap<String, usize>) {
    match &entry.value {
        Value::Table(table) => places(path, table, found),
        Value::List(list) => {
            for (index, element) in list.iter().enumerate() {
                let path = join(path, &index.to_string());
                place_of(&path, element, found);
                found.insert(path, element.at);
            }
        }
        _ => {}
    }
}

pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

/// Offsets of keys and values, all of them.
pub(super) fn offsets(entries: &Entries, found: &mut Vec<usize>) {
    for entry in entries.values() {
        offsets_of(entry, found);
    }
}

fn offsets_of(entry: &Entry, found: &mut Vec<usize>) {
    found.extend([entry.at, entry.value_at]);
    match &entry.value {
        Value::Table(table) => offsets(table, found),
        Value::List(list) => list.iter().for_each(|element| offsets_of(element, found)),
        _ => {}
    }
}
