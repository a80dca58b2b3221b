//! Every name that Pelton gives to something in NATS, in one place, because they are stored: a name
//! that changes loses what was kept under it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Bucket that says which functions exist (`app.<app>`, `function.<app>.<function>`).
pub const REGISTRY_BUCKET: &str = "PELTON_REGISTRY";
/// Bucket that holds components by digest (`<digest>`, and its parts `<digest>.<n>`).
pub const MODULES_BUCKET: &str = "PELTON_MODULES";
/// Bucket of live nodes; entries expire with their heartbeat.
pub const NODES_BUCKET: &str = "PELTON_NODES";
/// Prefix of the subjects of an app's own records: `$KV.PELTON_<app>.…`.
///
/// A nats-server never carries `$KV` over a leaf connection, whether JetStream domains are set or
/// not. Two sites with the same app therefore cannot store each other's records. No app has this
/// bucket: names of apps are lower case.
pub const OWN_PREFIX: &str = "$KV.PELTON_";
/// Stream of what functions log.
pub const LOGS_STREAM: &str = "PELTON_LOGS";
/// Prefix of log subjects: `$KV.PELTON_LOGS.<app>.<function>.<level>`.
pub const LOGS_PREFIX: &str = "$KV.PELTON_LOGS";
/// The oldest nats-server that Pelton's protocol was proven on.
pub const MIN_SERVER: semver::Version = semver::Version::new(2, 15, 1);

/// Header that limits a replayed event to one function: `<app>/<function>`. Others pass it by.
pub const ONLY_HEADER: &str = "Pelton-Only";

/// Header of a message of a function's internal input: the subject that its handler sees. Callers may say it.
pub const DUE_SUBJECT_HEADER: &str = "Pelton-Subject";
/// The same: its ordering key, where that is not what the function's `key` finds.
pub const DUE_KEY_HEADER: &str = "Pelton-Key";
/// Header that such a message has while it is under way: where it lies.
pub const DUE_HEADER: &str = "Pelton-Due";
/// Header of a call: how long its caller waits, such as `5s`.
pub const TIMEOUT_HEADER: &str = "Pelton-Timeout";
/// Header of a call: until when its caller waits, milliseconds since 1970, however long the request is on its way.
pub const DEADLINE_HEADER: &str = "Pelton-Deadline";
/// Header of a call: what makes the same call twice one call.
pub const ID_HEADER: &str = "Nats-Msg-Id";
/// Header of an error: its stable code.
pub const CODE_HEADER: &str = "Pelton-Code";

/// Header of a message of an internal input: the record of the timer that it is of. It counts only if that record names it.
pub const TIMER_HEADER: &str = "Pelton-Timer";
/// The same: the stream that the event goes to; no handler sees it.
pub const DUE_TARGET_HEADER: &str = "Pelton-Target";
/// NATS's header of a scheduled message: where that goes when its time has come.
pub const SCHEDULE_TARGET_HEADER: &str = "Nats-Schedule-Target";
/// Header of a state value that expires: when, in milliseconds since 1970.
pub const EXPIRES_HEADER: &str = "Pelton-Expires";
/// On a message whose headers cannot be read, when it is handed out all the same: why.
pub const UNREADABLE_HEADER: &str = "Pelton-Unreadable";
/// The subject of a tick, as handlers announce it.
pub const TICK_SUBJECT: &str = "schedule.tick";

/// Code of an event that waited for another attempt and is lost.
pub const INPUT_GONE: &str = "pelton-input-gone";

/// Code of a dead letter that waited, and whose input stream is another one now, or none; its event was kept with it.
pub const INPUT_REPLACED: &str = "pelton-input-replaced";

/// Stream metadata: the app whose `deploy` created the stream.
pub const META_APP: &str = "pelton-app";
/// Consumer metadata: which activation of the function its settings come from.
pub const META_VERSION: &str = "pelton-version";
/// Stream metadata: format version of what Pelton keeps in it.
pub const META_FORMAT: &str = "pelton-format";

/// What nodes are called among NATS micro services.
pub const NODE_SERVICE: &str = "pelton-node";

/// Subject on which a node is told what to do.
pub fn node(id: &str) -> String {
    format!("pelton.node.{id}")
}

/// Names inside one app's commit stream; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AppNames {
    app: Arc<str>,
}

