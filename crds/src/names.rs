//! Every name that is derived from a `FileSystemCluster`: of its objects, labels, annotations, ports, environment
//! variables. Operator, CSI driver and plugin find each other's objects by these alone.

use std::fmt;
use std::str::FromStr;

/// The API group of the custom resources and the prefix of all labels and annotations.
pub const GROUP: &str = "atoll.dev";
/// The CSI driver's name, which is also the provisioner of its storage classes.
pub const DRIVER_NAME: &str = "csi.atoll.dev";
/// The namespace of the operator and the CSI driver.
pub const NAMESPACE_SYSTEM: &str = "atoll-system";
/// The namespace of the clusters that are made for PVCs.
pub const NAMESPACE_VOLUMES: &str = "atoll-volumes";
/// The field manager of the operator's server-side apply.
pub const MANAGER_OPERATOR: &str = "atoll-operator";
/// The field manager of the CSI driver.
pub const MANAGER_CSI: &str = "atoll-csi";
/// The field manager of the plugin.
pub const MANAGER_KUBECTL: &str = "kubectl-atoll";

/// Characters in the name of a cluster: its pods, PVCs and their labels are longer and have to fit into 63.
pub const CLUSTER_NAME_CHARS_MAX: usize = 40;
/// Bytes in a volume handle (CSI's limit).
pub const VOLUME_HANDLE_BYTES_MAX: usize = 128;

/// Keeps a cluster until what it was made of is gone, or is kept on purpose.
pub const FINALIZER: &str = "atoll.dev/cluster";

/// Labels.
pub mod labels {
    /// Name of the cluster that an object belongs to.
    pub const CLUSTER: &str = "atoll.dev/cluster";
    /// Id of the cluster whose data a PVC holds, or whose key a Secret holds: 32 hexadecimal digits.
    pub const CLUSTER_ID: &str = "atoll.dev/cluster-id";
    /// Id of the metadata server whose disk a PVC is. While it is there nobody bootstraps.
    pub const MEMBER_ID: &str = "atoll.dev/member-id";
    /// On PVCs and the key's Secret: `true` once the volume was bootstrapped. It never is again.
    pub const BOOTSTRAPPED: &str = "atoll.dev/bootstrapped";
    /// `metadata` or `storage`.
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    /// `atoll`, on every object.
    pub const NAME: &str = "app.kubernetes.io/name";
    /// Name of the cluster, for tools that know the usual labels.
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    /// Who made an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// On a cluster that was made for a PVC: the PVC's namespace.
    pub const PVC_NAMESPACE: &str = "atoll.dev/pvc-namespace";
    /// On a cluster that was made for a PVC: the PVC's uid, which is in its PV's name.
    pub const PVC_UID: &str = "atoll.dev/pvc-uid";

    /// The value of [`NAME`].
    pub const NAME_VALUE: &str = "atoll";
    /// The value of [`MANAGED_BY`] on what the operator makes.
    pub const MANAGED_BY_OPERATOR: &str = "atoll-operator";
    /// The value of [`MANAGED_BY`] on what the CSI driver makes.
    pub const MANAGED_BY_CSI: &str = "atoll-csi";
}

/// Annotations.
pub mod annotations {
    /// On a cluster that was made for a PVC: the PVC's name (too long for a label).
    pub const PVC_NAME: &str = "atoll.dev/pvc-name";
    /// On a cluster that was made for a PVC: the PV's name.
    pub const PV_NAME: &str = "atoll.dev/pv-name";
    /// On a cluster that was made by CreateVolume: the volume's name as it was asked for.
    pub const VOLUME_NAME: &str = "atoll.dev/volume-name";
    /// On a cluster that was made by CreateVolume: a hash of the accepted request, to tell a repetition from
    /// another request of the same name.
    pub const REQUEST_HASH: &str = "atoll.dev/request-hash";
    /// On a cluster whose metadata servers are recovered by force: whether it was paused before.
    pub const PAUSED_BEFORE_RECOVERY: &str = "atoll.dev/paused-before-recovery";
    /// On a PVC: what its volume is, as a resource says it ([`crate::v1alpha1::KeptVolume`]).
    pub const VOLUME: &str = "atoll.dev/volume";
    /// On a PVC: the id of the metadata server that had it and is removed from the group for good.
    pub const REMOVED_MEMBER: &str = "atoll.dev/removed-member";
    /// On a PVC or a key's Secret: the uid of the resource for which it was created.
    pub const CREATED_FOR: &str = "atoll.dev/created-for-uid";
    /// On an object: a hash of what it was made from.
    pub const TEMPLATE_HASH: &str = "atoll.dev/template-hash";
    /// On a pod: the version that it runs.
    pub const VERSION: &str = "atoll.dev/version";
    /// On a pod: a hash of what was asked for when its template was made. A template that only a newer operator made another one
    /// has the same, and its pods stay.
    pub const REQUESTED: &str = "atoll.dev/requested";
}

