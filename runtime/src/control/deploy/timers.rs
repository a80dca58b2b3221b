//! The timers of an app that are yet to be handled: each lies as a schedule until its time, then as a message that is due.

use std::ops::ControlFlow;

use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::stream::Stream;

use crate::control::ControlError;
use crate::control::scan::{Scan, scan};
use crate::names::{AppNames, DUE_TARGET_HEADER, SCHEDULE_TARGET_HEADER, TIMER_HEADER};

/// One of them.
pub(super) struct Timer<'a> {
    /// The function that it is due for.
    pub(super) function: &'a str,
    pub(super) id: &'a str,
    /// Where its record lies.
    pub(super) record: &'a str,
    /// The stream that its event goes to; none: it is a tick.
    pub(super) target: Option<&'a str>,
}

/// Hands each to `each`.
pub(super) async fn scan_timers(
    js: &jetstream::Context,
    commit: &Stream,
    names: &AppNames,
    mut each: impl FnMut(Timer<'_>),
) -> Result<(), ControlError> {
    let all = Scan {
        filters: vec![names.at(">"), names.due_filter("*")],
        from: DeliverPolicy::All,
        headers_only: true,
    };
    scan(js, commit, all, |message| {
        let said = |name| {
            let headers = message.headers.as_ref();
            headers
                .and_then(|all| all.get(name))
                .map(|one| one.as_str())
        };
        let goes_to = said(SCHEDULE_TARGET_HEADER).unwrap_or(&message.subject);
        if let (Some((function, id)), Some(record)) = (names.due_for(goes_to), said(TIMER_HEADER)) {
            each(Timer {
                function,
                id,
                record,
                target: said(DUE_TARGET_HEADER),
            });
        }
        Ok(ControlFlow::Continue(()))
    })
    .await
}
