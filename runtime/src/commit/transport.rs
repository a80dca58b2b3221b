//! Watches emitted events on their way from the outbox to their target. A target whose source cannot store a message stops there
//! for good, with no lag and no error: what tells it is the age of the oldest message that has not arrived.
//!
//! A target fetches through a consumer that its leader asks the commit stream for. When that stream has no leader just then, the
//! request is lost: the server waits 30 seconds for the answer, then 10 or more before the next. A new leader asks at once.

use std::time::Duration;

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
/// Without a word from its source for so long, a target does not fetch: an idle source beats every second.
pub const SILENT: Duration = Duration::from_secs(5);

/// The oldest emitted event that has not reached its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When it was committed.
    pub since: OffsetDateTime,
    /// What keeps it, as far as can be told.
    pub why: String,
    /// What to do about it.
    pub fix: String,
    /// Since when the target has the leader that hears nothing of its source ([`SILENT`]), when another one could be elected.
    pub deaf: Option<OffsetDateTime>,
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
    let since = time(&message["time"]);
    let mut deaf = None;
    let (why, fix) = match (&info, source) {
        (None, _) => (
            format!("stream {target} does not exist"),
            "deploy again, which makes it".to_owned(),
        ),
        (Some(_), None) => (
            format!("stream {target} has no source from {commit}"),
            "deploy again, which adds it".to_owned(),
        ),
        (Some(info), Some(source)) => match blocked(target, info, &message) {
            Some(blocked) => blocked,
            None => match crowded(js, names, target, &info["config"], &message).await? {
                Some(crowded) => crowded,
                None => {
                    deaf = deaf_since(info, source);
                    (
                        format!(
                            "stream {target} does not fetch it, and nothing is seen that keeps it"
                        ),
                        format!(
                            "see `nats stream info {target}` and the servers' logs: whether both streams have a leader"
                        ),
                    )
                }
            },
        },
    };
    Ok(Some(Waiting {
        since: since.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        why,
        fix,
        deaf,
    }))
}

fn time(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

/// Since when the stream has its leader, when that hears nothing of the source and there are others.
fn deaf_since(info: &Value, source: &Value) -> Option<OffsetDateTime> {
    let cluster = &info["cluster"];
    // Nanoseconds; -1 when there was nothing yet.
    let heard = u64::try_from(source["active"].as_i64()?).ok();
    let silent = heard.is_none_or(|ago| Duration::from_nanos(ago) > SILENT);
    let others = cluster["replicas"].as_array()?.iter();
    let electable = others.filter(|one| one["current"] == true).count() > 0;
    time(&cluster["leader_since"]).filter(|_| silent && electable)
}

/// Asks the stream's leader to let another one be elected.
///
/// # Errors
/// NATS trouble, or a refusal.
pub async fn step_down(js: &jetstream::Context, stream: &str) -> Result<(), StreamError> {
    let failed = |why: &dyn std::fmt::Display| {
        StreamError(format!("stream {stream} keeps its leader: {why}"))
    };
    let answer: Value = js
        .request(format!("STREAM.LEADER.STEPDOWN.{stream}"), &())
        .await
        .map_err(|error| failed(&error))?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => Err(failed(&error["description"])),
    }
}

