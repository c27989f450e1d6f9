//! What a user asks for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::ConditionType;
use super::placement::{PlacementSpec, PodOptions};
use super::status::FileSystemClusterStatus;
use crate::names::{self, VolumeHandle, VolumeHandleError};
use crate::quantity::Quantity;

/// Copies of every byte, unless the spec says otherwise.
pub const COPIES_DEFAULT: u8 = 3;
/// Copies of every byte at most (as in `atoll_core::limits::COPIES_MAX`).
pub const COPIES_MAX: u8 = 5;
/// Numbers of metadata servers that there can be: an even one survives no more losses than one server fewer.
pub const METADATA_REPLICAS: [u8; 3] = [1, 3, 5];
/// The smallest volume (bytes); also in a rule below.
pub const CAPACITY_BYTES_MIN: u64 = 16 << 20;
/// The largest volume (bytes); also in a rule below.
pub const CAPACITY_BYTES_MAX: u64 = 1 << 60;

/// The desired state of a filesystem cluster. Only `capacity` is required.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "atoll.dev",
    version = "v1alpha1",
    kind = "FileSystemCluster",
    plural = "filesystemclusters",
    shortname = "fsc",
    category = "atoll",
    namespaced,
    status = "FileSystemClusterStatus",
    derive = "PartialEq",
    doc = "A distributed filesystem for one volume: metadata servers, storage servers and their disks. Mount \
           it by a PersistentVolume with the volume handle v1/<namespace>/<name>, or let a PersistentVolumeClaim of \
           an Atoll StorageClass create it.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.usage.used"),
    printcolumn(name = "Metadata", type_ = "string", json_path = ".status.metadata.summary"),
    printcolumn(name = "Storage", type_ = "string", json_path = ".status.storage.summary"),
    printcolumn(name = "Mounts", type_ = "integer", json_path = ".status.clientCount"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Copies", type_ = "integer", json_path = ".spec.copies", priority = 1),
    printcolumn(name = "Cluster-Id", type_ = "string", json_path = ".status.clusterId", priority = 1),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name must have at most 40 characters (lower-case letters, digits and '-') and begin with a \
                  letter: the names of its pods and Services contain it"),
    validation = Rule::new(
        "!has(self.spec.deletionConfirmation) || (has(self.status) && has(self.status.clusterId) \
         && self.status.clusterId == self.spec.deletionConfirmation)"
    )
    .message("deletionConfirmation must be this cluster's status.clusterId: with it, deleting this resource deletes \
              all its data (without it the data is kept)")
    .field_path(".spec.deletionConfirmation"),
    validation = Rule::new(
        "quantity(string(self.spec.capacity)).compareTo(quantity(string(oldSelf.spec.capacity))) >= 0 \
         || !has(self.status) || !has(self.status.usage) || (quantity(string(self.spec.capacity)).isInteger() \
         && quantity(string(self.spec.capacity)).asInteger() >= self.status.usage.bytesUsed)"
    )
    .message("capacity can't be less than what files use (status.usage.bytesUsed): delete files first")
    .field_path(".spec.capacity"),
    validation = Rule::new(
        "!has(self.spec.storage.size) || (has(oldSelf.spec.storage.size) \
         && quantity(string(self.spec.storage.size)).compareTo(quantity(string(oldSelf.spec.storage.size))) >= 0) \
         || !has(self.status) || !has(self.status.storage) || !has(self.status.storage.diskSize) \
         || quantity(string(self.spec.storage.size)).compareTo(quantity(string(self.status.storage.diskSize))) >= 0"
    )
    .message("storage.size can't be less than what the storage servers' disks have (status.storage.diskSize): disks only \
              grow")
    .field_path(".spec.storage"),
    validation = Rule::new(
        "!has(self.spec.metadata.storage) || !has(self.spec.metadata.storage.size) \
         || (has(oldSelf.spec.metadata.storage) && has(oldSelf.spec.metadata.storage.size) \
         && quantity(string(self.spec.metadata.storage.size))\
         .compareTo(quantity(string(oldSelf.spec.metadata.storage.size))) >= 0) \
         || !has(self.status) || !has(self.status.metadata) || !has(self.status.metadata.diskSize) \
         || quantity(string(self.spec.metadata.storage.size))\
         .compareTo(quantity(string(self.status.metadata.diskSize))) >= 0"
    )
    .message("metadata.storage.size can't be less than what the metadata servers' disks have \
              (status.metadata.diskSize): disks only grow")
    .field_path(".spec.metadata")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("quantity(string(self.capacity)).compareTo(quantity('16Mi')) >= 0 \
                            && quantity(string(self.capacity)).compareTo(quantity('1Ei')) <= 0")
        .message("capacity must be between 16Mi and 1Ei")
        .field_path(".capacity"),
    validation = Rule::new("self.copies == oldSelf.copies")
        .message("copies can't be changed in this version yet: copy the files into a volume with the desired copies")
        .field_path(".copies"),
    validation = Rule::new("!has(self.storage.replicas) || self.storage.replicas >= self.copies")
        .message("storage.replicas must be at least copies: each copy of a byte is on a different storage server")
        .field_path(".storage"),
    validation = Rule::new("!has(self.metadata.replicas) || self.metadata.replicas in [1, 3, 5]")
        .message("metadata.replicas must be 1, 3 or 5: an even number tolerates no more failures than one server fewer")
        .field_path(".metadata"),
    validation = Rule::new(
        "!has(self.placement) || !has(self.placement.topologyKey) \
         || self.placement.topologyKey in ['kubernetes.io/hostname', 'topology.kubernetes.io/zone']"
    )
    .message("placement.topologyKey must be kubernetes.io/hostname or topology.kubernetes.io/zone: copies are kept apart by \
              these labels of nodes")
    .field_path(".placement"),
    validation = Rule::new("self.access == oldSelf.access")
        .message("access can't be changed: create another volume")
        .field_path(".access"),
    validation = Rule::new("self.encryption == oldSelf.encryption")
        .message("encryption can't be changed: existing mounts would lose their connections")
        .field_path(".encryption"),
    validation = Rule::new("self.root == oldSelf.root")
        .message("root is used only when the volume is created: use chown and chmod on the mounted volume")
        .field_path(".root"),
    validation = Rule::new(
        "has(self.clientSecretName) == has(oldSelf.clientSecretName) \
         && (!has(self.clientSecretName) || self.clientSecretName == oldSelf.clientSecretName)"
    )
    .message("clientSecretName can't be changed: mounts read the key under the name that the volume was created with")
    .field_path(".clientSecretName"),
    validation = Rule::new(
        "(has(self.metadata.storage) && has(self.metadata.storage.storageClassName) \
         ? self.metadata.storage.storageClassName : '') \
         == (has(oldSelf.metadata.storage) && has(oldSelf.metadata.storage.storageClassName) \
         ? oldSelf.metadata.storage.storageClassName : '')"
    )
    .message("the class of the metadata servers' disks can't be changed")
    .field_path(".metadata"),
    validation = Rule::new(
        "has(self.storage.storageClassName) == has(oldSelf.storage.storageClassName) \
         && (!has(self.storage.storageClassName) || self.storage.storageClassName == oldSelf.storage.storageClassName)"
    )
    .message("the class of the storage servers' disks can't be changed")
    .field_path(".storage")
)]
pub struct FileSystemClusterSpec {
    /// Size of the volume, as `df` shows it on its mounts. Files can use all of it: copies and overhead don't count.
    /// Between 16Mi and 1Ei. It can be raised at any time, while the volume is used: the disks grow if their StorageClass
    /// allows it (`allowVolumeExpansion`), otherwise storage servers are added. It can be lowered to what files use; disks
    /// don't get smaller. `status.capacity` is the size that the volume has now.
    pub capacity: Quantity,
    /// Number of copies of every byte, each on a different storage server. With 3 copies any one disk can be lost at
    /// any time; with 1 copy the loss of a disk is a loss of data.
    #[serde(default = "copies_default")]
    #[schemars(range(min = 1, max = 5))]
    pub copies: u8,
    /// Who can mount the volume. `Shared`: any number of nodes at once (ReadWriteMany). `Exclusive`: one node at a time
    /// (ReadWriteOnce, ReadWriteOncePod); the first node has it until it unmounts it or is lost.
    #[serde(default)]
    pub access: Access,
    /// Whether connections between servers and mounts are encrypted. In both cases both ends authenticate with the
    /// cluster's key.
    #[serde(default)]
    pub encryption: Encryption,
    /// Owner and permissions of the volume's root directory when it is created.
    #[serde(default)]
    pub root: RootSpec,
    /// The metadata servers, which store names, attributes, extents and small files.
    #[serde(default)]
    pub metadata: MetadataSpec,
    /// The storage servers, which store the files' data.
    #[serde(default)]
    pub storage: StorageSpec,
    /// How copies are kept on different nodes.
    #[serde(default, skip_serializing_if = "PlacementSpec::is_default")]
    pub placement: PlacementSpec,
    /// Name of the Secret with the cluster's id and key, in this namespace, which mounts need. The operator creates
    /// it, and never overwrites an existing one. Default: the cluster's name and `-key`. The CSI driver sets it to
    /// the name of the PersistentVolume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"), length(min = 1, max = 253))]
    pub client_secret_name: Option<String>,
    /// Set this to `status.clusterId` and then delete this resource to delete all data of the volume permanently.
    /// The operator removes it after ten minutes if no deletion follows.
    /// Without it, deleting this resource (or uninstalling Atoll) keeps the PersistentVolumeClaims and the Secret
    /// with the key, and a resource of the same name adopts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"), length(max = 32))]
    pub deletion_confirmation: Option<String>,
    /// Version of Atoll that the pods are to run. Default: the one that they run (`status.targetVersion`), which an upgrade of the
    /// operator alone doesn't change unless its configuration says so; a new volume begins with the operator's own. The operator has
    /// a list of images by version; a version without an image, later than the operator's own, or older than
    /// `status.minVersion` is refused by the condition `UpgradeBlocked`, and the pods stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9A-Za-z][-+._0-9A-Za-z]*$"), length(min = 1, max = 64))]
    pub version: Option<String>,
    /// The highest feature level that the volume is raised to. Default: as high as all its servers and mounts know. A version can
    /// be taken back until the level was raised, so this keeps that way open for as long as needed. It can't lower the level
    /// that the volume has (`status.featureLevel`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub feature_level_max: Option<u32>,
    /// While this is true, the operator changes nothing in this cluster and only reports its state. The pods and the
    /// mounts keep running.
    #[serde(default)]
    pub paused: bool,
}

