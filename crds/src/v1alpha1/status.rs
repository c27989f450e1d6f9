//! What the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::Quantity;

/// Mounted clients that a status lists; there may be more (see `clientCount`).
pub const CLIENTS_LISTED_MAX: usize = 100;

/// The observed state of a filesystem cluster.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSystemClusterStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// A summary of the conditions in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The state with reasons: `Ready` (can be mounted and used), `Available` (all data can be read and written),
    /// `Progressing` (the operator is making changes; `Reconciling` as well then), `Degraded` (something is wrong),
    /// `ExpansionPending` (the volume or a disk is smaller than specified), `UpgradeBlocked` (another version was asked for and can't
    /// be had), `PlacementDegraded` (copies share a node, or pods wait for one since they may not), `DeletionBlocked` (it was deleted and waits for its users), `NameConflict` (an object of its name belongs to
    /// something else), `Stalled` (it doesn't continue by itself). Each message says what an administrator has to do, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The cluster's id: 32 hexadecimal digits, chosen once. Data is deleted only if `spec.deletionConfirmation` is
    /// this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"), length(max = 32))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a cluster's id never changes"))]
    pub cluster_id: Option<String>,
    /// The volume has been created. It is never created a second time.
    #[serde(default)]
    pub bootstrapped: bool,
    /// The id is that of disks that existed before this resource: the volume is never created, only used again.
    #[serde(default)]
    pub adopted: bool,
    /// Version that the pods run: the oldest among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version that the pods are to run. It changes with `spec.version`, or with the operator's upgrade policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_version: Option<String>,
    /// Progress of an upgrade or of another change that re-creates pods; only while it continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// The oldest version that can still read the disks: that of the last raise of the feature level. Without it, none was raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    /// The volume's feature level. It is raised once all servers and mounts know the next one, and never lowered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub feature_level: Option<u32>,
    /// Size that the volume has now, as `df` shows it. While it differs from `spec.capacity`, the condition
    /// `ExpansionPending` says what is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Quantity>,
    /// Usage of the volume, delayed by up to a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// The metadata servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataStatus>,
    /// The storage servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
    /// The number of mounts.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub client_count: i64,
    /// The mounts, one for each node that uses the volume; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub clients: Vec<ClientStatus>,
}

/// A summary of the conditions in one word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being created for the first time.
    Creating,
    /// Usable and as specified.
    Ready,
    /// Usable, but something is wrong.
    Degraded,
    /// It was created and can't be used now.
    Unavailable,
    /// It can't be created or changed until an administrator acts.
    Blocked,
    /// The operator is paused for this cluster.
    Paused,
    /// Being deleted.
    Deleting,
    /// One of a newer version. It is never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl Phase {
    /// As in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Creating => "Creating",
            Phase::Ready => "Ready",
            Phase::Degraded => "Degraded",
            Phase::Unavailable => "Unavailable",
            Phase::Blocked => "Blocked",
            Phase::Paused => "Paused",
            Phase::Deleting => "Deleting",
            Phase::Unknown => "Unknown",
        }
    }
}

/// Pods that are re-created, one at a time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Pods that are as specified, and ready.
    pub updated: i32,
    /// Pods that there are to be.
    pub pods: i32,
    /// `updated/pods`.
    pub summary: String,
}

/// Usage of the volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Bytes that files can use.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes that files use.
    #[schemars(range(min = 0))]
    pub bytes_used: i64,
    /// Maximum number of files, directories and other inodes.
    #[schemars(range(min = 0))]
    pub inodes_total: i64,
    /// Number of existing inodes.
    #[schemars(range(min = 0))]
    pub inodes_used: i64,
    /// `bytesUsed`, human-readable.
    pub used: String,
}

/// The metadata servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MetadataStatus {
    /// The desired number.
    pub replicas: i32,
    /// The number of ready pods.
    pub ready: i32,
    /// `ready/replicas`.
    pub summary: String,
    /// Size of the smallest of their disks, as its PersistentVolumeClaim reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Quantity>,
    /// Id of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The members of the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub members: Vec<MemberStatus>,
}

/// A metadata server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its id, which is stored on its disk.
    pub id: String,
    /// Its address.
    pub address: String,
}

/// The storage servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// The desired number.
    pub replicas: i32,
    /// The number of ready pods.
    pub ready: i32,
    /// `ready/replicas`.
    pub summary: String,
    /// Size of the smallest of their disks, as its PersistentVolumeClaim reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<Quantity>,
    /// Chunks, the units of placement.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub chunks: i64,
    /// Chunks with fewer copies on live servers than desired.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub chunks_short_of_copies: i64,
    /// The servers that have registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub servers: Vec<ServerStatus>,
}

/// A storage server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its id, which is stored on its disk.
    pub id: String,
    /// Its address.
    pub address: String,
    /// Its heartbeats arrive.
    pub alive: bool,
    /// Size of its disk in bytes.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes in use on it.
    #[schemars(range(min = 0))]
    pub bytes_used: i64,
    /// Replicas of chunks on it.
    #[schemars(range(min = 0))]
    pub chunks: i64,
}

/// A mount.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// Its session.
    pub session: String,
    /// The client's name: its node.
    pub name: String,
    /// Files that it has open.
    #[schemars(range(min = 0))]
    pub open_files: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_of_a_newer_version_is_read() {
        let status: FileSystemClusterStatus =
            serde_json::from_str(r#"{"phase":"Hibernating","clusterId":"x"}"#).expect("read");
        assert_eq!((status.phase, status.cluster_id.as_deref()), (Some(Phase::Unknown), Some("x")));
        let status: FileSystemClusterStatus = serde_json::from_str(r#"{"phase":"Ready"}"#).expect("read");
        assert_eq!(status.phase, Some(Phase::Ready));
    }
}
