//! Whether copies really are on different nodes, and what waits since they have to be. Pure.

use std::collections::BTreeMap;

use atoll_crds::names::{self, Component};
use atoll_crds::v1alpha1::placement::HOSTNAME;
use atoll_crds::v1alpha1::{Reason, WhenUnsatisfiable};
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::observe::Observed;
use crate::validate::{Problem, Wanted};

/// With these words the scheduler says that no node is left on which a pod would be apart from the others.
const SCHEDULER_SAYS: &str = "topology spread constraints";

/// Pods that wait for a node since copies are on different nodes by rule, and what helps.
pub fn waiting(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    if wanted.placement.when_unsatisfiable == WhenUnsatisfiable::ScheduleAnyway {
        return None;
    }
    let mut waiting: Vec<&str> = Vec::new();
    let mut too_few = false;
    for component in Component::ALL {
        let lacks_nodes = seen.nodes_usable < wanted.domains(component);
        for pod in seen.pods_of(component).filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let (Some(name), Some(why)) = (pod.metadata.name.as_deref(), unplaced(pod)) else { continue };
            let says_so = why.message.as_deref().is_some_and(|message| message.contains(SCHEDULER_SAYS));
            // A disk that is on a node binds its pod to it, and more nodes are no help.
            if says_so || (lacks_nodes && !is_bound(seen, component, name)) {
                waiting.push(name);
                too_few |= lacks_nodes;
            }
        }
    }
    if waiting.is_empty() {
        return None;
    }
    let of = if wanted.placement.topology_key == HOSTNAME { "nodes" } else { "zones" };
    let pods = waiting.join(", ");
    let anyway =
        "set spec.placement.whenUnsatisfiable to ScheduleAnyway, so that pods run beside other copies";
    Some(if too_few {
        let message = format!(
            "copies are on different {of} by rule, and pods can run on {} nodes: {pods} wait for another one. Add a node, or \
             {anyway}",
            seen.nodes_usable
        );
        Problem::new(Reason::TooFewNodes, message)
    } else {
        let message = format!(
            "copies are on different {of} by rule, and no other one takes pods: {pods} wait. Bring the nodes back that are away \
             or cordoned, add one, or {anyway}"
        );
        Problem::new(Reason::NodeNotReady, message)
    })
}

/// The scheduler has found no node for the pod.
fn unplaced(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|found| {
        found.type_ == "PodScheduled"
            && found.status == "False"
            && found.reason.as_deref() == Some("Unschedulable")
    })
}

/// The disk of this pod can be used on certain nodes only.
fn is_bound(seen: &Observed, component: Component, pod: &str) -> bool {
    let prefix = format!("{}-", names::workload(seen.cluster.name_str(), component));
    let ordinal = pod.strip_prefix(&prefix).and_then(|text| text.parse().ok());
    let pvc = ordinal.map(|ordinal| names::pvc(seen.cluster.name_str(), component, ordinal));
    pvc.is_some_and(|pvc| seen.nodes.disks.get(&pvc).is_some_and(|nodes| !nodes.is_empty()))
}

/// What the loss of one node would take along, though there are copies.
pub fn degraded(seen: &Observed, wanted: &Wanted) -> Option<Problem> {
    let storage = by_node(seen, Component::Storage);
    let copies = wanted.copies();
    let placed: usize = storage.values().sum();
    if copies >= 2 && placed >= copies && storage.len() < copies {
        let message = format!(
            "{placed} storage pods are on {} nodes ({}), so copies of the same data are together on one: add nodes; pods move when \
             they are created again",
            storage.len(),
            named(&storage)
        );
        return Some(Problem::new(Reason::SharedNode, message));
    }
    let metadata = by_node(seen, Component::Metadata);
    let members = usize::from(wanted.workload(Component::Metadata).replicas);
    let fullest = metadata.values().max().copied().unwrap_or(0);
    if members >= 3 && fullest * 2 >= members {
        let message = format!(
            "{fullest} of {members} metadata pods are on one node ({}), and the volume can't be used without it: add nodes; pods \
             move when they are created again",
            named(&metadata)
        );
        return Some(Problem::new(Reason::SharedNode, message));
    }
    None
}

