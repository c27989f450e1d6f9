//! What `kubectl atoll why` has read: a pod, its claims, their clusters, and what all volumes need. What couldn't be read is
//! missing, so that a user with few rights gets an answer from the rest.

use atoll_crds::names::{Component, DRIVER_NAME, VolumeHandle, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ContainerStatus, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

/// Everything that was read.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The pod that was asked about, or one that uses the claim that was.
    pub pod: Option<PodFacts>,
    /// The claims of the pod, or the one that was asked about.
    pub claims: Vec<ClaimFacts>,
    /// The clusters of the claims, or the one that was asked about.
    pub clusters: Vec<ClusterFacts>,
    /// What all volumes need.
    pub system: SystemFacts,
    /// What couldn't be read, in sentences.
    pub unread: Vec<String>,
}

/// A pod of a user.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// The pod.
    pub pod: Pod,
    /// Its Events.
    pub events: Vec<Event>,
}

/// A claim.
#[derive(Clone, Debug, Default)]
pub struct ClaimFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The claim; `None`: it doesn't exist.
    pub claim: Option<PersistentVolumeClaim>,
    /// Its Events.
    pub events: Vec<Event>,
    /// The PersistentVolume, if it names one that exists.
    pub volume: Option<PersistentVolume>,
    /// The cluster that was found for it: namespace and name.
    pub cluster: Option<(String, String)>,
}

/// A cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The resource; `None`: it doesn't exist.
    pub cluster: Option<FileSystemCluster>,
    /// Its StatefulSets.
    pub sets: Vec<StatefulSet>,
    /// Its servers' pods.
    pub pods: Vec<Pod>,
    /// Its servers' disks.
    pub disks: Vec<PersistentVolumeClaim>,
    /// The Events of all of these.
    pub events: Vec<Event>,
    /// Disks of a cluster of this name that are kept.
    pub kept_disks: usize,
}

/// What all volumes need.
#[derive(Clone, Debug, Default)]
pub struct SystemFacts {
    /// The pods of the operator and the driver; `None`: they may not be read.
    pub pods: Option<Vec<Pod>>,
    /// The CSIDriver exists; `None`: unknown.
    pub driver: Option<bool>,
    /// All StorageClasses; `None`: they may not be read.
    pub classes: Option<Vec<StorageClass>>,
    /// Nodes, as far as they may be read.
    pub nodes: Vec<Node>,
}

impl SystemFacts {
    /// Whether a pod of this component is ready, on this node if one is named; `None`: unknown.
    pub fn is_ready(&self, component: &str, node: Option<&str>) -> Option<bool> {
        Some(self.of(component, node)?.any(is_ready))
    }

    /// Whether there is a pod of this component, on this node if one is named; `None`: unknown.
    pub fn is_there(&self, component: &str, node: Option<&str>) -> Option<bool> {
        Some(self.of(component, node)?.next().is_some())
    }

    fn of<'a>(&'a self, component: &str, node: Option<&str>) -> Option<impl Iterator<Item = &'a Pod>> {
        let pods = self.pods.as_ref()?;
        Some(pods.iter().filter(move |pod| {
            pod.labels().get(labels::COMPONENT).map(String::as_str) == Some(component)
                && node.is_none_or(|node| node_of(pod) == Some(node))
        }))
    }

    /// Why a node takes no part, if it doesn't.
    pub fn ailing_node(&self, name: &str) -> Option<String> {
        let node = self.nodes.iter().find(|node| node.name_any() == name)?;
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
        (ready.status != "True").then(|| {
            let said = ready.message.as_deref().unwrap_or("its kubelet has stopped reporting");
            format!("node {name} is not ready: {said}")
        })
    }

    /// A StorageClass by name; the inner `None`: there is none of that name.
    pub fn class(&self, name: &str) -> Option<Option<&StorageClass>> {
        Some(self.classes.as_ref()?.iter().find(|class| class.name_any() == name))
    }

    /// Whether one of the classes is the default.
    pub fn has_default_class(&self) -> Option<bool> {
        let is_default = |class: &StorageClass| {
            class.annotations().get("storageclass.kubernetes.io/is-default-class").map(String::as_str)
                == Some("true")
        };
        Some(self.classes.as_ref()?.iter().any(is_default))
    }

    /// The names of the classes whose provisioner is Atoll.
    pub fn ours(&self) -> String {
        let classes = self.classes.iter().flatten().filter(|class| class.provisioner == DRIVER_NAME);
        let names: Vec<String> = classes.map(ResourceExt::name_any).collect();
        if names.is_empty() { "none exists".to_owned() } else { names.join(", ") }
    }
}