impl AppNames {
    /// Names of the app called `app` (a single subject token, checked by `config`).
    pub fn new(app: impl Into<Arc<str>>) -> Self {
        Self { app: app.into() }
    }

    /// The app itself.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// The state as a KV bucket.
    pub fn bucket(&self) -> &str {
        &self.app
    }

    /// The commit stream, which is also the state bucket's stream.
    pub fn commit_stream(&self) -> String {
        format!("KV_{}", self.app)
    }

    /// Subject of a state key.
    pub fn state(&self, key: &str) -> String {
        ["$KV.", &*self.app, ".", key].concat()
    }

    /// Prefix of all state subjects, with its trailing dot.
    pub fn state_prefix(&self) -> String {
        format!("$KV.{}.", self.app)
    }

    /// Subject of one of Pelton's own records of the app.
    fn own(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{OWN_PREFIX}{}.{rest}", self.app)
    }

    /// Prefix of the subjects of one kind of records, such as `pos`, with its trailing dot.
    pub fn kind_prefix(&self, kind: &str) -> String {
        self.own(format_args!("{kind}."))
    }

    /// What follows `kind` in the subject of a record of this kind.
    fn kind_of<'a>(&self, subject: &'a str, kind: &str) -> Option<&'a str> {
        let rest = subject.strip_prefix(OWN_PREFIX)?;
        rest.strip_prefix(&*self.app)?.strip_prefix(kind)
    }

    /// Subjects of the commit stream.
    pub fn commit_subjects(&self) -> Vec<String> {
        let mut all = vec![format!("$KV.{}.>", self.app)];
        let kinds = ["pos", "park", "txn", "out", "due", "at", "timer", "tick"];
        all.extend(kinds.map(|kind| self.own(format_args!("{kind}.>"))));
        all
    }

    /// Marker of a delivery that committed through the queue engine.
    pub fn marker(&self, function: &str, stream: &str, sequence: u64) -> String {
        self.own(format_args!("txn.{function}.{stream}.{sequence}"))
    }

    /// Filter over all [markers](Self::marker) of a function.
    pub fn all_markers(&self, function: &str) -> String {
        self.own(format_args!("txn.{function}.>"))
    }

    /// Carrier of a condition on a key that was only read; what is stored under it means nothing.
    pub fn check(&self, function: &str) -> String {
        self.own(format_args!("txn.{function}.check"))
    }

    /// Subject by which a node finds out which streams store the app's records. Nothing is stored
    /// there.
    pub fn site_check(&self) -> String {
        self.own(format_args!("txn.site.check"))
    }

    /// Pattern of all of the app's own records.
    pub fn own_subjects(&self) -> String {
        self.own(format_args!(">"))
    }

    /// Record of the commit stream's floor. It has one token less than any [check](Self::check) or
    /// [marker](Self::marker).
    pub fn floor(&self) -> String {
        self.own(format_args!("txn.floor"))
    }

    /// Record of what is alive below the [floor](Self::floor).
    pub fn alive(&self) -> String {
        self.own(format_args!("txn.alive"))
    }

    /// Position of one partition of a function's input stream.
    pub fn position(&self, function: &str, stream: &str, partition: u16) -> String {
        self.own(format_args!("pos.{function}.{stream}.{partition}"))
    }

    /// Filter over the [positions](Self::position) of one input.
    pub fn positions_filter(&self, function: &str, stream: &str) -> String {
        self.own(format_args!("pos.{function}.{stream}.*"))
    }

    /// A delivery that waits for its next attempt, with its message.
    pub fn parked(
        &self,
        function: &str,
        stream: &str,
        partition: u16,
        key: Option<&str>,
        sequence: u64,
    ) -> String {
        // A key may hold what a subject token may not; without one the token is `-`, which is no Base64 of anything.
        let key = key.map_or_else(|| "-".to_owned(), |key| URL_SAFE_NO_PAD.encode(key));
        self.own(format_args!(
            "park.{function}.{stream}.{partition}.{key}.{sequence}"
        ))
    }

    /// Filter over the [parked](Self::parked) deliveries of one partition, or of all of an input.
    pub fn parked_filter(&self, function: &str, stream: &str, partition: Option<u16>) -> String {
        let partition = partition.map_or_else(|| "*".to_owned(), |one| one.to_string());
        self.own(format_args!("park.{function}.{stream}.{partition}.*.*"))
    }

    /// Attempts so far of a queue delivery that is waiting for its next one.
    pub fn attempts(&self, function: &str, stream: &str, sequence: u64) -> String {
        self.own(format_args!("park.{function}.{stream}.queue.-.{sequence}"))
    }

    /// Filter over the [attempts](Self::attempts) of all deliveries of one input.
    pub fn attempts_filter(&self, function: &str, stream: &str) -> String {
        self.own(format_args!("park.{function}.{stream}.queue.-.*"))
    }

    /// Filter over all deliveries of one input that wait: [`parked`](Self::parked), and [`attempts`](Self::attempts).
    pub fn waiting_filter(&self, function: &str, stream: &str) -> String {
        self.own(format_args!("park.{function}.{stream}.>"))
    }

    /// Filter over all deliveries of a function that wait.
    pub fn all_parked(&self, function: &str) -> String {
        self.own(format_args!("park.{function}.>"))
    }

    /// Whether a subject under [`waiting_filter`](Self::waiting_filter) is of the queue engine.
    pub fn is_of_queue(&self, subject: &str) -> bool {
        subject.rsplit('.').nth(2) == Some("queue")
    }

    /// A message to one function that comes from no stream of the user's; `id` may have several tokens.
    pub fn due(&self, function: &str, id: &str) -> String {
        self.own(format_args!("due.{function}.{id}"))
    }

    /// A function's internal input: all that is [`due`](Self::due) for it.
    pub fn due_filter(&self, function: &str) -> String {
        self.own(format_args!("due.{function}.>"))
    }

    /// The function that a message with this subject is [`due`](Self::due) for, and its id.
    pub fn due_for<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        self.kind_of(subject, ".due.")?.split_once('.')
    }

    /// A message that the server puts where it is [`due`](Self::due) when its time has come. Written once: what is written
    /// again could come back with a server that was killed.
    pub fn at(&self, id: &str) -> String {
        self.own(format_args!("at.{id}"))
    }

    /// Record of the latest timer that functions set under a name.
    pub fn timer(&self, name: &str) -> String {
        self.own(format_args!("timer.{name}"))
    }

    /// Record of the next tick of a function's schedule.
    pub fn tick(&self, function: &str) -> String {
        self.own(format_args!("tick.{function}"))
    }

    /// Outbox subject of one emitted event.
    pub fn outbox(&self, target: &str, txn: &str, n: usize, subject: &str) -> String {
        let n = n.to_string();
        let parts = [OWN_PREFIX, &*self.app, ".out.", target];
        let own = [".", txn, ".", n.as_str(), ".", subject];
        parts.into_iter().chain(own).collect()
    }

    /// What a target stream sources from the commit stream.
    pub fn outbox_source_filter(&self, target: &str) -> String {
        self.own(format_args!("out.{target}.*.*.>"))
    }

    /// Everything in the outbox for one target.
    pub fn outbox_filter(&self, target: &str) -> String {
        self.own(format_args!("out.{target}.>"))
    }

    /// The target of a message in the outbox; none: it lies elsewhere.
    pub fn outbox_target<'a>(&self, subject: &'a str) -> Option<&'a str> {
        self.kind_of(subject, ".out.")?.split('.').next()
    }

    /// Stream of dead letters.
    pub fn dead_stream(&self) -> String {
        format!("PELTON_DEAD_{}", self.app)
    }

    /// Subject of a dead letter in [`dead_stream`](Self::dead_stream).
    pub fn dead_subject(&self, function: &str) -> String {
        self.own(format_args!("dead.{function}"))
    }

    /// Subject, in the same stream, of the `n`th part of an original message that did not fit into its letter.
    pub fn dead_part(&self, txn: &str, n: usize) -> String {
        self.own(format_args!("part.{txn}.{n}"))
    }

    /// Filter over the [parts](Self::dead_part) of one dead letter.
    pub fn dead_parts(&self, txn: &str) -> String {
        self.own(format_args!("part.{txn}.*"))
    }

    /// Subject on which a function is called.
    pub fn call(&self, function: &str) -> String {
        format!("pelton.call.{}.{function}", self.app)
    }

    /// A function's name among NATS micro services.
    pub fn service(&self, function: &str) -> String {
        format!("pelton-{}-{function}", self.app)
    }

    /// A call as the function's internal input holds it; afterwards its answer, for who asks again.
    pub fn called(&self, function: &str, call: &str) -> String {
        self.due(function, &format!("call.{call}"))
    }

    /// Where the node that commits a call tells its outcome to those who wait for it. No stream keeps it.
    pub fn answer(&self, function: &str, call: &str) -> String {
        self.own(format_args!("answer.{function}.{call}"))
    }

    /// Registry key of the app.
    pub fn registry_app(&self) -> String {
        format!("app.{}", self.app)
    }

    /// Registry key of a function.
    pub fn registry_function(&self, function: &str) -> String {
        format!("function.{}.{function}", self.app)
    }

    /// Registry key of one version of a function.
    pub fn registry_version(&self, function: &str, version: u64) -> String {
        format!("version.{}.{function}.{version}", self.app)
    }

    /// Durable consumer of a queue-engine function on each of its input streams.
    ///
    /// Acks (`$JS.ACK.<stream>.<consumer>.…`) cross leaf connections. The function's nonce keeps an
    /// ack at one site from settling an event of the same sequence at another.
    pub fn consumer(&self, function: &str, instance: uuid::Uuid) -> String {
        let (nonce, ..) = instance.as_fields();
        format!("pelton_{}_{function}_{nonce:08x}", self.app)
    }

    /// Whether a consumer is one of a function of this name, whatever its instance.
    pub fn is_consumer_of(&self, consumer: &str, function: &str) -> bool {
        let nonce = consumer.strip_prefix(&format!("pelton_{}_{function}_", self.app));
        nonce.is_some_and(|nonce| nonce.len() == 8 && nonce.bytes().all(|c| c.is_ascii_hexdigit()))
    }

    /// Subject of a function's log lines of one level.
    pub fn log(&self, function: &str, level: &str) -> String {
        format!("{LOGS_PREFIX}.{}.{function}.{level}", self.app)
    }
}

