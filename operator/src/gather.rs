//! Looks: puts together what a decision needs, from the caches where they suffice and by asking where they don't.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_crds::names::{self, Component, labels};
use atoll_crds::v1alpha1::{Encryption, FileSystemCluster};
use atoll_proto::admin::MemberIdentity;
use atoll_proto::handshake::Encryption as WireEncryption;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Store;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::build::secret;
use crate::caches::cluster_of;
use crate::context::Context;
use crate::error::Error;
use crate::metadata::{self, Access};
use crate::observe::{ClassFact, MetadataFact, Observed, is_heard, is_ready, pod_ip};

/// The definition of the custom resource.
const DEFINITION: &str = "filesystemclusters.atoll.dev";
/// The annotation of the class that is taken when none is named.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Taints that come and go with a node's state: a node that has them will have pods again.
const PASSING_TAINTS: &str = "node.kubernetes.io/";

/// Looks at a cluster.
///
/// # Errors
/// If the API server can't be asked.
pub async fn observe(context: &Context, cluster: Arc<FileSystemCluster>) -> Result<Observed, Error> {
    let (namespace, name) = (cluster.namespace_str().to_owned(), cluster.name_str().to_owned());
    let caches = &context.caches;
    let mut seen = Observed {
        statefulsets: BTreeMap::new(),
        services: BTreeMap::new(),
        budgets: BTreeMap::new(),
        secret: read(context, &namespace, &cluster.client_secret_name()).await?,
        pvcs: labelled(&caches.pvcs, &namespace, &name),
        pods: labelled(&caches.pods, &namespace, &name),
        pvc_warnings: BTreeMap::new(),
        volumes: referring(&caches.volumes, &cluster),
        nodes_usable: caches.nodes.state().iter().filter(|node| is_usable(node)).count(),
        classes: caches.classes.state().iter().map(|class| class_fact(class)).collect(),
        metadata: MetadataFact::NotAsked,
        joiners: BTreeMap::new(),
        confirmed_for: confirmed_for(context, &cluster).await,
        namespace_terminating: false,
        crd_terminating: false,
        cluster,
    };
    for component in Component::ALL {
        let object = names::workload(&name, component);
        let key = (&namespace, object.as_str());
        seen.statefulsets
            .extend(find(context, &caches.statefulsets, key).await?.map(|found| (component, found)));
        seen.services.extend(find(context, &caches.services, key).await?.map(|found| (component, found)));
        if let Some(found) = cached(&caches.budgets, key) {
            seen.budgets.insert(component, found);
        }
    }
    unmarked_disks(context, &mut seen, &namespace, &name).await?;
    if seen.cluster.is_terminating() {
        (seen.namespace_terminating, seen.crd_terminating) = terminating(context, &namespace).await?;
    }
    if let Some(access) = access(&seen) {
        let addresses: Vec<String> = metadata_addresses(&seen).into_values().collect();
        seen.metadata = metadata::status(&access, &addresses).await;
        seen.joiners = joiners(&seen, &access).await;
    }
    warnings(context, &mut seen, &namespace).await;
    Ok(seen)
}

/// For how long the confirmation of a deletion has been there, as far as this operator has seen it.
async fn confirmed_for(context: &Context, cluster: &FileSystemCluster) -> Option<Duration> {
    let mut memory = context.memory.lock().await;
    let remembered = memory.entry(ObjectRef::from_obj(cluster)).or_default();
    let Some(_) = cluster.spec.deletion_confirmation else {
        remembered.confirmed = None;
        return None;
    };
    Some(remembered.confirmed.get_or_insert_with(Instant::now).elapsed())
}

/// How to speak to the cluster, if that is known.
pub fn access(seen: &Observed) -> Option<Access> {
    let credentials = secret::read(seen.secret.as_ref()?).ok()?;
    let cluster: ClusterId = seen.cluster_id()?;
    let encryption = match seen.cluster.spec.encryption {
        Encryption::Disabled => WireEncryption::Off,
        Encryption::Required => WireEncryption::Required,
    };
    (credentials.cluster == cluster).then_some(Access { cluster, key: credentials.key, encryption })
}

