//! Where the pods of a cluster run, and how.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, Toleration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of nodes by which copies can be kept apart: those that storage servers tell the metadata service.
pub const TOPOLOGY_KEYS: [&str; 2] = [HOSTNAME, ZONE];
/// Each node by itself.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The zone of a node.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// How copies are kept apart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// Label of nodes with the same value of which copies are not to be together: `kubernetes.io/hostname` or
    /// `topology.kubernetes.io/zone`.
    #[serde(default = "topology_key_default")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// What happens to a pod for which there is no such node. `DoNotSchedule`: it waits. `ScheduleAnyway`: it runs beside
    /// another copy, and the condition `PlacementDegraded` says so: the loss of one node may then be a loss of data.
    #[serde(default)]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

fn topology_key_default() -> String {
    HOSTNAME.to_owned()
}

impl Default for PlacementSpec {
    fn default() -> PlacementSpec {
        PlacementSpec {
            topology_key: topology_key_default(),
            when_unsatisfiable: WhenUnsatisfiable::default(),
        }
    }
}

impl PlacementSpec {
    /// Nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == PlacementSpec::default()
    }
}

/// What happens to a pod that can't be kept apart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhenUnsatisfiable {
    /// It waits for a node.
    #[default]
    DoNotSchedule,
    /// It runs on any node.
    ScheduleAnyway,
}

impl WhenUnsatisfiable {
    /// As in a pod.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
            WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
        }
    }
}

/// When kubelet pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImagePullPolicy {
    /// For every start.
    Always,
    /// If the node doesn't have the image.
    IfNotPresent,
    /// Never.
    Never,
}

impl ImagePullPolicy {
    /// As in a pod.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ImagePullPolicy::Always => "Always",
            ImagePullPolicy::IfNotPresent => "IfNotPresent",
            ImagePullPolicy::Never => "Never",
        }
    }
}

/// What the pods of a component have besides what the operator gives them. A field that isn't set is that of the operator's
/// configuration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodOptions {
    /// Labels that a node needs. Nodes of another operating system than Linux are never used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Rules for nodes and for pods beside it, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints of nodes that are tolerated, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass. Default: `atoll-servers`, which the operator creates; an empty text: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// ServiceAccount. The pods get no token of it. Default: that of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets in this namespace with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// When kubelet pulls the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Labels of the pods. Those of the operator can't be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods. Those of the operator can't be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl PodOptions {
    /// What is said here, and for what isn't, what `defaults` say. Maps are joined; of the same key, what is said here counts.
    #[must_use]
    pub fn over(&self, defaults: &PodOptions) -> PodOptions {
        fn list<T: Clone>(own: &[T], defaults: &[T]) -> Vec<T> {
            if own.is_empty() { defaults.to_vec() } else { own.to_vec() }
        }
        let map = |own: &BTreeMap<String, String>, defaults: &BTreeMap<String, String>| {
            let mut found = defaults.clone();
            found.extend(own.clone());
            found
        };
        PodOptions {
            node_selector: map(&self.node_selector, &defaults.node_selector),
            affinity: self.affinity.clone().or_else(|| defaults.affinity.clone()),
            tolerations: list(&self.tolerations, &defaults.tolerations),
            priority_class_name: self
                .priority_class_name
                .clone()
                .or_else(|| defaults.priority_class_name.clone()),
            service_account_name: self
                .service_account_name
                .clone()
                .or_else(|| defaults.service_account_name.clone()),
            image_pull_secrets: list(&self.image_pull_secrets, &defaults.image_pull_secrets),
            image_pull_policy: self.image_pull_policy.or(defaults.image_pull_policy),
            labels: map(&self.labels, &defaults.labels),
            annotations: map(&self.annotations, &defaults.annotations),
        }
    }

    /// Nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == PodOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spec_does_not_say_is_as_the_defaults_have_it() {
        let pairs = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let secret = |name: &str| LocalObjectReference { name: name.into() };
        let defaults = PodOptions {
            node_selector: pairs(&[("disk", "hdd"), ("pool", "storage")]),
            image_pull_secrets: vec![secret("registry")],
            image_pull_policy: Some(ImagePullPolicy::Always),
            service_account_name: Some("servers".into()),
            ..PodOptions::default()
        };
        let own = PodOptions {
            node_selector: pairs(&[("disk", "ssd")]),
            image_pull_secrets: vec![secret("own")],
            ..PodOptions::default()
        };
        let both = own.over(&defaults);
        assert_eq!(both.node_selector, pairs(&[("disk", "ssd"), ("pool", "storage")]));
        assert_eq!(both.image_pull_secrets, [secret("own")]);
        assert_eq!(both.image_pull_policy, Some(ImagePullPolicy::Always));
        assert_eq!(both.service_account_name.as_deref(), Some("servers"));
        assert_eq!(PodOptions::default().over(&defaults), defaults);
        assert!(PodOptions::default().is_default() && !own.is_default());
    }
}
