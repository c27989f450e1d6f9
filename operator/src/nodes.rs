//! On which nodes disks are and pods run, and what has become of these nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod,
};

use crate::disk::is_unbound;

/// The label of a node that disks of a node name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// The field of a node that disks of a node may name.
const NODE_NAME: &str = "metadata.name";
/// On a claim: the node that the scheduler chose for its disk.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The taint by which an administrator says that a node is down and doesn't come back as it was.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node has to be missing before it counts as gone: one that registers anew is missing for a moment.
pub const MISSING_MIN: Duration = Duration::from_secs(60);

/// What has become of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It is there and ready.
    Ready,
    /// It is there and not ready: it may come back at any moment.
    NotReady,
    /// An administrator says that it is down for good.
    OutOfService,
    /// There is no such Node, for so long, as far as this operator has seen.
    Missing(Duration),
}

impl NodeState {
    /// It doesn't come back, and neither do the disks that are on it alone.
    pub fn is_gone(self) -> bool {
        match self {
            NodeState::OutOfService => true,
            NodeState::Missing(since) => since >= MISSING_MIN,
            NodeState::Ready | NodeState::NotReady => false,
        }
    }

    /// In words, after the node's name.
    pub fn words(self) -> &'static str {
        match self {
            NodeState::Ready => "is ready",
            NodeState::NotReady => "isn't ready",
            NodeState::OutOfService => "is out of service",
            NodeState::Missing(_) => "doesn't exist any more",
        }
    }
}

/// Where the disks of a cluster are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The nodes that a disk is on, by its PVC: it can be used nowhere else. A PVC whose disk is bound to no node isn't here.
    pub disks: BTreeMap<String, BTreeSet<String>>,
    /// The state of each node that a disk is on, or a pod runs on.
    pub states: BTreeMap<String, NodeState>,
}

impl Nodes {
    /// The node that a disk is on, if the disk is out of reach there; of several nodes one that may come back.
    pub fn away(&self, pvc: &str) -> Option<(&str, NodeState)> {
        let nodes = self.disks.get(pvc)?;
        let state = |node: &String| self.states.get(node).copied().unwrap_or(NodeState::Ready);
        let hope = |state: NodeState| match state {
            NodeState::Ready => 3,
            NodeState::NotReady => 2,
            NodeState::Missing(_) if !state.is_gone() => 1,
            NodeState::Missing(_) | NodeState::OutOfService => 0,
        };
        let best = nodes.iter().max_by_key(|node| hope(state(node)))?;
        Some((best.as_str(), state(best))).filter(|(_, state)| *state != NodeState::Ready)
    }

    /// The node that a pod runs on, and what has become of it.
    pub fn of_pod<'a>(&self, pod: &'a Pod) -> Option<(&'a str, NodeState)> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        Some((node, self.states.get(node).copied().unwrap_or(NodeState::Ready)))
    }
}

