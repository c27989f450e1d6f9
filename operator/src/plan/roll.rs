//! Which pod is made anew next, after its template has changed: one at a time, and none while something is amiss.

use atoll_crds::names::{self, Component, annotations};
use atoll_proto::admin::TransferLeader;
use atoll_proto::metadata::ClusterStatus;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodTemplateSpec};

use super::servers::{Place, ours};
use super::{Action, heal, shrink};
use crate::build::compare;
use crate::observe::{Observed, is_heard, is_ready, label};
use crate::trouble;
use crate::validate::{Problem, Wanted};

/// The label with which the StatefulSet controller says which template a pod was made from.
const REVISION: &str = "controller-revision-hash";

/// The next step, if one is due and may be done.
pub fn next(seen: &Observed, wanted: &Wanted) -> Option<Action> {
    // Of one that doesn't run, nothing is lost; and a bad template may have made it.
    if let Some(pod) = stale(seen).find(|pod| is_dead(seen, wanted, pod) && keeps_disk(seen, pod)) {
        return restart(pod);
    }
    if unwell(seen, wanted).is_some() {
        return None;
    }
    // Storage servers first: the metadata service has to see each of them come back.
    let due = |component| outdated(seen, component).into_iter().filter(|pod| keeps_disk(seen, pod));
    if let Some(pod) = due(Component::Storage).next() {
        return restart(pod);
    }
    let metadata: Vec<&Pod> = due(Component::Metadata).collect();
    let leader = seen.answer().and_then(|answer| answer.leader.as_ref()).map(|(_, address)| address.as_str());
    match metadata.iter().find(|pod| place(seen, pod).map(|place| place.address(seen)).as_deref() != leader) {
        Some(follower) => restart(follower),
        // The last one: its successor leads before it goes, so that nobody waits for an election.
        None if seen.pods_of(Component::Metadata).count() > 1 && !metadata.is_empty() => {
            Some(Action::TransferLeader(TransferLeader { to: None }))
        }
        None => restart(metadata.first()?),
    }
}

fn restart(pod: &Pod) -> Option<Action> {
    Some(Action::RestartPod { name: pod.metadata.name.clone()?, uid: pod.metadata.uid.clone()? })
}

/// The pods of a component that were made from what was asked for before. A template that is another one only since a newer
/// operator makes it so is no reason to stop a pod: it gets it when it is made anew for another reason.
pub fn outdated(seen: &Observed, component: Component) -> Vec<&Pod> {
    let Some(set) = seen.statefulsets.get(&component) else { return Vec::new() };
    let template = set.spec.as_ref().map(|spec| &spec.template);
    stale_of(seen, component)
        .filter(|pod| template.is_none_or(|template| !is_as_requested(pod, template)))
        .collect()
}

/// The pods that were made from another template, whatever the difference is.
fn stale(seen: &Observed) -> impl Iterator<Item = &Pod> {
    [Component::Storage, Component::Metadata].into_iter().flat_map(|component| stale_of(seen, component))
}

fn stale_of(seen: &Observed, component: Component) -> impl Iterator<Item = &Pod> {
    let revision = seen.statefulsets.get(&component).and_then(current_revision);
    let of = revision.is_some().then(|| seen.pods_of(component)).into_iter().flatten();
    of.filter(move |pod| label(&pod.metadata, REVISION) != revision)
}

/// The revision of the template as it is now, once the controller has seen it.
fn current_revision(set: &StatefulSet) -> Option<&str> {
    let status = set.status.as_ref()?;
    (status.observed_generation == set.metadata.generation).then_some(status.update_revision.as_deref()?)
}

/// The pod has what is asked for now.
fn is_as_requested(pod: &Pod, template: &PodTemplateSpec) -> bool {
    let requested = template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref());
    let requested = requested.and_then(|found| found.get(annotations::REQUESTED));
    let has = pod.metadata.annotations.as_ref().and_then(|found| found.get(annotations::REQUESTED));
    if has.is_some() {
        return has == requested;
    }
    // Of a release that didn't say what was asked for: what could be told apart then.
    let container = |spec: Option<&k8s_openapi::api::core::v1::PodSpec>| spec?.containers.first().cloned();
    match (container(pod.spec.as_ref()), container(template.spec.as_ref())) {
        (Some(has), Some(wanted)) => {
            has.image == wanted.image && compare::is_as_wanted(&wanted.resources, &has.resources)
        }
        _ => false,
    }
}

