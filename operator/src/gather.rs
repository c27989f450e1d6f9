//! Looks: puts together what a decision needs, from the caches where they suffice and by asking where they don't.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_crds::names::{self, Component, labels};
use atoll_crds::v1alpha1::{ConditionType, Encryption, FileSystemCluster};
use atoll_proto::admin::MemberIdentity;
use atoll_proto::handshake::Encryption as WireEncryption;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Store;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::build::secret;
use crate::caches::{Caches, cluster_of};
use crate::config::VERSION;
use crate::context::{Context, Memory, Warnings};
use crate::error::{Error, call};
use crate::metadata::{self, Access};
use crate::nodes::{NodeState, Nodes, is_called, nodes_of, state_of};
use crate::observe::{ClassFact, MetadataFact, Observed, UpgradeFact, is_heard, is_ready, pod_ip};
use crate::policy::{Member, Offer, offer};
use crate::unreadable::Fault;
use crate::validate::target_version;

/// The definition of the custom resource.
const DEFINITION: &str = "filesystemclusters.atoll.dev";
/// The annotation of the class that is taken when none is named.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Taints that come and go with a node's state: a node that has them will have pods again.
const PASSING_TAINTS: &str = "node.kubernetes.io/";
/// The reason with which the StatefulSet controller says that the API server refuses a pod or its PVC.
const POD_REFUSED: &str = "FailedCreate";
/// How often the Events of a cluster's objects are read while something waits.
const WARNINGS_PERIOD: Duration = Duration::from_secs(5);
/// PVCs whose Events are read: one says what keeps them all.
const WARNED_MAX: usize = 3;
/// How long what a webhook has changed isn't applied again.
const CONTESTED_LIFETIME: Duration = Duration::from_secs(3600);
/// How long a cluster that was offered a version counts as one that is being upgraded, whatever the cache shows.
const OFFERED_LIFETIME: Duration = Duration::from_secs(30);
/// Servers that take this long to say nothing are waited for apart from others. Who refuses at once costs nobody anything.
const SILENT_MIN: Duration = Duration::from_secs(1);

/// Looks at a cluster as the API server knows it. What its own servers say is asked afterwards ([`ask`]).
///
/// # Errors
/// If the API server can't be asked.
pub async fn observe(context: &Context, cluster: Arc<FileSystemCluster>) -> Result<Observed, Error> {
    let (namespace, name) = (cluster.namespace_str().to_owned(), cluster.name_str().to_owned());
    let caches = &context.caches;
    let of_watches = caches.unreadable.of(&ObjectRef::from_obj(&*cluster));
    let mut unreadable: Vec<String> = of_watches.iter().map(Fault::to_string).collect();
    let known = remembered(context, &cluster).await;
    let secret = match known.at_rest {
        Some(known) => Some(known),
        None => read_or_name(context, (&namespace, &cluster.client_secret_name()), &mut unreadable).await?,
    };
    let mut seen = Observed {
        statefulsets: BTreeMap::new(),
        services: BTreeMap::new(),
        budgets: BTreeMap::new(),
        secret_before: known.secret.filter(|_| secret.is_none()),
        secret,
        elsewhere: elsewhere(caches, &cluster),
        pvcs: labelled(&caches.pvcs, &namespace, &name),
        pods: labelled(&caches.pods, &namespace, &name),
        pvc_warnings: BTreeMap::new(),
        pod_refusals: BTreeMap::new(),
        contested: known.contested,
        volumes: referring(caches, &cluster),
        nodes: Nodes::default(),
        nodes_usable: caches.nodes.state().iter().filter(|node| is_usable(node)).count(),
        classes: caches.classes.state().iter().map(|class| class_fact(class)).collect(),
        metadata: MetadataFact::NotAsked,
        joiners: BTreeMap::new(),
        unreadable,
        leaderless_for: None,
        upgrade: upgrade(context, &cluster).await,
        confirmed_for: confirmed_for(context, &cluster).await,
        namespace_terminating: false,
        crd_terminating: false,
        cluster,
    };
    for component in Component::ALL {
        let object = names::workload(&name, component);
        let key = (&namespace, object.as_str());
        let found = find(context, &caches.statefulsets, key, &mut seen.unreadable).await?;
        seen.statefulsets.extend(found.map(|found| (component, found)));
        let found = find(context, &caches.services, key, &mut seen.unreadable).await?;
        seen.services.extend(found.map(|found| (component, found)));
        if let Some(found) = cached(&caches.budgets, key) {
            seen.budgets.insert(component, found);
        }
    }
    unmarked_disks(context, &mut seen, &namespace, &name).await?;
    nodes(context, &mut seen).await;
    if seen.cluster.is_terminating() {
        (seen.namespace_terminating, seen.crd_terminating) = terminating(context, &namespace).await?;
    }
    warnings(context, &mut seen, &namespace).await;
    Ok(seen)
}

