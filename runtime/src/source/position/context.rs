//! What an input is to all of its deliveries: whose it is, what of it is read, and where each message belongs.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::due;
use super::internal::InternalInputs;
use super::lanes::{Key, Place};
use super::owner::{owner, partition_at, partition_of};
use crate::commit::{Committer, NatsState};
use crate::config::KeySource;
use crate::delivery::Worker;
use crate::event::{self, Message, subject};
use crate::members::Members;
use crate::names::AppNames;
use crate::nats::Connection;
use crate::records::Input;
use crate::route::Route;

/// What a source is opened with.
pub(crate) struct OpenContext {
    pub(crate) route: Route,
    pub(crate) input: Input,
    /// This node's id.
    pub(crate) node: String,
    /// For what is written and for single reads.
    pub(crate) nats: Connection,
    /// For reading the input.
    pub(crate) inputs: Connection,
    pub(crate) state: NatsState,
    /// For an internal input: the shared reader of the app.
    pub(crate) internal_inputs: Option<Arc<InternalInputs>>,
}

/// What all deliveries of one input share.
pub(crate) struct Context {
    pub(super) route: Route,
    /// The function.
    pub(super) function: Arc<str>,
    /// Where the ordering key of an event is.
    pub(super) key: Option<KeySource>,
    pub(crate) committer: Committer,
    /// One for each attempt inside a handler, of whatever version.
    pub(super) handlers: Arc<Semaphore>,
    pub(crate) input: Input,
    /// The input stream's name.
    pub(crate) stream: Arc<str>,
    /// This node's id.
    pub(crate) node: String,
    /// This hold on the input, as positions name it: the node and a nonce.
    pub(crate) owner: String,
    pub(crate) names: AppNames,
    /// For what is written and for single reads.
    pub(crate) nats: Connection,
    /// For reading the input.
    pub(super) inputs: Connection,
    pub(crate) state: NatsState,
    pub(super) stream_created: i64,
    /// Whether it is the function's internal input, which lies in the commit stream.
    pub(super) internal: bool,
    /// The shared reader, if it is.
    pub(super) internal_inputs: Option<Arc<InternalInputs>>,
    /// Ends what is under way.
    pub(super) abort: CancellationToken,
}

impl Context {
    /// The version that a delivery with this key begins with now; without a key it is one of its own.
    pub(super) fn pick(&self, key: &Key) -> Arc<Worker> {
        match key {
            Key::Named(name) => self.route.pick(name),
            Key::Alone(sequence) => self.route.pick(&format!("{}:{sequence}", self.stream)),
        }
    }

    /// The active version.
    pub(super) fn worker(&self) -> Arc<Worker> {
        self.route.worker()
    }

    pub(super) fn position(&self, partition: u16) -> String {
        self.names
            .position(&self.function, &self.input.stream, partition)
    }

    pub(super) fn is_mine(&self, members: &Members, partition: u16) -> bool {
        let (app, function) = (self.names.app(), &self.function);
        let what = format!("{app}/{function}/{}", self.input.stream);
        let serving = members.serving(app, function);
        let others = serving.filter(|node| *node != self.node);
        owner(others.chain([self.node.as_str()]), &what, partition) == Some(self.node.as_str())
    }

    pub(super) fn place(&self, message: &Message) -> Place {
        let source = self.key.as_ref();
        let said = due::key(message).filter(|_| self.internal);
        let key = match said {
            // Stored when the function had no `key`: where it is done is not for a later version to say.
            Some("") => None,
            Some(said) => Some(said.to_owned()),
            None => source.and_then(|source| event::key(source, message)),
        };
        match key {
            Some(key) => (partition_of(&key), Key::Named(key.into())),
            None => (partition_at(message.sequence), Key::Alone(message.sequence)),
        }
    }

    /// What is read of the stream; empty: all.
    pub(super) fn filter(&self) -> String {
        match self.internal {
            true => self.names.due_filter(&self.function),
            false => String::new(),
        }
    }

    pub(super) fn handles(&self, to: &str) -> bool {
        let subjects = &self.input.subjects;
        subjects.iter().any(|pattern| subject::matches(pattern, to))
    }

    /// Whether deliveries of one key that follow each other are handled as one: not where each attempt may call to the outside, for
    /// one that fails behind others is made again.
    pub(super) fn gathers(&self, worker: &Worker) -> bool {
        !self.internal && self.key.is_some() && worker.record.settings.allow.http.is_empty()
    }
}
