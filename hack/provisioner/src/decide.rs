//! What to do about a claim or a volume: facts in, a decision out. Nothing here touches the cluster or a disk.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::quantity;

/// The name that StorageClasses give as their provisioner.
pub const PROVISIONER: &str = "folders.kube.test";
/// Keeps a volume's object until its storage is gone.
pub const FINALIZER: &str = "folders.kube.test/storage";
/// The scheduler's choice for a claim that waits for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Says whose turn it is to provision a claim.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Says who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// An image must hold a file system with its log.
const IMAGE_BYTES_MIN: u64 = 32 << 20;

/// Where a volume's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder on one node; its size is not enforced.
    Folder,
    /// A file system in a file on one node: exactly as large as it says.
    Image,
    /// A folder that every node sees.
    Shared,
}

impl Kind {
    /// The parameter `kind` of a StorageClass.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "folder" => Some(Self::Folder),
            "image" => Some(Self::Image),
            "shared" => Some(Self::Shared),
            _ => None,
        }
    }

    /// As StorageClasses and volumes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Image => "image",
            Self::Shared => "shared",
        }
    }
}

/// The storage of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// The volume's name.
    pub volume: String,
    /// Where its bytes are.
    pub kind: Kind,
    /// The node that has it; `None` if all have.
    pub node: Option<String>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What a claim needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimPlan {
    /// Nothing, or nothing yet.
    Nothing,
    /// It can't be served as it is; the text tells its owner why.
    Refuse(String),
    /// The chosen node can't serve it now: the scheduler shall choose again.
    Reschedule(String),
    /// A volume.
    Provision(Storage),
    /// More room.
    Expand(Storage),
    /// Its status must say the size that its volume has.
    Resized(u64),
}

/// What a volume needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumePlan {
    /// Nothing.
    Nothing,
    /// Its storage is deleted, then its object.
    Delete(Storage),
    /// Its object goes, its storage stays.
    Forget,
}

/// Decides about a claim. `volume` is the one that it is bound to; `powered` says whether a node is there and on.
pub fn claim(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volume: Option<&PersistentVolume>,
    powered: impl Fn(&str) -> bool,
) -> ClaimPlan {
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimPlan::Nothing;
    }
    match (bound_to(claim), volume) {
        (Some(_), Some(volume)) => grow(claim, volume),
        (Some(_), None) => ClaimPlan::Nothing,
        (None, _) => match class {
            Some(class) if class.provisioner == PROVISIONER => provision(claim, class, powered),
            _ => ClaimPlan::Nothing,
        },
    }
}

