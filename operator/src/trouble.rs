//! What keeps PVCs and pods from working, with the words of those who know. Pure.

use atoll_crds::names::{self, Component};
use atoll_crds::v1alpha1::Reason;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod};

use crate::observe::{Observed, is_ready};
use crate::validate::{Problem, Wanted};

/// Characters of somebody else's message that are passed on.
const QUOTED_CHARS_MAX: usize = 300;
/// Reasons of a waiting container that pass by themselves.
const PASSING: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// Reasons of a container that waits for its image.
const NO_IMAGE: [&str; 5] =
    ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ErrImageInspect"];

/// Everything that is amiss, what others wait for first.
pub fn troubles(seen: &Observed, wanted: &Wanted) -> Vec<Problem> {
    let mut found = Vec::new();
    for component in Component::ALL {
        let mut refusal = seen.pod_refusals.get(&component);
        for ordinal in 0..u32::from(wanted.workload(component).replicas) {
            let pod_name = names::pod(&wanted.name, component, ordinal);
            let pvc_name = names::pvc(&wanted.name, component, ordinal);
            let pvc = seen.pvcs.get(&pvc_name);
            let warning = seen.pvc_warnings.get(&pvc_name).map(String::as_str);
            let of_disk = pvc.and_then(|pvc| disk_trouble(&pvc_name, pvc, warning));
            let of_pod = match seen.pods.get(&pod_name) {
                Some(pod) => pod_trouble(&pod_name, pod),
                None => Some(match refusal.take() {
                    Some(why) => {
                        let message = format!("pod {pod_name} can't be created: {}", quoted(why));
                        Problem::new(Reason::PodsRefused, message)
                    }
                    None => Problem::new(Reason::PodsStarting, format!("pod {pod_name} doesn't exist yet")),
                }),
            };
            // A disk that waits for its pod to be placed, and a pod that can't be placed: the pod knows why.
            match (of_disk, of_pod) {
                (Some(disk), Some(pod)) if warning.is_none() && pod.reason.needs_somebody() => {
                    found.extend([pod, disk]);
                }
                (disk, pod) => found.extend(disk.into_iter().chain(pod)),
            }
        }
    }
    found.sort_by_key(|problem| !problem.reason.needs_somebody());
    found
}

fn disk_trouble(name: &str, pvc: &PersistentVolumeClaim, warning: Option<&str>) -> Option<Problem> {
    let phase = pvc.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some("Bound") => None,
        Some("Lost") => {
            let message = format!("the volume of PVC {name} is lost: restore it, or replace the disk");
            Some(Problem::new(Reason::PodsFailing, message))
        }
        _ => {
            let class = pvc.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
            let message = match warning {
                Some(warning) => format!("PVC {name} gets no volume: {}", quoted(warning)),
                None => format!("PVC {name} waits for a volume of class {}", class.unwrap_or("(default)")),
            };
            Some(Problem::new(Reason::VolumesPending, message))
        }
    }
}

pub fn pod_trouble(name: &str, pod: &Pod) -> Option<Problem> {
    if is_ready(pod) {
        return None;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Problem::new(Reason::PodsStarting, format!("pod {name} is terminating")));
    }
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let unplaced =
        conditions.into_iter().find(|found| found.type_ == "PodScheduled" && found.status == "False");
    if let Some(unplaced) = unplaced {
        let why = unplaced.message.as_deref().unwrap_or("no node was found");
        let message = format!("pod {name} can't be placed on a node: {}", quoted(why));
        return Some(Problem::new(Reason::PodsFailing, message));
    }
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    for container in containers {
        if let Some(problem) = container_trouble(name, container) {
            return Some(problem);
        }
    }
    if let Some(reason) = status.and_then(|status| status.reason.as_deref()) {
        let why = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
        let message = format!("pod {name}: {reason} {}", quoted(why));
        return Some(Problem::new(Reason::PodsFailing, message));
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let message = match node {
        Some(node) => format!("pod {name} on {node} isn't ready yet"),
        None => format!("pod {name} waits for a node"),
    };
    Some(Problem::new(Reason::PodsStarting, message))
}

/// The container has no process and waits for something that doesn't come by itself.
pub fn waits_in_vain(container: &ContainerStatus) -> bool {
    waiting(container).is_some_and(|reason| !PASSING.contains(&reason))
}

