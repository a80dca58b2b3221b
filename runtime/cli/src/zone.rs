//! Times for people: in the time zone of whoever asks, to the millisecond. What programs read
//! (`--json`, records) stays in UTC.

use std::path::Path;
use std::sync::LazyLock;

use chrono::{DateTime, SecondsFormat};
use chrono_tz::Tz;

/// The zone of this process: it does not change while a command runs.
static ZONE: LazyLock<Tz> = LazyLock::new(|| {
    let variable = std::env::var("TZ").ok();
    let link = std::fs::read_link("/etc/localtime").ok();
    let name = std::fs::read_to_string("/etc/timezone").ok();
    zone(variable.as_deref(), link.as_deref(), name.as_deref())
});

/// A time of RFC 3339 in the local zone, with its offset, so that it can be given back to a
/// command. Anything else stays as it is.
pub fn local_time(text: &str) -> String {
    in_zone(text, *ZONE)
}

/// Its time of day.
pub fn local_clock(text: &str) -> String {
    let local = local_time(text);
    local.get(11..23).unwrap_or(&local).to_owned()
}

fn in_zone(text: &str, zone: Tz) -> String {
    DateTime::parse_from_rfc3339(text).map_or_else(
        |_| text.to_owned(),
        |time| {
            time.with_timezone(&zone)
                .to_rfc3339_opts(SecondsFormat::Millis, true)
        },
    )
}

/// The variable `TZ`, else what the system's files name. The zones themselves are built in. What
/// names none of them, such as a rule in place of a name, is taken for UTC; the offset that is
/// printed says so.
fn zone(variable: Option<&str>, link: Option<&Path>, name: Option<&str>) -> Tz {
    let named = |text: &str| {
        let text = text.trim().trim_start_matches(':');
        let (_, name) = text.rsplit_once("zoneinfo/").unwrap_or(("", text));
        name.parse::<Tz>().ok()
    };
    let found = match variable {
        Some(variable) => named(variable),
        None => link
            .and_then(Path::to_str)
            .and_then(named)
            .or_else(|| name.and_then(named)),
    };
    found.unwrap_or(Tz::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local_and_to_the_millisecond() {
        for (zone, text, expected) in [
            (Tz::UTC, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
            (
                Tz::Europe__Zurich,
                "2026-01-31T12:00:00.123456789Z",
                "2026-01-31T13:00:00.123+01:00",
            ),
            (
                Tz::Europe__Zurich,
                "2026-07-31T23:30:00.1Z",
                "2026-08-01T01:30:00.100+02:00",
            ),
            (
                Tz::Asia__Kolkata,
                "2026-01-31T12:00:00.999999999+01:00",
                "2026-01-31T16:30:00.999+05:30",
            ),
            (Tz::UTC, "", ""),
            (Tz::UTC, "yesterday", "yesterday"),
        ] {
            assert_eq!(in_zone(text, zone), expected);
        }
    }

    #[test]
    fn the_zone_is_that_of_the_variable_or_of_the_system() {
        let link = Path::new("../usr/share/zoneinfo/Europe/Zurich");
        for (variable, link, name, expected) in [
            (Some("Asia/Kolkata"), Some(link), None, Tz::Asia__Kolkata),
            (Some(":America/New_York"), None, None, Tz::America__New_York),
            (
                Some(":/usr/share/zoneinfo/Asia/Tokyo"),
                None,
                None,
                Tz::Asia__Tokyo,
            ),
            (Some(""), Some(link), None, Tz::UTC),
            (
                Some("CET-1CEST,M3.5.0,M10.5.0/3"),
                Some(link),
                None,
                Tz::UTC,
            ),
            (None, Some(link), Some("Asia/Tokyo\n"), Tz::Europe__Zurich),
            (None, None, Some("Asia/Tokyo\n"), Tz::Asia__Tokyo),
            (None, None, None, Tz::UTC),
        ] {
            assert_eq!(zone(variable, link, name), expected, "{variable:?}");
        }
    }
}
