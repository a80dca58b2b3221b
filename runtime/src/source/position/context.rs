//! What an input is to all of its deliveries: whose it is, what of it is read, and where each message belongs.

use std::sync::Arc;

use async_nats::Client;
use async_nats::jetstream;
use tokio_util::sync::CancellationToken;

use super::due;
use super::lanes::{Key, Place};
use super::owner::{owner, partition_at, partition_of};
use crate::commit::NatsState;
use crate::delivery::Worker;
use crate::event::{self, Message, subject};
use crate::members::Members;
use crate::names::AppNames;
use crate::records::Input;

/// What a source is opened with.
pub(crate) struct OpenContext {
    pub(crate) worker: Arc<Worker>,
    pub(crate) input: Input,
    /// This node's id.
    pub(crate) node: String,
    pub(crate) client: Client,
    pub(crate) js: jetstream::Context,
    pub(crate) state: NatsState,
}

/// What all deliveries of one input share.
pub(crate) struct Context {
    pub(crate) worker: Arc<Worker>,
    pub(crate) input: Input,
    /// The input stream's name.
    pub(crate) stream: Arc<str>,
    /// This node's id.
    pub(crate) node: String,
    /// This hold on the input, as positions name it: the node and a nonce.
    pub(crate) owner: String,
    pub(crate) names: AppNames,
    /// For what is written and for single reads.
    pub(crate) client: Client,
    pub(crate) js: jetstream::Context,
    pub(crate) state: NatsState,
    pub(super) stream_created: i64,
    /// Whether it is the function's internal input, which lies in the commit stream.
    pub(super) internal: bool,
    /// Ends what is under way.
    pub(super) abort: CancellationToken,
}

impl Context {
    pub(super) fn position(&self, partition: u16) -> String {
        let function = &self.worker.record.function;
        self.names.position(function, &self.input.stream, partition)
    }

    pub(super) fn is_mine(&self, members: &Members, partition: u16) -> bool {
        let record = &self.worker.record;
        let what = format!("{}/{}/{}", record.app, record.function, self.input.stream);
        let serving = members.serving(&record.app, &record.function);
        let others = serving.filter(|node| *node != self.node);
        owner(others.chain([self.node.as_str()]), &what, partition) == Some(self.node.as_str())
    }

    pub(super) fn place(&self, message: &Message) -> Place {
        let source = self.worker.record.settings.key.as_ref();
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
        let function = &self.worker.record.function;
        match self.internal {
            true => self.names.due_filter(function),
            false => String::new(),
        }
    }

    pub(super) fn handles(&self, to: &str) -> bool {
        let subjects = &self.input.subjects;
        subjects.iter().any(|pattern| subject::matches(pattern, to))
    }

    /// Whether deliveries of one key that follow each other are handled as one: not where each attempt may call to the outside, for
    /// one that fails behind others is made again.
    pub(super) fn gathers(&self) -> bool {
        let settings = &self.worker.record.settings;
        !self.internal && settings.key.is_some() && settings.allow.http.is_empty()
    }
}