/// Where the metadata servers are, by their ordinals: their pods' own addresses, which need no DNS server that remembers old
/// ones. Who answers there has to prove that it knows the key.
pub fn metadata_addresses(seen: &Observed) -> BTreeMap<u32, String> {
    let port = Component::Metadata.port();
    let of = |ip: &str| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let ordinal = |pod: &Pod| pod.name_any().rsplit('-').next()?.parse::<u32>().ok();
    seen.pods_of(Component::Metadata).filter_map(|pod| Some((ordinal(pod)?, of(pod_ip(pod)?)))).collect()
}

/// Asks the metadata servers that the group doesn't know, or not as who they may be, who they are. A group that is as it shall
/// be costs no question.
async fn joiners(seen: &Observed, access: &Access) -> BTreeMap<u32, MemberIdentity> {
    let Some(answer) = seen.answer().filter(|answer| answer.is_leader) else { return BTreeMap::new() };
    let addresses = metadata_addresses(seen);
    let mut joiners = BTreeMap::new();
    for (ordinal, known_as) in seen.metadata_addresses(seen.cluster.spec.metadata_replicas()) {
        let member = answer.members.iter().find(|member| member.address == known_as);
        if member.is_some_and(is_heard) {
            continue;
        }
        // Its name is known to DNS servers by the time that its pod is ready.
        let pod = names::pod(seen.cluster.name_str(), Component::Metadata, ordinal);
        let Some(address) = addresses.get(&ordinal).filter(|_| seen.pods.get(&pod).is_some_and(is_ready))
        else {
            continue;
        };
        match metadata::who(access, address).await {
            Ok(who) if Some(who.member) != member.map(|member| member.member) => {
                if who.in_group {
                    let member = who.member;
                    tracing::warn!(
                        pod, %member,
                        "a metadata server that was removed from the group still runs: delete its PVC and \
                         its pod, so that it joins again as a new member"
                    );
                }
                joiners.insert(ordinal, who);
            }
            Ok(_) => {}
            Err(reason) => tracing::debug!(pod, reason, "a metadata server doesn't report its identity"),
        }
    }
    joiners
}

fn labelled<K>(store: &Store<K>, namespace: &str, cluster: &str) -> BTreeMap<String, K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .state_filter(|object: &K| {
            object.meta().namespace.as_deref() == Some(namespace)
                && object.labels().get(labels::CLUSTER).is_some_and(|found| found == cluster)
        })
        .iter()
        .map(|object| (object.name_any(), K::clone(object)))
        .collect()
}

fn cached<K>(store: &Store<K>, (namespace, name): (&String, &str)) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace)).map(|found| K::clone(&found))
}

/// From the cache, or, since the cache only has objects with our label, from the API server.
async fn find<K>(context: &Context, store: &Store<K>, key: (&String, &str)) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + 'static,
{
    match cached(store, key) {
        Some(found) => Ok(Some(found)),
        None => read(context, key.0, key.1).await,
    }
}

async fn read<K>(context: &Context, namespace: &str, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + 'static,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    api.get_opt(name).await.map_err(Error::api(format!("read the {} {name}", K::kind(&()))))
}

/// PersistentVolumes that name the cluster: `name (claim)`.
fn referring(store: &Store<PersistentVolume>, cluster: &FileSystemCluster) -> Vec<String> {
    let wake = ObjectRef::from_obj(cluster);
    let mut found: Vec<String> = store
        .state_filter(|volume| {
            cluster_of(volume).is_some_and(|of| of.name == wake.name && of.namespace == wake.namespace)
        })
        .iter()
        .map(|volume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let claim =
                claim.map(|claim| format!(" of claim {}/{}", part(&claim.namespace), part(&claim.name)));
            format!("{}{}", volume.name_any(), claim.unwrap_or_default())
        })
        .collect();
    found.sort();
    found
}

