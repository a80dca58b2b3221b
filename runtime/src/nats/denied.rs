//! What the server does not permit. It says so in passing, and drops what it does not permit: a request of that kind has no answer and ends
//! as one that is late. So what was refused is kept where whoever waits for an answer can look.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::names::OWN_PREFIX;

/// Refusals that are told apart in the log; subjects may hold ids that never come again.
const TOLD: usize = 256;
/// So many tokens of a subject tell one refusal from another: behind them are keys and ids.
const TOKENS: usize = 5;

/// Something that the server does not permit, for a person: what, where, how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  fix: {fix}")]
pub struct Denied {
    /// The subject, as the server names it; of a subscription it may have wildcards.
    pub subject: String,
    /// What was not permitted, where and to whom, in one line.
    pub what: String,
    /// How to fix it.
    pub fix: String,
}

impl Denied {
    /// Reads what the server says; none when that is about something else. `place` and `user` are as in other messages.
    pub(super) fn read(said: &str, place: &str, user: Option<&str>) -> Option<Self> {
        let rest = said.strip_prefix("Permissions Violation for ")?;
        let (kind, rest) = rest.split_once(" to ")?;
        let subject = rest.strip_prefix('"')?.split('"').next()?;
        let (verb, means) = match kind {
            "Publish" => ("publish to", publishing(subject)),
            "Subscription" => ("subscribe to", None),
            _ => return None,
        };
        let who = user.map_or_else(|| "this user".to_owned(), |name| format!("user {name}"));
        let doing = match means {
            Some(means) => format!("{means} ({verb} {subject})"),
            None => format!("{verb} {subject}"),
        };
        let inbox = verb == "subscribe to" && subject.starts_with("_INBOX");
        let fix = match inbox {
            true => {
                "answers come there, and a user may have a prefix of its own for them: pass it with --inbox-prefix or NATS_INBOX_PREFIX \
                 (Pelton's roles have _INBOX_node, _INBOX_deployer, _INBOX_operator and _INBOX_reader)"
            }
            false => {
                "use one that may (--user, --creds or --context), or have the subject added to its permissions; what Pelton's roles may do is in \
                 docs/operations.md and deploy/nats/permissions.conf"
            }
        };
        Some(Self {
            subject: subject.to_owned(),
            what: format!("NATS at {place} does not permit {who} to {doing}"),
            fix: fix.to_owned(),
        })
    }

    /// What it has in common with others of its kind.
    fn kind(&self) -> String {
        let tokens: Vec<&str> = self.subject.splitn(TOKENS + 1, '.').take(TOKENS).collect();
        tokens.join(".")
    }
}

/// What the server refused to connections that were made with it; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Denials(Arc<Kept>);

