//! How many pods an administrator may evict at once.

use atoll_crds::names::{self, Component};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{component_labels, label_selector, owned_meta};
use crate::validate::Wanted;

/// The budget of a component, if it gets one: with a single copy, or a single member, a budget would only keep nodes
/// from being drained. `max_unavailable`: how many may be away now. A pod that doesn't work anyway may always be evicted.
pub fn budget(wanted: &Wanted, component: Component, max_unavailable: i32) -> Option<PodDisruptionBudget> {
    let one_may_be_away = match component {
        Component::Metadata => wanted.workload(component).replicas >= 3,
        Component::Storage => wanted.copies() >= 2,
    };
    one_may_be_away.then(|| PodDisruptionBudget {
        metadata: owned_meta(
            wanted,
            names::workload(&wanted.name, component),
            component_labels(wanted, component),
        ),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(max_unavailable)),
            selector: Some(label_selector(wanted, component)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
