//! Watches emitted events on their way from the outbox to their target. A target whose source cannot store a message stops there
//! for good, with no lag and no error: what tells it is the age of the oldest message that has not arrived.

use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::stream::{self, StreamError};
use crate::names::AppNames;

/// Header in which the server says where a sourced message comes from: the stream, its sequence there, and more.
const ORIGIN: &str = "Nats-Stream-Source";

/// The oldest emitted event that has not reached its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When it was committed.
    pub since: OffsetDateTime,
    /// What keeps it, as far as can be told.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

/// What of the app's outbox `target` has not stored yet.
///
/// # Errors
/// NATS trouble.
pub async fn waiting(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
) -> Result<Option<Waiting>, StreamError> {
    let info = stream::info(js, target).await?;
    let commit = names.commit_stream();
    let source = info.as_ref().and_then(|info| {
        let sources = info["sources"].as_array()?;
        sources.iter().find(|one| one["name"] == commit.as_str())
    });
    // Unknown after a restart until the next message comes.
    let reached = source.and_then(|source| source["seq"].as_u64());
    let next =
        json!({ "seq": reached.unwrap_or(0) + 1, "next_by_subj": names.outbox_filter(target) });
    let Some(message) = message(js, &commit, &next).await? else {
        return Ok(None);
    };
    let sequence = message["seq"].as_u64().unwrap_or(0);
    if reached.is_none()
        && source.is_some()
        && arrived(js, names, target, &message, sequence).await?
    {
        return Ok(None);
    }
    let since = message["time"]
        .as_str()
        .and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    let (why, fix) = match (&info, source) {
        (None, _) => (
            format!("stream {target} does not exist"),
            "deploy again, which makes it".to_owned(),
        ),
        (Some(_), None) => (
            format!("stream {target} has no source from {commit}"),
            "deploy again, which adds it".to_owned(),
        ),
        (Some(info), Some(_)) => blocked(target, info, &message),
    };
    Ok(Some(Waiting {
        since: since.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        why,
        fix,
    }))
}

/// What keeps a stream from storing a message.
fn blocked(target: &str, info: &Value, message: &Value) -> (String, String) {
    let (config, state) = (&info["config"], &info["state"]);
    let limit = |name: &str| config[name].as_i64().filter(|limit| *limit > 0);
    let length = |name: &str| {
        let text = message[name].as_str().unwrap_or_default();
        STANDARD.decode(text).map_or(0, |bytes| bytes.len())
    };
    let size = i64::try_from(length("data") + length("hdrs")).unwrap_or(i64::MAX);
    let held = |name: &str| state[name].as_i64().unwrap_or(0);
    if config["sealed"] == true {
        return (
            format!("stream {target} is sealed"),
            "let functions emit to another stream".into(),
        );
    }
    if let Some(most) = limit("max_msg_size").filter(|most| size > *most) {
        return (
            format!(
                "the next event has {size} bytes, and stream {target} takes {most} (max-msg-size)"
            ),
            format!(
                "raise max-msg-size of [streams.{target}] and deploy, or `nats stream edit {target} --max-msg-size`"
            ),
        );
    }
    let full = limit("max_msgs").is_some_and(|most| held("messages") >= most)
        || limit("max_bytes").is_some_and(|most| held("bytes") + size > most);
    if config["discard"] == "new" && full {
        return (
            format!("stream {target} is full and refuses new messages (discard = new)"),
            format!(
                "make room: `nats stream purge {target}`, or raise its limits, or let it discard old ones"
            ),
        );
    }
    (
        format!("stream {target} does not fetch it, and nothing is seen that keeps it"),
        format!(
            "see `nats stream info {target}` and the servers' logs: whether both streams have a leader"
        ),
    )
}

/// Whether the target has a message of this subject that is as late as that of the outbox, or later.
async fn arrived(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    message: &Value,
    sequence: u64,
) -> Result<bool, StreamError> {
    // Behind target, transaction and number stands the subject that it has there.
    let prefix = names.outbox_filter(target).replace('>', "");
    let subject = message["subject"].as_str().unwrap_or_default();
    let Some(subject) = subject
        .strip_prefix(&prefix)
        .and_then(|rest| rest.splitn(3, '.').nth(2))
    else {
        return Ok(false);
    };
    let last = self::message(js, target, &json!({ "last_by_subj": subject })).await?;
    let headers = last.and_then(|last| STANDARD.decode(last["hdrs"].as_str()?).ok());
    let headers = String::from_utf8(headers.unwrap_or_default()).unwrap_or_default();
    let origins = headers
        .lines()
        .filter_map(|line| line.strip_prefix(ORIGIN)?.strip_prefix(": "));
    let mut ours = origins.filter_map(|origin| {
        let mut words = origin.split(' ');
        let stream = words.next()?;
        // A source with a transform is called by its stream and more.
        let stream = stream.split(':').next()?;
        (stream == names.commit_stream()).then(|| words.next()?.parse::<u64>().ok())?
    });
    Ok(ours.any(|at| at >= sequence))
}

/// One message as the stream's leader has it; `which` as the server's `STREAM.MSG.GET` takes it.
pub(super) async fn message(
    js: &jetstream::Context,
    stream: &str,
    which: &Value,
) -> Result<Option<Value>, StreamError> {
    let failed =
        |why: &dyn std::fmt::Display| StreamError(format!("cannot read stream {stream}: {why}"));
    let answer: Value = js
        .request(format!("STREAM.MSG.GET.{stream}"), which)
        .await
        .map_err(|error| failed(&error))?;
    match answer.get("error") {
        None => Ok(Some(answer["message"].clone())),
        Some(error) if error["code"] == 404 => Ok(None),
        Some(error) => Err(failed(&error["description"])),
    }
}
