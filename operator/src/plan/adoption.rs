//! Disks and a key that are there before the resource has an id: whether it may use them.

use std::collections::BTreeSet;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::{KeptVolume, Reason};

use crate::build::secret;
use crate::observe::{Observed, label};
use crate::validate::{Problem, Wanted};

/// An id that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The cluster's.
    pub id: ClusterId,
    /// Disks have it: the volume is adopted, and never bootstrapped.
    pub adopted: bool,
}

/// The cluster whose disks or key are there already.
///
/// # Errors
/// If they aren't what the resource asks for, or not enough to use the volume.
pub fn find(seen: &Observed, wanted: &Wanted) -> Result<Option<Found>, Problem> {
    let ids: BTreeSet<ClusterId> = seen
        .pvcs
        .values()
        .filter_map(|pvc| label(&pvc.metadata, labels::CLUSTER_ID)?.parse::<ClusterId>().ok())
        .collect();
    let mut ids = ids.into_iter();
    let Some(id) = ids.next() else { return of_key(seen, wanted) };
    if ids.len() > 0 {
        let ids: Vec<String> = [id].into_iter().chain(ids).map(|id| id.to_string()).collect();
        let message = format!(
            "PVCs of several clusters have this name ({}): delete those that aren't needed any more, or give \
             this FileSystemCluster another name",
            ids.join(", ")
        );
        return Err(Problem::new(Reason::ForeignData, message));
    }
    refuse_without_records(seen, wanted, id)?;
    refuse_differences(seen, wanted, id)?;
    Ok(Some(Found { id, adopted: true }))
}

/// A key without any disk. One that the operator made once had disks; one that a user made is for a new volume.
fn of_key(seen: &Observed, wanted: &Wanted) -> Result<Option<Found>, Problem> {
    let Some(found) = &seen.secret else { return Ok(None) };
    let Ok(read) = secret::read(found) else { return Ok(None) };
    if label(&found.metadata, labels::MANAGED_BY) != Some(labels::MANAGED_BY_OPERATOR) {
        return Ok(Some(Found { id: read.cluster, adopted: false }));
    }
    let message = format!(
        "the Secret {} has the key of cluster {}, and none of its disks (PVCs) is here: restore them, or delete the \
         Secret if that data isn't needed any more, so that a new volume is created",
        wanted.secret, read.cluster
    );
    Err(Problem::new(Reason::ForeignData, message))
}

/// Without any disk of a metadata server, the files can't be found, and new disks would only hide that.
fn refuse_without_records(seen: &Observed, wanted: &Wanted, id: ClusterId) -> Result<(), Problem> {
    if seen.pvcs_of(Component::Metadata).next().is_some() {
        return Ok(());
    }
    let message = format!(
        "disks of cluster {id} are here, but none of its metadata servers' ({}): restore at least a majority of them \
         from a backup; if the data isn't needed any more, delete the PVCs that are left: kubectl -n {} delete pvc -l \
         {}={id}",
        metadata_disks(wanted),
        wanted.namespace,
        labels::CLUSTER_ID
    );
    Err(Problem::new(Reason::ForeignData, message))
}

/// The names that the metadata servers' disks have to have.
pub fn metadata_disks(wanted: &Wanted) -> String {
    let count = u32::from(wanted.workload(Component::Metadata).replicas);
    let names: Vec<String> =
        (0..count).map(|ordinal| names::pvc(&wanted.name, Component::Metadata, ordinal)).collect();
    format!("PVCs {}", names.join(", "))
}

/// Disks that the volume had, as those that are there say, and that aren't there: what they held is made again from others, or is
/// lost.
pub fn missing(seen: &Observed) -> Vec<String> {
    let Some(record) = record(seen) else { return Vec::new() };
    let counts = [
        (Component::Metadata, record.spec.metadata_replicas()),
        (Component::Storage, record.spec.storage_replicas()),
    ];
    let all = counts.into_iter().flat_map(|(component, count)| {
        (0..u32::from(count)).map(move |ordinal| names::pvc(seen.cluster.name_str(), component, ordinal))
    });
    all.filter(|name| !seen.pvcs.contains_key(name)).collect()
}

/// What the disks say of their volume; all say the same.
fn record(seen: &Observed) -> Option<KeptVolume> {
    seen.pvcs
        .values()
        .find_map(|pvc| KeptVolume::parse(pvc.metadata.annotations.as_ref()?.get(annotations::VOLUME)?).ok())
}

/// Servers and mounts would disagree, or some disks wouldn't be used, and nobody would be told.
fn refuse_differences(seen: &Observed, wanted: &Wanted, id: ClusterId) -> Result<(), Problem> {
    let differences = match record(seen) {
        Some(record) => record.differences(&wanted.name, &seen.cluster.spec),
        None => counted(seen, wanted),
    };
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the disks of cluster {id} were created for another spec: {}; delete this FileSystemCluster (the disks are kept) \
         and create it with what the disks have, or under another name for an empty volume",
        differences.join("; ")
    );
    Err(Problem::new(Reason::AdoptionRefused, message))
}

/// What disks without a record tell: how many there are, and what the key's Secret says.
fn counted(seen: &Observed, wanted: &Wanted) -> Vec<String> {
    let mut found = Vec::new();
    for component in Component::ALL {
        let ordinals = seen.pvcs_of(component).filter_map(|pvc| {
            pvc.metadata.name.as_deref()?.rsplit('-').next()?.parse::<u32>().ok().map(|last| last + 1)
        });
        let (has, asks) = (ordinals.max().unwrap_or(0), u32::from(wanted.workload(component).replicas_asked));
        if asks < has {
            found.push(format!("spec.{component}.replicas is {asks}, and there are disks of {has} servers"));
        }
    }
    let encrypts = seen.secret.as_ref().and_then(|found| secret::read(found).ok()?.encrypts);
    if encrypts.is_some_and(|encrypts| encrypts != wanted.encrypt) {
        found.push(format!(
            "spec.encryption is {:?}, and the Secret {} says otherwise",
            seen.cluster.spec.encryption, wanted.secret
        ));
    }
    found
}
