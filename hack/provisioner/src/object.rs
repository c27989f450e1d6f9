//! The PersistentVolume object of a volume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use kube::api::ObjectMeta;

use crate::decide::{FINALIZER, Kind, PROVISIONED_BY, PROVISIONER, Storage};
use crate::quantity::quantity;

/// Annotation of a volume: where its bytes are.
pub const KIND: &str = "folders.kube.test/kind";
/// Annotation of a volume: the node that has it.
pub const NODE: &str = "folders.kube.test/node";

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Where nodes see a volume.
pub fn path(storage: &Storage) -> String {
    match storage.kind {
        Kind::Folder | Kind::Image => format!("/var/lib/atoll-volumes/{}", storage.volume),
        Kind::Shared => format!("/var/lib/atoll-network/{}", storage.volume),
    }
}

/// The object: bound beforehand to the claim that asked for it.
pub fn volume(
    storage: &Storage,
    claim: &PersistentVolumeClaim,
    class: &str,
    reclaim_policy: &str,
    mount_options: &[String],
) -> PersistentVolume {
    let mut annotations = BTreeMap::from([
        (PROVISIONED_BY.to_owned(), PROVISIONER.to_owned()),
        (KIND.to_owned(), storage.kind.name().to_owned()),
    ]);
    // A local volume must say where it is; one that is everywhere says "where there is a name".
    let requirement = match &storage.node {
        Some(node) => {
            annotations.insert(NODE.to_owned(), node.clone());
            NodeSelectorRequirement {
                key: HOSTNAME.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.clone()]),
            }
        }
        None => {
            NodeSelectorRequirement { key: HOSTNAME.to_owned(), operator: "Exists".to_owned(), values: None }
        }
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(storage.volume.clone()),
            annotations: Some(annotations),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some(BTreeMap::from([("storage".to_owned(), quantity(storage.bytes))])),
            access_modes: claim.spec.as_ref().and_then(|spec| spec.access_modes.clone()),
            volume_mode: Some("Filesystem".to_owned()),
            persistent_volume_reclaim_policy: Some(reclaim_policy.to_owned()),
            storage_class_name: Some(class.to_owned()),
            mount_options: (!mount_options.is_empty()).then(|| mount_options.to_vec()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: claim.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
            local: Some(LocalVolumeSource { path: path(storage), fs_type: None }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}
