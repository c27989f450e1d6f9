//! The objects of a cluster as they shall be. Pure: one kind of object a module.

pub mod budget;
pub mod compare;
pub mod prerequisites;
pub mod secret;
pub mod service;
pub mod statefulset;

use std::collections::BTreeMap;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{Component, annotations, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::validate::Wanted;

/// What every object of the cluster carries.
pub fn labels_of(wanted: &Wanted) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::NAME.to_owned(), labels::NAME_VALUE.to_owned()),
        (labels::INSTANCE.to_owned(), wanted.name.clone()),
        (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_OPERATOR.to_owned()),
        (labels::CLUSTER.to_owned(), wanted.name.clone()),
    ])
}

/// The labels of a component's objects.
pub fn component_labels(wanted: &Wanted, component: Component) -> BTreeMap<String, String> {
    let mut found = labels_of(wanted);
    found.insert(labels::COMPONENT.to_owned(), component.as_str().to_owned());
    found
}

/// The labels of a component's PVCs: the cluster's id as well, so that they are never taken for another's.
pub fn disk_labels(wanted: &Wanted, component: Component, id: ClusterId) -> BTreeMap<String, String> {
    let mut found = component_labels(wanted, component);
    found.insert(labels::CLUSTER_ID.to_owned(), id.to_string());
    found
}

/// What tells later that an object was created for this very resource, and not for an earlier one of its name.
pub fn created_for(wanted: &Wanted) -> BTreeMap<String, String> {
    BTreeMap::from([(annotations::CREATED_FOR.to_owned(), wanted.uid.clone())])
}

/// What selects a component's pods; it can never be changed.
pub fn selector(wanted: &Wanted, component: Component) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::CLUSTER.to_owned(), wanted.name.clone()),
        (labels::COMPONENT.to_owned(), component.as_str().to_owned()),
    ])
}

/// [`selector`] as an object has it.
pub fn label_selector(wanted: &Wanted, component: Component) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(wanted, component)), ..LabelSelector::default() }
}

/// Metadata of an object that goes with the resource. Its labels say so, and no owner reference does: garbage collection deletes
/// what has an owner as soon as that is being deleted in the foreground, before the operator has decided anything.
pub fn owned_meta(wanted: &Wanted, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(wanted.namespace.clone()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
