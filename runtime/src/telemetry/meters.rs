//! All numbers of a node in one place, by app, function and version. Whoever counts has its handle and comes here once, when it begins;
//! whoever shows them comes here for each look.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::buckets::{Durations, Sizes};
use super::counters::{Counters, Totals};
use super::metrics::{self, Metric, VERSIONS};
use super::outstanding::Outstanding;
use super::page::{Family, Value};

/// The numbers of a node.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    functions: Mutex<BTreeMap<(String, String), FunctionMeter>>,
    apps: Mutex<BTreeMap<String, Arc<AppMeter>>>,
}

/// The versions of a function.
#[derive(Debug, Default)]
struct FunctionMeter {
    versions: BTreeMap<u64, VersionMeter>,
    /// Of versions that are not shown any more.
    past: Totals,
}

/// A version: it may have been active several times.
#[derive(Debug, Default)]
struct VersionMeter {
    live: Vec<Arc<Counters>>,
    past: Totals,
}

/// What one app's commits come to on this node, and what this node knows of the app.
#[derive(Debug, Default)]
pub(crate) struct AppMeter {
    batches: AtomicU64,
    conflicts: AtomicU64,
    in_flight: AtomicU64,
    sizes: Sizes,
    took: Durations,
    /// By input stream: events stored that this node has counted.
    produced: Mutex<BTreeMap<String, u64>>,
    /// By target stream.
    outstanding: Mutex<BTreeMap<String, Outstanding>>,
    /// What waits; empty: another node says it.
    lag: Mutex<Vec<FunctionLag>>,
}

/// How far a function is behind.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FunctionLag {
    pub(crate) function: String,
    pub(crate) inputs: Vec<InputLag>,
    pub(crate) dead_letters: u64,
    /// Target stream, and age of the oldest event that has not reached it, seconds.
    pub(crate) targets: Vec<(String, f64)>,
}

/// How far it is behind in one input.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct InputLag {
    pub(crate) stream: String,
    pub(crate) pending: u64,
    pub(crate) retrying: u64,
    pub(crate) deferred: u64,
    /// Age of the oldest pending event, seconds.
    pub(crate) oldest: f64,
}

impl Meters {
    /// Shows what a version counts from now on.
    pub(crate) fn register(
        &self,
        app: &str,
        function: &str,
        version: u64,
        counters: &Arc<Counters>,
    ) {
        let mut functions = lock(&self.functions);
        let key = (app.to_owned(), function.to_owned());
        let meter = functions.entry(key).or_default();
        let version = meter.versions.entry(version).or_default();
        version.live.push(counters.clone());
        meter.settle();
    }

    /// The app's.
    pub(crate) fn app(&self, app: &str) -> Arc<AppMeter> {
        lock(&self.apps).entry(app.to_owned()).or_default().clone()
    }

    /// Everything that is known of apps and functions.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut all = self.of_functions();
        let apps: Vec<(String, Arc<AppMeter>)> = lock(&self.apps)
            .iter()
            .map(|(app, meter)| (app.clone(), meter.clone()))
            .collect();
        all.extend(of_streams(&apps));
        all.extend(of_commits(&apps));
        all.extend(of_lag(&apps));
        all
    }

    fn of_functions(&self) -> Vec<Family> {
        let mut functions = lock(&self.functions);
        let mut consumed = Family::new(metrics::EVENTS_CONSUMED);
        let mut handled = Family::new(metrics::EVENTS_HANDLED);
        let mut versions: Vec<Family> = VERSIONED.map(|(metric, _)| Family::new(metric)).into();
        for ((app, function), meter) in functions.iter_mut() {
            meter.settle();
            let mut all = meter.past.clone();
            for (version, one) in &meter.versions {
                let totals = one.totals();
                all.add(&totals);
                let labels = [app.as_str(), function.as_str(), &version.to_string()];
                for (family, (_, value)) in versions.iter_mut().zip(VERSIONED) {
                    family.push(&labels, value(&totals));
                }
            }
            let labels = [app.as_str(), function.as_str()];
            consumed.push(&labels, Value::Count(all.consumed));
            handled.push(&labels, Value::Count(all.committed));
        }
        // What is gone was shown once more with all that it came to.
        functions.retain(|_, meter| meter.versions.values().any(|one| !one.live.is_empty()));
        versions.insert(0, handled);
        versions.insert(0, consumed);
        versions
    }
}

/// A metric, and what it is of a version.
type Versioned = (Metric, fn(&Totals) -> Value);