/// Keys of the Secret with the cluster's key. The node plugin is given the same ones with each stage and publish.
pub mod secret {
    /// The Secret's type.
    pub const TYPE: &str = "atoll.dev/cluster-key";
    /// The cluster's id: 32 hexadecimal digits.
    pub const CLUSTER: &str = "cluster";
    /// The key: 64 hexadecimal digits.
    pub const KEY: &str = "key";
    /// [`ENCRYPTION_DISABLED`] or [`ENCRYPTION_REQUIRED`].
    pub const ENCRYPTION: &str = "encryption";
    /// Connections prove the key and are not encrypted.
    pub const ENCRYPTION_DISABLED: &str = "disabled";
    /// Connections are encrypted.
    pub const ENCRYPTION_REQUIRED: &str = "required";
}

/// TCP ports of the servers.
pub mod ports {
    /// Metadata servers.
    pub const METADATA: u16 = 7400;
    /// Metrics and health of metadata servers.
    pub const METADATA_HTTP: u16 = 7480;
    /// Storage servers.
    pub const STORAGE: u16 = 7500;
    /// Metrics and health of storage servers.
    pub const STORAGE_HTTP: u16 = 7580;
    /// Metrics and health of the operator.
    pub const OPERATOR_HTTP: u16 = 8080;
    /// Metrics and health of the CSI controller.
    pub const CSI_CONTROLLER_HTTP: u16 = 8081;
    /// Metrics and health of the CSI node plugin.
    pub const CSI_NODE_HTTP: u16 = 8082;
    /// Metrics and health of the mount host.
    pub const MOUNT_HOST_HTTP: u16 = 8083;
    /// The name of the servers' own port in pods and Services.
    pub const NAME_SERVER: &str = "atoll";
    /// The name of the port for metrics and health.
    pub const NAME_HTTP: &str = "http";
}

/// Environment variables of the servers' program, `atoll-fs`.
pub mod env {
    /// The cluster's id.
    pub const CLUSTER: &str = "ATOLL_CLUSTER";
    /// File with the cluster's key.
    pub const KEY_FILE: &str = "ATOLL_KEY_FILE";
    /// `true`: encrypt.
    pub const ENCRYPT: &str = "ATOLL_ENCRYPT";
    /// Addresses of the metadata servers.
    pub const METADATA: &str = "ATOLL_METADATA";
    /// The folder for data.
    pub const DATA: &str = "ATOLL_DATA";
    /// Address to listen on.
    pub const LISTEN: &str = "ATOLL_LISTEN";
    /// Address that others are told.
    pub const ADVERTISE: &str = "ATOLL_ADVERTISE";
    /// Address for metrics and health.
    pub const HTTP: &str = "ATOLL_HTTP";
    /// Labels for placement.
    pub const LABELS: &str = "ATOLL_LABELS";
    /// Bytes kept aside for deleting on a full disk.
    pub const BALLAST: &str = "ATOLL_BALLAST";
    /// What is logged.
    pub const LOG: &str = "ATOLL_LOG";
    /// `text` or `json`.
    pub const LOG_FORMAT: &str = "ATOLL_LOG_FORMAT";
    /// The image that pods run (operator).
    pub const IMAGE: &str = "ATOLL_IMAGE";
    /// The pod's own namespace, by the downward API.
    pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
    /// The pod's own name, by the downward API.
    pub const POD_NAME: &str = "POD_NAME";
    /// The node that the pod runs on, by the downward API.
    pub const NODE_NAME: &str = "NODE_NAME";
}

/// The two kinds of pods of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Metadata servers.
    Metadata,
    /// Storage servers.
    Storage,
}

impl Component {
    /// Both.
    pub const ALL: [Component; 2] = [Component::Metadata, Component::Storage];