fn copies_default() -> u8 {
    COPIES_DEFAULT
}

/// Who can mount a volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Any number of nodes at once.
    #[default]
    Shared,
    /// One node at a time.
    Exclusive,
}

/// Whether connections are encrypted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// They aren't. Both ends authenticate with the key all the same. (Not `Off`, which YAML reads as `false`.)
    #[default]
    Disabled,
    /// All are; servers refuse unencrypted ones.
    Required,
}

/// The root directory when the volume is created.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RootSpec {
    /// User id of the owner.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub uid: i64,
    /// Group id of the owner.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4_294_967_294_i64))]
    pub gid: i64,
    /// Permission bits, octal, such as "0755" or "2770".
    #[serde(default = "root_mode_default")]
    #[schemars(regex(pattern = r"^[0-7]{3,5}$"), length(max = 5))]
    pub mode: String,
}

fn root_mode_default() -> String {
    "0755".to_owned()
}

impl Default for RootSpec {
    fn default() -> RootSpec {
        RootSpec { uid: 0, gid: 0, mode: root_mode_default() }
    }
}

/// The metadata servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MetadataSpec {
    /// Their number: 1, 3 or 5. Default: 3 with two or more `copies`, otherwise 1. It can be changed at any time: servers join
    /// or leave the group one by one, while the volume is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<u8>,
    /// Each server's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Backing>,
    /// Compute resources of each server's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Where the pods run, and what else they have.
    #[serde(default, skip_serializing_if = "PodOptions::is_default")]
    pub pod: PodOptions,
}

