//! What is: everything that a decision may depend on, as plain values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::ClusterId;
use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use atoll_proto::admin::MemberIdentity;
use atoll_proto::metadata::{ClusterStatus, MemberStatus};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::nodes::Nodes;
use crate::policy::Offer;
use crate::validate::target_version;

/// Who was silent for so long (ms) may be somebody else by now.
const SILENT_MS: u64 = 5_000;

/// One cluster and everything around it, as it was seen.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The resource.
    pub cluster: Arc<FileSystemCluster>,
    /// The StatefulSets of the derived names, whoever owns them.
    pub statefulsets: BTreeMap<Component, StatefulSet>,
    /// The Services of the derived names, whoever owns them.
    pub services: BTreeMap<Component, Service>,
    /// The PodDisruptionBudgets of the derived names, whoever owns them.
    pub budgets: BTreeMap<Component, PodDisruptionBudget>,
    /// The Secret with the key, whoever made it.
    pub secret: Option<Secret>,
    /// What the Secret was when this operator read it earlier, if it isn't there any more.
    pub secret_before: Option<Secret>,
    /// Namespaces in which disks of a volume of this name were kept, as long as this one has no id.
    pub elsewhere: Vec<String>,
    /// PVCs by name: those that carry the cluster's label, and those of the names that its pods will use.
    pub pvcs: BTreeMap<String, PersistentVolumeClaim>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// Why a PVC waits, as its provisioner says, by name.
    pub pvc_warnings: BTreeMap<String, String>,
    /// Why a component's missing pods aren't created, as the StatefulSet controller says: quota, Pod Security, limits.
    pub pod_refusals: BTreeMap<Component, String>,
    /// Objects that an admission webhook has changed as they were applied, with what they were then
    /// ([`fingerprint`](crate::build::compare::fingerprint)), by [`Owned::brief`](crate::plan::Owned::brief). To apply them again
    /// would change nothing.
    pub contested: BTreeMap<String, u64>,
    /// PersistentVolumes that name this cluster, each with its claim.
    pub volumes: Vec<String>,
    /// Nodes that pods may run on, those that are away for a while included.
    pub nodes_usable: usize,
    /// Where the cluster's disks are and its pods run.
    pub nodes: Nodes,
    /// StorageClasses.
    pub classes: Vec<ClassFact>,
    /// What the metadata service says.
    pub metadata: MetadataFact,
    /// Metadata servers by their pods' ordinals, as they say themselves: those at whose address the group has nobody, or
    /// somebody else.
    pub joiners: BTreeMap<u32, MemberIdentity>,
    /// Objects of the cluster that can't be read, each with why: as good as absent, though they are there.
    pub unreadable: Vec<String>,
    /// For how long its leader has said nothing, as far as this operator has asked; `None`: it spoke the last time, or nobody
    /// was asked.
    pub leaderless_for: Option<Duration>,
    /// Which versions the pods may run.
    pub upgrade: UpgradeFact,
    /// For how long this operator has seen a confirmation of a deletion.
    pub confirmed_for: Option<Duration>,
    /// The namespace is being deleted.
    pub namespace_terminating: bool,
    /// The definition of the custom resource is being deleted.
    pub crd_terminating: bool,
}

/// A StorageClass, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassFact {
    /// Its name.
    pub name: String,
    /// Who makes its volumes.
    pub provisioner: String,
    /// It is taken when none is named.
    pub is_default: bool,
    /// Its volumes can be expanded.
    pub expandable: bool,
}

/// Which versions the pods may run, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpgradeFact {
    /// The versions that the operator has images of.
    pub versions: Vec<String>,
    /// What its policy has for the cluster, if the spec names no version.
    pub offer: Offer,
    /// The highest feature level that it knows.
    pub feature_level: u32,
}

/// What the metadata service says.
#[derive(Clone, Debug, Default)]
pub enum MetadataFact {
    /// It wasn't asked: there is no pod with an address, or no key.
    #[default]
    NotAsked,
    /// It doesn't answer, or refuses.
    Unreachable(String),
    /// It answers.
    Answers(Box<ClusterStatus>),
}

/// Whose an object of a derived name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// This cluster's: its labels say so.
    Ours,
    /// It was ours and is being deleted, by somebody or with an earlier resource of the same name.
    Going,
    /// Somebody else's.
    Foreign(String),
}