/// The pod certainly serves nobody. That the API server hasn't heard of it proves nothing: a node that is cut off from it has
/// pods that work.
fn is_dead(seen: &Observed, wanted: &Wanted, pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() || is_ready(pod) {
        return false;
    }
    if has_no_process(pod) {
        return true;
    }
    // It may hang as it starts. The cluster's own servers don't hear it, and all others are there.
    let away = |component| {
        let of = usize::from(wanted.workload(component).replicas);
        of.saturating_sub(seen.pods_of(component).filter(|pod| is_ready(pod)).count())
    };
    let alone = Component::ALL.into_iter().map(away).sum::<usize>() == 1;
    alone && seen.answer().is_some_and(|answer| answer.is_leader && !is_heard_of(seen, answer, pod))
}

/// Kubelet itself says that the container waits: for an image that doesn't come, or after another crash.
fn has_no_process(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let waits = |container: &ContainerStatus| trouble::waits_in_vain(container);
    let unplaced = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten().any(|found| {
        found.type_ == "PodScheduled"
            && found.status == "False"
            && found.reason.as_deref() == Some("Unschedulable")
    });
    unplaced || containers.into_iter().flatten().any(waits)
}

/// The leader hears the server in this pod.
fn is_heard_of(seen: &Observed, answer: &ClusterStatus, pod: &Pod) -> bool {
    let Some(place) = place(seen, pod) else { return false };
    match place.component {
        Component::Storage => place.storage_servers(seen, answer).into_iter().any(|server| server.alive),
        Component::Metadata => place.member(seen, answer).is_some_and(is_heard),
    }
}

/// The place that this pod has.
fn place(seen: &Observed, pod: &Pod) -> Option<Place> {
    let of = |component| {
        let prefix = format!("{}-", names::workload(seen.cluster.name_str(), component));
        let ordinal = pod.metadata.name.as_deref()?.strip_prefix(&prefix)?.parse().ok()?;
        Some(Place { component, ordinal })
    };
    Component::ALL.into_iter().find_map(of)
}

/// The pod takes no disk along. A claim that was deleted goes with its pod, and when that may be is known where servers are
/// replaced.
fn keeps_disk(seen: &Observed, pod: &Pod) -> bool {
    !place(seen, pod).is_some_and(|place| heal::is_ailing(seen, place))
}

/// Servers that are being replaced or removed. A leader of an earlier release can't say how far that is, so none of it ends before
/// all metadata servers were made anew.
fn moving(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    ours(seen).filter(|answer| !answer.chunks_by_replicas.is_empty())?;
    heal::pending(seen, wanted).or_else(|| shrink::under_way(seen, wanted))
}

/// What keeps a pod that works from being stopped: another one is away, is replaced or removed, or data lacks copies. `None`: all
/// is well.
pub fn unwell(seen: &Observed, wanted: &Wanted) -> Option<String> {
    if let Some(problem) = moving(seen, wanted) {
        return Some(problem.message);
    }
    for component in Component::ALL {
        let ready = seen.pods_of(component).filter(|pod| is_ready(pod)).count();
        let replicas = usize::from(wanted.workload(component).replicas);
        if ready != replicas {
            return Some(format!("{ready} of {replicas} {component} pods are ready"));
        }
    }
    let servers = usize::from(wanted.workload(Component::Storage).replicas);
    let members = usize::from(wanted.workload(Component::Metadata).replicas);
    let Some(answer) = seen.answer() else { return Some("the metadata servers don't respond".to_owned()) };
    if let Some(problem) = answer.problems.first() {
        return Some(problem.clone());
    }
    if !answer.is_leader {
        return Some("the metadata servers have no leader that responds".to_owned());
    }
    if answer.members.len() != members {
        return Some(format!("{} of {members} metadata servers belong to the group", answer.members.len()));
    }
    let alive = answer.servers.iter().filter(|server| server.alive).count();
    if alive < servers {
        return Some(format!("{alive} of {servers} storage servers respond"));
    }
    (answer.chunks_short > 0).then(|| format!("{} chunks lack replicas", answer.chunks_short))
}

#[cfg(test)]
mod tests;
