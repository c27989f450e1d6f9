//! What the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Mounted clients that a status lists; there may be more (see `clientCount`).
pub const CLIENTS_LISTED_MAX: usize = 100;

/// How a filesystem cluster is.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSystemClusterStatus {
    /// The generation of the spec that this status knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The conditions in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How it is, with reasons: `Ready` (can be mounted and used), `Progressing` (the operator is on its way),
    /// `Degraded` (worse than it should be). Each message says what to do, if somebody has to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The cluster's id: 32 hexadecimal digits, chosen once. Data is deleted only if `spec.deletionConfirmation` is
    /// this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"), length(max = 32))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a cluster's id never changes"))]
    pub cluster_id: Option<String>,
    /// The volume has been made. It never is a second time.
    #[serde(default)]
    pub bootstrapped: bool,
    /// Version that the pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Use of the volume. Follows with up to a minute's delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// The metadata servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataStatus>,
    /// The storage servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
    /// How many mounts there are.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub client_count: i64,
    /// The mounts, one for each node that uses the volume; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub clients: Vec<ClientStatus>,
}

/// The conditions in one word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being made, for the first time.
    Creating,
    /// Usable, and as specified.
    Ready,
    /// Usable, and worse than it should be.
    Degraded,
    /// It was made and can't be used now.
    Unavailable,
    /// It can't be made, or not changed, until somebody does something.
    Blocked,
    /// The operator was told to do nothing.
    Paused,
    /// Being deleted.
    Deleting,
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
        }
    }
}

/// Use of the volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Bytes that files may take.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes that files take.
    #[schemars(range(min = 0))]
    pub bytes_used: i64,
    /// Files, folders and other inodes that there may be.
    #[schemars(range(min = 0))]
    pub inodes_total: i64,
    /// Those that there are.
    #[schemars(range(min = 0))]
    pub inodes_used: i64,
    /// `bytesUsed` for people.
    pub used: String,
}

/// The metadata servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MetadataStatus {
    /// How many there shall be.
    pub replicas: i32,
    /// How many pods are ready.
    pub ready: i32,
    /// `ready/replicas`.
    pub summary: String,
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
    /// Its id, as on its disk.
    pub id: String,
    /// Where it is reached.
    pub address: String,
}

/// The storage servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// How many there shall be.
    pub replicas: i32,
    /// How many pods are ready.
    pub ready: i32,
    /// `ready/replicas`.
    pub summary: String,
    /// Chunks, the units of placement.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub chunks: i64,
    /// Chunks with fewer copies on live servers than wanted.
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
    /// Its id, as on its disk.
    pub id: String,
    /// Where it is reached.
    pub address: String,
    /// It is heard of.
    pub alive: bool,
    /// Bytes its disk holds.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes in use on it.
    #[schemars(range(min = 0))]
    pub bytes_used: i64,
    /// Copies of chunks on it.
    #[schemars(range(min = 0))]
    pub chunks: i64,
}

/// A mount.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// Its session.
    pub session: String,
    /// What the client calls itself: its node.
    pub name: String,
    /// Files it holds open.
    #[schemars(range(min = 0))]
    pub open_files: i64,
}
