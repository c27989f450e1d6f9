//! Which pod is made anew next, after its template has changed: one at a time, and none while something is amiss.

use atoll_crds::names::Component;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

use super::Action;
use crate::observe::{Observed, is_ready, label};
use crate::validate::Wanted;

/// The label with which the StatefulSet controller says which template a pod was made from.
const REVISION: &str = "controller-revision-hash";

/// The next pod, if one is due and may go.
pub fn next(seen: &Observed, wanted: &Wanted) -> Option<Action> {
    // Storage servers first: the metadata service has to see each of them come back.
    let outdated: Vec<&Pod> = [Component::Storage, Component::Metadata]
        .into_iter()
        .flat_map(|component| outdated(seen, component))
        .collect();
    // A pod that doesn't work costs nothing, and may be the one that a bad template made.
    let broken = outdated.iter().find(|pod| !is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    let chosen = match broken {
        Some(pod) => pod,
        None if all_is_well(seen, wanted) => outdated.first()?,
        None => return None,
    };
    Some(Action::RestartPod { name: chosen.metadata.name.clone()?, uid: chosen.metadata.uid.clone()? })
}

/// The pods of a component that were made from an older template.
pub fn outdated(seen: &Observed, component: Component) -> Vec<&Pod> {
    let Some(revision) = seen.statefulsets.get(&component).and_then(current_revision) else {
        return Vec::new();
    };
    seen.pods_of(component).filter(|pod| label(&pod.metadata, REVISION) != Some(revision)).collect()
}

/// The revision of the template as it is now, once the controller has seen it.
fn current_revision(set: &StatefulSet) -> Option<&str> {
    let status = set.status.as_ref()?;
    (status.observed_generation == set.metadata.generation).then_some(status.update_revision.as_deref()?)
}

fn all_is_well(seen: &Observed, wanted: &Wanted) -> bool {
    let complete = Component::ALL.into_iter().all(|component| {
        let ready = seen.pods_of(component).filter(|pod| is_ready(pod)).count();
        ready == usize::from(wanted.workload(component).replicas)
    });
    let servers = usize::from(wanted.workload(Component::Storage).replicas);
    let members = usize::from(wanted.workload(Component::Metadata).replicas);
    complete
        && seen.answer().is_some_and(|answer| {
            answer.problems.is_empty()
                && answer.members.len() == members
                && answer.chunks_short == 0
                && answer.servers.iter().filter(|server| server.alive).count() >= servers
        })
}