/// What keeps a stream from storing a message, if that is seen.
fn blocked(target: &str, info: &Value, message: &Value) -> Option<(String, String)> {
    let (config, state) = (&info["config"], &info["state"]);
    let limit = |name: &str| config[name].as_i64().filter(|limit| *limit > 0);
    let length = |name: &str| {
        let text = message[name].as_str().unwrap_or_default();
        STANDARD.decode(text).map_or(0, |bytes| bytes.len())
    };
    // A source adds where the message comes from: its filter, and the subject, which begins like that.
    let subject = message["subject"].as_str().unwrap_or_default();
    let origin = ORIGIN.len() + 2 * subject.len();
    let size = length("data") + length("hdrs") + origin;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let held = |name: &str| state[name].as_i64().unwrap_or(0);
    if config["sealed"] == true {
        return Some((
            format!("stream {target} is sealed"),
            "let functions emit to another stream".into(),
        ));
    }
    if let Some(most) = limit("max_msg_size").filter(|most| size > *most) {
        return Some((
            format!(
                "the next event has {size} bytes, and stream {target} takes {most} (max-msg-size)"
            ),
            format!(
                "raise max-msg-size of [streams.{target}] and deploy, or `nats stream edit {target} --max-msg-size`"
            ),
        ));
    }
    let full = limit("max_msgs").is_some_and(|most| held("messages") >= most)
        || limit("max_bytes").is_some_and(|most| held("bytes") + size > most);
    (config["discard"] == "new" && full).then(|| {
        (
            format!("stream {target} is full and refuses new messages (discard = new)"),
            format!(
                "make room: `nats stream purge {target}`, or raise its limits, or let it discard old ones"
            ),
        )
    })
}

/// What keeps a stream that takes only so many messages of one subject from storing another.
async fn crowded(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    config: &Value,
    message: &Value,
) -> Result<Option<(String, String)>, StreamError> {
    let refuses = config["discard"] == "new" && config["discard_new_per_subject"] == true;
    let most = config["max_msgs_per_subject"].as_u64().unwrap_or(0);
    let Some(subject) = subject_there(names, target, message).filter(|_| refuses && most > 0)
    else {
        return Ok(None);
    };
    let info = stream::info_with(js, target, &json!({ "subjects_filter": subject })).await?;
    let held = info.and_then(|info| info["state"]["subjects"][subject].as_u64());
    Ok(held.filter(|held| *held >= most).map(|held| {
        (
            format!(
                "stream {target} holds {held} messages of {subject}, takes {most} of one subject and refuses more (discard_new_per_subject)"
            ),
            format!(
                "make room: `nats stream purge {target} --subject={subject}`, or raise max_msgs_per_subject, or let it discard old ones"
            ),
        )
    }))
}

/// The subject that a message of the outbox has in its target: it stands behind target, transaction and number.
fn subject_there<'a>(names: &AppNames, target: &str, message: &'a Value) -> Option<&'a str> {
    let prefix = names.outbox_filter(target).replace('>', "");
    let rest = message["subject"].as_str()?.strip_prefix(&prefix)?;
    rest.splitn(3, '.').nth(2)
}

/// Whether the target has a message of this subject that is as late as that of the outbox, or later.
async fn arrived(
    js: &jetstream::Context,
    names: &AppNames,
    target: &str,
    message: &Value,
    sequence: u64,
) -> Result<bool, StreamError> {
    let Some(subject) = subject_there(names, target, message) else {
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
pub(crate) async fn message(
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server says of a stream with three copies, and of its source.
    fn deaf(heard: i64, current: bool, leader: &str) -> Option<OffsetDateTime> {
        let replicas =
            json!([{ "name": "b", "current": current }, { "name": "c", "current": false }]);
        let cluster = json!({ "leader": "a", "leader_since": leader, "replicas": replicas });
        deaf_since(&json!({ "cluster": cluster }), &json!({ "active": heard }))
    }

    #[test]
    fn another_leader_is_asked_for_where_the_source_is_silent_and_there_is_one() {
        let leader = "2026-11-26T16:19:40.3Z";
        let since = time(&json!(leader));
        assert!(since.is_some());
        assert_eq!(deaf(-1, true, leader), since, "nothing was heard yet");
        assert_eq!(deaf(6_000_000_000, true, leader), since, "not for 6 s");
        assert_eq!(deaf(900_000_000, true, leader), None, "it beats");
        assert_eq!(deaf(-1, false, leader), None, "nobody else could lead");
        let alone = json!({ "cluster": { "leader": "a", "leader_since": leader } });
        assert_eq!(deaf_since(&alone, &json!({ "active": -1 })), None);
        assert_eq!(
            deaf_since(&json!({}), &json!({ "active": -1 })),
            None,
            "one server"
        );
    }
}