/// What is shown of each version.
const VERSIONED: [Versioned; 10] = [
    (metrics::DELIVERIES, |all| Value::Count(all.delivered)),
    (metrics::ATTEMPTS, |all| Value::Count(all.attempts)),
    (metrics::ATTEMPT_FAILURES, |all| Value::Count(all.failures)),
    (metrics::RETRIES, |all| Value::Count(all.retried)),
    (metrics::DEFERRALS, |all| Value::Count(all.deferred)),
    (metrics::DEAD_LETTERED, |all| {
        Value::Count(all.dead_lettered)
    }),
    (metrics::COMMITS, |all| Value::Count(all.committed)),
    (metrics::EMITTED, |all| Value::Count(all.emitted)),
    (metrics::ATTEMPT_SECONDS, |all| {
        Value::Histogram(all.durations.clone())
    }),
    (metrics::LATENCY_SECONDS, |all| {
        Value::Histogram(all.latencies.clone())
    }),
];

impl FunctionMeter {
    /// Keeps the sums alone of what counts no more, and of old versions only one for all.
    fn settle(&mut self) {
        for version in self.versions.values_mut() {
            let past = &mut version.past;
            version.live.retain(|one| {
                let counts = Arc::strong_count(one) > 1;
                if !counts {
                    past.add(&one.totals());
                }
                counts
            });
        }
        let idle = self.versions.iter().filter(|(_, one)| one.live.is_empty());
        let idle: Vec<u64> = idle.map(|(version, _)| *version).collect();
        let surplus = idle.len().saturating_sub(VERSIONS);
        for version in idle.into_iter().take(surplus) {
            if let Some(gone) = self.versions.remove(&version) {
                self.past.add(&gone.past);
            }
        }
    }
}

impl VersionMeter {
    fn totals(&self) -> Totals {
        let mut all = self.past.clone();
        for one in &self.live {
            all.add(&one.totals());
        }
        all
    }
}

impl AppMeter {
    /// A batch of so many deliveries was stored.
    pub(crate) fn stored(&self, deliveries: usize) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.sizes.add(deliveries as u64);
    }

    /// A batch has ended, stored or not.
    pub(crate) fn landed(&self, took: Duration) {
        self.took.add(took);
    }

    /// So many deliveries are to run again.
    pub(crate) fn conflicts(&self, count: usize) {
        self.conflicts.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Batches in flight.
    pub(crate) fn in_flight(&self, count: usize) {
        self.in_flight.store(count as u64, Ordering::Relaxed);
    }

    /// `count` events for `target` were committed, the last of them at `sequence` of the commit stream.
    pub(crate) fn emitted(&self, target: &str, sequence: u64, count: u64) {
        let mut outstanding = lock(&self.outstanding);
        match outstanding.get_mut(target) {
            Some(known) => known.push(sequence, count),
            None => {
                let mut new = Outstanding::default();
                new.push(sequence, count);
                outstanding.insert(target.to_owned(), new);
            }
        }
    }

    /// Targets that events of this node are on their way to, with the sequence of the latest.
    pub(crate) fn on_their_way(&self) -> Vec<(String, u64)> {
        let outstanding = lock(&self.outstanding);
        let on_their_way = outstanding.iter();
        on_their_way
            .filter_map(|(target, one)| Some((target.clone(), one.last()?)))
            .collect()
    }

    /// A target has stored everything up to `sequence` of the commit stream.
    pub(crate) fn reached(&self, target: &str, sequence: u64) {
        if let Some(known) = lock(&self.outstanding).get_mut(target) {
            known.reached(sequence);
        }
    }

    /// So many more events were stored in an input stream.
    pub(crate) fn produced(&self, stream: &str, count: u64) {
        let mut produced = lock(&self.produced);
        *produced.entry(stream.to_owned()).or_default() += count;
    }

    /// What waits, as this node says for all; nothing: another node says it.
    pub(crate) fn set_lag(&self, lag: Vec<FunctionLag>) {
        *lock(&self.lag) = lag;
    }
}

fn of_streams(apps: &[(String, Arc<AppMeter>)]) -> Vec<Family> {
    let mut produced = Family::new(metrics::EVENTS_PRODUCED);
    let mut transported = Family::new(metrics::EVENTS_TRANSPORTED);
    for (app, meter) in apps {
        for (stream, count) in lock(&meter.produced).iter() {
            produced.push(&[app, stream], Value::Count(*count));
        }
        for (stream, one) in lock(&meter.outstanding).iter() {
            transported.push(&[app, stream], Value::Count(one.arrived()));
        }
    }
    vec![produced, transported]
}

