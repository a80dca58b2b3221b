//! What operators set of a function that runs: whether it takes events, and how many at once. It is part of the function's record, so that
//! every node follows it, the ones that start later, too.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::deploy::hands_over;
use super::nodes::{self, Wanted};
use super::{ControlError, ErrorKind, functions, rollout};
use crate::config::MAX_CONCURRENCY;
use crate::records::{Controls, FunctionRecord, Paused, rfc3339};

/// A reset or a removal that began so long ago was cut off.
const CUT_OFF: Duration = Duration::from_secs(600);

/// Has nodes take no more events of a function; what comes waits in its stream. The record afterwards.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn pause(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    by: &str,
) -> Result<FunctionRecord, ControlError> {
    let paused = paused(by, false);
    set(js, app, function, |controls| {
        // Whoever resets it at this moment does not have it take events again.
        if controls.paused.as_ref().is_none_or(|now| now.passing) {
            controls.paused = Some(paused.clone());
        }
    })
    .await
}

/// Has nodes take events of a function again. The record afterwards.
///
/// # Errors
/// There is no such function; NATS trouble.
pub async fn resume(
    js: &jetstream::Context,
    app: &str,
    function: &str,
) -> Result<FunctionRecord, ControlError> {
    set(js, app, function, |controls| controls.paused = None).await
}

/// Attempts in flight per node, in place of what was deployed; none: as deployed. The record afterwards.
///
/// # Errors
/// There is no such function; more than nodes take; NATS trouble.
pub async fn set_concurrency(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    concurrency: Option<u32>,
) -> Result<FunctionRecord, ControlError> {
    if let Some(wanted) = concurrency.filter(|wanted| !(1..=MAX_CONCURRENCY).contains(wanted)) {
        return Err(ControlError::refused(
            format!("a concurrency of {wanted} is out of range"),
            format!("say 1 to {MAX_CONCURRENCY}"),
        ));
    }
    set(js, app, function, |controls| {
        controls.concurrency = concurrency
    })
    .await
}

fn paused(by: &str, passing: bool) -> Paused {
    Paused {
        at: rfc3339(OffsetDateTime::now_utc()),
        by: by.to_owned(),
        passing,
    }
}

/// A function of which no node has anything under way, until somebody resumes it.
pub(super) struct Rest {
    app: String,
    /// The record by then.
    pub(super) record: FunctionRecord,
    /// The pause that it rests on.
    pause: Paused,
}

impl Rest {
    /// Whether it still rests: on this pause, or because somebody paused it meanwhile.
    ///
    /// # Errors
    /// Somebody has resumed it.
    pub(super) fn holds(&self, record: &FunctionRecord) -> Result<(), ControlError> {
        let rests = |paused: &Paused| *paused == self.pause || !paused.passing;
        if record.controls.paused.as_ref().is_some_and(rests) {
            return Ok(());
        }
        let function = &record.function;
        Err(ControlError::new(
            ErrorKind::Conflict,
            format!(
                "function {function} was resumed, reset or removed by somebody else at the same time"
            ),
            format!("see `pelton function info {function}`, then try again"),
        ))
    }

    /// Has it go on, unless it was paused before, or was meanwhile.
    ///
    /// # Errors
    /// It was resumed by somebody else meanwhile; NATS trouble.
    pub(super) async fn end(
        &self,
        js: &jetstream::Context,
    ) -> Result<FunctionRecord, ControlError> {
        let (app, function) = (&self.app, &self.record.function);
        let ended = rollout::change(js, app, function, |record| {
            self.holds(record)?;
            let mut next = record.clone();
            if next
                .controls
                .paused
                .take_if(|paused| paused.passing)
                .is_none()
            {
                return Ok(None);
            }
            next.generation = record.generation() + 1;
            Ok(Some(next))
        });
        match ended.await? {
            Some(record) => Ok(record),
            None => Ok(functions::record(js, app, function).await?.0),
        }
    }

    /// What failed before anything was changed: it goes on.
    pub(super) async fn undone(
        &self,
        js: &jetstream::Context,
        error: ControlError,
    ) -> ControlError {
        match self.end(js).await {
            Err(trouble) if trouble.kind == ErrorKind::Nats => self.unfinished(error),
            _ => error,
        }
    }

