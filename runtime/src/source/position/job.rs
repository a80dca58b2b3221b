//! One delivery of the position engine on its way.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::Context;
use super::ahead;
use super::due;
use super::lanes::{Body, Place};
use super::park::{self, Leftovers};
use super::round::{Round, Wave};
use super::timer::{self, Timed};
use crate::call::Caller;
use crate::commit::{Fence, Partition};
use crate::delivery::{self, TROUBLE_PAUSE, Worker, log_delivery};
use crate::effects::{Effects, Failure};
use crate::event::{self, Message};
use crate::names::INPUT_GONE;
use crate::nats::raw::{self, Which};
use crate::records::AttemptsRecord;
use crate::series::Work;
use crate::settle::{self, Case, Park};
use crate::source::{Acker, Received, Return, Settlement, SourceError};

/// A delivery and its place.
pub(super) struct Job {
    pub(super) context: Arc<Context>,
    /// The version that it begins and ends with.
    pub(super) worker: Arc<Worker>,
    pub(super) partition: Partition,
    pub(super) place: Place,
    pub(super) sequence: u64,
}

/// How it ended.
pub(super) enum Ended {
    Attempt {
        partition: Partition,
        place: Place,
        sequence: u64,
        settlement: Settlement,
        /// The message, for another attempt.
        body: Body,
        /// Those behind it that did not go along.
        left: Vec<Message>,
        /// Which version's it was.
        version: u64,
    },
    /// One that was not tried was put into the park; or was not, and is here again.
    Parked {
        partition: Partition,
        place: Place,
        sequence: u64,
        body: Body,
    },
    /// A position was brought up to date, or will be at the next tick; or what is done was removed.
    Flushed,
    /// The park was looked at.
    Swept(Leftovers),
    /// State was read ahead, or could not be.
    Ahead(bool),
    /// Several were begun.
    Round(Round),
    /// Some of those have ended.
    Wave(Wave),
}

/// What was found of a parked delivery.
enum Found {
    Here(Box<(Message, Case)>),
    /// What is left of one whose message is in no stream any more, and why.
    Lost(Box<(Message, Case)>, String),
    /// It is not there; this revision is in its place, 0: nothing is.
    Gone(u64),
    Unreadable(String),
}

impl Job {
    /// Takes a delivery to its end, and with it those of `more`, which follow it, that go along.
    pub(super) async fn run(
        self,
        body: Body,
        more: Vec<Message>,
        permit: OwnedSemaphorePermit,
    ) -> Ended {
        let mut left = Vec::new();
        let (settlement, body) = match body {
            Body::Read(message) => {
                let (settlement, body, rest) = self.first(*message, more, permit).await;
                left = rest;
                (settlement, body)
            }
            Body::Parked | Body::Parking => {
                let settlement = Box::pin(self.again(permit)).await;
                (settlement, Body::Parked)
            }
        };
        Ended::Attempt {
            partition: self.partition,
            place: self.place,
            sequence: self.sequence,
            settlement,
            body,
            left,
            version: self.worker.record.version,
        }
    }

    /// Another attempt at one that is in the park.
    async fn again(&self, permit: OwnedSemaphorePermit) -> Settlement {
        // A batch whose answer was lost has ended it: nobody has counted that yet.
        if !self.partition.is_parked(self.sequence) {
            self.worker.counters.committed(0);
            return Settlement::Done;
        }
        match self.load().await {
            Found::Here(found) => {
                let (message, case) = *found;
                if let Some(left) = case.retries_in(self.worker.record.version) {
                    return Settlement::Parked(left, Return::Retry);
                }
                let one = [(case, self.received(message))];
                let (settlement, _) = self.attempt(&one, permit).await;
                if self.context.internal && settlement == Settlement::Done {
                    let [(_, received)] = &one;
                    // A call: what else is parked was removed before.
                    Box::pin(due::remove(&self.context, &received.message)).await;
                }
                settlement
            }
            Found::Lost(found, why) => {
                let (message, case) = *found;
                let received = self.received(message);
                let lost = Failure::reject(INPUT_GONE, why);
                settle::refuse(&self.worker, &case, &received, lost, Effects::default()).await
            }
            Found::Gone(at) => self.restore(at).await,
            Found::Unreadable(why) => {
                tracing::warn!(
                    why,
                    app = self.worker.record.app,
                    function = self.worker.record.function,
                    stream = &*self.context.stream,
                    sequence = self.sequence,
                    "a parked delivery cannot be read; it is tried again"
                );
                Settlement::Again(TROUBLE_PAUSE)
            }
        }
    }

