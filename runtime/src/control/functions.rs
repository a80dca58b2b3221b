//! What is deployed and how it fares.

use std::ops::ControlFlow;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::{self};

use super::scan::{Scan, scan};
use super::{ControlError, open};
use crate::names::REGISTRY_BUCKET;
use crate::records::FunctionRecord;

/// Records of the functions of one app, or of all, with their revisions.
///
/// # Errors
/// A record that cannot be read; NATS trouble. No registry means no function.
pub async fn records(
    js: &jetstream::Context,
    app: Option<&str>,
) -> Result<Vec<(FunctionRecord, u64)>, ControlError> {
    let Some(stream) = open(js, &format!("KV_{REGISTRY_BUCKET}")).await? else {
        return Ok(Vec::new());
    };
    let functions = Scan {
        filters: vec![format!(
            "$KV.{REGISTRY_BUCKET}.function.{}.*",
            app.unwrap_or("*")
        )],
        from: DeliverPolicy::LastPerSubject,
        headers_only: false,
    };
    let mut found = Vec::new();
    scan(&stream, functions, |message| {
        let revision = message.info().map(|info| info.stream_sequence);
        if message.payload.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let record: FunctionRecord = serde_json::from_slice(&message.payload).map_err(|error| {
            ControlError::refused(
                format!(
                    "the registry's record at {} cannot be read: {error}",
                    message.subject
                ),
                "it was written by a later Pelton: use that release, or a later one",
            )
        })?;
        found.push((record, revision.unwrap_or(0)));
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    found.sort_by(|(a, _), (b, _)| (&a.app, &a.function).cmp(&(&b.app, &b.function)));
    Ok(found)
}

/// Names of the deployed apps, sorted.
///
/// # Errors
/// NATS trouble.
pub async fn apps(js: &jetstream::Context) -> Result<Vec<String>, ControlError> {
    let records = records(js, None).await?;
    let apps: std::collections::BTreeSet<String> =
        records.into_iter().map(|(record, _)| record.app).collect();
    Ok(apps.into_iter().collect())
}
