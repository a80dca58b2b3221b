//! `pelton publish`: puts an event where a function will find it, and says where it was stored.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use bytes::Bytes;
use clap::Args;
use pelton_runtime::control::publish::{self, Attributes, Published};
use pelton_runtime::event::Headers;
use pelton_runtime::nats;
use tokio::io::AsyncReadExt;

use crate::global::Global;
use crate::output::failure;

/// From the connection's task to us, after the answer is here.
const PASSED_ON: Duration = Duration::from_millis(50);

/// Publish an event and wait until a stream has stored it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pelton publish orders.o-1.created '{\"order_id\":\"o-1\"}'\n  \
    pelton publish orders.o-1.paid @paid.json --type order_paid --id e-17\n  \
    echo '{}' | pelton pub orders.o-1.shipped - -H 'X-Trace: 1'"
)]
pub struct PublishArgs {
    /// The NATS subject.
    subject: String,
    /// The body: text, @FILE, or - for standard input.
    #[arg(default_value = "")]
    body: String,
    /// A header, NAME:VALUE; may be repeated.
    #[arg(long, short = 'H', value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// CloudEvents type; default: none, or the subject when --id or --source is given.
    #[arg(long = "type", value_name = "TYPE")]
    ty: Option<String>,
    /// CloudEvents id, and the message's Nats-Msg-Id: a stream that stored a message with this id
    /// within its duplicate window does not store another one. Default: none, or a new one (without
    /// Nats-Msg-Id) when --type or --source is given.
    #[arg(long)]
    id: Option<String>,
    /// CloudEvents source.
    #[arg(long, value_name = "URI")]
    source: Option<String>,
    /// Publish it so many times.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u64,
    /// Send it to whoever listens now, and do not ask whether it was stored.
    #[arg(long)]
    no_ack: bool,
}

/// Publishes.
pub async fn run(args: PublishArgs, global: &Global) -> anyhow::Result<()> {
    let attributes = Attributes {
        ty: args.ty.clone(),
        id: args.id.clone(),
        source: args.source.clone(),
    };
    let given = headers(&args.header)?;
    let body = body(&args.body).await?;
    let client = global.connect().await?;
    let js = nats::jetstream(&client);
    let output = global.output();
    for _ in 0..args.count {
        let mut headers: Headers = attributes.headers(&args.subject)?;
        // One that is given counts: it may be wider or narrower than the event's id.
        headers.retain(|(name, _)| {
            !given
                .iter()
                .any(|(other, _)| other.eq_ignore_ascii_case(name))
        });
        headers.extend(given.iter().cloned());
        let published = if args.no_ack {
            publish::publish_unacknowledged(&client, &args.subject, &headers, body.clone()).await?
        } else {
            publish::publish(&js, &args.subject, &headers, body.clone()).await?
        };
        output.item(&published, text)?;
    }
    client
        .flush()
        .await
        .context("the last messages may not have reached the server")?;
    if args.no_ack {
        refused(&js, global).await?;
    }
    Ok(())
}

/// Whether the server refused what nobody waits for. It says so before it answers what is asked later.
async fn refused(js: &jetstream::Context, global: &Global) -> anyhow::Result<()> {
    js.query_account()
        .await
        .context("the server may not have taken the messages")?;
    match tokio::time::timeout(PASSED_ON, global.denials.first()).await {
        Ok(denied) => Err(denied.into()),
        Err(_) => Ok(()),
    }
}

fn text(published: &Published) -> String {
    match (&published.stream, published.sequence) {
        (Some(stream), Some(sequence)) if published.duplicate => {
            format!(
                "{} not stored again: {stream} holds a message with this id (Nats-Msg-Id) at {sequence}",
                published.subject
            )
        }
        (Some(stream), Some(sequence)) => {
            format!("{} stored in {stream} at {sequence}", published.subject)
        }
        _ => format!("{} sent", published.subject),
    }
}

/// Headers as `publish` and `call` take them.
pub fn headers(given: &[String]) -> anyhow::Result<Headers> {
    given
        .iter()
        .map(|header| {
            let (name, value) = header.split_once(':').ok_or_else(|| {
                failure(
                    format!("header {header:?} has no colon"),
                    "write it as NAME:VALUE",
                )
            })?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// A body as `publish` and `state put` take it: text, `@FILE`, or `-`.
pub async fn body(given: &str) -> anyhow::Result<Bytes> {
    if given == "-" {
        let mut bytes = Vec::new();
        tokio::io::stdin()
            .read_to_end(&mut bytes)
            .await
            .context("standard input cannot be read")?;
        return Ok(bytes.into());
    }
    match given.strip_prefix('@') {
        Some(file) => {
            let bytes = tokio::fs::read(file).await;
            bytes
                .map(Bytes::from)
                .with_context(|| format!("{file} cannot be read"))
        }
        None => Ok(Bytes::from(given.to_owned())),
    }
}
