//! What a component announces against what the manifest asks of it: an event that nobody handles and a handler that
//! no event reaches are both found before anything is deployed.

use crate::event::subject::{covers, overlaps};
use crate::names::TICK_SUBJECT;
use crate::records::Handler;

/// One way in which handlers and subjects do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Neither says where events come from.
    #[error(
        "the component announces no handlers of events and pelton.toml gives no subjects and no schedule\n  \
         fix: add subjects = [\"…\"] or schedule = \"…\" to the function, or handlers![…] to its crate"
    )]
    Nothing,
    /// Ticks would find no handler.
    #[error(
        "pelton.toml gives a schedule, and no handler takes its ticks; there are: {handlers}\n  \
         fix: add #[handler(\"schedule.tick\")], or take the schedule out of pelton.toml"
    )]
    NoTick {
        /// What there is.
        handlers: String,
    },
    /// Events of this subject would find no handler.
    #[error(
        "no handler takes the subject {subject:?}; there are: {handlers}\n  \
         fix: add #[handler({subject:?})], or take the subject out of pelton.toml"
    )]
    Unhandled {
        /// As in the manifest.
        subject: String,
        /// What there is.
        handlers: String,
    },
    /// No event would reach this handler.
    #[error(
        "the handler {handler} takes {subject:?}, which none of the function's subjects lets in\n  \
         fix: add {subject:?} to subjects in pelton.toml, or leave subjects out to take what the handlers announce"
    )]
    Unreachable {
        /// The handler's name.
        handler: String,
        /// What it takes.
        subject: String,
    },
}

/// The subjects that a function takes: the manifest's, else what its handlers announce, none of them within another.
///
/// With a schedule (`ticks`), there is to be a handler of its ticks, which come from no stream, and there may be no other.
///
/// A component that announces nothing (one of another language, perhaps) is taken at the manifest's word.
///
/// # Errors
/// Every mismatch.
pub fn handlers_match(
    subjects: Option<&[String]>,
    handlers: &[Handler],
    ticks: bool,
) -> Result<Vec<String>, Vec<Mismatch>> {
    let announced: Vec<String> = handlers.iter().map(|one| one.subject.clone()).collect();
    if ticks && !handlers.is_empty() && !announced.iter().any(|one| overlaps(one, TICK_SUBJECT)) {
        let handlers = announced.join(", ");
        return Err(vec![Mismatch::NoTick { handlers }]);
    }
    // Ticks come from no stream.
    let of_events = |one: &&Handler| one.subject != TICK_SUBJECT;
    let handlers: Vec<&Handler> = handlers.iter().filter(of_events).collect();
    let announced: Vec<String> = handlers.iter().map(|one| one.subject.clone()).collect();
    let Some(subjects) = subjects.filter(|given| !given.is_empty()) else {
        return if announced.is_empty() && !ticks {
            Err(vec![Mismatch::Nothing])
        } else {
            Ok(widest(&announced))
        };
    };
    if handlers.is_empty() {
        return Ok(widest(subjects));
    }
    let unhandled = subjects
        .iter()
        .filter(|subject| !announced.iter().any(|one| overlaps(one, subject)))
        .map(|subject| Mismatch::Unhandled {
            subject: subject.clone(),
            handlers: announced.join(", "),
        });
    let unreachable = handlers
        .iter()
        .filter(|one| !subjects.iter().any(|given| overlaps(given, &one.subject)))
        .map(|one| Mismatch::Unreachable {
            handler: one.handler.clone(),
            subject: one.subject.clone(),
        });
    let mismatches: Vec<Mismatch> = unhandled.chain(unreachable).collect();
    if mismatches.is_empty() {
        Ok(widest(subjects))
    } else {
        Err(mismatches)
    }
}

/// Leaves out what another one covers, for a consumer's filters must not overlap.
fn widest(subjects: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for subject in subjects {
        if !kept.iter().any(|other| covers(other, subject)) {
            kept.retain(|other| !covers(subject, other));
            kept.push(subject.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(subjects: &[&str]) -> Vec<Handler> {
        let handler = |subject: &&str| Handler {
            handler: "h".into(),
            subject: (*subject).into(),
        };
        subjects.iter().map(handler).collect()
    }

    #[test]
    fn subjects_and_handlers() {
        // manifest, announced, subjects taken (none: refused with so many mismatches)
        type Case = (
            Option<&'static [&'static str]>,
            &'static [&'static str],
            Result<&'static [&'static str], usize>,
        );
        let cases: [Case; 8] = [
            (None, &["o.*.a", "o.*.b"], Ok(&["o.*.a", "o.*.b"])),
            (None, &["o.*.a", "o.>"], Ok(&["o.>"])),
            (None, &[], Err(1)),
            (Some(&["o.>"]), &[], Ok(&["o.>"])),
            (Some(&["o.>"]), &["o.*.a", "o.*.b"], Ok(&["o.>"])),
            (Some(&["o.eu.>"]), &["o.>"], Ok(&["o.eu.>"])),
            (Some(&["p.>"]), &["o.*.a"], Err(2)),
            (Some(&["o.*.a", "o.*.c"]), &["o.*.a", "o.*.b"], Err(2)),
        ];
        for (given, announced, expected) in cases {
            let owned =
                given.map(|all| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
            let got = handlers_match(owned.as_deref(), &handlers(announced), false);
            match expected {
                Ok(subjects) => assert_eq!(got.unwrap(), subjects),
                Err(count) => assert_eq!(got.unwrap_err().len(), count, "{given:?} {announced:?}"),
            }
        }
    }

    #[test]
    fn ticks_have_a_handler_and_no_stream() {
        let all = |given: Option<&[String]>, announced: &[&str]| {
            handlers_match(given, &handlers(announced), true)
        };
        assert_eq!(all(None, &["schedule.tick"]).unwrap(), Vec::<String>::new());
        assert_eq!(all(None, &["schedule.tick", "o.>"]).unwrap(), ["o.>"]);
        let given = ["o.*".to_owned()];
        assert_eq!(all(Some(&given), &["schedule.tick", "o.>"]).unwrap(), given);
        assert!(matches!(
            all(None, &["o.>"]).unwrap_err()[..],
            [Mismatch::NoTick { .. }]
        ));
    }
}