/// A call's id, from the one that its caller gave: one subject token of 32 hex digits.
pub fn call(instance: uuid::Uuid, id: &str) -> String {
    let name = format!("call\n{id}");
    uuid::Uuid::new_v5(&instance, name.as_bytes())
        .simple()
        .to_string()
}

/// A delivery's transaction. Its id is made only when it is asked for: a delivery without effects needs none.
///
/// The id is the same for every attempt of one delivery, different after a function or its input stream was made anew. One subject
/// token of 32 hex digits.
#[derive(Debug, Clone)]
pub struct Txn {
    /// The function's nonce.
    pub instance: uuid::Uuid,
    /// The input stream.
    pub stream: Arc<str>,
    /// Which life of it (`Input::life`).
    pub life: i64,
    /// The sequence there.
    pub sequence: u64,
}

impl Txn {
    /// The id.
    pub fn id(&self) -> Arc<str> {
        let Self {
            instance,
            stream,
            life,
            sequence,
        } = self;
        txn(*instance, stream, *life, *sequence)
    }

    /// One for tests.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            instance: uuid::Uuid::nil(),
            stream: "S".into(),
            life: 0,
            sequence: 1,
        }
    }
}

/// The id of a [transaction](Txn).
pub fn txn(instance: uuid::Uuid, stream: &str, life: i64, sequence: u64) -> Arc<str> {
    let name = format!("{stream}\n{life}\n{sequence}");
    let id = uuid::Uuid::new_v5(&instance, name.as_bytes());
    let mut text = uuid::Uuid::encode_buffer();
    (&*id.simple().encode_lower(&mut text)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_of_every_instance_of_a_function_are_found() {
        let names = AppNames::new("shop");
        for instance in [uuid::Uuid::nil(), uuid::Uuid::new_v4()] {
            let consumer = names.consumer("orders", instance);
            assert!(names.is_consumer_of(&consumer, "orders"), "{consumer}");
            assert!(!names.is_consumer_of(&consumer, "order"), "{consumer}");
        }
        for other in [
            "pelton_shop_orders",
            "pelton_shop_orders_xyz",
            "pelton_bank_orders_00000000",
        ] {
            assert!(!names.is_consumer_of(other, "orders"), "{other}");
        }
    }
}
