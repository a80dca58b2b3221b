//! The grammar (RFC 8259): tokens, and words for what is wrong and where.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// How deep arrays and objects may nest, as in serde_json: the stack is finite.
const MAX_DEPTH: u8 = 127;

/// What is wrong; where, the reader knows.
#[derive(Debug)]
pub(super) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    #[cold]
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }

    #[cold]
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        unfit("invalid type: ", &kind(found), expected)
    }

    #[cold]
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        unfit("invalid value: ", &kind(found), expected)
    }
}

#[cold]
fn unfit(what: &str, found: &str, expected: &dyn Expected) -> Fault {
    Fault([what, found, ", expected ", &expected.to_string()].concat())
}

/// Without printing floats, which is what this reader is for.
fn kind(found: Unexpected<'_>) -> Cow<'static, str> {
    Cow::Borrowed(match found {
        Unexpected::Unsigned(number) => return number.to_string().into(),
        Unexpected::Signed(number) => return number.to_string().into(),
        Unexpected::Str(text) => return ["\"", text, "\""].concat().into(),
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "an array",
        Unexpected::Map => "an object",
        _ => "something else",
    })
}

/// A step of the path to a value.
pub(super) enum Segment<'de> {
    Key(Cow<'de, str>),
    Index(usize),
}

/// A place in a JSON text.
pub(super) struct Reader<'de> {
    text: &'de str,
    at: usize,
    depth: u8,
    /// The way to the value at hand; it stays when reading fails.
    pub(super) path: Vec<Segment<'de>>,
}

