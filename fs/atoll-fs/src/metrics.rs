//! The mount's figures, read when somebody asks.

use std::sync::Arc;

use atoll_client::client::Client;
use atoll_client::session::MetadataClient;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads a client's counters.
pub struct MountCollector(pub Arc<Client<MetadataClient>>);

impl std::fmt::Debug for MountCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MountCollector")
    }
}

impl Collector for MountCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let data = self.0.data().counters();
        let status = self.0.metadata().status();
        let gauges: [(&str, &str, Option<&Unit>, u64); 4] = [
            ("mount_dirty", "Written data that waits for its commit", Some(&Unit::Bytes), data.dirty_bytes),
            (
                "mount_reserved",
                "Quota held for what will be written",
                Some(&Unit::Bytes),
                data.reserved_bytes,
            ),
            ("mount_connected", "1 while the metadata service answers", None, u64::from(status.connected)),
            (
                "mount_waiting",
                "How long the metadata service hasn't answered",
                Some(&Unit::Seconds),
                status.waiting.map_or(0, |waiting| waiting.as_secs()),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(value as f64);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        let counters: [(&str, &str, Option<&Unit>, u64); 7] = [
            (
                "mount_chunk_written",
                "Written to chunks, each replica counted once",
                Some(&Unit::Bytes),
                data.chunk_bytes_written,
            ),
            ("mount_chunk_read", "Read from chunks", Some(&Unit::Bytes), data.chunk_bytes_read),
            ("mount_chunks_opened", "Chunks opened for writing", None, data.chunks_opened),
            ("mount_chunks_failed", "Chunks given up because of a replica", None, data.chunks_failed),
            ("mount_bad_replicas", "Replicas that answered with damaged bytes", None, data.bad_replicas),
            ("mount_failovers", "Reads that another replica had to serve", None, data.failovers),
            ("mount_sessions_lost", "Sessions that were lost", None, status.sessions_lost),
        ];
        for (name, help, unit, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }
        Ok(())
    }
}
