//! Metrics as Prometheus reads them: OpenMetrics text, written by `prometheus-client` from numbers that are kept elsewhere.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::buckets::Histogram;
use super::metrics::{Kind, Metric};

/// What the text is.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of one series with their values.
type Labels = Vec<(&'static str, String)>;

/// A number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Count(u64),
    Gauge(f64),
    Histogram(Histogram),
}

/// A metric and its series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Family {
    metric: Metric,
    series: Vec<(Labels, Value)>,
}

impl Family {
    pub(crate) fn new(metric: Metric) -> Self {
        Self {
            metric,
            series: Vec::new(),
        }
    }

    /// Of a metric without labels.
    pub(crate) fn one(metric: Metric, gauge: f64) -> Self {
        let mut family = Self::new(metric);
        family.push(&[], Value::Gauge(gauge));
        family
    }

    /// Adds a series: `values` of the metric's labels, in their order.
    pub(crate) fn push(&mut self, values: &[&str], value: Value) {
        let labels = labels(&self.metric, values);
        self.series.push((labels, value));
    }
}

/// A metric's labels with these values.
fn labels(metric: &Metric, values: &[&str]) -> Labels {
    let values = values.iter().map(|value| escape(value));
    metric.labels.iter().copied().zip(values).collect()
}

/// The encoder writes values as they are.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text of these.
pub(crate) fn write(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(families)));
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut page, &registry);
    page
}

#[derive(Debug)]
struct Page(Vec<Family>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for Family { metric, series } in &self.0 {
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in series {
                let mut one = family.encode_family(labels)?;
                match value {
                    Value::Count(count) => one.encode_counter::<NoLabelSet, _, f64>(count, None)?,
                    Value::Gauge(gauge) => one.encode_gauge(gauge)?,
                    Value::Histogram(all) => {
                        let count = all.count();
                        one.encode_histogram::<NoLabelSet>(all.sum, count, &all.buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{ATTEMPT_SECONDS, BUILD_INFO, EVENTS_HANDLED};
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut handled = Family::new(EVENTS_HANDLED);
        handled.push(&["shop", "orders"], Value::Count(7));
        let mut info = Family::new(BUILD_INFO);
        info.push(&["0.1", "n", "a \"b\"\\"], Value::Gauge(1.0));
        let mut took = Family::new(ATTEMPT_SECONDS);
        let histogram = Histogram {
            sum: 1.5,
            buckets: vec![(0.5, 1), (f64::MAX, 2)],
        };
        took.push(&["shop", "orders", "1"], Value::Histogram(histogram));
        let text = write(vec![handled, info, took]);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("# HELP"))
            .collect();
        assert_eq!(
            lines,
            [
                "# TYPE pelton_events_handled counter",
                r#"pelton_events_handled_total{app="shop",function="orders"} 7"#,
                "# TYPE pelton_build_info gauge",
                r#"pelton_build_info{version="0.1",node="n",name="a \"b\"\\"} 1.0"#,
                "# TYPE pelton_attempt_duration_seconds histogram",
                r#"pelton_attempt_duration_seconds_sum{app="shop",function="orders",version="1"} 1.5"#,
                r#"pelton_attempt_duration_seconds_count{app="shop",function="orders",version="1"} 3"#,
                r#"pelton_attempt_duration_seconds_bucket{le="0.5",app="shop",function="orders",version="1"} 1"#,
                r#"pelton_attempt_duration_seconds_bucket{le="+Inf",app="shop",function="orders",version="1"} 3"#,
                "# EOF",
            ]
        );
        assert!(text.contains("# HELP pelton_events_handled Deliveries committed"));
    }
}