/// Asks the cluster's own servers how it is. It may take seconds, of this cluster alone.
pub async fn ask(context: &Context, seen: &mut Observed) {
    let Some(access) = access(seen) else { return };
    let key = ObjectRef::from_obj(&*seen.cluster);
    let led = context.memory.lock().await.get(&key).and_then(|memory| memory.led.clone());
    let addresses: Vec<String> = metadata_addresses(seen).into_values().collect();
    let began = Instant::now();
    let said = metadata::status(&*context.servers, &access, &addresses, led.as_deref()).await;
    let silent = matches!(said.fact, MetadataFact::Unreachable(_)) && began.elapsed() >= SILENT_MIN;
    let mut memory = context.memory.lock().await;
    let remembered = memory.entry(key).or_default();
    if said.leader.is_some() || matches!(said.fact, MetadataFact::NotAsked) {
        remembered.leaderless = None;
    } else {
        seen.leaderless_for = Some(remembered.leaderless.get_or_insert_with(Instant::now).elapsed());
    }
    remembered.led = said.leader.or(led);
    remembered.silent = if silent { remembered.silent.saturating_add(1) } else { 0 };
    drop(memory);
    seen.metadata = said.fact;
    seen.joiners = joiners(context, seen, &access).await;
}

/// What is remembered of a cluster.
#[derive(Default)]
struct Remembered {
    /// What webhooks have changed.
    contested: BTreeMap<String, u64>,
    /// Its Secret, if that needn't be read again.
    at_rest: Option<Secret>,
    /// Its Secret as it was read last.
    secret: Option<Secret>,
}

async fn remembered(context: &Context, cluster: &FileSystemCluster) -> Remembered {
    let mut memory = context.memory.lock().await;
    let Some(memory) = memory.get_mut(&ObjectRef::from_obj(cluster)) else { return Remembered::default() };
    let (contested, name) = (contested(memory), cluster.client_secret_name());
    let Some(key) = &mut memory.key else { return Remembered { contested, ..Remembered::default() } };
    let at_rest = key.at_rest(&name).filter(|_| !cluster.is_terminating());
    if at_rest.is_none() {
        key.wake();
    }
    Remembered { contested, at_rest, secret: key.earlier(&name) }
}

/// Namespaces with disks of a volume of this name whose resource is gone. Nobody uses a PVC from another namespace.
fn elsewhere(caches: &Caches, cluster: &FileSystemCluster) -> Vec<String> {
    if cluster.cluster_id().is_some() {
        return Vec::new();
    }
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let kept = caches.pvcs.state_filter(|pvc| {
        let labels = pvc.labels();
        labels.get(labels::CLUSTER).is_some_and(|of| of == name) && labels.contains_key(labels::BOOTSTRAPPED)
    });
    let namespaces: BTreeSet<String> = kept.iter().filter_map(|pvc| pvc.namespace()).collect();
    let is_used = |of: &String| caches.clusters.get(&ObjectRef::new(name).within(of)).is_some();
    namespaces.into_iter().filter(|of| of != namespace && !is_used(of)).collect()
}