/// The storage servers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Their number; at least `copies`. It can be changed at any time: servers that are too many are drained while the volume
    /// is used, and then removed with their disks, if the other disks can store `copies` times `capacity`. Default: as many as
    /// `copies`, and more once `capacity` was raised and the StorageClass can't expand the disks; none is removed then. If it is
    /// set, the operator adds none by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: Option<u8>,
    /// Size of each server's disk. Default: enough for all of them together to store `copies` times `capacity`, with
    /// some free space to work in. It can be increased if the StorageClass can expand its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// StorageClass of the disks. Default: the default class of the Kubernetes cluster. A class of Atoll itself
    /// is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Compute resources of each server's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Where the pods run, and what else they have.
    #[serde(default, skip_serializing_if = "PodOptions::is_default")]
    pub pod: PodOptions,
}

/// The disk of a server.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Backing {
    /// Its size. Default: a twentieth of `capacity`, at least 2Gi and at most 100Gi. It can be increased if the
    /// StorageClass can expand its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Its StorageClass. Default: the default class of the Kubernetes cluster. A class of Atoll itself is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Compute resources of a container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is reserved for the container, such as `cpu: 100m` and `memory: 256Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container can use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

impl FileSystemClusterSpec {
    /// The spec that has nothing but a capacity.
    #[must_use]
    pub fn with_capacity(capacity: Quantity) -> FileSystemClusterSpec {
        FileSystemClusterSpec {
            capacity,
            copies: COPIES_DEFAULT,
            access: Access::default(),
            encryption: Encryption::default(),
            root: RootSpec::default(),
            metadata: MetadataSpec::default(),
            storage: StorageSpec::default(),
            placement: PlacementSpec::default(),
            client_secret_name: None,
            deletion_confirmation: None,
            version: None,
            feature_level_max: None,
            paused: false,
        }
    }