    /// As in names and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Component::Metadata => "metadata",
            Component::Storage => "storage",
        }
    }

    /// The servers' port.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Component::Metadata => ports::METADATA,
            Component::Storage => ports::STORAGE,
        }
    }

    /// The port for metrics and health.
    #[must_use]
    pub fn http_port(self) -> u16 {
        match self {
            Component::Metadata => ports::METADATA_HTTP,
            Component::Storage => ports::STORAGE_HTTP,
        }
    }

    /// Which one a label's value means.
    #[must_use]
    pub fn from_label(value: &str) -> Option<Component> {
        Component::ALL.into_iter().find(|component| component.as_str() == value)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The StatefulSet of a component, which is also the name of its headless Service.
#[must_use]
pub fn workload(cluster: &str, component: Component) -> String {
    format!("{cluster}-{component}")
}

/// A pod.
#[must_use]
pub fn pod(cluster: &str, component: Component, ordinal: u32) -> String {
    format!("{cluster}-{component}-{ordinal}")
}

/// The volume claim template's name, and the volume's in the pod.
pub const DATA_VOLUME: &str = "data";

/// The PVC of a pod, as the StatefulSet controller names it.
#[must_use]
pub fn pvc(cluster: &str, component: Component, ordinal: u32) -> String {
    format!("{DATA_VOLUME}-{}", pod(cluster, component, ordinal))
}

/// The Secret with the key, unless the spec names another one.
#[must_use]
pub fn key_secret(cluster: &str) -> String {
    format!("{cluster}-key")
}

/// Where a pod is reached: `host:port`, to be looked up anew for every attempt. Without the cluster's domain, which
/// pods' search lists add.
#[must_use]
pub fn pod_address(namespace: &str, cluster: &str, component: Component, ordinal: u32) -> String {
    let (pod, service) = (pod(cluster, component, ordinal), workload(cluster, component));
    format!("{pod}.{service}.{namespace}.svc:{}", component.port())
}

/// Where the metadata servers are reached: one name that stands for all of them, however many there are.
#[must_use]
pub fn metadata_address(namespace: &str, cluster: &str) -> String {
    format!("{}.{namespace}.svc:{}", workload(cluster, Component::Metadata), Component::Metadata.port())
}

/// Whether this can be a cluster's name: DNS-1035, at most [`CLUSTER_NAME_CHARS_MAX`] characters.
#[must_use]
pub fn is_cluster_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= CLUSTER_NAME_CHARS_MAX
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_lowercase()
        && !name.ends_with('-')
}

fn is_namespace(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A CSI volume handle: `v1/<namespace>/<name>` of the cluster. It holds no address; these follow from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeHandle {
    namespace: String,
    name: String,
}

/// A text is no volume handle of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an Atoll volume handle: expected v1/<namespace>/<name of the FileSystemCluster>")]
pub struct VolumeHandleError(String);

impl VolumeHandle {
    /// The handle of a cluster.
    ///
    /// # Errors
    /// If one of the names can't be one.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<VolumeHandle, VolumeHandleError> {
        let handle = VolumeHandle { namespace: namespace.into(), name: name.into() };
        let valid = is_namespace(&handle.namespace) && is_cluster_name(&handle.name);
        if valid { Ok(handle) } else { Err(VolumeHandleError(handle.to_string())) }
    }

    /// The cluster's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its metadata servers are reached (`--metadata` of a mount).
    #[must_use]
    pub fn metadata_addresses(&self) -> Vec<String> {
        vec![metadata_address(&self.namespace, &self.name)]
    }
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1/{}/{}", self.namespace, self.name)
    }
}

impl FromStr for VolumeHandle {
    type Err = VolumeHandleError;

    fn from_str(text: &str) -> Result<VolumeHandle, VolumeHandleError> {
        let refused = || VolumeHandleError(text.to_owned());
        let (namespace, name) =
            text.strip_prefix("v1/").and_then(|rest| rest.split_once('/')).ok_or_else(refused)?;
        VolumeHandle::new(namespace, name).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_handle_names_its_cluster_and_fits_csi() {
        let handle: VolumeHandle = "v1/atoll-volumes/pvc-1".parse().unwrap();
        assert_eq!((handle.namespace(), handle.name()), ("atoll-volumes", "pvc-1"));
        assert_eq!(handle.to_string(), "v1/atoll-volumes/pvc-1");
        assert_eq!(handle.metadata_addresses(), ["pvc-1-metadata.atoll-volumes.svc:7400"]);
        let longest = VolumeHandle::new("n".repeat(63), "c".repeat(CLUSTER_NAME_CHARS_MAX)).unwrap();
        assert!(longest.to_string().len() <= VOLUME_HANDLE_BYTES_MAX);
        for wrong in
            ["", "pvc-1", "v2/a/b", "v1/a", "v1//b", "v1/a/", "v1/a/B", "v1/a/1b", "v1/a/b/c", "v1/-/b"]
        {
            assert!(wrong.parse::<VolumeHandle>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn derived_names_fit_into_a_label_for_the_longest_cluster_name() {
        let longest = format!("pvc-{}", "0".repeat(36));
        assert_eq!(longest.len(), CLUSTER_NAME_CHARS_MAX);
        assert!(is_cluster_name(&longest));
        // The StatefulSet controller adds a hash of up to ten characters and a dash to its own name.
        assert!(workload(&longest, Component::Metadata).len() + 11 <= 63);
        assert!(pvc(&longest, Component::Metadata, 999).len() <= 63);
        assert!(key_secret(&longest).len() <= 63);
    }

    #[test]
    fn names_are_those_of_the_statefulset_controller_and_of_dns() {
        assert_eq!(pvc("db", Component::Storage, 2), "data-db-storage-2");
        assert_eq!(pod_address("ns", "db", Component::Storage, 2), "db-storage-2.db-storage.ns.svc:7500");
        for component in Component::ALL {
            assert_eq!(Component::from_label(component.as_str()), Some(component));
        }
        for wrong in ["", "Db", "-db", "db-", "1db", "d.b", &"d".repeat(41)] {
            assert!(!is_cluster_name(wrong), "{wrong}");
        }
    }
}
