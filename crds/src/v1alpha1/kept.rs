//! The record of a volume that its disks carry, so that they can be used again when its resource is gone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cluster::{FileSystemCluster, FileSystemClusterSpec};
use crate::names::{annotations, labels};

/// Labels of a resource that belong to its volume.
const LABELS: [&str; 4] = [labels::PVC_NAMESPACE, labels::PVC_UID, labels::MANAGED_BY, labels::NAME];
/// Annotations of a resource that belong to its volume.
const ANNOTATIONS: [&str; 4] =
    [annotations::PVC_NAME, annotations::PV_NAME, annotations::VOLUME_NAME, annotations::REQUEST_HASH];

/// What a resource said about its volume; each PVC has it as the annotation [`annotations::VOLUME`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct KeptVolume {
    /// The spec, without what is said for a moment: a pause, the confirmation of a deletion.
    pub spec: FileSystemClusterSpec,
    /// Labels, of which claim it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, of which claim and which request it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl KeptVolume {
    /// The record of a resource.
    #[must_use]
    pub fn of(cluster: &FileSystemCluster) -> KeptVolume {
        let chosen = |from: &Option<BTreeMap<String, String>>, keys: &[&str]| {
            let of = |key: &&str| Some(((*key).to_owned(), from.as_ref()?.get(*key)?.clone()));
            keys.iter().filter_map(of).collect()
        };
        let spec =
            FileSystemClusterSpec { deletion_confirmation: None, paused: false, ..cluster.spec.clone() };
        KeptVolume {
            spec,
            labels: chosen(&cluster.metadata.labels, &LABELS),
            annotations: chosen(&cluster.metadata.annotations, &ANNOTATIONS),
        }
    }

    /// As an annotation has it.
    ///
    /// # Errors
    /// If it can't be serialised.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// From an annotation.
    ///
    /// # Errors
    /// If it isn't what the operator writes.
    pub fn parse(text: &str) -> Result<KeptVolume, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The resource that adopts the disks.
    #[must_use]
    pub fn resource(&self, namespace: &str, name: &str) -> FileSystemCluster {
        let mut cluster = FileSystemCluster::new(name, self.spec.clone());
        cluster.metadata.namespace = Some(namespace.to_owned());
        cluster.metadata.labels = Some(self.labels.clone());
        cluster.metadata.annotations = Some(self.annotations.clone());
        cluster
    }

    /// What a resource of this name asks for that the disks don't have, by field. What has no effect on disks that exist
    /// (the root directory, the sizes and classes of new disks, resources), and the capacity, which can be changed, isn't
    /// compared.
    #[must_use]
    pub fn differences(&self, name: &str, spec: &FileSystemClusterSpec) -> Vec<String> {
        let kept = &self.spec;
        let mut found = Vec::new();
        let mut differs = |field: &str, has: String, asks: String| {
            found.push(format!("spec.{field} is {asks}, and the disks have {has}"));
        };
        if kept.copies != spec.copies {
            differs("copies", kept.copies.to_string(), spec.copies.to_string());
        }
        if kept.access != spec.access {
            differs("access", format!("{:?}", kept.access), format!("{:?}", spec.access));
        }
        if kept.encryption != spec.encryption {
            differs("encryption", format!("{:?}", kept.encryption), format!("{:?}", spec.encryption));
        }
        let (has, asks) = (kept.storage_replicas(), spec.storage_replicas());
        if asks < has {
            differs("storage.replicas", has.to_string(), asks.to_string());
        }
        let (has, asks) = (kept.metadata_replicas(), spec.metadata_replicas());
        if asks < has {
            differs("metadata.replicas", has.to_string(), asks.to_string());
        }
        let (has, asks) = (kept.secret_name(name), spec.secret_name(name));
        if has != asks {
            differs("clientSecretName", has, asks);
        }
        found
    }
}