    /// What failed half-way.
    pub(super) fn unfinished(&self, mut error: ControlError) -> ControlError {
        let function = &self.record.function;
        error.fix = format!(
            "{}; function {function} is paused meanwhile: do this again, or let it go on with `pelton function resume {function}`",
            error.fix
        );
        error
    }
}

/// Has nodes take no more events of a function, and waits until all live ones have confirmed. If it was not paused before, the pause is a
/// passing one.
///
/// # Errors
/// Somebody else resets or removes it; a node has not confirmed: then the function goes on if it did before; NATS trouble.
pub(super) async fn at_rest(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    by: &str,
    within: Duration,
) -> Result<Rest, ControlError> {
    let passing = paused(by, true);
    let changed = rollout::change(js, app, function, |record| {
        if hands_over(record) {
            return Err(handed_over(record));
        }
        let mut next = record.clone();
        match &record.controls.paused {
            Some(pause) if !pause.passing => return Ok(None),
            Some(pause) if is_under_way(pause, by) => return Err(taken(function, pause)),
            _ => next.controls.paused = Some(passing.clone()),
        }
        next.generation = record.generation() + 1;
        Ok(Some(next))
    });
    let record = match changed.await? {
        Some(record) => record,
        None => functions::record(js, app, function).await?.0,
    };
    let rest = Rest {
        app: app.to_owned(),
        pause: record.controls.paused.clone().unwrap_or_default(),
        record,
    };
    let wanted = BTreeMap::from([(function.to_owned(), Wanted::of(&rest.record))]);
    let nodes = match nodes::wait(js, app, &wanted, within).await {
        Ok(nodes) => nodes,
        Err(error) => return Err(rest.undone(js, error).await),
    };
    // Those that failed cannot load it, and have nothing of it under way.
    if nodes.silent.is_empty() {
        return Ok(rest);
    }
    let silent: Vec<String> = nodes.silent.into_iter().collect();
    let error = ControlError::new(
        ErrorKind::Conflict,
        format!(
            "function {function} did not come to rest within {within:?} on {}; nothing was changed",
            silent.join(", ")
        ),
        "see `pelton node ls` and their logs, or wait longer with --wait",
    );
    Err(rest.undone(js, error).await)
}

/// Whether a passing pause is somebody else's who is still at it; one's own is of a command that was cut off.
fn is_under_way(pause: &Paused, by: &str) -> bool {
    let since = OffsetDateTime::parse(&pause.at, &Rfc3339);
    let young = since.is_ok_and(|since| OffsetDateTime::now_utc() - since < CUT_OFF);
    young && pause.by != by
}

/// A deploy that hands the inputs over goes by where they are.
fn handed_over(record: &FunctionRecord) -> ControlError {
    let function = &record.function;
    ControlError::refused(
        format!(
            "a deploy that changes `delivery` of function {function} is under way, or was cut off"
        ),
        format!("wait until it has ended; `pelton rollout {function} abort` takes it back"),
    )
}

fn taken(function: &str, pause: &Paused) -> ControlError {
    ControlError::new(
        ErrorKind::Conflict,
        format!(
            "{} resets or removes function {function} since {}",
            pause.by, pause.at
        ),
        format!(
            "wait for that to end; if it was cut off, `pelton function resume {function}` ends its pause"
        ),
    )
}

async fn set(
    js: &jetstream::Context,
    app: &str,
    function: &str,
    change: impl Fn(&mut Controls),
) -> Result<FunctionRecord, ControlError> {
    let changed = rollout::change(js, app, function, |record| {
        let mut next = record.clone();
        change(&mut next.controls);
        if next == *record {
            return Ok(None);
        }
        next.generation = record.generation() + 1;
        Ok(Some(next))
    });
    match changed.await? {
        Some(record) => Ok(record),
        None => Ok(functions::record(js, app, function).await?.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_on_its_own_pause_or_on_one_that_stays() {
        let mut record = FunctionRecord::sample();
        let rest = Rest {
            app: record.app.clone(),
            record: record.clone(),
            pause: paused("a@b", true),
        };
        let mut holds = |paused: Option<Paused>| {
            record.controls.paused = paused;
            rest.holds(&record).is_ok()
        };
        assert!(holds(Some(rest.pause.clone())));
        assert!(holds(Some(paused("c@d", false))), "paused meanwhile");
        assert!(!holds(Some(paused("c@d", true))), "another reset");
        assert!(!holds(None), "resumed");
    }
}
