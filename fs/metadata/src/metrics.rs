//! What this server counts, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

type Seconds = Family<Kind, Histogram, fn() -> Histogram>;

fn latency() -> Histogram {
    // 25 us to 26 s.
    Histogram::new(exponential_buckets(25e-6, 2.0, 21))
}

struct Inner {
    requests: Seconds,
    refused: Family<Kind, Counter>,
    commands: Counter,
    apply_seconds: Histogram,
    batch_commands: Histogram,
    work: Family<What, Counter>,
    sizes: Family<What, Gauge<u64, AtomicU64>>,
}

/// The counters of one server. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::register(&mut Registry::default())
    }
}

impl Metrics {
    /// Makes the counters and registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let inner = Inner {
            requests: Family::new_with_constructor(latency),
            refused: Family::default(),
            commands: Counter::default(),
            apply_seconds: latency(),
            batch_commands: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            work: Family::default(),
            sizes: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("atoll_metadata");
        registry.register_with_unit("request", "Requests by kind", Unit::Seconds, inner.requests.clone());
        registry.register("refused", "Requests that were refused, by kind", inner.refused.clone());
        registry.register(
            "commands_applied",
            "Commands applied to the metadata store",
            inner.commands.clone(),
        );
        registry.register_with_unit(
            "apply",
            "Applying committed entries, by call",
            Unit::Seconds,
            inner.apply_seconds.clone(),
        );
        registry.register("batch_commands", "Commands in one entry of the log", inner.batch_commands.clone());
        registry.register("work_done", "Items of background work done, by kind", inner.work.clone());
        registry.register("size", "Sizes and counts, by name", inner.sizes.clone());
        Metrics { inner: Arc::new(inner) }
    }

    /// A request was answered.
    pub fn request(&self, kind: &'static str, took: Duration, refused: bool) {
        self.inner.requests.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
        if refused {
            self.inner.refused.get_or_create(&Kind { kind }).inc();
        }
    }

    /// Entries were applied.
    pub fn applied(&self, commands: usize, took: Duration) {
        self.inner.commands.inc_by(commands as u64);
        self.inner.apply_seconds.observe(took.as_secs_f64());
    }

    /// A batch was proposed.
    pub fn batch(&self, commands: usize) {
        self.inner.batch_commands.observe(commands as f64);
    }

    /// Background work was done.
    pub fn work(&self, what: &'static str, count: u64) {
        self.inner.work.get_or_create(&What { what }).inc_by(count);
    }

    /// A size or number as it is now.
    pub fn size(&self, what: &'static str, value: u64) {
        self.inner.sizes.get_or_create(&What { what }).set(value);
    }
}
