//! The mount's figures, read when somebody asks.

use std::sync::Arc;

use atoll_client::client::Client;
use atoll_client::session::MetadataClient;
use atoll_fuse::session::RequestCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads a mount's counters.
pub struct MountCollector {
    /// Its client.
    pub client: Arc<Client<MetadataClient>>,
    /// What its session with the kernel counts, if it does.
    pub requests: Option<Arc<RequestCounters>>,
}

impl std::fmt::Debug for MountCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MountCollector")
    }
}

impl Collector for MountCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let data = self.client.data().counters();
        let status = self.client.metadata().status();
        let journal = status.journal;
        let gauges: [(&str, &str, Option<&Unit>, u64); 7] = [
            ("mount_journal_entries", "Changes done and not yet committed", None, journal.entries),
            ("mount_cached_inodes", "Inodes whose records are known", None, journal.inodes),
            ("mount_cached", "Bytes of known records", Some(&Unit::Bytes), journal.inodes_bytes),
            ("mount_dirty", "Bytes written and not yet committed", Some(&Unit::Bytes), data.dirty_bytes),
            ("mount_reserved", "Bytes of quota reserved for writes", Some(&Unit::Bytes), data.reserved_bytes),
            ("mount_connected", "1 while the metadata servers respond", None, u64::from(status.connected)),
            (
                "mount_waiting",
                "Time since the metadata servers last responded",
                Some(&Unit::Seconds),
                status.waiting.map_or(0, |waiting| waiting.as_secs()),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(value as f64);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        let takeovers = self.client.metadata().takeovers();
        let counters: [(&str, &str, Option<&Unit>, u64); 10] = [
            ("mount_journaled", "Changes done by the mount itself", None, journal.carried_out),
            ("mount_journal_lost", "Changes that were lost before they were committed", None, journal.lost),
            (
                "mount_chunk_written",
                "Bytes written to chunks, each replica counted",
                Some(&Unit::Bytes),
                data.chunk_bytes_written,
            ),
            ("mount_chunk_read", "Bytes read from chunks", Some(&Unit::Bytes), data.chunk_bytes_read),
            ("mount_chunks_opened", "Chunks opened for writing", None, data.chunks_opened),
            ("mount_chunks_failed", "Chunks closed early because a replica failed", None, data.chunks_failed),
            ("mount_bad_replicas", "Replicas that returned corrupt blocks", None, data.bad_replicas),
            ("mount_failovers", "Reads that had to be served by another replica", None, data.failovers),
            ("mount_sessions_lost", "Sessions that were lost", None, status.sessions_lost),
            ("mount_takeovers", "Client processes that died and were succeeded", None, takeovers),
        ];
        for (name, help, unit, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)?;
        }
        let Some(requests) = &self.requests else { return Ok(()) };
        let (name, help) =
            ("mount_requests", "Requests of the kernel, by whether they were answered at once");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (how, count) in [("at_once", requests.at_once()), ("waited", requests.waited())] {
            ConstCounter::new(count).encode(family.encode_family(&[("answered", how)])?)?;
        }
        Ok(())
    }
}