impl Observed {
    /// The cluster's id, once the status has it.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster.cluster_id()?.parse().ok()
    }

    /// The status says that the volume was made.
    pub fn is_bootstrapped(&self) -> bool {
        self.cluster.status.as_ref().is_some_and(|status| status.bootstrapped)
    }

    /// What the metadata service says, if it answers.
    pub fn answer(&self) -> Option<&ClusterStatus> {
        match &self.metadata {
            MetadataFact::Answers(status) => Some(status),
            MetadataFact::NotAsked | MetadataFact::Unreachable(_) => None,
        }
    }

    /// The version that the pods are told to run, with the image that they have of it.
    pub fn running_image(&self) -> Option<(String, String)> {
        let target = target_version(&self.cluster)?;
        let template = &self.statefulsets.get(&Component::Metadata)?.spec.as_ref()?.template;
        let is_of = match annotation(template.metadata.as_ref()?, annotations::VERSION) {
            Some(version) => version == target,
            // Of an operator that didn't say so yet: it had the one version.
            None => self.cluster.status.as_ref()?.target_version.is_none(),
        };
        let image = template.spec.as_ref()?.containers.first()?.image.clone()?;
        is_of.then(|| (target.to_owned(), image))
    }

    /// Whose an object is.
    pub fn ownership(&self, object: &ObjectMeta) -> Ownership {
        let controller =
            object.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let label = |key: &str| object.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let is_ours = label(labels::MANAGED_BY) == Some(labels::MANAGED_BY_OPERATOR)
            && label(labels::CLUSTER) == Some(self.cluster.name_str());
        // Earlier releases made resources the owners of their objects.
        let is_owner = |owner: &&OwnerReference| {
            owner.kind == "FileSystemCluster" && owner.name == self.cluster.name_str()
        };
        match controller {
            Some(owner) if !is_owner(&owner) => Ownership::Foreign(format!("{} {}", owner.kind, owner.name)),
            Some(owner) if Some(&owner.uid) != self.cluster.metadata.uid.as_ref() => Ownership::Going,
            Some(_) | None if !is_ours => Ownership::Foreign("another owner".to_owned()),
            Some(_) | None if object.deletion_timestamp.is_some() => Ownership::Going,
            Some(_) | None => Ownership::Ours,
        }
    }

    /// The metadata servers' ordinals, as many as there shall be, with the addresses by which the group knows them.
    pub fn metadata_addresses(&self, replicas: u8) -> impl Iterator<Item = (u32, String)> {
        let address = |ordinal| {
            let (namespace, name) = (self.cluster.namespace_str(), self.cluster.name_str());
            names::pod_address(namespace, name, Component::Metadata, ordinal)
        };
        (0..u32::from(replicas)).map(move |ordinal| (ordinal, address(ordinal)))
    }

    /// The PVCs of a component that this cluster's label is on, or that its pods will use.
    pub fn pvcs_of(&self, component: Component) -> impl Iterator<Item = &PersistentVolumeClaim> {
        let prefix =
            format!("{}-{}-", names::DATA_VOLUME, names::workload(self.cluster.name_str(), component));
        self.pvcs.iter().filter(move |(name, _)| name.starts_with(&prefix)).map(|(_, pvc)| pvc)
    }

    /// The pods of a component.
    pub fn pods_of(&self, component: Component) -> impl Iterator<Item = &Pod> {
        let prefix = format!("{}-", names::workload(self.cluster.name_str(), component));
        self.pods.iter().filter(move |(name, _)| name.starts_with(&prefix)).map(|(_, pod)| pod)
    }
}

/// The leader has heard a member of its group a moment ago: it is the one that answers at its address.
pub fn is_heard(member: &MemberStatus) -> bool {
    member.silent_ms.is_some_and(|ms| ms < SILENT_MS)
}

/// A label's value.
pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// An annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A pod's containers are all ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True")
}

/// A pod's address on the network.
pub fn pod_ip(pod: &Pod) -> Option<&str> {
    let ip = pod.status.as_ref()?.pod_ip.as_deref()?;
    (!ip.is_empty() && pod.metadata.deletion_timestamp.is_none()).then_some(ip)
}
