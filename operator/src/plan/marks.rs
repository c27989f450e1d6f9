//! What disks and key say of themselves once the volume was made: that it was, and what it is. So neither a resource
//! without its status nor a lost disk ever makes the volume anew.

use atoll_crds::names::{annotations, labels};
use atoll_crds::v1alpha1::KeptVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Action;
use crate::observe::{Observed, label};

/// Something says that the volume was made. It is enough that one thing does.
pub fn is_made(seen: &Observed) -> bool {
    let status = seen.cluster.status.as_ref();
    status.is_some_and(|status| status.bootstrapped || status.adopted)
        || seen.pvcs.values().any(|pvc| is_marked(&pvc.metadata))
        || seen.secret.as_ref().is_some_and(|secret| is_marked(&secret.metadata))
        || seen.answer().is_some_and(|answer| answer.cluster.is_some())
}

/// A PVC or the Secret of a volume that was made.
fn is_marked(meta: &ObjectMeta) -> bool {
    label(meta, labels::BOOTSTRAPPED).is_some() || label(meta, labels::MEMBER_ID).is_some()
}

/// The marks that are missing, of a volume that was made.
pub fn due(seen: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    // A spec is made of texts and numbers: there is nothing that could fail.
    let record = KeptVolume::of(&seen.cluster).to_text().unwrap_or_default();
    for (name, pvc) in &seen.pvcs {
        let annotations = pvc.metadata.annotations.as_ref();
        let says = annotations.and_then(|found| found.get(annotations::VOLUME));
        let marked = label(&pvc.metadata, labels::BOOTSTRAPPED).is_some();
        if pvc.metadata.deletion_timestamp.is_none() && !(marked && says == Some(&record)) {
            actions.push(Action::MarkDisk { pvc: name.clone(), record: record.clone() });
        }
    }
    let unmarked = seen.secret.as_ref().filter(|secret| {
        label(&secret.metadata, labels::BOOTSTRAPPED).is_none() || secret.immutable != Some(true)
    });
    if let Some(name) = unmarked.and_then(|secret| secret.metadata.name.clone()) {
        actions.push(Action::MarkKey(name));
    }
    actions
}
