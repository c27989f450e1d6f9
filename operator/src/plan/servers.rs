//! Which server is behind which pod, and what the leader knows of it.

use atoll_core::ids::ServerId;
use atoll_crds::names::{self, Component};
use atoll_proto::metadata::{ClusterStatus, MemberStatus, ServerStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use crate::disk;
use crate::observe::{Observed, is_ready};
use crate::validate::Wanted;

/// The leader's answer, if it is of this cluster: nobody else knows storage servers.
pub fn ours(seen: &Observed) -> Option<&ClusterStatus> {
    let of = seen.cluster_id();
    seen.answer().filter(|answer| answer.is_leader && answer.cluster.is_some() && answer.cluster == of)
}

/// The place of one server: its pod and its disk have names, and it an address, whoever is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Of which kind.
    pub component: Component,
    /// Its pod's number.
    pub ordinal: u32,
}

impl Place {
    /// All places of a kind up to a number.
    pub fn all(component: Component, count: u32) -> impl Iterator<Item = Place> {
        (0..count).map(move |ordinal| Place { component, ordinal })
    }

    /// The name of its pod.
    pub fn pod_name(self, seen: &Observed) -> String {
        names::pod(seen.cluster.name_str(), self.component, self.ordinal)
    }

    /// The name of its disk.
    pub fn pvc_name(self, seen: &Observed) -> String {
        names::pvc(seen.cluster.name_str(), self.component, self.ordinal)
    }

    /// The address by which the others know it.
    pub fn address(self, seen: &Observed) -> String {
        let (namespace, name) = (seen.cluster.namespace_str(), seen.cluster.name_str());
        names::pod_address(namespace, name, self.component, self.ordinal)
    }

    /// Its pod.
    pub fn pod(self, seen: &Observed) -> Option<&Pod> {
        seen.pods.get(&self.pod_name(seen))
    }

    /// Its disk's claim.
    pub fn pvc(self, seen: &Observed) -> Option<&PersistentVolumeClaim> {
        seen.pvcs.get(&self.pvc_name(seen))
    }

    /// Its pod is ready.
    pub fn is_ready(self, seen: &Observed) -> bool {
        self.pod(seen).is_some_and(is_ready)
    }

    /// The storage servers that have registered from here: one for each disk that there was and that isn't forgotten.
    pub fn storage_servers<'a>(self, seen: &Observed, answer: &'a ClusterStatus) -> Vec<&'a ServerStatus> {
        let address = self.address(seen);
        answer.servers.iter().filter(|server| server.address == address).collect()
    }

    /// The member of the group that is here.
    pub fn member<'a>(self, seen: &Observed, answer: &'a ClusterStatus) -> Option<&'a MemberStatus> {
        let address = self.address(seen);
        answer.members.iter().find(|member| member.address == address)
    }
}

/// Chunks that name a storage server; `None` if the leader is too old to say so.
pub fn chunks_naming(answer: &ClusterStatus, server: ServerId) -> Option<u64> {
    let known = !answer.chunks_by_replicas.is_empty();
    let named = answer.chunks_naming.iter().find(|(of, _)| *of == server).map_or(0, |(_, chunks)| *chunks);
    known.then_some(named)
}

/// Chunks with fewer replicas than this on servers that are there and stay; `None` if the leader is too old to say so.
pub fn chunks_below(answer: &ClusterStatus, replicas: usize) -> Option<u64> {
    let by = &answer.chunks_by_replicas;
    (!by.is_empty()).then(|| by.iter().take(replicas).sum())
}

/// Storage servers that are there and stay.
pub fn staying(answer: &ClusterStatus) -> impl Iterator<Item = &ServerStatus> {
    answer.servers.iter().filter(|server| server.alive && !server.draining)
}

/// One more than the highest place that has a pod, a disk, or somebody whom the leader knows.
pub fn there(seen: &Observed, component: Component) -> u32 {
    let bound = seen.pvcs_of(component).filter(|pvc| !disk::is_unbound(pvc)).map(ResourceExt::name_any);
    let pods = seen.pods_of(component).map(ResourceExt::name_any);
    let known = ours(seen).into_iter().flat_map(|answer| {
        let storage = answer.servers.iter().map(|server| server.address.clone());
        let metadata = answer.members.iter().map(|member| member.address.clone());
        storage.chain(metadata)
    });
    // Of an address the pod's name is the first part; of another cluster's server nothing is.
    let prefix = format!("{}-", names::workload(seen.cluster.name_str(), component));
    let of = |name: String| {
        let pod = name.split('.').next().unwrap_or_default();
        let pod = pod.strip_prefix(names::DATA_VOLUME).and_then(|rest| rest.strip_prefix('-')).unwrap_or(pod);
        pod.strip_prefix(&prefix)?.parse::<u32>().ok()
    };
    bound.chain(pods).chain(known).filter_map(of).max().map_or(0, |ordinal| ordinal.saturating_add(1))
}

/// How many pods the StatefulSet has been asked for.
pub fn replicas_now(seen: &Observed, component: Component) -> Option<u32> {
    let replicas = seen.statefulsets.get(&component)?.spec.as_ref()?.replicas?;
    u32::try_from(replicas).ok()
}

/// How many servers of a kind there shall be in the end.
pub fn asked(wanted: &Wanted, component: Component) -> u32 {
    wanted.workload(component).replicas_asked.into()
}