/// What was refused so far is no setting: connections that are made in the same way are the same.
impl PartialEq for Denials {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Denials {}

#[derive(Debug, Default)]
struct Kept {
    first: watch::Sender<Option<Denied>>,
    told: Mutex<BTreeSet<String>>,
}

impl Denials {
    /// Waits for the first refusal; its reason is that of all that follow more often than not. Without end if there is none.
    pub async fn first(&self) -> Denied {
        let mut first = self.0.first.subscribe();
        loop {
            if let Some(denied) = first.borrow_and_update().clone() {
                return denied;
            }
            if first.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps the first, and logs each kind once: a node goes on, and would say the same every second.
    pub(super) fn note(&self, denied: Denied) {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD && told.insert(denied.kind()) {
            tracing::warn!(
                subject = denied.subject,
                fix = denied.fix,
                "{}",
                denied.what
            );
        } else {
            tracing::debug!(subject = denied.subject, "{}", denied.what);
        }
        drop(told);
        self.0.first.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(denied);
            is_first
        });
    }
}

/// What publishing to a subject does, where it is more than publishing.
fn publishing(subject: &str) -> Option<String> {
    if let Some(request) = subject.strip_prefix("$JS.API.") {
        return asking(request);
    }
    if let Some(app) = own_record_of(subject) {
        return Some(format!("write what Pelton keeps of app {app}"));
    }
    let tokens: Vec<&str> = subject.splitn(4, '.').collect();
    match tokens.as_slice() {
        ["$KV", bucket, key] => Some(format!("write key {key} of bucket {bucket}")),
        ["$KV", bucket, key, rest] => Some(format!("write key {key}.{rest} of bucket {bucket}")),
        ["$O", store, ..] => Some(format!("store objects in {store}")),
        ["$JS", "ACK", stream, ..] => {
            Some(format!("acknowledge what it took from stream {stream}"))
        }
        ["pelton", "node", node] => Some(format!("tell node {node} what to do")),
        ["pelton", "call", app, function] => Some(format!("call function {function} of app {app}")),
        _ => None,
    }
}

/// The app whose own records have this subject. Buckets that all apps share are in upper case.
fn own_record_of(subject: &str) -> Option<&str> {
    let app = subject.strip_prefix(OWN_PREFIX)?.split('.').next()?;
    (!app.contains(|c: char| c.is_ascii_uppercase())).then_some(app)
}

/// What a request to JetStream asks for, the prefix taken off.
fn asking(request: &str) -> Option<String> {
    /// The longer ones first.
    const VERBS: [(&str, &str); 16] = [
        ("STREAM.CREATE.", "create stream"),
        ("STREAM.UPDATE.", "change stream"),
        ("STREAM.DELETE.", "delete stream"),
        ("STREAM.PURGE.", "remove messages of stream"),
        ("STREAM.INFO.", "look at stream"),
        ("STREAM.MSG.GET.", "read stream"),
        ("STREAM.MSG.DELETE.", "delete messages of stream"),
        (
            "STREAM.LEADER.STEPDOWN.",
            "ask for another leader of stream",
        ),
        ("DIRECT.GET.", "read stream"),
        ("CONSUMER.CREATE.", "make a consumer on stream"),
        ("CONSUMER.DELETE.", "delete a consumer of stream"),
        ("CONSUMER.PAUSE.", "pause a consumer of stream"),
        ("CONSUMER.MSG.NEXT.", "take messages from stream"),
        ("CONSUMER.INFO.", "look at a consumer of stream"),
        ("CONSUMER.NAMES.", "list the consumers of stream"),
        ("CONSUMER.LIST.", "list the consumers of stream"),
    ];
    match request {
        "INFO" => return Some("ask what JetStream the account has".into()),
        "STREAM.NAMES" | "STREAM.LIST" => return Some("list the streams".into()),
        _ => {}
    }
    let (verb, rest) = VERBS
        .iter()
        .find_map(|(prefix, verb)| Some((verb, request.strip_prefix(prefix)?)))?;
    let stream = rest.split('.').next().unwrap_or(rest);
    Some(format!("{verb} {stream}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(said: &str) -> Denied {
        Denied::read(said, "nats://h:4222", Some("reader")).unwrap()
    }

    #[test]
    fn what_is_refused_is_said_in_pelton_s_words() {
        for (subject, doing) in [
            ("orders.o-1.paid", "publish to orders.o-1.paid"),
            (
                "$KV.shop.orders.o-1",
                "write key orders.o-1 of bucket shop (",
            ),
            ("$KV.shop.total", "write key total of bucket shop ("),
            ("$JS.API.STREAM.CREATE.ORDERS", "create stream ORDERS ("),
            (
                "$JS.API.STREAM.MSG.DELETE.D",
                "delete messages of stream D (",
            ),
            (
                "$JS.API.CONSUMER.CREATE.S.c.a.>",
                "make a consumer on stream S (",
            ),
            ("$JS.API.INFO", "ask what JetStream the account has ("),
            (
                "$KV.PELTON_shop.due.f.x",
                "write what Pelton keeps of app shop (",
            ),
            ("pelton.call.shop.f", "call function f of app shop ("),
            ("pelton.node.n1", "tell node n1 what to do ("),
        ] {
            let denied = read(&format!(
                "Permissions Violation for Publish to \"{subject}\""
            ));
            let expect = format!("NATS at nats://h:4222 does not permit user reader to {doing}");
            assert!(denied.what.starts_with(&expect), "{}", denied.what);
            assert_eq!(denied.subject, subject);
            assert!(denied.fix.contains("permissions.conf"), "{}", denied.fix);
        }
    }

    #[test]
    fn an_inbox_of_others_is_mended_by_its_prefix() {
        let denied = read("Permissions Violation for Subscription to \"_INBOX.abc.*\"");
        assert!(denied.fix.contains("--inbox-prefix"), "{}", denied.fix);
        let queue = read("Permissions Violation for Subscription to \"a.b\" using queue \"q\"");
        assert!(queue.what.ends_with("subscribe to a.b"), "{}", queue.what);
    }

    #[test]
    fn what_is_no_refusal_is_none() {
        for said in [
            "Stale Connection",
            "Permissions Violation",
            "Permissions Violation for Publish to x",
            "Permissions Violation for Dancing to \"x\"",
        ] {
            assert_eq!(Denied::read(said, "h", None), None, "{said}");
        }
    }

    #[tokio::test]
    async fn the_first_refusal_is_kept() {
        let denials = Denials::default();
        for subject in ["a", "b", "a"] {
            denials.note(read(&format!(
                "Permissions Violation for Publish to \"{subject}\""
            )));
        }
        assert_eq!(denials.first().await.subject, "a");
        assert_eq!(denials.clone().first().await.subject, "a");
    }
}
