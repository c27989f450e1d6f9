//! How a cluster goes: data dies only on a deliberate word (D32), and nothing goes that is in use.

use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::Reason;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Action, Kind, Plan, has_finalizer, is_made};
use crate::observe::{Observed, Ownership, is_ready, label};
use crate::validate::Problem;

/// Mounts, or PersistentVolumes, that a message names.
const NAMED_MAX: usize = 5;

/// Whether the data may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The word was said.
    Delete,
    /// There never was any data: what this very resource created goes, and nothing else.
    Discard,
    /// PVCs and key stay, and a resource of the same name takes them over.
    Keep,
}

/// What is to become of the data.
pub fn fate(seen: &Observed) -> Fate {
    let confirmed = match (seen.cluster_id(), &seen.cluster.spec.deletion_confirmation) {
        (Some(id), Some(word)) => word.parse() == Ok(id),
        _ => false,
    };
    match (confirmed, is_made(seen)) {
        (true, _) => Fate::Delete,
        (false, true) => Fate::Keep,
        // What was never usable holds nothing: half-made clusters leave nothing behind.
        (false, false) => Fate::Discard,
    }
}

/// The next steps of a deletion.
pub fn plan(seen: &Observed) -> Plan {
    if !has_finalizer(seen) {
        return Plan::default();
    }
    // Whoever deletes the definition of the resource, or a namespace, says nothing about data. The namespace takes
    // everything along by itself; in the other case pods and mounts go on, since nothing has the resource as its owner.
    if seen.namespace_terminating || seen.crd_terminating {
        return Plan::just(Action::RemoveFinalizer);
    }
    let fate = fate(seen);
    if let Some(problem) = in_use(seen, fate) {
        return Plan::blocked(problem);
    }
    // No garbage collection does it: it would act as soon as a deletion in the foreground begins, whatever is decided here.
    let sets = seen.statefulsets.values().map(|found| (Kind::StatefulSet, &found.metadata));
    let servers = due(seen, sets);
    if !servers.is_empty() {
        return Plan { actions: servers, problem: None };
    }
    // A StatefulSet that was to be created anew around its pods, or that somebody deleted without them, takes none along.
    if seen.statefulsets.is_empty() {
        let alone =
            seen.pods.values().filter(|pod| pod.metadata.owner_references.iter().flatten().next().is_none());
        let alone = due(seen, alone.map(|pod| (Kind::Pod, &pod.metadata)));
        if !alone.is_empty() {
            return Plan { actions: alone, problem: None };
        }
    }
    let pods: Vec<&str> = seen.pods.keys().map(String::as_str).collect();
    if !pods.is_empty() {
        let message = format!("waits until the pods have ended: {}", pods.join(", "));
        return Plan::blocked(Problem::new(Reason::Deleting, message));
    }
    let services = seen.services.values().map(|found| (Kind::Service, &found.metadata));
    let budgets = seen.budgets.values().map(|found| (Kind::Budget, &found.metadata));
    let rest = due(seen, services.chain(budgets));
    if !rest.is_empty() {
        return Plan { actions: rest, problem: None };
    }
    match fate {
        Fate::Keep => Plan::just(Action::RemoveFinalizer),
        Fate::Delete | Fate::Discard => data(seen, fate),
    }
}

/// Those of the objects that are ours and not being deleted yet.
fn due<'a>(seen: &Observed, objects: impl Iterator<Item = (Kind, &'a ObjectMeta)>) -> Vec<Action> {
    objects
        .filter(|(_, meta)| seen.ownership(meta) == Ownership::Ours)
        .map(|(kind, meta)| Action::Delete(kind, meta.name.clone().unwrap_or_default()))
        .collect()
}

