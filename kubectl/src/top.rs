//! `kubectl atoll top`: what volumes do now, from two readings of their servers' metrics, through the API server's proxy of pods.
//!
//! Clients serve no metrics of their own on Kubernetes, so operations are counted where they arrive: changes that a mount carries out
//! itself show when they are committed.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_crds::names::{Component, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use serde::Serialize;

use crate::cli::TopArgs;
use crate::exit::{Code, Failure};
use crate::find;
use crate::output::{self, Row, missing, size};
use crate::proxy::{self, Sample, samples};
use crate::status::pods_of;
use crate::why::facts::node_of;

/// What a server does. The field names are a contract with programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Namespace of the FileSystemCluster.
    pub namespace: String,
    /// Its name.
    pub volume: String,
    /// The server's pod; `None`: the sum of all servers.
    pub pod: Option<String>,
    /// The node of the pod.
    pub node: Option<String>,
    /// Requests that metadata servers answered, a second.
    pub metadata_requests_per_second: f64,
    /// Their mean duration in milliseconds; `None`: there were none.
    pub metadata_latency_ms: Option<f64>,
    /// Bytes that storage servers sent to readers, a second.
    pub bytes_read_per_second: f64,
    /// Bytes that storage servers took from writers, a second; each replica counts.
    pub bytes_written_per_second: f64,
    /// Bytes that storage servers copied from each other, a second.
    pub bytes_copied_per_second: f64,
    /// Free bytes on the disks of storage servers.
    pub disk_free: f64,
    /// Size of these disks in bytes.
    pub disk_total: f64,
    /// Sessions of mounts.
    pub sessions: f64,
    /// Bytes that repair still has to copy.
    pub repair_bytes_left: f64,
    /// Length of the Raft log on the disk, in bytes; of several servers the longest.
    pub log_bytes: f64,
}

/// Reads twice, and shows what has changed.
///
/// # Errors
/// If the clusters can't be read, or no server answers.
pub async fn run(client: Client, namespace: &str, args: &TopArgs) -> Result<(), Failure> {
    let clusters = find::chosen(&client, namespace, &args.selection).await?;
    let mut servers = Vec::new();
    for cluster in &clusters {
        for pod in pods_of(&client, cluster).await {
            servers.push((cluster, pod));
        }
    }
    let first = readings(&client, &servers).await;
    tokio::time::sleep(Duration::from_secs(args.interval)).await;
    let second = readings(&client, &servers).await;
    let mut loads = Vec::new();
    let mut unread = None;
    for (at, (cluster, pod)) in servers.iter().enumerate() {
        match (&first[at], &second[at]) {
            (Ok(before), Ok(after)) => {
                let seconds = (after.at - before.at).as_secs_f64();
                let mut load = load(&before.samples, &after.samples, seconds);
                load.namespace = cluster.namespace_str().to_owned();
                load.volume = cluster.name_str().to_owned();
                load.pod = Some(pod.name_any());
                load.node = node_of(pod).map(str::to_owned);
                loads.push(load);
            }
            (Err(error), _) | (_, Err(error)) => {
                let note = format!("{}/{}: {error}", cluster.namespace_str(), pod.name_any());
                eprintln!("note: no metrics of {note}");
                unread = Some(note);
            }
        }
    }
    if let (true, Some(note)) = (loads.is_empty(), unread) {
        return Err(Failure::new(
            Code::Failed,
            format_args!(
                "no server's metrics can be read ({note}): this takes the right to get pods/proxy in the volumes' namespace"
            ),
        ));
    }
    if !args.servers {
        loads = sums(&loads);
    }
    loads.sort_by(|one, other| {
        let bytes = |load: &Load| load.bytes_read_per_second + load.bytes_written_per_second;
        bytes(other).total_cmp(&bytes(one)).then_with(|| one.volume.cmp(&other.volume))
    });
    let listing = &args.selection.listing;
    output::listing(&loads, listing.output, &format!("no servers of volumes{}", listing.place(namespace)))
}

struct Reading {
    at: std::time::Instant,
    samples: Vec<Sample>,
}