impl ClaimFacts {
    /// Names it in messages.
    pub fn words(&self) -> String {
        format!("PersistentVolumeClaim {}/{}", self.namespace, self.name)
    }

    /// The phase; empty if it doesn't exist.
    pub fn phase(&self) -> &str {
        let status = self.claim.as_ref().and_then(|claim| claim.status.as_ref());
        status.and_then(|status| status.phase.as_deref()).unwrap_or("")
    }

    /// The class that it names.
    pub fn class_name(&self) -> Option<&str> {
        self.claim.as_ref()?.spec.as_ref()?.storage_class_name.as_deref()
    }

    /// The volume handle, if its volume is one of ours.
    pub fn handle(&self) -> Option<VolumeHandle> {
        let source = self.volume.as_ref()?.spec.as_ref()?.csi.as_ref()?;
        if source.driver == DRIVER_NAME { source.volume_handle.parse().ok() } else { None }
    }

    /// Who provisions its volume, if it isn't Atoll.
    pub fn stranger(&self, system: &SystemFacts) -> Option<String> {
        if let Some(spec) = self.volume.as_ref().and_then(|volume| volume.spec.as_ref()) {
            let driver = spec.csi.as_ref().map_or("not a CSI driver", |csi| csi.driver.as_str());
            return (driver != DRIVER_NAME).then(|| driver.to_owned());
        }
        let class = system.class(self.class_name()?)??;
        (class.provisioner != DRIVER_NAME).then(|| class.provisioner.clone())
    }
}

impl ClusterFacts {
    /// Names it in messages.
    pub fn words(&self) -> String {
        format!("FileSystemCluster {}/{}", self.namespace, self.name)
    }

    /// The pods of a component.
    pub fn pods_of(&self, component: Component) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| {
            pod.labels().get(labels::COMPONENT).map(String::as_str) == Some(component.as_str())
        })
    }
}

/// The latest message of an object's Events with this reason.
pub fn said(events: &[Event], kind: &str, name: &str, reason: &str) -> Option<String> {
    let of_object = events.iter().filter(|event| {
        event.involved_object.kind.as_deref() == Some(kind)
            && event.involved_object.name.as_deref() == Some(name)
            && event.reason.as_deref() == Some(reason)
    });
    of_object.max_by_key(|event| when(event)).and_then(|event| event.message.clone())
}

/// When an Event was last seen: seconds since 1970.
pub fn when(event: &Event) -> i64 {
    let series =
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = series.or_else(|| event.last_timestamp.as_ref().map(|time| time.0));
    let first = last.or_else(|| event.event_time.as_ref().map(|time| time.0));
    let created = first.or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0));
    created.map_or(0, |time| time.as_second())
}

/// Its containers serve.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|(status, _)| status == "True")
}

/// A condition of a pod: status and message.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((&found.status, found.message.as_deref().unwrap_or("")))
}

/// The node of a pod.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// The containers of a pod, those that run first included.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    let then = status.and_then(|status| status.container_statuses.as_ref());
    first.into_iter().chain(then).flatten()
}

/// The names of the claims that a pod uses, those of its ephemeral volumes included.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let mut names: Vec<String> = volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some(source.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
            (None, None) => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}