    /// Has one that its position names and the park does not hold put back there; `upon` is what is in its place. In one batch with the
    /// position as it is known here: should a batch without an answer have ended the delivery, the position has moved, or keeps that
    /// batch from being stored.
    async fn restore(&self, upon: u64) -> Settlement {
        let restored = match self.is_lost(upon).await {
            Ok(true) => {
                park::restore(
                    &self.context,
                    &self.partition,
                    &self.place,
                    self.sequence,
                    upon,
                )
                .await
            }
            Ok(false) => Err(SourceError(
                "the leader of the commit stream lags behind".into(),
            )),
            Err(error) => Err(error),
        };
        restored.unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                app = self.worker.record.app,
                function = self.worker.record.function,
                stream = &*self.context.stream,
                sequence = self.sequence,
                "a parked delivery is not where its position says; it is looked for again"
            );
            Settlement::Again(TROUBLE_PAUSE)
        })
    }

    /// A server that has just begun to lead may lag behind what it answered for before; but what took the delivery's place is no older.
    async fn is_lost(&self, upon: u64) -> Result<bool, SourceError> {
        match (upon, self.partition.revision()) {
            (0, Some(revision)) => {
                park::is_lost(&self.context, self.place.0, self.sequence, revision).await
            }
            _ => Ok(true),
        }
    }

    /// Its first attempt; a timer's message may be none at all, or want no handler. Gives back the message, and those of `more`
    /// that were not begun.
    async fn first(
        &self,
        message: Message,
        more: Vec<Message>,
        permit: OwnedSemaphorePermit,
    ) -> (Settlement, Body, Vec<Message>) {
        let mut tick = None;
        let looked = match self.context.internal {
            true => Box::pin(timer::look(&self.context, &message)).await,
            false => Ok(Timed::No),
        };
        let timed = match looked {
            Ok(Timed::No) => None,
            Ok(Timed::Tick(record, change)) => {
                tick = Some((record, change));
                None
            }
            Ok(Timed::Stale) => Some(Settlement::Done),
            Ok(Timed::Refused(effects, failure)) => {
                let case = self.case(message.stored, None);
                let received = self.received(message.clone());
                let refused = settle::refuse(&self.worker, &case, &received, failure, effects);
                Some(Box::pin(refused).await)
            }
            Ok(Timed::Event(effects)) => {
                let case = self.case(message.stored, None);
                let received = self.received(message.clone());
                let passed = settle::pass_on(&self.worker, &case, &received, effects);
                Some(Box::pin(passed).await)
            }
            Err(error) => {
                log_delivery!(
                    warn,
                    self.worker,
                    message,
                    error,
                    "a timer's record cannot be read; it is tried again"
                );
                Some(Settlement::Again(TROUBLE_PAUSE))
            }
        };
        if let Some(settlement) = timed {
            if settlement == Settlement::Done {
                self.partition.finish(message.sequence, message.stored);
                Box::pin(due::remove(&self.context, &message)).await;
            }
            return (settlement, Body::Read(Box::new(message)), more);
        }
        let all = std::iter::once(message).chain(more);
        let mut all: Vec<(Case, Received)> = all
            .map(|message| {
                let case = self.case(message.stored, None);
                (case, self.received(message))
            })
            .collect();
        if let Some(((case, _), (record, change))) = all.first_mut().zip(tick) {
            case.set(record, change);
        }
        let (settlement, count) = self.attempt(&all, permit).await;
        let mut messages = all.into_iter().map(|(_, received)| received.message);
        let Some(first) = messages.next() else {
            return (settlement, Body::Parked, Vec::new());
        };
        if self.context.internal {
            match settlement {
                Settlement::Done => Box::pin(due::remove(&self.context, &first)).await,
                Settlement::Parked(..) => Box::pin(due::put_off(&self.context, &first)).await,
                _ => {}
            }
        }
        let left = messages.skip(count.saturating_sub(1)).collect();
        (settlement, Body::Read(Box::new(first)), left)
    }

    /// Parks a delivery behind one that keeps its place.
    pub(super) async fn park(self, message: Message) -> Ended {
        let mut case = self.case(message.stored, None);
        match timer::look(&self.context, &message).await {
            Ok(Timed::No) => {}
            Ok(Timed::Tick(record, change)) => case.set(record, change),
            // It is looked at again when it is its turn.
            _ => return self.unparked(message),
        }
        let received = self.received(message);
        let settlement = settle::park::behind(&self.worker, &case, &received).await;
        let body = match settlement {
            Settlement::Parked(..) => {
                due::put_off(&self.context, &received.message).await;
                Body::Parked
            }
            _ => Body::Read(Box::new(received.message)),
        };
        Ended::Parked {
            partition: self.partition,
            place: self.place,
            sequence: self.sequence,
            body,
        }
    }

    fn unparked(self, message: Message) -> Ended {
        Ended::Parked {
            partition: self.partition,
            place: self.place,
            sequence: self.sequence,
            body: Body::Read(Box::new(message)),
        }
    }

    /// How it ended, and for how many of these.
    async fn attempt(
        &self,
        all: &[(Case, Received)],
        permit: OwnedSemaphorePermit,
    ) -> (Settlement, usize) {
        let abort = &self.context.abort;
        let worker = &*self.worker;
        worker.counters.delivered();
        let new = all.first().is_some_and(|(case, _)| case.is_untried());
        if new {
            worker.counters.consumed(1);
        }
        let work = all.iter().map(|(case, received)| Work { case, received });
        let work: Vec<Work<'_>> = work.collect();
        let (settlement, count) = delivery::position(worker, &work, permit, abort).await;
        if settlement == Settlement::Done {
            for (_, Received { message, .. }) in all.iter().take(count) {
                self.partition.finish(message.sequence, message.stored);
            }
        }
        if new && matches!(settlement, Settlement::Again(_) | Settlement::Lost) {
            worker.counters.came_back();
        }
        for _ in 1..count {
            worker.counters.delivered();
            worker.counters.consumed(1);
        }
        (settlement, count)
    }

    fn received(&self, message: Message) -> Received {
        let internal = self.context.internal;
        let source = self.context.key.as_ref();
        // Of a call that was stored before the function had a `key`; where it is done it says itself.
        let late = || event::key(source.filter(|_| internal)?, &message).map(Arc::from);
        let key = self.place.1.name().cloned().or_else(late);
        Received {
            caller: internal.then(|| Caller::of(&message.headers)).flatten(),
            message,
            life: self.context.input.life(self.context.stream_created),
            internal,
            key,
            delivered: 1,
            acker: Acker(None),
        }
    }

    fn case(&self, stored: i64, parked: Option<(AttemptsRecord, u64)>) -> Case {
        let fence = Fence::Position {
            partition: self.partition.clone(),
            stored: Some(stored),
        };
        let (record, revision) = parked.unwrap_or_default();
        let park = Park {
            partition: self.place.0,
            revision,
        };
        Case::positioned(fence, park, record)
    }

    /// Reads the park, from the stream's leader: an older record would count too few attempts.
    async fn load(&self) -> Found {
        let Context {
            function,
            nats,
            names,
            stream: input,
            ..
        } = self.context.as_ref();
        let ((partition, key), sequence) = (&self.place, self.sequence);
        let key = key.name().map(Arc::as_ref);
        let subject = names.parked(function, input, *partition, key, sequence);
        let (js, stream) = (nats.jetstream(), names.commit_stream());
        let found = match raw::get(&js, &stream, Which::Last(&subject)).await {
            Ok(Some(found)) => found,
            Ok(None) => return Found::Gone(0),
            Err(error) => return Found::Unreadable(error.to_string()),
        };
        if found.is_deletion() {
            return Found::Gone(found.sequence);
        }
        let Some(parked) = settle::park::read(&found.headers, found.payload, input, sequence)
        else {
            return Found::Unreadable(format!("{subject} holds no parked delivery"));
        };
        let (message, whole) = (parked.message, parked.whole);
        let parked = Some((parked.record, found.sequence));
        let case = self.case(message.stored, parked);
        if whole {
            return Found::Here(Box::new((message, case)));
        }
        let kept = match message.subject.as_str() {
            "" => "and nothing but its sequence is known: the commit stream has lost it, too"
                .to_owned(),
            known => format!(
                "and was too large to be kept beside its attempts; it had the subject {known}"
            ),
        };
        match self.context.original(sequence).await {
            Ok(Some(found)) if found.stored != message.stored => Found::Unreadable(format!(
                "message {sequence} of stream {input} is another one"
            )),
            Ok(Some(message)) => Found::Here(Box::new((message, case))),
            Ok(None) => Found::Lost(
                Box::new((message, case)),
                format!(
                    "stream {input} does not hold the message any more, which waited for another attempt, {kept}"
                ),
            ),
            Err(error) => Found::Unreadable(error.0),
        }
    }
}

/// Reads what handlers will want.
pub(super) async fn read_ahead(context: Arc<Context>, keys: Vec<String>) -> Ended {
    Ended::Ahead(ahead::read(context.committer.state(), &keys).await)
}

/// Writes what is done and left nothing to commit.
pub(super) async fn flush(context: Arc<Context>, partition: Partition) -> Ended {
    if let Err(error) = context.committer.advance(partition.clone()).await {
        tracing::debug!(%error, position = partition.subject(), "a position was not brought up to date");
    }
    partition.end_flush();
    Ended::Flushed
}

/// Removes what is done from the internal input.
pub(super) async fn remove(context: Arc<Context>, message: Message) -> Ended {
    due::remove_ended(&context, &message).await;
    Ended::Flushed
}
