//! Whether copies really are on different nodes. Pure.

use std::collections::BTreeMap;

use atoll_crds::names::Component;
use atoll_crds::v1alpha1::Reason;

use crate::observe::Observed;
use crate::validate::{Problem, Wanted};

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
    use atoll_crds::names;
    use k8s_openapi::api::core::v1::PodSpec;

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
}
