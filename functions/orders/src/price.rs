//! A price, kept digit for digit as it came: a float would change it, and nothing here computes with it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest price, quotes included.
const MAX_LEN: usize = 40;

/// A decimal of zero or more, written as a JSON number or string, without exponent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Box<RawValue>")]
pub(crate) struct Price(Box<RawValue>);

impl Price {
    /// The digits.
    pub(crate) fn as_str(&self) -> &str {
        digits(&self.0)
    }
}

fn digits(raw: &RawValue) -> &str {
    let text = raw.get();
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    inner.unwrap_or(text)
}

fn is_decimal(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= MAX_LEN && digits(whole) && digits(fraction)
}

impl TryFrom<Box<RawValue>> for Price {
    type Error = &'static str;

    fn try_from(raw: Box<RawValue>) -> Result<Self, Self::Error> {
        match is_decimal(digits(&raw)) {
            true => Ok(Self(raw)),
            false => Err("a price is a decimal of zero or more, such as 12.50 or \"12.50\""),
        }
    }
}

impl PartialEq for Price {
    /// By digits: a number equals the string that shows it.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Price {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_digit_for_digit() {
        for json in [
            "12.50",
            "\"12.50\"",
            "0",
            "12345678901234567890.000000000000000001",
        ] {
            let price: Price = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&price).unwrap(), json);
        }
        let price = |json| serde_json::from_str::<Price>(json).unwrap();
        assert_eq!(price("12.50"), price("\"12.50\""));
    }

    #[test]
    fn all_else_is_refused() {
        for json in [
            "-1",
            "1e3",
            "\"\"",
            "\"1.\"",
            "\".5\"",
            "\"12,5\"",
            "\"a\"",
            "null",
            "[1]",
            "\"1\\u0030\"",
        ] {
            assert!(serde_json::from_str::<Price>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Price>(&"1".repeat(41)).is_err());
    }
}