/// Disks, then the key.
fn data(seen: &Observed, fate: Fate) -> Plan {
    // Only what is marked as this cluster's: the names alone prove nothing.
    let ours: Vec<_> = seen
        .pvcs
        .values()
        .filter(|pvc| label(&pvc.metadata, labels::CLUSTER) == Some(seen.cluster.name_str()))
        .filter(|pvc| label(&pvc.metadata, labels::CLUSTER_ID) == seen.cluster.cluster_id())
        .filter(|_| seen.cluster.cluster_id().is_some())
        .filter(|pvc| fate == Fate::Delete || is_blank(seen, pvc))
        .collect();
    let due: Vec<Action> = ours
        .iter()
        .filter(|pvc| pvc.metadata.deletion_timestamp.is_none())
        .map(|pvc| Action::Delete(Kind::PersistentVolumeClaim, pvc.metadata.name.clone().unwrap_or_default()))
        .collect();
    if !due.is_empty() {
        return Plan { actions: due, problem: None };
    }
    if let Some(pvc) = ours.first() {
        let name = pvc.metadata.name.as_deref().unwrap_or_default();
        let message =
            format!("waits until the PVC {name} is deleted: kubectl describe pvc shows what keeps it");
        return Plan::blocked(Problem::new(Reason::Deleting, message));
    }
    let key = seen.secret.as_ref().filter(|secret| {
        seen.cluster.cluster_id().is_some()
            && label(&secret.metadata, labels::CLUSTER_ID) == seen.cluster.cluster_id()
            && (fate == Fate::Delete || is_created_for(seen, &secret.metadata))
    });
    if let Some(secret) = key {
        return Plan::just(Action::Delete(Kind::Secret, secret.metadata.name.clone().unwrap_or_default()));
    }
    Plan::just(Action::RemoveFinalizer)
}

/// A disk that was created for this very resource, and from nothing: not for an earlier one, not from a snapshot, and not by
/// hand with the labels of another.
fn is_blank(seen: &Observed, pvc: &PersistentVolumeClaim) -> bool {
    let from_something =
        pvc.spec.as_ref().is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some());
    !from_something && is_created_for(seen, &pvc.metadata)
}

fn is_created_for(seen: &Observed, meta: &ObjectMeta) -> bool {
    let uid = meta.annotations.as_ref().and_then(|found| found.get(annotations::CREATED_FOR));
    uid.is_some() && uid == seen.cluster.metadata.uid.as_ref()
}

/// What the volume is used by. A volume that was never made is used by nobody.
fn in_use(seen: &Observed, fate: Fate) -> Option<Problem> {
    if !is_made(seen) {
        return None;
    }
    // With the word it is the PersistentVolume that goes first, or its deletion that said the word.
    let referring = if fate == Fate::Keep { referring_volumes(seen) } else { None };
    mounts(seen).or(referring)
}

/// Mounts that are still there. Only the leader knows them, and without one there may be one again at any moment.
fn mounts(seen: &Observed) -> Option<Problem> {
    let Some(answer) = seen.answer().filter(|answer| answer.is_leader) else { return unknown_mounts(seen) };
    let clients: Vec<&str> = answer.sessions.iter().map(|session| session.client.as_str()).collect();
    let message = format!(
        "the volume is still mounted by {} ({}): delete the pods that use it; the session of a lost node expires by \
         itself",
        clients.len(),
        first(&clients)?
    );
    Some(Problem::new(Reason::Mounted, message))
}

/// Nobody says who uses the volume: an election, a network in between, or servers that are away and may come back. Of a volume
/// without a majority of its metadata servers counts who had it mounted when somebody knew.
fn unknown_mounts(seen: &Observed) -> Option<Problem> {
    let set = seen.statefulsets.get(&Component::Metadata)?;
    let members = set.spec.as_ref()?.replicas.and_then(|count| usize::try_from(count).ok())?;
    let ready = seen.pods_of(Component::Metadata).filter(|pod| is_ready(pod)).count();
    let status = seen.cluster.status.as_ref();
    let had_mounts = status.is_some_and(|status| status.client_count > 0);
    if ready * 2 <= members && !had_mounts {
        return None;
    }
    let name = names::workload(seen.cluster.name_str(), Component::Metadata);
    let message = format!(
        "{ready} of {members} metadata servers run, but their leader doesn't say who has the volume mounted: wait for \
         the election, check the Secret with the key and NetworkPolicies; if nobody uses the volume, delete the \
         StatefulSet {name}, and the deletion continues"
    );
    Some(Problem::new(Reason::MountsUnknown, message))
}

fn referring_volumes(seen: &Observed) -> Option<Problem> {
    let volumes: Vec<&str> = seen.volumes.iter().map(String::as_str).collect();
    let message = format!(
        "PersistentVolumes refer to it ({}): delete their claims first, which deletes the data of volumes with the \
         reclaim policy Delete; to keep the data, delete the PersistentVolumes themselves",
        first(&volumes)?
    );
    Some(Problem::new(Reason::ReferencedByVolume, message))
}

/// The first few, if there are any.
fn first(all: &[&str]) -> Option<String> {
    let more = if all.len() > NAMED_MAX { ", …" } else { "" };
    (!all.is_empty()).then(|| format!("{}{more}", all[..all.len().min(NAMED_MAX)].join(", ")))
}

#[cfg(test)]
mod tests;
