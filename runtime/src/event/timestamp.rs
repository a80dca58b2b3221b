//! Times as the contract has them (nanoseconds since 1970 in 64 bits) and as text (RFC 3339).
//! 64 bits reach from 1677 to 2262; a time outside is no time.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads RFC 3339; none when it is malformed or outside 1677–2262.
pub fn parse(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos()).ok()
}

/// Writes RFC 3339 in UTC, with as many digits of the second as it needs.
pub fn format(nanos: i64) -> String {
    // 64 bits of nanoseconds are always within the range of years that both functions take.
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos))
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// The clock, nanoseconds since 1970.
pub fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for (text, nanos) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:00.000000001Z", 1),
            ("1969-12-31T23:59:59.5Z", -500_000_000),
            ("2024-02-29T12:00:00.25Z", 1_709_208_000_250_000_000),
            ("1677-09-21T00:12:43.145224192Z", i64::MIN),
            ("2262-04-11T23:47:16.854775807Z", i64::MAX),
        ] {
            assert_eq!(parse(text), Some(nanos), "{text}");
            assert_eq!(format(nanos), text);
        }
    }

    #[test]
    fn other_forms() {
        for (text, expect) in [
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("1970-01-01t00:00:00z", Some(0)),
            ("1970-01-01T00:00:00.0000000019Z", Some(1)),
            ("1677-09-21T00:12:43Z", None),
            ("2262-04-11T23:47:17Z", None),
            ("9999-12-31T23:59:59Z", None),
            ("2023-02-29T00:00:00Z", None),
            ("2024-01-01T00:00:00", None),
            ("2024-01-01", None),
            ("1704067200", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expect, "{text:?}");
        }
    }
}
