//! The internal input of a function: what is for it alone and comes from no stream of the user's, such as a call.
//!
//! Such a message lies in the app's commit stream under the function's `due` subjects, and says in headers what the handler is to see.
//! It is handled as any other delivery, and removed once its position has moved past it: what is found there is not done yet, or was
//! left by a node that died in between, and then the position says so. It is removed by a purge and not by a message that
//! takes its place and expires: of a subject that was written twice, a server that is killed may bring the first back.

use super::Context;
use crate::call::Caller;
use crate::event::{Headers, Message};
use crate::names::{DUE_HEADER, DUE_KEY_HEADER, DUE_SUBJECT_HEADER, TIMER_HEADER};

/// The message as the handler is to see it. Where it lies stays with it, in a header.
pub(super) fn open(mut message: Message) -> Message {
    let subject = header(&message.headers, DUE_SUBJECT_HEADER).map(str::to_owned);
    let headers = &mut message.headers;
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case(DUE_HEADER));
    headers.push((DUE_HEADER.to_owned(), message.subject.clone()));
    if let Some(subject) = subject {
        message.subject = subject;
    }
    message
}

/// The key that the message itself says, empty: it has none. Timers of one name follow each other.
pub(super) fn key(message: &Message) -> Option<&str> {
    let said = |name| header(&message.headers, name);
    said(DUE_KEY_HEADER).or_else(|| said(TIMER_HEADER))
}

/// Removes a message that is done, if the input is an internal one. One that stays is found again when that is read anew.
pub(super) async fn remove(context: &Context, message: &Message) {
    // A call that may be asked again stays until its answer takes its place, in the batch that ends it.
    let stays = Caller::of(&message.headers).is_some_and(|caller| caller.stays());
    if !stays {
        remove_ended(context, message).await;
    }
}

/// Removes a message of which the position says that it has ended. A call that is still there then
/// was brought back by a killed server: its answer has taken its place before.
pub(super) async fn remove_ended(context: &Context, message: &Message) {
    let due = header(&message.headers, DUE_HEADER);
    let Some(due) = due.filter(|_| context.internal) else {
        return;
    };
    if let Err(error) = purge(context, due, message.sequence).await {
        tracing::debug!(error, due, "what is done was not removed");
    }
}

/// Removes what is stored under a subject up to this sequence.
pub(super) async fn purge(context: &Context, subject: &str, sequence: u64) -> Result<(), String> {
    let name = context.names.commit_stream();
    let stream = context.nats.jetstream().get_stream_no_info(&name).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let purge = stream.purge().filter(subject).sequence(sequence + 1);
    purge.await.map(drop).map_err(|error| error.to_string())
}

/// Removes a message of which the park has a copy now. A call stays: who waits for its answer looks whether it is there.
pub(super) async fn put_off(context: &Context, message: &Message) {
    if Caller::of(&message.headers).is_none() {
        remove(context, message).await;
    }
}

pub(super) fn header<'a>(headers: &'a Headers, wanted: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    found.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_the_handler_sees() {
        let message = open(Message {
            subject: "$KV.PELTON_shop.due.orders.c-1".into(),
            headers: vec![
                ("Pelton-Subject".into(), "orders.o-1.paid".into()),
                ("Pelton-Key".into(), "o-1".into()),
            ],
            payload: Default::default(),
            stream: "KV_shop".into(),
            sequence: 7,
            stored: 0,
        });
        assert_eq!(message.subject, "orders.o-1.paid");
        assert_eq!(key(&message), Some("o-1"));
        let place = header(&message.headers, DUE_HEADER);
        assert_eq!(place, Some("$KV.PELTON_shop.due.orders.c-1"));
    }
}