/// The metrics of all servers, a few at a time.
async fn readings(client: &Client, servers: &[(&FileSystemCluster, Pod)]) -> Vec<Result<Reading, String>> {
    use futures::StreamExt;
    /// Requests at once.
    const PARALLEL_MAX: usize = 16;
    futures::stream::iter(servers)
        .map(|(cluster, pod)| async move {
            let component = pod.labels().get(labels::COMPONENT).map(String::as_str);
            let component = component.and_then(Component::from_label).ok_or("it isn't a server")?;
            let (namespace, name) = (cluster.namespace_str(), pod.name_any());
            let page = proxy::page(client, namespace, &name, component.http_port(), "/metrics").await?;
            Ok(Reading { at: std::time::Instant::now(), samples: samples(&page) })
        })
        .buffered(PARALLEL_MAX)
        .collect()
        .await
}

/// What a server did between two readings that are `seconds` apart.
fn load(before: &[Sample], after: &[Sample], seconds: f64) -> Load {
    let sum = |samples: &[Sample], name: &str, label: Option<(&str, &str)>| -> f64 {
        let matching = samples.iter().filter(|sample| sample.name == name);
        matching
            .filter(|sample| label.is_none_or(|(label, value)| sample.has(label, value)))
            .map(|sample| sample.value)
            .sum()
    };
    // A server that was started again counts from zero.
    let grown = |name: &str, label: Option<(&str, &str)>| {
        let (was, is) = (sum(before, name, label), sum(after, name, label));
        if is >= was { is - was } else { is }
    };
    let rate = |name: &str, label: Option<(&str, &str)>| grown(name, label) / seconds.max(0.001);
    let requests = grown("atoll_metadata_request_seconds_count", None);
    let spent = grown("atoll_metadata_request_seconds_sum", None);
    let leads = sum(after, "atoll_metadata_size", Some(("what", "leads"))) > 0.0;
    let of_leader =
        |what: &str| if leads { sum(after, "atoll_metadata_size", Some(("what", what))) } else { 0.0 };
    Load {
        metadata_requests_per_second: requests / seconds.max(0.001),
        metadata_latency_ms: (requests > 0.0).then(|| spent / requests * 1000.0),
        bytes_read_per_second: rate("atoll_storage_data_bytes_total", Some(("direction", "read"))),
        bytes_written_per_second: rate("atoll_storage_data_bytes_total", Some(("direction", "written"))),
        bytes_copied_per_second: rate("atoll_storage_copied_bytes_total", None),
        disk_free: sum(after, "atoll_storage_free_bytes", None),
        disk_total: sum(after, "atoll_storage_capacity_bytes", None),
        sessions: of_leader("sessions"),
        repair_bytes_left: of_leader("repair_bytes_left"),
        log_bytes: sum(after, "atoll_metadata_size", Some(("what", "raft_log_bytes"))),
        ..Load::default()
    }
}

/// One line for each volume.
fn sums(loads: &[Load]) -> Vec<Load> {
    let mut volumes: BTreeMap<(String, String), Load> = BTreeMap::new();
    for load in loads {
        let sum = volumes.entry((load.namespace.clone(), load.volume.clone())).or_insert_with(|| Load {
            namespace: load.namespace.clone(),
            volume: load.volume.clone(),
            ..Load::default()
        });
        let spent = |load: &Load| load.metadata_latency_ms.unwrap_or(0.0) * load.metadata_requests_per_second;
        let (all, time) =
            (sum.metadata_requests_per_second + load.metadata_requests_per_second, spent(sum) + spent(load));
        sum.metadata_latency_ms = (all > 0.0).then(|| time / all);
        sum.metadata_requests_per_second = all;
        sum.bytes_read_per_second += load.bytes_read_per_second;
        sum.bytes_written_per_second += load.bytes_written_per_second;
        sum.bytes_copied_per_second += load.bytes_copied_per_second;
        sum.disk_free += load.disk_free;
        sum.disk_total += load.disk_total;
        sum.sessions += load.sessions;
        sum.repair_bytes_left += load.repair_bytes_left;
        sum.log_bytes = sum.log_bytes.max(load.log_bytes);
    }
    volumes.into_values().collect()
}

fn bytes(value: f64) -> String {
    size(value as i64)
}

