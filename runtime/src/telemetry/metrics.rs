//! Every metric that a node shows at `/metrics`: its name, kind, labels, and what it means. `docs/metrics.md` holds the same table, the
//! dashboard and the alert rules in `deploy/` rest on these names, and tests hold them against each other.
//!
//! Nodes never know each other's numbers. So each event is counted by exactly one node, and what is true of the whole cluster is shown by one
//! node alone: `sum` over all nodes is the truth for every counter, `sum` or `max` for every gauge of an app.
//!
//! No label holds what grows with events: no keys, no subjects, no ids of events. A function has at most
//! [`VERSIONS`] versions here that are not in use.

use std::fmt::Write;

/// Versions of one function that are shown although nothing runs with them any more; older ones are left out.
pub const VERSIONS: usize = 8;

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the node's start. Its name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Values by size: names with `_bucket` (label `le`), `_sum` and `_count`.
    Histogram,
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name with its unit; of a counter, without `_total`.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, beside those that Prometheus gives to all of a node.
    pub labels: &'static [&'static str],
    /// What it counts or measures, for the page and for Prometheus.
    pub help: &'static str,
}

impl Metric {
    /// The name by which it is asked for; of a histogram, without `_bucket` and the others.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }

    /// Every name of its series.
    pub fn series(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge => vec![self.shown()],
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .map(|end| format!("{}{end}", self.name))
                .to_vec(),
        }
    }
}

const FUNCTION: &[&str] = &["app", "function"];
const VERSION: &[&str] = &["app", "function", "version"];
const INPUT: &[&str] = &["app", "function", "stream"];
const STREAM: &[&str] = &["app", "stream"];
const APP: &[&str] = &["app"];

macro_rules! metrics {
    ($($title:literal { $($constant:ident $kind:ident $name:literal $labels:expr, $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: $labels, help: $help };
        )*)*

        /// All of them, by what they are about.
        pub const ALL: &[(&str, &[Metric])] = &[$(($title, &[$($constant),*])),*];
    };
}

