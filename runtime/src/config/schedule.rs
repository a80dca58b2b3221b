//! `schedule`: the times at which a function gets a tick, as cron says them, in a time zone.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::reader::{Findings, Table};
use super::tree::{Value, join};

/// The fields of six, and of seven with the year, and how many values each has.
const FIELDS: [(&str, u32); 7] = [
    ("seconds", 60),
    ("minutes", 60),
    ("hours", 24),
    ("days", 31),
    ("months", 12),
    ("weekdays", 7),
    ("years", 9999),
];

/// The zone of a schedule that names none.
const DEFAULT_ZONE: &str = "UTC";

/// When a function gets a tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Schedule {
    /// Second, minute, hour, day of month, month, day of week; five fields leave out the second.
    pub cron: String,
    /// The zone that its times are of, such as `Europe/Zurich`.
    pub timezone: String,
}

impl Schedule {
    /// The first tick after a time, both in nanoseconds since 1970. `None`: there is none any more, or it is no schedule.
    ///
    /// Where clocks are put forward, a time of day that is left out comes right after; where they are put back, one that comes twice
    /// counts once. What recurs by the hour, the minute or the second goes on evenly.
    pub fn next(&self, after: i64) -> Option<i64> {
        let zone: Tz = self.timezone.parse().ok()?;
        let after = DateTime::<Utc>::from_timestamp_nanos(after).with_timezone(&zone);
        let cron = Cron::from_str(&self.cron).ok()?;
        let next = cron.find_next_occurrence(&after, false).ok()?;
        next.timestamp_nanos_opt()
    }
}

/// Reads `schedule = "0 */5 * * * *"` or `schedule = { cron = "…", timezone = "…" }`.
pub(super) fn read(findings: &mut Findings<'_>, table: &Table<'_>) -> Option<Schedule> {
    const EXAMPLE: &str = "0 */5 * * * *";
    let entry = table.get("schedule")?;
    let (cron, zone) = match &entry.value {
        Value::Table(_) => {
            let inner = table.table(findings, "schedule")?;
            inner.only(findings, &["cron", "timezone"], &[]);
            if inner.get("cron").is_none() {
                let path = join(&table.path, "schedule");
                findings.add(
                    entry.value_at,
                    format!("`{path}` has no cron"),
                    format!("say when: schedule = {{ cron = {EXAMPLE:?}, timezone = \"Europe/Zurich\" }}"),
                );
            }
            let cron = inner.text(findings, "cron", EXAMPLE)?;
            (cron, inner.text(findings, "timezone", "Europe/Zurich"))
        }
        _ => (table.text(findings, "schedule", EXAMPLE)?, None),
    };
    let ((cron, cron_at), (zone, zone_at)) = (cron, zone.unwrap_or((DEFAULT_ZONE, cron.1)));
    if let Err(error) = Cron::from_str(cron) {
        findings.add(
            cron_at,
            format!("{cron:?} is no schedule: {error}"),
            format!("write second, minute, hour, day of month, month and day of week, such as {EXAMPLE:?} for every five minutes"),
        );
    }
    check_steps(findings, cron, cron_at);
    if zone.parse::<Tz>().is_err() {
        findings.add(
            zone_at,
            format!("{zone:?} is no time zone"),
            "name one of the tz database, such as \"Europe/Zurich\" or \"UTC\"",
        );
    }
    let schedule = Schedule {
        cron: cron.to_owned(),
        timezone: zone.to_owned(),
    };
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
    let now = i64::try_from(now).unwrap_or_default();
    if Cron::from_str(cron).is_ok() && zone.parse::<Tz>().is_ok() && schedule.next(now).is_none() {
        findings.add(
            cron_at,
            format!("{cron:?} never comes, or not any more"),
            "name a day that there is: 30 February is none, and a year that is over does not come again",
        );
    }
    Some(schedule)
}

/// Refuses steps that are larger than what they step through: cron starts over in each minute,
/// hour, day, month or year, so that such a step selects the first value alone, and does not mean
/// what it seems to say.
fn check_steps(findings: &mut Findings<'_>, cron: &str, at: usize) {
    let fields: Vec<&str> = cron.split_whitespace().collect();
    let left_out = usize::from(fields.len() == 5);
    for ((name, size), field) in FIELDS.into_iter().skip(left_out).zip(fields) {
        for (range, step) in field.split(',').filter_map(|item| item.split_once('/')) {
            let bounds = range.split_once('-');
            let bounds = bounds.and_then(|(from, to)| Some((number(from)?, number(to)?)));
            let values = bounds.map_or(size, |(from, to)| to.saturating_sub(from) + 1);
            if let Some(step) = number(step).filter(|step| *step > values) {
                findings.add(
                    at,
                    format!(
                        "the step {step} in {cron:?} is larger than the {values} values of its range in the field of {name}: \
                         only the first value would match, which is not every {step} {name}"
                    ),
                    format!(
                        "write a step of at most {values}; for a longer interval, tick more often and skip ticks in the handler"
                    ),
                );
            }
        }
    }
}

/// The number that a part of a field begins with; `#` and what follows choose weeks.
fn number(text: &str) -> Option<u32> {
    text.split('#').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::timestamp::{format, parse};

    fn ticks(cron: &str, timezone: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule {
            cron: cron.into(),
            timezone: timezone.into(),
        };
        let mut at = parse(from).unwrap();
        let mut next = || {
            at = schedule.next(at).unwrap();
            format(at)
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn times_of_day_follow_the_zone() {
        assert_eq!(
            ticks("0 */5 * * * *", "UTC", "2026-01-01T00:04:59.5Z", 2),
            ["2026-01-01T00:05:00Z", "2026-01-01T00:10:00Z"]
        );
        // Clocks are put forward on 29 March at 01:00Z: 02:30 is left out, and comes right after.
        assert_eq!(
            ticks("0 30 2 * * *", "Europe/Zurich", "2026-03-28T00:00:00Z", 3),
            [
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z"
            ]
        );
        // And back on 25 October at 01:00Z: 02:30 comes twice, and counts once.
        assert_eq!(
            ticks("0 30 2 * * *", "Europe/Zurich", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn what_never_comes_is_none() {
        let never = Schedule {
            cron: "0 0 0 30 2 *".into(),
            timezone: "UTC".into(),
        };
        assert_eq!(never.next(0), None);
    }
}