fn waiting(container: &ContainerStatus) -> Option<&str> {
    container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

fn container_trouble(pod: &str, container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    if PASSING.contains(&reason) {
        return None;
    }
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let said = last
        .and_then(|last| last.message.as_deref())
        .and_then(|message| message.trim().lines().last())
        .or(waiting.message.as_deref())
        .unwrap_or_default();
    let code = last.map(|last| format!(" (exit code {})", last.exit_code)).unwrap_or_default();
    let message = format!("pod {pod}: {reason}{code}: {}", quoted(said));
    let no_image = NO_IMAGE.contains(&reason);
    Some(Problem::new(if no_image { Reason::ImageUnavailable } else { Reason::PodsFailing }, message))
}

fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= QUOTED_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(QUOTED_CHARS_MAX).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStateWaiting, PodCondition,
    };

    use super::*;
    use crate::testing;

    #[test]
    fn nothing_is_amiss_with_a_cluster_that_runs() {
        assert_eq!(troubles(&testing::running(), &testing::wanted("1Gi")), []);
    }

    #[test]
    fn a_disk_that_waits_is_named_with_what_its_provisioner_says() {
        let mut seen = testing::running();
        let pvc = seen.pvcs.get_mut("data-db-storage-1").expect("disk");
        pvc.status.as_mut().expect("status").phase = Some("Pending".into());
        let found = troubles(&seen, &testing::wanted("1Gi"));
        assert_eq!(found[0].reason, Reason::VolumesPending);
        assert!(found[0].message.contains("data-db-storage-1"), "{}", found[0].message);
        seen.pvc_warnings.insert("data-db-storage-1".into(), "out of disks".into());
        let found = troubles(&seen, &testing::wanted("1Gi"));
        assert!(found[0].message.ends_with("out of disks"), "{}", found[0].message);
    }

    #[test]
    fn a_pod_that_the_api_server_refuses_says_why_once() {
        let mut seen = testing::running();
        for ordinal in 1..3 {
            seen.pods.remove(&names::pod("db", Component::Storage, ordinal));
        }
        let starting = troubles(&seen, &testing::wanted("1Gi"));
        assert!(starting.iter().all(|problem| problem.reason == Reason::PodsStarting), "{starting:?}");
        let why = "create Pod db-storage-1 failed: exceeded quota: compute".to_owned();
        seen.pod_refusals.insert(Component::Storage, why);
        let found = troubles(&seen, &testing::wanted("1Gi"));
        let reasons: Vec<Reason> = found.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [Reason::PodsRefused, Reason::PodsStarting]);
        assert!(found[0].message.ends_with("exceeded quota: compute"), "{}", found[0].message);
        assert!(found[0].reason.needs_somebody());
    }

    #[test]
    fn a_pod_that_cannot_be_placed_or_started_says_why() {
        let mut seen = testing::running();
        let status = seen.pods.get_mut("db-metadata-0").expect("pod").status.as_mut().expect("status");
        status.conditions = Some(vec![PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            message: Some("0/3 nodes are available".into()),
            ..PodCondition::default()
        }]);
        let found = troubles(&seen, &testing::wanted("1Gi"));
        assert_eq!(found[0].reason, Reason::PodsFailing);
        assert!(found[0].message.contains("0/3 nodes are available"), "{}", found[0].message);

        let mut seen = testing::running();
        let status = seen.pods.get_mut("db-storage-0").expect("pod").status.as_mut().expect("status");
        status.conditions = None;
        let waiting = |reason: &str| ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.into()),
                message: Some("back-off".into()),
            }),
            ..ContainerState::default()
        };
        status.container_statuses = Some(vec![ContainerStatus {
            state: Some(waiting("CrashLoopBackOff")),
            last_state: Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: 4,
                    message: Some("one\nthe folder is another cluster's\n".into()),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }]);
        let found = troubles(&seen, &testing::wanted("1Gi"));
        assert!(
            found[0].message.contains("exit code 4") && found[0].message.ends_with("another cluster's"),
            "{}",
            found[0].message
        );
        let status = seen.pods.get_mut("db-storage-0").expect("pod").status.as_mut().expect("status");
        status.container_statuses.as_mut().expect("containers")[0].state = Some(waiting("ContainerCreating"));
        let found = troubles(&seen, &testing::wanted("1Gi"));
        assert_eq!(found[0].reason, Reason::PodsStarting);
    }
}
