//! What the server counts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::store::Store;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Verb {
    Write,
    Sync,
    Read,
    Seal,
    Delete,
    Trim,
    Copy,
    Inventory,
    Scrub,
    Status,
    Unknown,
}

impl Verb {
    /// As clients name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verb::Write => "write",
            Verb::Sync => "sync",
            Verb::Read => "read",
            Verb::Seal => "seal",
            Verb::Delete => "delete",
            Verb::Trim => "trim",
            Verb::Copy => "copy",
            Verb::Inventory => "inventory",
            Verb::Scrub => "scrub",
            Verb::Status => "status",
            Verb::Unknown => "unknown",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Outcome {
    Ok,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: Verb,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Direction {
    Written,
    Read,
}

/// The counters and gauges of one server. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    /// Bytes taken from writers.
    pub bytes_written: Counter,
    /// Bytes given to readers.
    pub bytes_read: Counter,
    /// Syncs that were asked for.
    pub syncs_asked: Counter,
    /// Syncs of the disk; the difference is what coalescing saved.
    pub syncs_made: Counter,
    /// Blocks that scrubs read.
    pub scrubbed_blocks: Counter,
    /// Bytes that trims gave back.
    pub trimmed_bytes: Counter,
    /// Bytes copied from peers.
    pub copied_bytes: Counter,
    chunks: Gauge,
    open_chunks: Gauge,
    capacity_bytes: Gauge<u64, AtomicU64>,
    free_bytes: Gauge<u64, AtomicU64>,
    ballast_bytes: Gauge<u64, AtomicU64>,
    disk_errors: Gauge<u64, AtomicU64>,
    bad_blocks: Gauge<u64, AtomicU64>,
    registered: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let bytes = Family::<DirectionLabels, Counter>::default();
        let direction = |direction| bytes.get_or_create_owned(&DirectionLabels { direction });
        Self {
            bytes_written: direction(Direction::Written),
            bytes_read: direction(Direction::Read),
            bytes,
            requests: Family::default(),
            syncs_asked: Counter::default(),
            syncs_made: Counter::default(),
            scrubbed_blocks: Counter::default(),
            trimmed_bytes: Counter::default(),
            copied_bytes: Counter::default(),
            chunks: Gauge::default(),
            open_chunks: Gauge::default(),
            capacity_bytes: Gauge::default(),
            free_bytes: Gauge::default(),
            ballast_bytes: Gauge::default(),
            disk_errors: Gauge::default(),
            bad_blocks: Gauge::default(),
            registered: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes them part of a registry, under names that begin with `atoll_storage_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("atoll_storage");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register_with_unit("data", "Chunk data moved", Unit::Bytes, self.bytes.clone());
        registry.register("syncs_asked", "Syncs requested by writers", self.syncs_asked.clone());
        registry.register(
            "syncs_made",
            "Syncs of the disk (several requests share one)",
            self.syncs_made.clone(),
        );
        registry.register("scrubbed_blocks", "Blocks verified by scrubs", self.scrubbed_blocks.clone());
        registry.register_with_unit(
            "trimmed",
            "Bytes of dead ranges trimmed",
            Unit::Bytes,
            self.trimmed_bytes.clone(),
        );
        registry.register_with_unit(
            "copied",
            "Bytes copied from other servers",
            Unit::Bytes,
            self.copied_bytes.clone(),
        );
        registry.register("chunks", "Replicas on the disk", self.chunks.clone());
        registry.register("open_chunks", "Replicas whose files are open", self.open_chunks.clone());
        registry.register_with_unit("capacity", "Size of the disk", Unit::Bytes, self.capacity_bytes.clone());
        registry.register_with_unit("free", "Free space on the disk", Unit::Bytes, self.free_bytes.clone());
        registry.register_with_unit(
            "ballast",
            "Size of the ballast file, which keeps space for deletions on a full disk; 0 when it was \
             released",
            Unit::Bytes,
            self.ballast_bytes.clone(),
        );
        registry.register("disk_errors", "Disk errors since the start", self.disk_errors.clone());
        registry.register("bad_blocks", "Corrupt blocks found since the start", self.bad_blocks.clone());
        registry.register(
            "registered",
            "1 while heartbeats reach the metadata servers",
            self.registered.clone(),
        );
    }

    /// Counts a request.
    pub fn answered(&self, verb: Verb, outcome: Outcome) {
        self.requests.get_or_create(&RequestLabels { verb, outcome }).inc();
    }

    /// Notes whether the metadata service hears us.
    pub fn set_registered(&self, registered: bool) {
        self.registered.set(registered.into());
    }

    /// Reads the gauges off the store. Blocks for a look at the disk's free space.
    pub fn refresh(&self, store: &Arc<Store>) {
        self.chunks.set(store.len() as i64);
        self.open_chunks.set(store.open_chunks() as i64);
        self.ballast_bytes.set(store.ballast_bytes());
        self.disk_errors.set(store.disk_errors());
        self.bad_blocks.set(store.bad_blocks());
        if let Ok(space) = store.space() {
            self.capacity_bytes.set(space.capacity_bytes);
            self.free_bytes.set(space.free_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.bytes_written.inc_by(5);
        metrics.answered(Verb::Read, Outcome::Refused);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("atoll_storage_data_bytes_total{direction=\"Written\"} 5"), "{text}");
        assert!(text.contains("atoll_storage_requests_total{verb=\"Read\",outcome=\"Refused\"} 1"), "{text}");
    }
}