/// What webhooks have changed, as far as that isn't long ago: one that was removed doesn't say so.
fn contested(memory: &Memory) -> BTreeMap<String, u64> {
    let known = memory.contested.iter().filter(|(_, (_, since))| since.elapsed() < CONTESTED_LIFETIME);
    known.map(|(object, (fingerprint, _))| (object.clone(), *fingerprint)).collect()
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

/// Which versions there are, and what the policy has for the cluster now.
async fn upgrade(context: &Context, cluster: &Arc<FileSystemCluster>) -> UpgradeFact {
    let versions = context.images.versions().into_iter().map(str::to_owned).collect();
    let (policy, feature_level) = (&context.settings.upgrades, context.feature_level);
    let this = member(cluster);
    if offer(policy, Timestamp::now(), &this, &[]) == Offer::Nothing {
        return UpgradeFact { versions, offer: Offer::Nothing, feature_level };
    }
    // One after the other: of two that look at the same moment only one may see that there is room.
    let mut offered = context.offered.lock().await;
    offered.retain(|_, since| since.elapsed() < OFFERED_LIFETIME);
    let all: Vec<Member> = context
        .caches
        .clusters
        .state()
        .iter()
        .map(|other| {
            let mut found = member(other);
            if offered.contains_key(&ObjectRef::from_obj(&**other)) {
                found.target = Some(VERSION.to_owned());
            }
            found
        })
        .collect();
    let offer = offer(policy, Timestamp::now(), &this, &all);
    if matches!(offer, Offer::Now(_)) {
        offered.insert(ObjectRef::from_obj(&**cluster), Instant::now());
    }
    UpgradeFact { versions, offer, feature_level }
}

/// A cluster as the policy sees it.
fn member(cluster: &FileSystemCluster) -> Member {
    let status = cluster.status.as_ref();
    Member {
        name: format!("{}/{}", cluster.namespace_str(), cluster.name_str()),
        is_pinned: cluster.spec.version.is_some() || cluster.spec.paused || cluster.is_terminating(),
        target: target_version(cluster).map(str::to_owned),
        version: status.and_then(|status| status.version.clone()),
        labels: cluster.metadata.labels.clone().unwrap_or_default(),
        is_ready: cluster.is_ready(),
        is_blocked: cluster
            .condition(ConditionType::UpgradeBlocked)
            .is_some_and(|found| found.status == "True"),
    }
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
async fn joiners(context: &Context, seen: &Observed, access: &Access) -> BTreeMap<u32, MemberIdentity> {
    let Some(answer) = seen.answer().filter(|answer| answer.is_leader) else { return BTreeMap::new() };
    let addresses = metadata_addresses(seen);
    let mut asked = Vec::new();
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
        asked.push(async move {
            match context.servers.who(access, address).await {
                Ok(who) if Some(who.member) != member.map(|member| member.member) => {
                    if who.in_group {
                        let member = who.member;
                        tracing::warn!(
                            pod, %member,
                            "a metadata server that was removed from the group still runs: delete its PVC and \
                             its pod, so that it joins again as a new member"
                        );
                    }
                    Some((ordinal, who))
                }
                Ok(_) => None,
                Err(reason) => {
                    tracing::debug!(pod, %reason, "a metadata server doesn't report its identity");
                    None
                }
            }
        });
    }
    join_all(asked).await.into_iter().flatten().collect()
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
async fn find<K>(
    context: &Context,
    store: &Store<K>,
    key: (&String, &str),
    unreadable: &mut Vec<String>,
) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + 'static,
{
    match cached(store, key) {
        Some(found) => Ok(Some(found)),
        None => read_or_name(context, key, unreadable).await,
    }
}

/// What can't be read is named in `unreadable`, which keeps the cluster from being acted on.
async fn read_or_name<K>(
    context: &Context,
    (namespace, name): (&String, &str),
    unreadable: &mut Vec<String>,
) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + 'static,
{
    let Some(found) = read::<DeserializeGuard<K>>(context, namespace, name).await? else { return Ok(None) };
    match found.0 {
        Ok(found) => Ok(Some(found)),
        Err(invalid) => {
            let text = Fault::new::<K>(&invalid, |_| None).to_string();
            if !unreadable.contains(&text) {
                unreadable.push(text);
            }
            Ok(None)
        }
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
    call(format!("read the {} {name}", K::kind(&())), api.get_opt(name)).await
}

/// PersistentVolumes that name the cluster: `name (claim)`. One that can't be read may name any.
fn referring(caches: &Caches, cluster: &FileSystemCluster) -> Vec<String> {
    let wake = ObjectRef::from_obj(cluster);
    let unreadable = caches.unreadable.of_kind(&PersistentVolume::kind(&()));
    let unreadable = unreadable.into_iter().map(|fault| format!("{}, which can't be read", fault.place.name));
    let mut found: Vec<String> = caches
        .volumes
        .state_filter(|volume| {
            // Few volumes of many have the name in their handle, and only theirs is taken apart.
            let handle = volume.spec.as_ref().and_then(|spec| Some(&spec.csi.as_ref()?.volume_handle));
            handle.is_some_and(|handle| handle.contains(&wake.name))
                && cluster_of(volume).is_some_and(|of| of.name == wake.name && of.namespace == wake.namespace)
        })
        .iter()
        .map(|volume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let claim =
                claim.map(|claim| format!(" of claim {}/{}", part(&claim.namespace), part(&claim.name)));
            format!("{}{}", volume.name_any(), claim.unwrap_or_default())
        })
        .chain(unreadable)
        .collect();
    found.sort();
    found
}

/// Before a StatefulSet is made: PVCs that its pods would use, whoever made them.
async fn unmarked_disks(
    context: &Context,
    seen: &mut Observed,
    namespace: &String,
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
                && let Some(found) =
                    read_or_name::<PersistentVolumeClaim>(context, (namespace, &pvc), &mut seen.unreadable)
                        .await?
            {
                seen.pvcs.insert(pvc, found);
            }
        }
    }
    Ok(())
}