/// Pods of a component, by node.
fn by_node(seen: &Observed, component: Component) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for pod in seen.pods_of(component).filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            *found.entry(node).or_default() += 1;
        }
    }
    found
}

fn named(nodes: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = nodes.iter().map(|(node, pods)| format!("{node}: {pods}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    use super::*;
    use crate::testing;

    fn on(component: Component, nodes: &[&str]) -> Observed {
        let mut seen = testing::running();
        for (ordinal, node) in (0..).zip(nodes) {
            let pod = seen.pods.get_mut(&names::pod("db", component, ordinal)).expect("pod");
            pod.spec = Some(PodSpec { node_name: Some((*node).into()), ..PodSpec::default() });
        }
        seen
    }

    #[test]
    fn copies_that_share_a_node_are_named_with_it() {
        let of = |component, nodes: &[&str]| degraded(&on(component, nodes), &testing::wanted("1Gi"));
        assert_eq!(degraded(&testing::running(), &testing::wanted("1Gi")), None);
        assert_eq!(of(Component::Storage, &["a", "b", "c"]), None);
        let found = of(Component::Storage, &["a", "b", "a"]).expect("shared");
        assert!(found.message.contains("a: 2, b: 1"), "{}", found.message);
        assert_eq!(of(Component::Metadata, &["a", "b", "c"]), None);
        let found = of(Component::Metadata, &["a", "a", "c"]).expect("shared");
        assert!(found.message.contains("2 of 3 metadata pods"), "{}", found.message);
        // One that isn't placed yet is on no node.
        assert_eq!(of(Component::Storage, &["a", "a"]), None);
    }

    /// A pod for which the scheduler has found no node.
    fn unplaced(seen: &mut Observed, name: &str, message: &str) {
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.into()),
            ..PodCondition::default()
        };
        seen.pods.get_mut(name).expect("pod").status =
            Some(PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() });
    }

    #[test]
    fn a_pod_that_waits_for_a_node_of_its_own_says_so_and_what_helps() {
        let mut seen = testing::running();
        let wanted = testing::wanted("1Gi");
        assert_eq!(waiting(&seen, &wanted), None);
        seen.nodes_usable = 2;
        assert_eq!(waiting(&seen, &wanted), None, "all of them run");
        unplaced(&mut seen, "db-storage-1", "0/2 nodes are available");
        let found = waiting(&seen, &wanted).expect("waits");
        assert_eq!(found.reason, Reason::TooFewNodes);
        for part in ["db-storage-1 wait", "can run on 2 nodes", "Add a node", "ScheduleAnyway"] {
            assert!(found.message.contains(part), "{part}: {}", found.message);
        }
        // Its disk is on one of the nodes: another node doesn't help.
        seen.nodes.disks.insert("data-db-storage-1".into(), BTreeSet::from(["a".to_owned()]));
        assert_eq!(waiting(&seen, &wanted), None);
        let mut anyway = wanted.clone();
        anyway.placement.when_unsatisfiable = WhenUnsatisfiable::ScheduleAnyway;
        seen.nodes.disks.clear();
        assert_eq!(waiting(&seen, &anyway), None);

        // There are nodes enough, and one of them takes no pods at the moment.
        seen.nodes_usable = 3;
        assert_eq!(waiting(&seen, &wanted), None, "it waits for something else");
        let said = "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints.";
        unplaced(&mut seen, "db-storage-1", said);
        let found = waiting(&seen, &wanted).expect("waits");
        assert_eq!(found.reason, Reason::NodeNotReady);
        assert!(found.message.contains("cordoned"), "{}", found.message);
    }
}
