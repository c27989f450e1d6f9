//! A server's disk, as its PersistentVolumeClaim says.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::observe::{ClassFact, Observed, is_ready};
use atoll_crds::{Quantity, names};

/// A disk that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk<'a> {
    /// Its claim.
    pub name: &'a str,
    /// Whose it is: its pod's number.
    pub ordinal: u32,
    /// Its class.
    pub class: &'a str,
    /// What the claim asks for (bytes).
    pub asked: u64,
    /// What its file system has (bytes).
    pub has: u64,
    /// Its class lets it grow.
    pub expandable: bool,
    /// Its driver says that it can't grow as it was asked to.
    pub infeasible: bool,
    /// The volume has grown, and its file system grows once it is mounted.
    pub waits_for_node: bool,
    /// What its driver says of an expansion.
    pub error: Option<String>,
    /// It is being deleted.
    pub going: bool,
}

impl<'a> Disk<'a> {
    /// The disk of a claim, once it is bound.
    pub fn of(pvc: &'a PersistentVolumeClaim, classes: &[ClassFact]) -> Option<Disk<'a>> {
        if is_unbound(pvc) {
            return None;
        }
        let name = pvc.metadata.name.as_deref()?;
        let (spec, status) = (pvc.spec.as_ref()?, pvc.status.as_ref()?);
        let has = bytes(status.capacity.as_ref()?.get("storage")?)?;
        let asked = spec.resources.as_ref().and_then(|found| bytes(found.requests.as_ref()?.get("storage")?));
        let class = spec.storage_class_name.as_deref().unwrap_or_default();
        let states = status.allocated_resource_statuses.as_ref();
        let state = states.and_then(|found| found.get("storage")).map_or("", String::as_str);
        let condition = |kind: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|found| found.type_ == kind && found.status == "True")
                .map(|found| found.message.clone().unwrap_or_default())
        };
        Some(Disk {
            name,
            ordinal: ordinal(name)?,
            class,
            asked: asked.unwrap_or(has),
            has,
            expandable: classes.iter().any(|found| found.name == class && found.expandable),
            infeasible: state.ends_with("Infeasible"),
            waits_for_node: state == "NodeResizePending" || condition("FileSystemResizePending").is_some(),
            error: condition("ControllerResizeError")
                .or_else(|| condition("NodeResizeError"))
                .filter(|said| !said.is_empty()),
            going: pvc.metadata.deletion_timestamp.is_some(),
        })
    }

    /// What its claim asks for, unless that can't be.
    pub fn asked_in_earnest(&self) -> u64 {
        if self.infeasible { self.asked.min(self.has) } else { self.asked }
    }

    /// What it has or is to get, unless that can't be.
    pub fn expected(&self) -> u64 {
        if self.infeasible { self.has } else { self.asked.max(self.has) }
    }

    /// What it has when its server runs again: a file system on a disk that has grown follows when it is mounted.
    pub fn has_once_mounted(&self, seen: &Observed) -> u64 {
        let pod = self.name.strip_prefix(names::DATA_VOLUME).and_then(|rest| rest.strip_prefix('-'));
        let runs = pod.and_then(|pod| seen.pods.get(pod)).is_some_and(is_ready);
        if self.waits_for_node && !runs { self.expected() } else { self.has }
    }
}

/// The number at the end of a claim's name.
pub fn ordinal(claim: &str) -> Option<u32> {
    claim.rsplit('-').next()?.parse().ok()
}

/// A claim has never had a volume.
pub fn is_unbound(pvc: &PersistentVolumeClaim) -> bool {
    let phase = pvc.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume = pvc.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    phase.is_none_or(|phase| phase == "Pending") && volume.is_none_or(str::is_empty)
}

fn bytes(quantity: &ApiQuantity) -> Option<u64> {
    Quantity::from(quantity.0.as_str()).bytes().ok()
}