fn of_commits(apps: &[(String, Arc<AppMeter>)]) -> Vec<Family> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let family = |metric, value: &dyn Fn(&AppMeter) -> Value| {
        let mut family = Family::new(metric);
        for (app, meter) in apps {
            family.push(&[app], value(meter));
        }
        family
    };
    vec![
        family(metrics::BATCHES, &|one| Value::Count(count(&one.batches))),
        family(metrics::BATCH_DELIVERIES, &|one| {
            Value::Histogram(one.sizes.read())
        }),
        family(metrics::BATCH_SECONDS, &|one| {
            Value::Histogram(one.took.read())
        }),
        family(metrics::BATCHES_IN_FLIGHT, &|one| {
            Value::Gauge(count(&one.in_flight) as f64)
        }),
        family(metrics::CONFLICTS, &|one| {
            Value::Count(count(&one.conflicts))
        }),
    ]
}

fn of_lag(apps: &[(String, Arc<AppMeter>)]) -> Vec<Family> {
    let mut pending = Family::new(metrics::PENDING);
    let mut retrying = Family::new(metrics::RETRYING);
    let mut deferred = Family::new(metrics::DEFERRED);
    let mut oldest = Family::new(metrics::OLDEST_SECONDS);
    let mut dead = Family::new(metrics::DEAD_LETTERS);
    let mut outbox = Family::new(metrics::OUTBOX_SECONDS);
    for (app, meter) in apps {
        let lag = lock(&meter.lag).clone();
        let mut targets = BTreeMap::new();
        for one in &lag {
            let function = one.function.as_str();
            for input in &one.inputs {
                let labels = [app.as_str(), function, &input.stream];
                pending.push(&labels, Value::Gauge(input.pending as f64));
                retrying.push(&labels, Value::Gauge(input.retrying as f64));
                deferred.push(&labels, Value::Gauge(input.deferred as f64));
                oldest.push(&labels, Value::Gauge(input.oldest));
            }
            dead.push(&[app, function], Value::Gauge(one.dead_letters as f64));
            // Several functions may emit to one stream.
            targets.extend(one.targets.iter().map(|(stream, age)| (stream, *age)));
        }
        for (stream, age) in targets {
            outbox.push(&[app, stream], Value::Gauge(age));
        }
    }
    vec![pending, retrying, deferred, oldest, dead, outbox]
}

/// No code that could panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::page::write;
    use super::*;

    fn value(meters: &Meters, series: &str) -> Option<String> {
        let text = write(meters.families());
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map(|value| value.trim().to_owned())
    }

    #[test]
    fn a_version_that_comes_back_goes_on_and_old_ones_are_left_out() {
        let meters = Meters::default();
        let mut now = Arc::default();
        for version in [1, 2, 1] {
            now = Arc::new(Counters::default());
            meters.register("shop", "orders", version, &now);
            now.committed(0);
        }
        let commits = |version: u64| {
            let labels = format!("{{app=\"shop\",function=\"orders\",version=\"{version}\"}}");
            value(&meters, &format!("pelton_commits_total{labels}"))
        };
        assert_eq!(commits(1).as_deref(), Some("2"));
        assert_eq!(commits(2).as_deref(), Some("1"));
        for version in 3..40 {
            now = Arc::new(Counters::default());
            meters.register("shop", "orders", version, &now);
            now.committed(0);
        }
        assert_eq!(commits(1), None);
        assert_eq!(commits(39).as_deref(), Some("1"));
        let handled = "pelton_events_handled_total{app=\"shop\",function=\"orders\"}";
        assert_eq!(value(&meters, handled).as_deref(), Some("40"));
        drop(now);
        assert_eq!(value(&meters, handled).as_deref(), Some("40"));
        assert_eq!(value(&meters, handled), None, "the function is gone");
    }

    #[test]
    fn what_has_arrived_is_counted_and_nothing_else() {
        let meters = Meters::default();
        let app = meters.app("shop");
        app.emitted("OUT", 7, 3);
        app.emitted("OUT", 9, 2);
        let arrived = "pelton_events_transported_total{app=\"shop\",stream=\"OUT\"}";
        assert_eq!(app.on_their_way(), [("OUT".to_owned(), 9)]);
        assert_eq!(value(&meters, arrived).as_deref(), Some("0"));
        app.reached("OUT", 8);
        assert_eq!(value(&meters, arrived).as_deref(), Some("3"));
    }
}