impl Row for Load {
    const HEADER: &'static [&'static str] = &[
        "NAMESPACE",
        "VOLUME",
        "SERVER",
        "REQUESTS/S",
        "MEAN MS",
        "READ/S",
        "WRITTEN/S",
        "DISK FREE",
        "MOUNTS",
    ];
    const WIDE: &'static [&'static str] = &["NODE", "COPIED/S", "REPAIR LEFT", "RAFT LOG"];

    fn cells(&self) -> Vec<String> {
        let free = (self.disk_total > 0.0)
            .then(|| format!("{} of {}", bytes(self.disk_free), bytes(self.disk_total)));
        vec![
            self.namespace.clone(),
            self.volume.clone(),
            self.pod.clone().unwrap_or_else(|| "(all)".to_owned()),
            format!("{:.1}", self.metadata_requests_per_second),
            self.metadata_latency_ms.map_or_else(missing, |latency| format!("{latency:.2}")),
            bytes(self.bytes_read_per_second),
            bytes(self.bytes_written_per_second),
            free.unwrap_or_else(missing),
            format!("{:.0}", self.sessions),
        ]
    }

    fn wide_cells(&self) -> Vec<String> {
        vec![
            self.node.clone().unwrap_or_else(missing),
            bytes(self.bytes_copied_per_second),
            bytes(self.repair_bytes_left),
            bytes(self.log_bytes),
        ]
    }

    fn resource(&self) -> String {
        match &self.pod {
            Some(pod) => format!("pod/{pod}"),
            None => format!("filesystemcluster.atoll.dev/{}", self.volume),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(requests: u64, seconds: f64, leads: u8) -> Vec<Sample> {
        samples(&format!(
            "atoll_metadata_request_seconds_count{{kind=\"lookup\"}} {requests}\n\
             atoll_metadata_request_seconds_sum{{kind=\"lookup\"}} {seconds}\n\
             atoll_metadata_size{{what=\"leads\"}} {leads}\natoll_metadata_size{{what=\"sessions\"}} 2\n\
             atoll_metadata_size{{what=\"raft_log_bytes\"}} {}\n",
            requests * 10
        ))
    }

    fn storage(read: u64, written: u64) -> Vec<Sample> {
        samples(&format!(
            "atoll_storage_data_bytes_total{{direction=\"Read\"}} {read}\n\
             atoll_storage_data_bytes_total{{direction=\"Written\"}} {written}\n\
             atoll_storage_free_bytes 60\natoll_storage_capacity_bytes 100\n"
        ))
    }

    #[test]
    fn what_a_server_did_is_the_difference_of_two_readings() {
        let found = load(&metadata(100, 1.0, 1), &metadata(300, 1.5, 1), 2.0);
        assert_eq!((found.metadata_requests_per_second, found.metadata_latency_ms), (100.0, Some(2.5)));
        assert_eq!((found.sessions, found.log_bytes), (2.0, 3000.0));
        // Only the leader's counts are those of the volume.
        assert_eq!(load(&metadata(1, 0.0, 0), &metadata(1, 0.0, 0), 1.0).sessions, 0.0);
        assert_eq!(load(&metadata(1, 0.0, 0), &metadata(1, 0.0, 0), 1.0).metadata_latency_ms, None);
        let found = load(&storage(1000, 50), &storage(3000, 50), 2.0);
        assert_eq!((found.bytes_read_per_second, found.bytes_written_per_second), (1000.0, 0.0));
        // Started again in between.
        assert_eq!(load(&storage(1000, 0), &storage(40, 0), 2.0).bytes_read_per_second, 20.0);
    }

    #[test]
    fn a_volume_is_the_sum_of_its_servers() {
        let named = |load: Load, pod: &str| Load { volume: "v".into(), pod: Some(pod.into()), ..load };
        let loads = [
            named(load(&metadata(0, 0.0, 1), &metadata(30, 0.3, 1), 1.0), "m0"),
            named(load(&metadata(0, 0.0, 0), &metadata(10, 0.5, 0), 1.0), "m1"),
            named(load(&storage(0, 0), &storage(10, 20), 1.0), "s0"),
            named(load(&storage(0, 0), &storage(10, 20), 1.0), "s1"),
        ];
        let found = sums(&loads);
        assert_eq!(found.len(), 1);
        let sum = &found[0];
        assert_eq!((sum.metadata_requests_per_second, sum.metadata_latency_ms), (40.0, Some(20.0)));
        assert_eq!((sum.bytes_read_per_second, sum.bytes_written_per_second), (20.0, 40.0));
        assert_eq!((sum.disk_free, sum.disk_total, sum.sessions, sum.log_bytes), (120.0, 200.0, 2.0, 300.0));
        assert_eq!(sum.cells()[2..], ["(all)", "40.0", "20.00", "20B", "40B", "120B of 200B", "2"]);
        assert_eq!(
            (sum.resource(), loads[0].resource()),
            ("filesystemcluster.atoll.dev/v".into(), "pod/m0".into())
        );
    }
}
