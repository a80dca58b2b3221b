//! What a deploy leaves behind on purpose: a node that still runs the old version would otherwise see its consumer
//! vanish. So consumers on streams that a function no longer reads go when every node has taken the new version over, and so do
//! the sources of streams that no function emits to.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::targets;
use crate::config::DeliveryMode;
use crate::control::nodes::{self, Wanted};
use crate::control::{ControlError, functions, versions};
use crate::names::AppNames;
use crate::records::FunctionRecord;

/// Streams that are looked at at the same time.
const AT_ONCE: usize = 16;

/// Takes the app's source from streams that none of its functions emits to; and deletes consumers of the app's functions on streams that they no longer read: they would hold back work queues for
/// ever. A function that some live node does not run in its newest version keeps all of its consumers.
///
/// # Errors
/// NATS trouble. Calling it again goes on.
pub async fn clean_up(js: &jetstream::Context, app: &str) -> Result<(), ControlError> {
    let names = AppNames::new(app);
    let records: Vec<FunctionRecord> = functions::records(js, Some(app))
        .await?
        .into_iter()
        .map(|(record, _)| record)
        .collect();
    let versions: BTreeMap<String, Wanted> = records
        .iter()
        .map(|record| (record.function.clone(), Wanted::of(record)))
        .collect();
    let rollout = nodes::wait(js, app, &versions, Duration::ZERO).await?;
    let settled: BTreeMap<String, &FunctionRecord> = records
        .iter()
        .filter(|record| rollout.running.contains(&record.function))
        .map(|record| {
            let consumer = names.consumer(&record.function, record.instance);
            (consumer, record)
        })
        .collect();
    // With no node there is nobody that could still emit.
    let over = rollout.nodes == 0 || settled.len() == records.len();
    if settled.is_empty() && !over {
        return Ok(());
    }
    let failed = |why: String| ControlError::nats("list the streams", why);
    let streams: Vec<String> = js
        .stream_names()
        .try_collect()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if over {
        targets::give_back(js, &names, &streams, &records).await?;
    }
    futures::stream::iter(streams)
        .map(|stream| clean(js, stream, &settled))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    versions::prune(js, app).await
}

/// One stream; `settled` are functions by the names of their consumers.
async fn clean(
    js: &jetstream::Context,
    stream: String,
    settled: &BTreeMap<String, &FunctionRecord>,
) -> Result<(), ControlError> {
    let doing = format!("list the consumers of stream {stream}");
    let mut seen = 0;
    let mut left = Vec::new();
    loop {
        let page = request(
            js,
            &format!("CONSUMER.NAMES.{stream}"),
            json!({ "offset": seen }),
            &doing,
        )
        .await?;
        let found = page["consumers"].as_array().cloned().unwrap_or_default();
        seen += found.len();
        let named = found.iter().filter_map(Value::as_str);
        left.extend(named.filter_map(|name| {
            let record = settled.get(name)?;
            // The position engine has none: what is left is from before the function was switched to it.
            let reads = record.settings.delivery == DeliveryMode::AtLeastOnce
                && record.inputs.iter().any(|input| input.stream == stream);
            (!reads).then(|| (name.to_owned(), *record))
        }));
        if found.is_empty() || seen as u64 >= page["total"].as_u64().unwrap_or(0) {
            break;
        }
    }
    for (consumer, record) in left {
        remove(js, &stream, &consumer, record).await?;
    }
    Ok(())
}

async fn remove(
    js: &jetstream::Context,
    stream: &str,
    consumer: &str,
    record: &FunctionRecord,
) -> Result<(), ControlError> {
    let doing = format!("delete consumer {consumer} of stream {stream}");
    let place = format!("{stream}.{consumer}");
    let info = request(js, &format!("CONSUMER.INFO.{place}"), json!({}), &doing).await?;
    let created = info["created"].as_str().unwrap_or_default();
    // One made since belongs to a deploy that is under way and has not registered its version yet.
    let older = OffsetDateTime::parse(created, &Rfc3339)
        .ok()
        .zip(OffsetDateTime::parse(record.activated_at(), &Rfc3339).ok())
        .is_some_and(|(created, deployed)| created < deployed);
    if older {
        request(js, &format!("CONSUMER.DELETE.{place}"), json!({}), &doing).await?;
    }
    Ok(())
}

/// An answer of the JetStream API; null when what it is about does not exist, or no longer.
pub(in crate::control) async fn request(
    js: &jetstream::Context,
    subject: &str,
    body: Value,
    doing: &str,
) -> Result<Value, ControlError> {
    let answer: Value = js
        .request(subject.to_owned(), &body)
        .await
        .map_err(|error| ControlError::nats(doing, error))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) if error["code"] == 404 => Ok(Value::Null),
        Some(error) => Err(ControlError::nats(doing, &error["description"])),
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::pull;
    use async_nats::jetstream::stream;

    use super::*;
    use crate::config::FunctionSettings;
    use crate::dev::fresh_server;
    use crate::nats::connect;
    use crate::records::Input;
    use crate::registry;

    fn record(deployed_at: OffsetDateTime, delivery: DeliveryMode) -> FunctionRecord {
        FunctionRecord {
            deployed_at: crate::records::rfc3339(deployed_at),
            inputs: vec![Input {
                stream: "READ".into(),
                subjects: vec!["read.>".into()],
                start: 0,
                begun: false,
                resets: 0,
                created: 0,
            }],
            settings: FunctionSettings {
                delivery,
                ..FunctionSettings::default()
            },
            ..FunctionRecord::sample()
        }
    }

    #[tokio::test]
    async fn only_what_the_function_left_behind_goes() {
        let (server, _data) = fresh_server().await;
        let client = connect(&server.options(), "test").await.unwrap();
        let js = jetstream::new(client);
        registry::ensure_buckets(&js, 1).await.unwrap();
        for (name, subject) in [("READ", "read.>"), ("LEFT", "left.>")] {
            let config = stream::Config {
                name: name.into(),
                subjects: vec![subject.into()],
                ..Default::default()
            };
            let stream = js.create_stream(config).await.unwrap();
            for consumer in [
                "pelton_shop_orders_00000000",
                "pelton_shop_orders_00000001",
                "someone",
            ] {
                let config = pull::Config {
                    durable_name: Some(consumer.into()),
                    ..Default::default()
                };
                stream.create_consumer(config).await.unwrap();
            }
        }
        let bucket = js
            .get_key_value(crate::names::REGISTRY_BUCKET)
            .await
            .unwrap();
        let deploy = async |at: OffsetDateTime, delivery| {
            let body = serde_json::to_vec(&record(at, delivery)).unwrap();
            bucket
                .put("function.shop.orders", body.into())
                .await
                .unwrap();
            clean_up(&js, "shop").await.unwrap();
        };
        let consumers = async |stream: &str| {
            let stream = js.get_stream(stream).await.unwrap();
            let mut names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
            names.sort();
            names
        };

        let queue = DeliveryMode::AtLeastOnce;
        deploy(OffsetDateTime::now_utc() - Duration::from_secs(3600), queue).await;
        assert_eq!(
            consumers("LEFT").await.len(),
            3,
            "made since: of a later deploy"
        );

        deploy(OffsetDateTime::now_utc(), queue).await;
        assert_eq!(
            consumers("LEFT").await,
            ["pelton_shop_orders_00000001", "someone"]
        );
        assert_eq!(consumers("READ").await.len(), 3);

        deploy(OffsetDateTime::now_utc(), DeliveryMode::ExactlyOnce).await;
        assert_eq!(
            consumers("READ").await,
            ["pelton_shop_orders_00000001", "someone"]
        );
    }
}