/// Before a StatefulSet is made: PVCs that its pods would use, whoever made them.
async fn unmarked_disks(
    context: &Context,
    seen: &mut Observed,
    namespace: &str,
    name: &str,
) -> Result<(), Error> {
    let spec = &seen.cluster.spec;
    let counts =
        [(Component::Metadata, spec.metadata_replicas()), (Component::Storage, spec.storage_replicas())];
    for (component, count) in counts {
        if seen.statefulsets.contains_key(&component) || seen.cluster.is_terminating() {
            continue;
        }
        for ordinal in 0..u32::from(count) {
            let pvc = names::pvc(name, component, ordinal);
            if !seen.pvcs.contains_key(&pvc)
                && let Some(found) = read::<PersistentVolumeClaim>(context, namespace, &pvc).await?
            {
                seen.pvcs.insert(pvc, found);
            }
        }
    }
    Ok(())
}

async fn terminating(context: &Context, namespace: &str) -> Result<(bool, bool), Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = namespaces.get_opt(namespace).await.map_err(Error::api("read the namespace"))?;
    let definitions: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    let definition =
        definitions.get_opt(DEFINITION).await.map_err(Error::api("read the CustomResourceDefinition"))?;
    let going =
        |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| meta.deletion_timestamp.is_some();
    Ok((
        found.is_none_or(|found| going(&found.metadata)),
        definition.is_none_or(|found| going(&found.metadata)),
    ))
}

/// What provisioners say of disks that wait. Without it the status only knows that they wait.
async fn warnings(context: &Context, seen: &mut Observed, namespace: &str) {
    let waiting: Vec<(String, String)> = seen
        .pvcs
        .values()
        .filter(|pvc| pvc.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending"))
        .filter_map(|pvc| Some((pvc.name_any(), pvc.uid()?)))
        .collect();
    for (name, uid) in waiting {
        let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
        let of_pvc = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        match events.list(&of_pvc).await {
            Ok(found) => {
                let last = found.items.into_iter().max_by_key(|event| {
                    event.last_timestamp.as_ref().or(event.first_timestamp.as_ref()).map(|time| time.0)
                });
                seen.pvc_warnings.extend(last.and_then(|event| event.message).map(|message| (name, message)));
            }
            Err(error) => tracing::debug!(%error, pvc = name, "can't read the events of a PVC"),
        }
    }
}

/// Pods may run on it, now or when it is back.
fn is_usable(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    node.metadata.deletion_timestamp.is_none()
        && !taints
            .into_iter()
            .flatten()
            .any(|taint| taint.effect != "PreferNoSchedule" && !taint.key.starts_with(PASSING_TAINTS))
}

fn class_fact(class: &StorageClass) -> ClassFact {
    ClassFact {
        name: class.name_any(),
        provisioner: class.provisioner.clone(),
        is_default: class.annotations().get(DEFAULT_CLASS).is_some_and(|value| value == "true"),
        expandable: class.allow_volume_expansion == Some(true),
    }
}

/// A pod as it is now, not as it was when the cache heard of it last.
///
/// # Errors
/// If the API server can't be asked.
pub async fn pod_now(context: &Context, namespace: &str, name: &str) -> Result<Option<Pod>, Error> {
    read(context, namespace, name).await
}

/// A Secret as it is now.
///
/// # Errors
/// If the API server can't be asked.
pub async fn secret_now(context: &Context, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    read(context, namespace, name).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};

    use super::*;

    #[test]
    fn a_node_counts_unless_pods_are_kept_off_it_for_good() {
        let node = |taints: &[(&str, &str)]| {
            let taint = |(key, effect): &(&str, &str)| Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                ..Taint::default()
            };
            let taints = Some(taints.iter().map(taint).collect());
            Node { spec: Some(NodeSpec { taints, ..NodeSpec::default() }), ..Node::default() }
        };
        assert!(is_usable(&Node::default()));
        assert!(is_usable(&node(&[("node.kubernetes.io/unreachable", "NoExecute")])));
        assert!(is_usable(&node(&[("anything", "PreferNoSchedule")])));
        assert!(!is_usable(&node(&[("node-role.kubernetes.io/control-plane", "NoSchedule")])));
        assert!(!is_usable(&node(&[("gpu", "NoExecute")])));
    }
}
