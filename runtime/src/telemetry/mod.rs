//! What a node says of itself. `metrics` names and describes every metric and is the one place to look; `counters` and `meters` are where
//! numbers are kept while events go by, `page` writes them for Prometheus; `logs` publishes what functions log.

pub mod metrics;

mod buckets;
mod counters;
mod meters;
mod outstanding;
mod page;

mod logs;

pub use counters::Counts;
pub(crate) use counters::{Counters, now_ns};
pub use logs::LogRecord;
pub(crate) use logs::{LogPublisher, LogSource};
pub(crate) use meters::{AppMeter, FunctionLag, InputLag, Meters};
pub(crate) use page::{CONTENT_TYPE, Family, Value, write};