impl<'de> Reader<'de> {
    pub(super) fn new(text: &'de str) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
            path: Vec::new(),
        }
    }

    /// Nothing but space may follow.
    pub(super) fn end(&mut self) -> Result<(), String> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.explain(&self.fault("something follows the value"))),
        }
    }

    #[cold]
    pub(super) fn fault(&self, text: &str) -> Fault {
        Fault(text.to_owned())
    }

    /// The value at hand is of another type.
    #[cold]
    pub(super) fn mismatch(&mut self, expected: &dyn Expected) -> Fault {
        let first = self.peek();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let found = match first {
            Some(b'"') => "a string",
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b't' | b'f') if rest.starts_with("true") || rest.starts_with("false") => {
                "a boolean"
            }
            Some(b'n') if rest.starts_with("null") => "null",
            Some(b'-' | b'0'..=b'9') => "a number",
            Some(_) => return self.fault("this is no JSON value"),
            None => return self.fault("the text ends where a value should be"),
        };
        unfit("invalid type: ", found, expected)
    }

    /// The fault with its field and place.
    #[cold]
    pub(super) fn explain(&self, fault: &Fault) -> String {
        let mut path = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(key);
                }
                Segment::Index(index) => {
                    path.push_str(&["[", &index.to_string(), "]"].concat());
                }
            }
        }
        let field = match path.is_empty() {
            true => String::new(),
            false => ["field `", &path, "`: "].concat(),
        };
        let read = self.text.as_bytes().get(..self.at).unwrap_or_default();
        let (mut line, mut column) = (1u32, 1u32);
        for byte in read {
            column += 1;
            if *byte == b'\n' {
                (line, column) = (line + 1, 1);
            }
        }
        let (line, column) = (line.to_string(), column.to_string());
        [&field, &fault.0, " at line ", &line, " column ", &column].concat()
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    fn slice(&self, from: usize, to: usize) -> &'de str {
        self.text.get(from..to).unwrap_or_default()
    }

    /// `null`, `true` or `false`.
    pub(super) fn word(&mut self, word: &str) -> Result<(), Fault> {
        let end = self.at + word.len();
        if self.slice(self.at, end) != word {
            return Err(self.fault("this is no JSON value"));
        }
        self.at = end;
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        match self.at > from {
            true => Ok(()),
            false => Err(self.fault("a digit is missing here")),
        }
    }

    /// A number as it is written.
    pub(super) fn number(&mut self) -> Result<&'de str, Fault> {
        let from = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        if self.byte() == Some(b'0') {
            self.at += 1;
            if let Some(b'0'..=b'9') = self.byte() {
                return Err(self.fault("a number does not begin with 0"));
            }
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(self.slice(from, self.at))
    }

    /// A string; borrowed unless it has escapes.
    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, Fault> {
        self.at += 1;
        let mut owned = String::new();
        loop {
            let from = self.at;
            while let Some(byte) = self.byte() {
                if byte == b'"' || byte == b'\\' || byte < b' ' {
                    break;
                }
                self.at += 1;
            }
            let piece = self.slice(from, self.at);
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    if owned.is_empty() {
                        return Ok(Cow::Borrowed(piece));
                    }
                    owned.push_str(piece);
                    return Ok(Cow::Owned(owned));
                }
                Some(b'\\') => {
                    owned.push_str(piece);
                    self.at += 1;
                    owned.push(self.escape()?);
                }
                Some(_) => return Err(self.fault("a control character must be escaped")),
                None => return Err(self.fault("the text ends within a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let byte = self.byte();
        self.at += 1;
        Ok(match byte {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let mut code = self.hex()?;
                if let 0xD800..0xDC00 = code {
                    if self.slice(self.at, self.at + 2) != "\\u" {
                        return Err(self.fault("half a surrogate pair"));
                    }
                    self.at += 2;
                    let low = self.hex()?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return Err(self.fault("half a surrogate pair"));
                    }
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                }
                char::from_u32(code).ok_or_else(|| self.fault("half a surrogate pair"))?
            }
            _ => return Err(self.fault("this is no escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.byte().and_then(|byte| char::from(byte).to_digit(16));
            code = code << 4 | digit.ok_or_else(|| self.fault("four hex digits belong here"))?;
            self.at += 1;
        }
        Ok(code)
    }

    /// Into an array or object.
    pub(super) fn open(&mut self) -> Result<(), Fault> {
        if self.depth == MAX_DEPTH {
            return Err(self.fault("arrays and objects nest too deep"));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Out of it.
    pub(super) fn close(&mut self, end: u8) -> Result<(), Fault> {
        if self.peek() != Some(end) {
            return Err(self.fault("this array or object should end here"));
        }
        self.depth -= 1;
        self.at += 1;
        Ok(())
    }

    /// Whether there is another item before `end`, past the comma.
    pub(super) fn more(&mut self, first: bool, end: u8) -> Result<bool, Fault> {
        match self.peek() {
            Some(byte) if byte == end => return Ok(false),
            Some(b',') if !first => {
                self.at += 1;
                if self.peek() == Some(end) {
                    return Err(self.fault("a comma without an item behind it"));
                }
            }
            Some(_) if first => {}
            Some(_) => return Err(self.fault("a comma is missing here")),
            None => return Err(self.fault("the text ends within an array or object")),
        }
        Ok(true)
    }

    /// A key of an object.
    pub(super) fn key(&mut self) -> Result<Cow<'de, str>, Fault> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(_) => Err(self.fault("a key is a string")),
            None => Err(self.fault("the text ends where a key should be")),
        }
    }

    /// Between a key and its value.
    pub(super) fn colon(&mut self) -> Result<(), Fault> {
        if self.peek() != Some(b':') {
            return Err(self.fault("a colon is missing here"));
        }
        self.at += 1;
        Ok(())
    }

    /// Past a value, whatever it is; its text.
    pub(super) fn skip(&mut self) -> Result<&'de str, Fault> {
        let first = self.peek();
        let from = self.at;
        match first {
            Some(b'"') => drop(self.string()?),
            Some(b'-' | b'0'..=b'9') => drop(self.number()?),
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'{') => self.skip_items(b'}')?,
            Some(b'[') => self.skip_items(b']')?,
            _ => self.word("null")?,
        }
        Ok(self.slice(from, self.at))
    }

    fn skip_items(&mut self, end: u8) -> Result<(), Fault> {
        self.open()?;
        let mut first = true;
        while self.more(first, end)? {
            first = false;
            if end == b'}' {
                self.key()?;
                self.colon()?;
            }
            self.skip()?;
        }
        self.close(end)
    }
}