async fn terminating(context: &Context, namespace: &str) -> Result<(bool, bool), Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = call("read the namespace", namespaces.get_opt(namespace)).await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    let definition = call("read the CustomResourceDefinition", definitions.get_opt(DEFINITION)).await?;
    let going =
        |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| meta.deletion_timestamp.is_some();
    Ok((
        found.is_none_or(|found| going(&found.metadata)),
        definition.is_none_or(|found| going(&found.metadata)),
    ))
}

/// What others say of objects that wait, in Events. Without it the status only knows that they wait. A cluster that waits asks
/// for it every few seconds, not at each look.
async fn warnings(context: &Context, seen: &mut Observed, namespace: &str) {
    let (disks, sets) = (waiting_disks(seen), short_sets(seen));
    let key = ObjectRef::from_obj(&*seen.cluster);
    if disks.is_empty() && sets.is_empty() {
        return;
    }
    let known = context.memory.lock().await.get(&key).and_then(|memory| memory.warned.clone());
    let said = match known.filter(|(at, _)| at.elapsed() < WARNINGS_PERIOD) {
        Some((_, said)) => said,
        None => {
            let mut said = Warnings::default();
            for (name, uid) in disks.iter().take(WARNED_MAX) {
                let last = last_warning(context, namespace, uid, None).await;
                said.pvcs.extend(last.and_then(|event| event.message).map(|message| (name.clone(), message)));
            }
            for (component, uid, since) in sets {
                let last = last_warning(context, namespace, &uid, Some(POD_REFUSED)).await;
                // Pods that came after it have refuted it.
                let last = last.filter(|event| told_at(event) >= since);
                said.pods.extend(last.and_then(|event| event.message).map(|message| (component, message)));
            }
            let mut memory = context.memory.lock().await;
            memory.entry(key).or_default().warned = Some((Instant::now(), said.clone()));
            said
        }
    };
    (seen.pvc_warnings, seen.pod_refusals) = (said.pvcs, said.pods);
}