    /// How many metadata servers.
    #[must_use]
    pub fn metadata_replicas(&self) -> u8 {
        self.metadata.replicas.unwrap_or(if self.copies >= 2 { 3 } else { 1 })
    }

    /// The Secret with the id and key of a cluster of this name.
    #[must_use]
    pub fn secret_name(&self, cluster: &str) -> String {
        self.client_secret_name.clone().unwrap_or_else(|| names::key_secret(cluster))
    }

    /// How many storage servers.
    #[must_use]
    pub fn storage_replicas(&self) -> u8 {
        self.storage.replicas.unwrap_or(self.copies)
    }
}

impl FileSystemCluster {
    /// Its namespace; empty before the API server has seen it.
    #[must_use]
    pub fn namespace_str(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Its name; empty before it has one.
    #[must_use]
    pub fn name_str(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The Secret with its id and key.
    #[must_use]
    pub fn client_secret_name(&self) -> String {
        self.spec.secret_name(self.name_str())
    }

    /// Its CSI volume handle.
    ///
    /// # Errors
    /// If its name can't be one.
    pub fn volume_handle(&self) -> Result<VolumeHandle, VolumeHandleError> {
        VolumeHandle::new(self.namespace_str(), self.name_str())
    }

    /// Its id, once it has one.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&str> {
        self.status.as_ref()?.cluster_id.as_deref()
    }

    /// One of its conditions.
    #[must_use]
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind.as_str())
    }

    /// It can be mounted, as far as the status knows what the spec says now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.condition(ConditionType::Ready).is_some_and(|ready| {
            ready.status == "True"
                && (ready.observed_generation.is_none()
                    || ready.observed_generation >= self.metadata.generation)
        })
    }

    /// Its deletion has begun.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}
