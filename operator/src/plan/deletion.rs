//! How a cluster goes: data dies only on a deliberate word (D32).

use atoll_crds::names::{Component, annotations, labels};
use atoll_crds::v1alpha1::Reason;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Action, Kind, Owned, Plan, has_finalizer, is_made};
use crate::observe::{Observed, Ownership, label};
use crate::validate::Problem;

/// Mounts that a message names.
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
    // everything along by itself; in the other case pods and mounts go on, and a new definition finds them.
    if seen.namespace_terminating {
        return Plan::just(Action::RemoveFinalizer);
    }
    if seen.crd_terminating {
        let mut actions = disowned(seen);
        actions.push(Action::RemoveFinalizer);
        return Plan { actions, problem: None };
    }
    match fate(seen) {
        // What the resource owns goes with it; PVCs and Secret have no owner.
        Fate::Keep => Plan::just(Action::RemoveFinalizer),
        fate @ (Fate::Delete | Fate::Discard) => delete(seen, fate),
    }
}

fn delete(seen: &Observed, fate: Fate) -> Plan {
    if let Some(problem) = mounts(seen) {
        return Plan::blocked(problem);
    }
    let sets: Vec<Action> = seen
        .statefulsets
        .values()
        .filter(|set| matches!(seen.ownership(&set.metadata), Ownership::Ours | Ownership::Orphan))
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .map(|set| Action::Delete(Kind::StatefulSet, set.metadata.name.clone().unwrap_or_default()))
        .collect();
    if !sets.is_empty() {
        return Plan { actions: sets, problem: None };
    }
    let pods: Vec<&str> = seen.pods.keys().map(String::as_str).collect();
    if !pods.is_empty() {
        let message = format!("waits until the pods have ended: {}", pods.join(", "));
        return Plan::blocked(Problem::new(Reason::Deleting, message));
    }
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

/// Mounts that are still there. A service that doesn't answer has none that could do anything.
fn mounts(seen: &Observed) -> Option<Problem> {
    let sessions = &seen.answer()?.sessions;
    if sessions.is_empty() {
        return None;
    }
    let named: Vec<&str> = sessions.iter().take(NAMED_MAX).map(|session| session.client.as_str()).collect();
    let more = if sessions.len() > NAMED_MAX { ", …" } else { "" };
    let message = format!(
        "the volume is still mounted by {} ({}{more}): delete the pods that use it; the session of a lost \
         node expires by itself",
        sessions.len(),
        named.join(", ")
    );
    Some(Problem::new(Reason::DeletionBlocked, message))
}

/// The owned objects, without their owner.
fn disowned(seen: &Observed) -> Vec<Action> {
    let ours = |meta| seen.ownership(meta) == Ownership::Ours;
    let mut actions = Vec::new();
    for component in Component::ALL {
        if let Some(found) = seen.statefulsets.get(&component).filter(|found| ours(&found.metadata)) {
            actions.push(Action::Disown(Owned::StatefulSet(Box::new(found.clone()))));
        }
        if let Some(found) = seen.services.get(&component).filter(|found| ours(&found.metadata)) {
            actions.push(Action::Disown(Owned::Service(Box::new(found.clone()))));
        }
        if let Some(found) = seen.budgets.get(&component).filter(|found| ours(&found.metadata)) {
            actions.push(Action::Disown(Owned::Budget(Box::new(found.clone()))));
        }
    }
    actions
}