/// The name of the volume that a claim is bound to.
pub fn bound_to(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn provision(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    powered: impl Fn(&str) -> bool,
) -> ClaimPlan {
    let annotation = |key: &str| claim.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    // Kubernetes says when it is our turn: at once, or when the first pod has a node.
    if annotation(STORAGE_PROVISIONER) != Some(PROVISIONER) {
        return ClaimPlan::Nothing;
    }
    let (Some(spec), Some(uid)) = (claim.spec.as_ref(), claim.metadata.uid.as_deref()) else {
        return ClaimPlan::Nothing;
    };
    let refuse = |text: &str| ClaimPlan::Refuse(text.to_owned());

    let kind = class.parameters.as_ref().and_then(|p| p.get("kind"));
    let Some(kind) = kind.and_then(|kind| Kind::parse(kind)) else {
        return refuse("the StorageClass must have a parameter 'kind': folder, image or shared");
    };
    if spec.volume_mode.as_deref().is_some_and(|mode| mode != "Filesystem") {
        return refuse("only volumeMode Filesystem is served");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return refuse("a volume with contents (dataSource) is not served");
    }
    if spec.selector.is_some() {
        return refuse("a selector chooses among volumes that exist; leave it out for a new one");
    }
    if kind != Kind::Shared {
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        if let Some(mode) =
            modes.iter().find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
        {
            return ClaimPlan::Refuse(format!(
                "{mode} is not served: the volume is on one node (the class 'network' serves it)"
            ));
        }
    }
    let Some(bytes) = requested(claim) else {
        return refuse("spec.resources.requests.storage is missing or no size");
    };
    let node = match kind {
        Kind::Shared => None,
        Kind::Folder | Kind::Image => match annotation(SELECTED_NODE) {
            Some(node) if powered(node) => Some(node.to_owned()),
            Some(node) => return ClaimPlan::Reschedule(format!("{node} is not there or is powered off")),
            None if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => {
                return ClaimPlan::Nothing;
            }
            None => return refuse("a class of this kind needs volumeBindingMode WaitForFirstConsumer"),
        },
    };
    ClaimPlan::Provision(Storage { volume: format!("pvc-{uid}"), kind, node, bytes: rounded(kind, bytes) })
}

fn grow(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> ClaimPlan {
    let (Some(storage), Some(wanted)) = (storage(volume), requested(claim)) else {
        return ClaimPlan::Nothing;
    };
    let wanted = rounded(storage.kind, wanted);
    if wanted > storage.bytes {
        return ClaimPlan::Expand(Storage { bytes: wanted, ..storage });
    }
    let shown = claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage"));
    match shown.and_then(quantity::bytes) {
        Some(shown) if shown < storage.bytes => ClaimPlan::Resized(storage.bytes),
        // Before it is bound, the status is not ours to write.
        Some(_) | None => ClaimPlan::Nothing,
    }
}

fn requested(claim: &PersistentVolumeClaim) -> Option<u64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    quantity::bytes(requests.get("storage")?)
}

fn rounded(kind: Kind, bytes: u64) -> u64 {
    match kind {
        Kind::Folder | Kind::Shared => bytes,
        // Whole blocks of the file system.
        Kind::Image => bytes.max(IMAGE_BYTES_MIN).next_multiple_of(4096),
    }
}

/// Decides about a volume.
pub fn volume(volume: &PersistentVolume) -> VolumePlan {
    let Some(storage) = storage(volume) else { return VolumePlan::Nothing };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let going = volume.metadata.deletion_timestamp.is_some();
    match (policy, phase) {
        // While a claim has it, whoever deletes it waits.
        (_, Some("Bound")) => VolumePlan::Nothing,
        (Some("Delete"), Some("Released" | "Failed")) => VolumePlan::Delete(storage),
        (Some("Delete"), _) if going => VolumePlan::Delete(storage),
        (_, _) if going => VolumePlan::Forget,
        (_, _) => VolumePlan::Nothing,
    }
}

/// What a volume's object says about its storage; `None` if another made it.
pub fn storage(volume: &PersistentVolume) -> Option<Storage> {
    if volume.metadata.annotations.as_ref()?.get(PROVISIONED_BY)? != PROVISIONER {
        return None;
    }
    let spec = volume.spec.as_ref()?;
    let kind = Kind::parse(volume.metadata.annotations.as_ref()?.get(crate::object::KIND)?)?;
    let node = volume.metadata.annotations.as_ref()?.get(crate::object::NODE).cloned();
    Some(Storage {
        volume: volume.metadata.name.clone()?,
        kind,
        node,
        bytes: quantity::bytes(spec.capacity.as_ref()?.get("storage")?)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn class(kind: &str) -> StorageClass {
        let mode = if kind == "shared" { "Immediate" } else { "WaitForFirstConsumer" };
        serde_json::from_value(json!({
            "metadata": {"name": "c"}, "provisioner": PROVISIONER, "parameters": {"kind": kind},
            "volumeBindingMode": mode,
        }))
        .unwrap()
    }

    fn claim_with(spec: Value) -> PersistentVolumeClaim {
        let mut all = json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "resources": {"requests": {"storage": "1Gi"}},
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": {
                "name": "data", "namespace": "n", "uid": "u",
                "annotations": {STORAGE_PROVISIONER: PROVISIONER, SELECTED_NODE: "node-1"},
            },
            "spec": all, "status": {"capacity": {"storage": "1Gi"}},
        }))
        .unwrap()
    }

    fn volume_of(storage: &Storage, phase: &str) -> PersistentVolume {
        let mut volume = crate::object::volume(storage, &claim_with(json!({})), "c", "Delete", &[]);
        volume.status = Some(serde_json::from_value(json!({"phase": phase})).unwrap());
        volume
    }

    fn stored(kind: Kind) -> Storage {
        let node = (kind != Kind::Shared).then(|| "node-1".to_owned());
        Storage { volume: "pvc-u".into(), kind, node, bytes: 1 << 30 }
    }

    #[test]
    fn a_claim_gets_what_its_class_says() {
        for (name, kind) in [("folder", Kind::Folder), ("image", Kind::Image), ("shared", Kind::Shared)] {
            let plan = claim(&claim_with(json!({})), Some(&class(name)), None, |_| true);
            assert_eq!(plan, ClaimPlan::Provision(stored(kind)));
        }
    }

    #[test]
    fn only_what_is_asked_of_us_is_provisioned() {
        let mut other = class("folder");
        other.provisioner = "x".into();
        assert_eq!(claim(&claim_with(json!({})), Some(&other), None, |_| true), ClaimPlan::Nothing);
        assert_eq!(claim(&claim_with(json!({})), None, None, |_| true), ClaimPlan::Nothing);

        let mut early = claim_with(json!({}));
        early.metadata.annotations.as_mut().unwrap().remove(STORAGE_PROVISIONER);
        assert_eq!(claim(&early, Some(&class("folder")), None, |_| true), ClaimPlan::Nothing);

        let mut waiting = claim_with(json!({}));
        waiting.metadata.annotations.as_mut().unwrap().remove(SELECTED_NODE);
        assert_eq!(claim(&waiting, Some(&class("folder")), None, |_| true), ClaimPlan::Nothing);
    }

    #[test]
    fn a_node_without_power_is_given_back_to_the_scheduler() {
        let plan = claim(&claim_with(json!({})), Some(&class("folder")), None, |_| false);
        assert!(matches!(plan, ClaimPlan::Reschedule(_)), "{plan:?}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let cases = [
            (json!({"volumeMode": "Block"}), "volumeMode"),
            (json!({"accessModes": ["ReadWriteMany"]}), "ReadWriteMany"),
            (json!({"selector": {}}), "selector"),
            (json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}), "dataSource"),
            (json!({"resources": {}}), "requests.storage"),
        ];
        for (spec, word) in cases {
            match claim(&claim_with(spec.clone()), Some(&class("folder")), None, |_| true) {
                ClaimPlan::Refuse(text) => assert!(text.contains(word), "{text}"),
                plan => panic!("{spec}: {plan:?}"),
            }
        }
        let plan = claim(&claim_with(json!({})), Some(&class("tape")), None, |_| true);
        assert!(matches!(plan, ClaimPlan::Refuse(text) if text.contains("kind")));
        let many = claim_with(json!({"accessModes": ["ReadWriteMany"]}));
        let plan = claim(&many, Some(&class("shared")), None, |_| true);
        assert!(matches!(plan, ClaimPlan::Provision(_)), "{plan:?}");
    }

    #[test]
    fn a_claim_that_asks_for_more_gets_it_and_then_sees_it() {
        let volume = volume_of(&stored(Kind::Image), "Bound");
        let bound = json!({"volumeName": "pvc-u"});
        assert_eq!(claim(&claim_with(bound), None, Some(&volume), |_| true), ClaimPlan::Nothing);

        let more = json!({"volumeName": "pvc-u", "resources": {"requests": {"storage": "2Gi"}}});
        let grown = Storage { bytes: 2 << 30, ..stored(Kind::Image) };
        assert_eq!(
            claim(&claim_with(more.clone()), None, Some(&volume), |_| true),
            ClaimPlan::Expand(grown.clone())
        );
        let volume = volume_of(&grown, "Bound");
        assert_eq!(claim(&claim_with(more), None, Some(&volume), |_| true), ClaimPlan::Resized(2 << 30));
    }

    #[test]
    fn small_images_hold_a_file_system() {
        let small = claim_with(json!({"resources": {"requests": {"storage": "1"}}}));
        match claim(&small, Some(&class("image")), None, |_| true) {
            ClaimPlan::Provision(storage) => assert_eq!(storage.bytes, IMAGE_BYTES_MIN),
            plan => panic!("{plan:?}"),
        }
    }

    #[test]
    fn storage_dies_with_its_claim_and_not_before() {
        let stored = stored(Kind::Folder);
        assert_eq!(volume(&volume_of(&stored, "Bound")), VolumePlan::Nothing);
        assert_eq!(volume(&volume_of(&stored, "Available")), VolumePlan::Nothing);
        assert_eq!(volume(&volume_of(&stored, "Released")), VolumePlan::Delete(stored.clone()));

        let mut retained = volume_of(&stored, "Released");
        retained.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some("Retain".into());
        assert_eq!(volume(&retained), VolumePlan::Nothing);
        let now = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        retained.metadata.deletion_timestamp =
            serde_json::from_value(now["deletionTimestamp"].clone()).unwrap();
        assert_eq!(volume(&retained), VolumePlan::Forget);

        let mut foreign = volume_of(&stored, "Released");
        foreign.metadata.annotations.as_mut().unwrap().insert(PROVISIONED_BY.into(), "x".into());
        assert_eq!(volume(&foreign), VolumePlan::Nothing);
    }
}
