//! Steps of a schedule against the ranges that they walk.

use super::*;

#[test]
fn steps_larger_than_their_range_are_refused() {
    for (wide, words) in [
        (
            "*/90 * * * * *",
            "the step 90 in \"*/90 * * * * *\" is larger than the 60 values of its range in the field of seconds",
        ),
        (
            "*/61 * * * *",
            "only the first value would match, which is not every 61 minutes",
        ),
        (
            "0 0 */25 * * *",
            "the 24 values of its range in the field of hours",
        ),
        ("0 0 0 */32 * *", "field of days"),
        ("0 0 0 1 */13 *", "field of months"),
        ("0 0 0 * * MON-FRI/8", "field of weekdays"),
        ("0,10-20/30 * * * * *", "the 11 values"),
    ] {
        check_function(&format!("schedule = \"{wide}\""), 12, words);
    }
}

#[test]
fn steps_within_their_range_are_schedules() {
    for cron in [
        "*/60 * * * * *",
        "*/7 */59 * * * *",
        "0 0 0-23/24 */31 */12 *",
        "0 0 9 * * MON-FRI/2",
        "0 0 9 * * */7",
        "0 0 0 1 1 * */4",
        "@daily",
    ] {
        let text = body(&format!(
            "[functions.f]\ncomponent = \"f\"\nschedule = \"{cron}\""
        ));
        load(&text, None).unwrap();
    }
}