/// The nodes that a claim's disk is on; empty if it can be used from others as well. A zone is no node: its disks outlive it.
pub fn nodes_of(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> BTreeSet<String> {
    let annotations = claim.metadata.annotations.as_ref();
    let selected = annotations.and_then(|found| found.get(SELECTED_NODE));
    let Some(volume) = volume else {
        // It waits for a disk there.
        return selected.filter(|_| is_unbound(claim)).cloned().into_iter().collect();
    };
    let required = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let Some(required) = required else { return BTreeSet::new() };
    let mut nodes = BTreeSet::new();
    for term in &required.node_selector_terms {
        let named = named(term, selected);
        if named.is_empty() {
            return BTreeSet::new();
        }
        nodes.extend(named);
    }
    nodes
}

/// The nodes that one alternative of an affinity names. Drivers have labels of their own for what is a node; the node that was
/// selected when the disk was made tells them from zones.
fn named(term: &NodeSelectorTerm, selected: Option<&String>) -> BTreeSet<String> {
    let values = |of: &NodeSelectorRequirement| {
        let values = of.values.clone().filter(|_| of.operator == "In");
        values.unwrap_or_default()
    };
    let labels = term.match_expressions.iter().flatten().flat_map(|requirement| {
        let mut values = values(requirement);
        if requirement.key != HOSTNAME {
            values.retain(|value| Some(value) == selected);
        }
        values
    });
    let fields = term.match_fields.iter().flatten().filter(|found| found.key == NODE_NAME).flat_map(values);
    labels.chain(fields).collect()
}

/// A node goes by its name, and by the name of its machine.
pub fn is_called(node: &Node, name: &str) -> bool {
    node.metadata.name.as_deref() == Some(name)
        || node.metadata.labels.as_ref().and_then(|found| found.get(HOSTNAME)).is_some_and(|is| is == name)
}

/// What has become of a node that is there.
pub fn state_of(node: &Node) -> NodeState {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    if taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        return NodeState::OutOfService;
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.into_iter().find(|found| found.type_ == "Ready");
    if ready.is_some_and(|ready| ready.status != "True") { NodeState::NotReady } else { NodeState::Ready }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(selected: Option<&str>, phase: &str) -> PersistentVolumeClaim {
        let annotations = selected.map(|node| json!({ SELECTED_NODE: node })).unwrap_or_default();
        let object = json!({ "metadata": { "annotations": annotations }, "status": { "phase": phase } });
        serde_json::from_value(object).expect("a claim")
    }

    fn volume(terms: serde_json::Value) -> PersistentVolume {
        let affinity = json!({ "required": { "nodeSelectorTerms": terms } });
        serde_json::from_value(json!({ "spec": { "nodeAffinity": affinity } })).expect("a volume")
    }

    fn label(key: &str, value: &str) -> serde_json::Value {
        json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": [value] }] })
    }

    fn node(labels: serde_json::Value, taints: serde_json::Value, ready: &str) -> Node {
        let status = json!({ "conditions": [{ "type": "Ready", "status": ready }] });
        let metadata = json!({ "name": "one", "labels": labels });
        serde_json::from_value(
            json!({ "metadata": metadata, "spec": { "taints": taints }, "status": status }),
        )
        .expect("a node")
    }

    #[test]
    fn a_disk_is_on_a_node_only_if_its_volume_names_one() {
        let bound = claim(Some("one"), "Bound");
        let on = |claim: &PersistentVolumeClaim, terms: serde_json::Value| {
            nodes_of(claim, Some(&volume(terms))).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(on(&bound, json!([label("kubernetes.io/hostname", "two")])), ["two"]);
        let field =
            json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["x"] }] }]);
        assert_eq!(on(&bound, field), ["x"]);
        // A driver's own label for a node, and a zone.
        assert_eq!(on(&bound, json!([label("topology.disks.example/node", "one")])), ["one"]);
        assert_eq!(on(&bound, json!([label("topology.kubernetes.io/zone", "zone-1")])), Vec::<String>::new());
        let others = json!([{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["two"] }] }]);
        assert_eq!(on(&bound, others), Vec::<String>::new());
        // It can be used from a node, or from anywhere in a zone.
        let either = json!([label("kubernetes.io/hostname", "two"), label("zone", "zone-1")]);
        assert_eq!(on(&bound, either), Vec::<String>::new());
        assert!(nodes_of(&bound, Some(&PersistentVolume::default())).is_empty());
        // What waits for a disk on a node, and what has lost its volume's object.
        assert_eq!(nodes_of(&claim(Some("one"), "Pending"), None).len(), 1);
        assert!(nodes_of(&bound, None).is_empty());
    }

    #[test]
    fn a_node_is_gone_when_it_is_missing_for_long_or_an_administrator_says_so() {
        let out = json!([{ "key": OUT_OF_SERVICE, "effect": "NoExecute" }]);
        let unreachable = json!([{ "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" }]);
        assert_eq!(state_of(&node(json!({}), json!([]), "True")), NodeState::Ready);
        assert_eq!(state_of(&node(json!({}), unreachable, "Unknown")), NodeState::NotReady);
        assert_eq!(state_of(&node(json!({}), out, "Unknown")), NodeState::OutOfService);
        assert!(!NodeState::NotReady.is_gone());
        assert!(NodeState::OutOfService.is_gone());
        assert!(!NodeState::Missing(MISSING_MIN / 2).is_gone());
        assert!(NodeState::Missing(MISSING_MIN).is_gone());
        assert!(is_called(&node(json!({ HOSTNAME: "machine" }), json!([]), "True"), "machine"));
        assert!(is_called(&node(json!({}), json!([]), "True"), "one"));
        assert!(!is_called(&node(json!({}), json!([]), "True"), "two"));
    }

    #[test]
    fn of_several_nodes_the_one_counts_that_may_come_back() {
        let on = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<String>>();
        let mut found = Nodes::default();
        found.disks.insert("data".into(), on(&["a", "b"]));
        found.states.insert("a".into(), NodeState::OutOfService);
        found.states.insert("b".into(), NodeState::NotReady);
        assert_eq!(found.away("data"), Some(("b", NodeState::NotReady)));
        found.states.insert("b".into(), NodeState::Ready);
        assert_eq!(found.away("data"), None);
        assert_eq!(found.away("other"), None);
    }
}
