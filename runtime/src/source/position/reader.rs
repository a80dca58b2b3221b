//! Reading an input once for all partitions of it: an ordered consumer, which acknowledges nothing.

use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::StreamExt;

use super::Context;
use crate::source::SourceError;
use crate::source::queue::stream_error;

pub(super) type Reader = pull::Ordered;

/// All partitions are read from the least that one of them needs; what is done or under way is passed by. Without a
/// filter: the server finds the next of several patterns by going through all subjects of a block. An internal input is what
/// one pattern matches of the commit stream.
pub(super) async fn open_reader(
    context: &Context,
    consumer: &jetstream::Context,
    start_sequence: u64,
) -> Result<Reader, SourceError> {
    let name = &context.input.stream;
    let failed =
        |error: &dyn std::fmt::Display| SourceError(format!("cannot read stream {name}: {error}"));
    let stream = consumer.get_stream(name).await;
    let stream = stream.map_err(|error| stream_error(name, &error))?;
    let config = pull::OrderedConfig {
        description: Some(format!(
            "Pelton function {}",
            context.worker.record.function
        )),
        filter_subject: context.filter(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
        ..Default::default()
    };
    let consumer = stream
        .create_consumer(config)
        .await
        .map_err(|error| failed(&error))?;
    consumer.messages().await.map_err(|error| failed(&error))
}

pub(super) async fn next(
    reader: &mut Option<Reader>,
) -> Option<Result<jetstream::Message, String>> {
    match reader {
        Some(reader) => reader
            .next()
            .await
            .map(|message| message.map_err(|error| error.to_string())),
        None => std::future::pending().await,
    }
}