/// PVCs without a volume, with their uids.
fn waiting_disks(seen: &Observed) -> Vec<(String, String)> {
    let phase = |pvc: &PersistentVolumeClaim| pvc.status.as_ref()?.phase.clone();
    let waiting = seen.pvcs.values().filter(|pvc| phase(pvc).as_deref() == Some("Pending"));
    waiting.filter_map(|pvc| Some((pvc.name_any(), pvc.uid()?))).collect()
}

/// StatefulSets with fewer pods than they shall have, with their uids, and when the last of their pods was created.
fn short_sets(seen: &Observed) -> Vec<(Component, String, Option<Timestamp>)> {
    let mut short = Vec::new();
    for (component, set) in &seen.statefulsets {
        let desired = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        let (pods, Some(uid)) = (seen.pods_of(*component), set.uid()) else { continue };
        let created: Vec<Option<Timestamp>> =
            pods.map(|pod| pod.creation_timestamp().map(|time| time.0)).collect();
        if i32::try_from(created.len()).is_ok_and(|count| count < desired) {
            short.push((*component, uid, created.into_iter().max().flatten()));
        }
    }
    short
}

/// The last Warning of an object, of one reason if it is named.
async fn last_warning(context: &Context, namespace: &str, uid: &str, reason: Option<&str>) -> Option<Event> {
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let reason = reason.map(|reason| format!(",reason={reason}")).unwrap_or_default();
    let of_it = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning{reason}"));
    match call("list the Events of an object", events.list(&of_it)).await {
        Ok(found) => found.items.into_iter().max_by_key(told_at),
        Err(error) => {
            tracing::debug!(%error, uid, "can't read the Events of an object");
            None
        }
    }
}

fn told_at(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref()).map(|time| time.0);
    last.or(event.event_time.as_ref().map(|time| time.0))
}

/// On which nodes disks and pods are, and what has become of these nodes.
async fn nodes(context: &Context, seen: &mut Observed) {
    let caches = &context.caches;
    let mut found = Nodes::default();
    for (name, pvc) in &seen.pvcs {
        let volume = pvc.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let volume = volume.and_then(|volume| caches.volumes.get(&ObjectRef::new(volume)));
        let on = nodes_of(pvc, volume.as_deref());
        if !on.is_empty() {
            found.disks.insert(name.clone(), on);
        }
    }
    let of_pods =
        seen.pods.values().filter_map(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
    let named: BTreeSet<String> = found.disks.values().flatten().cloned().chain(of_pods).collect();
    // One that can't be read may be any of them.
    let all_read = caches.unreadable.of_kind(&Node::kind(&())).is_empty();
    let mut memory = context.memory.lock().await;
    let missing = &mut memory.entry(ObjectRef::from_obj(&*seen.cluster)).or_default().missing_nodes;
    missing.retain(|node, _| named.contains(node));
    for name in named {
        let node = caches.nodes.get(&ObjectRef::new(&name)).or_else(|| {
            let called = caches.nodes.state_filter(|node: &Node| is_called(node, &name));
            called.into_iter().next()
        });
        let state = match node {
            Some(node) => state_of(&node),
            None if all_read => {
                NodeState::Missing(missing.entry(name.clone()).or_insert_with(Instant::now).elapsed())
            }
            None => NodeState::NotReady,
        };
        if !matches!(state, NodeState::Missing(_)) {
            missing.remove(&name);
        }
        found.states.insert(name, state);
    }
    seen.nodes = found;
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