metrics! {
    "The four rates" {
        EVENTS_PRODUCED Counter "pelton_events_produced" STREAM,
            "Events stored in an input stream of the app's functions, each once however many functions read it; counted by one node of those that serve the app. A stream that several apps read is counted for each of them.";
        EVENTS_CONSUMED Counter "pelton_events_consumed" FUNCTION,
            "Deliveries handed out for the first time; further attempts are not counted again. An event that two functions read is two deliveries.";
        EVENTS_HANDLED Counter "pelton_events_handled" FUNCTION,
            "Deliveries committed, with effects or without; dead letters are not among them.";
        EVENTS_TRANSPORTED Counter "pelton_events_transported" STREAM,
            "Emitted events that have arrived in their target stream; counted by the node that committed them. Dead letters are not among them.";
    }
    "What happens to deliveries, by function and version" {
        DELIVERIES Counter "pelton_deliveries" VERSION,
            "Deliveries handed out, once for each time.";
        ATTEMPTS Counter "pelton_attempts" VERSION,
            "Attempts that ended in the handler.";
        ATTEMPT_FAILURES Counter "pelton_attempt_failures" VERSION,
            "Attempts of these that failed: retried, or given up on; deferrals are none.";
        RETRIES Counter "pelton_retries" VERSION,
            "Attempts that failed and are followed by another one.";
        DEFERRALS Counter "pelton_deferrals" VERSION,
            "Deliveries put off until another event has come.";
        DEAD_LETTERED Counter "pelton_dead_lettered" VERSION,
            "Deliveries given up on.";
        COMMITS Counter "pelton_commits" VERSION,
            "Deliveries committed.";
        EMITTED Counter "pelton_emitted" VERSION,
            "Events emitted by committed deliveries.";
        ATTEMPT_SECONDS Histogram "pelton_attempt_duration_seconds" VERSION,
            "How long attempts took in the handler, seconds.";
        LATENCY_SECONDS Histogram "pelton_latency_seconds" VERSION,
            "From when an event was stored in its input until its delivery was committed, seconds; waiting and retries included.";
    }
    "What is waiting: shown by one node of those that serve the app, looked at every ten seconds or less often" {
        PENDING Gauge "pelton_pending_events" INPUT,
            "Events of an input not yet done with, those that wait among them. For a function far behind at most so many: beyond the first 10,000 some may be done.";
        RETRYING Gauge "pelton_retrying_events" INPUT,
            "Of the pending events, those that wait for another attempt, or behind such a one of their key.";
        DEFERRED Gauge "pelton_deferred_events" INPUT,
            "Of the pending events, those that wait for another event.";
        OLDEST_SECONDS Gauge "pelton_oldest_pending_seconds" INPUT,
            "Age of the oldest pending event since it was stored, seconds; 0: nothing is pending.";
        DEAD_LETTERS Gauge "pelton_dead_letters" FUNCTION,
            "Dead letters that are kept.";
        OUTBOX_SECONDS Gauge "pelton_outbox_oldest_seconds" STREAM,
            "Age of the oldest emitted event that has not reached its target stream, seconds; 0: all have. More than some seconds: the target is blocked.";
    }
    "Commits of an app on a node" {
        BATCHES Counter "pelton_commit_batches" APP,
            "Batches stored.";
        BATCH_DELIVERIES Histogram "pelton_commit_batch_deliveries" APP,
            "Deliveries in one batch.";
        BATCH_SECONDS Histogram "pelton_commit_batch_duration_seconds" APP,
            "From when a batch was sent until it was stored or given up, seconds.";
        BATCHES_IN_FLIGHT Gauge "pelton_commit_batches_in_flight" APP,
            "Batches that were sent and have no answer yet.";
        CONFLICTS Counter "pelton_commit_conflicts" APP,
            "Deliveries whose commit was refused because state that they read had changed; their handler runs again.";
    }
    "The node" {
        HANDLERS_BUSY Gauge "pelton_handlers_busy" FUNCTION,
            "Attempts under way in handlers of a function.";
        HANDLERS_LIMIT Gauge "pelton_handlers_limit" FUNCTION,
            "Attempts that a function may have under way on this node (`concurrency`).";
        FUNCTION_READY Gauge "pelton_function_ready" FUNCTION,
            "1: the version that is deployed runs here, or is ready to; 0: it is starting, or cannot.";
        INSTANCES Gauge "pelton_node_instances" &[],
            "Instances of components, idle ones included.";
        INSTANCES_LIMIT Gauge "pelton_node_instances_limit" &[],
            "Instances that the node may have (`--max-instances`).";
        MEMORY_BYTES Gauge "pelton_node_memory_bytes" &[],
            "Memory that the process holds, bytes; Linux only.";
        CONNECTED Gauge "pelton_node_nats_connected" &[],
            "1: all connections to NATS stand.";
        CONNECTION_BREAKS Counter "pelton_node_nats_breaks" &["connection"],
            "Times that a connection to NATS broke: the server or the network went away, or a message could not be read.";
        CLIENTS_REPLACED Counter "pelton_node_nats_clients_replaced" &["connection"],
            "Clients of a connection that were replaced because their task had ended.";
        READY Gauge "pelton_node_ready" &[],
            "1: `/readyz` says yes.";
        DRAINING Gauge "pelton_node_draining" &[],
            "1: the node stops, takes nothing more and ends what it has begun.";
        UPTIME_SECONDS Gauge "pelton_node_uptime_seconds" &[],
            "Time since the node started, seconds.";
        BUILD_INFO Gauge "pelton_build_info" &["version", "node", "name"],
            "1; its labels say which release this is, the node's id and its name.";
    }
}

/// The table of `docs/metrics.md`.
pub fn table() -> String {
    let mut text = String::new();
    for (title, metrics) in ALL {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n## {title}\n\n| name | kind | labels | what it says |\n|---|---|---|---|\n"
        );
        for metric in *metrics {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            let labels = labels.join(", ");
            let (name, help) = (metric.shown(), metric.help);
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Where the table begins in the page.
    const MARK: &str = "<!-- The rest is written by a test from telemetry/metrics.rs. -->\n";

    #[test]
    fn the_page_holds_what_the_module_says() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let text = std::fs::read_to_string(&page).unwrap();
        let (before, _) = text.split_once(MARK).expect("the page has its mark");
        let wanted = format!("{before}{MARK}{}", table());
        if std::env::var_os("PELTON_WRITE_DOCS").is_some() {
            std::fs::write(&page, &wanted).unwrap();
            return;
        }
        assert!(
            text == wanted,
            "docs/metrics.md is not what the module says; write it anew: PELTON_WRITE_DOCS=1 and this test"
        );
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut seen = BTreeSet::new();
        for metric in ALL.iter().flat_map(|(_, metrics)| metrics.iter()) {
            let Metric { name, help, .. } = metric;
            assert!(seen.insert(*name), "{name} twice");
            assert!(name.starts_with("pelton_"), "{name}");
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(plain), "{name}");
            assert!(!name.ends_with("_total"), "{name}: its kind adds that");
            assert!(!help.contains(['\n', '\\', '|']), "{name}: {help}");
            for metric in ALL.iter().flat_map(|(_, metrics)| metrics.iter()) {
                let mut ends = metric.series().into_iter().filter(|one| one == name);
                assert!(
                    ends.next().is_none() || metric.name == *name,
                    "{name} is a series of {}",
                    metric.name
                );
            }
        }
    }
}
