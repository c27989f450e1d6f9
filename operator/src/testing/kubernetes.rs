//! What else works in a Kubernetes, in memory: the StatefulSet controller, kubelets, a provisioner, and the servers of clusters.
//! All of it happens in [`Kubernetes::tick`], between two looks of the operator.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use atoll_core::attributes::VolumeUse;
use atoll_core::ids::{ClusterId, MemberId, ServerId};
use atoll_core::records::VolumeConfig;
use atoll_crds::names::{self, Component, labels};
use atoll_proto::ClusterKey;
use atoll_proto::admin::{
    ChangeServer, MemberIdentity, MembersChange, RaiseFeatureLevel, ResizeVolume, TransferLeader,
};
use atoll_proto::metadata::{ClusterStatus, MemberStatus, MetadataError};
use kube::Resource;
use kube::runtime::reflector::{self, Lookup, store::Writer};
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::api_server::{ApiServer, State};
use super::fault::Outcome;
use super::storage::{Storage, Working};
use super::versions;
use crate::caches::Caches;
use crate::metadata::{Access, AskError, Asked, Servers};

/// The namespace of everything.
pub const NAMESPACE: &str = "ns";
/// What keeps a PVC while a pod uses it.
const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";

/// A group of metadata servers.
struct Group {
    cluster: ClusterId,
    key: ClusterKey,
    members: Vec<(MemberId, String)>,
    /// Who has left, and can't come back.
    left: BTreeSet<MemberId>,
    storage: Storage,
    copies: u8,
    size: ResizeVolume,
    /// The one of the members from which on the first that works leads.
    first: usize,
    /// The volume's feature level.
    level: u32,
}

/// A Kubernetes.
#[derive(Clone, Default)]
pub struct Kubernetes {
    /// Its API server.
    pub api: ApiServer,
    group: Arc<Mutex<Option<Group>>>,
    /// How often the group was changed.
    changes: Arc<Mutex<u64>>,
    /// When controllers had nothing more to do.
    done: Arc<Mutex<Option<u64>>>,
}

impl Kubernetes {
    /// Three nodes and a class, and nothing else.
    pub fn new() -> Kubernetes {
        let kubernetes = Kubernetes::default();
        kubernetes.api.with(|state| {
            for name in ["one", "two", "three"] {
                let node =
                    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name }, "spec": {} });
                state.create("nodes", node).expect("new");
            }
            let class = json!({
                "kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "provisioner": "disks.example",
                "metadata": {
                    "name": "disks",
                    "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
                },
            });
            state.create("storageclasses", class).expect("new");
            let namespace =
                json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": NAMESPACE } });
            state.create("namespaces", namespace).expect("new");
            let definition =
                serde_json::to_value(atoll_crds::definition::filesystemclusters().expect("valid"));
            state.create("customresourcedefinitions", definition.expect("serialises")).expect("new");
        });
        kubernetes
    }

    /// How often anything was changed.
    pub fn version(&self) -> u64 {
        self.api.with(|state| state.version()) + *self.changes.lock()
    }

    /// The volume's records are there.
    pub fn has_group(&self) -> bool {
        self.group.lock().is_some()
    }

    /// Controllers and kubelets do what is due.
    pub fn tick(&self) {
        let before = self.version();
        if *self.done.lock() == Some(before) {
            return;
        }
        self.api.with(|state| {
            collect_garbage(state);
            for set in state.all("statefulsets") {
                make_pods(state, &set);
            }
            release_disks(state);
        });
        self.lose_records();
        self.store();
        let level = self.group.lock().as_ref().map_or(0, |group| group.level);
        self.api.with(|state| versions::check(state, level));
        *self.done.lock() = (self.version() == before).then_some(before);
    }

    /// A group whose members' disks are all gone is none any more.
    fn lose_records(&self) {
        let disks: BTreeSet<MemberId> = self.api.with(|state| {
            let uid = |disk: &Value| disk["metadata"]["uid"].as_str().map(member_of);
            state.all("persistentvolumeclaims").iter().filter_map(uid).collect()
        });
        let mut group = self.group.lock();
        if group.as_ref().is_some_and(|group| !group.members.iter().any(|(member, _)| disks.contains(member)))
        {
            *group = None;
            *self.changes.lock() += 1;
        }
    }

    /// Storage servers register, and copies are made.
    fn store(&self) {
        let working = self.storage_servers();
        let disks = self.api.with(|state| {
            let uid = |disk: &Value| disk["metadata"]["uid"].as_str().map(|uid| ServerId(hash(uid)));
            state.all("persistentvolumeclaims").iter().filter_map(uid).collect()
        });
        let mut group = self.group.lock();
        let Some(group) = group.as_mut() else { return };
        if group.storage.tick(&working, &disks, group.copies.into()) {
            *self.changes.lock() += 1;
        }
    }

    /// Storage servers that work.
    fn storage_servers(&self) -> Working {
        let of = |(name, disk): (String, String)| {
            let ordinal = name.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or_default();
            (ServerId(hash(disk)), names::pod_address(NAMESPACE, "db", Component::Storage, ordinal))
        };
        self.working(Component::Storage).into_iter().map(of).collect()
    }

    /// Who runs in the pod at an address, with the uid of its disk.
    fn server_at(&self, address: &str) -> Option<(String, String)> {
        let ip = address.rsplit_once(':').map_or(address, |(ip, _)| ip);
        self.api.with(|state| {
            let is_it = |pod: &Value| {
                pod["status"]["podIP"] == json!(ip) && !is_off(state, pod) && versions::starts(pod)
            };
            let pod = state.all("pods").into_iter().find(is_it)?;
            let name = pod["metadata"]["name"].as_str()?.to_owned();
            let disk = state.get("persistentvolumeclaims", NAMESPACE, &format!("data-{name}"))?;
            Some((name, disk["metadata"]["uid"].as_str()?.to_owned()))
        })
    }

    /// Pods of a component that work, by name, with the uid of their disk.
    fn working(&self, component: Component) -> BTreeMap<String, String> {
        self.api.with(|state| {
            let is_it = |pod: &Value| {
                pod["metadata"]["labels"][labels::COMPONENT] == json!(component.as_str())
                    && pod["metadata"]["deletionTimestamp"].is_null()
                    && !pod["spec"]["nodeName"].is_null()
                    && !is_off(state, pod)
                    && versions::starts(pod)
            };
            let disk = |pod: &Value| {
                let name = pod["metadata"]["name"].as_str()?.to_owned();
                let disk = state.get("persistentvolumeclaims", NAMESPACE, &format!("data-{name}"))?;
                Some((name, disk["metadata"]["uid"].as_str()?.to_owned()))
            };
            state.all("pods").iter().filter(|pod| is_it(pod)).filter_map(disk).collect()
        })
    }

    fn status(&self, access: &Access, address: &str) -> Result<ClusterStatus, AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (_, disk) = self.server_at(address).ok_or_else(silent)?;
        let me = member_of(&disk);
        let working = self.working(Component::Metadata);
        let alive: BTreeSet<MemberId> = working.values().map(|disk| member_of(disk)).collect();
        let (known, behind) = self.api.with(|state| versions::known(state));
        let guard = self.group.lock();
        let group = guard.as_ref().filter(|group| group.members.iter().any(|(member, _)| *member == me));
        let Some(group) = group else {
            return Ok(ClusterStatus { member: me, ..ClusterStatus::default() });
        };
        assert_eq!(group.cluster, access.cluster, "asked as another cluster");
        assert_eq!(group.key.to_hex(), access.key.to_hex(), "the key was replaced");
        let voters: Vec<&(MemberId, String)> =
            group.members.iter().filter(|(member, _)| alive.contains(member)).collect();
        let leads = voters.len() * 2 > group.members.len();
        let first = group.first.min(voters.len().saturating_sub(1));
        let leader = voters.get(first).filter(|_| leads).map(|(member, address)| (*member, address.clone()));
        let storage = self.storage_servers();
        let by_replicas = group.storage.by_replicas(&storage, group.copies.into());
        let is_leader = leader.as_ref().is_some_and(|(member, _)| *member == me);
        let members = group.members.iter().map(|(member, address)| MemberStatus {
            member: *member,
            address: address.clone(),
            voter: true,
            lag: Some(0),
            silent_ms: alive.contains(member).then_some(0),
            snapshot: None,
        });
        Ok(ClusterStatus {
            cluster: Some(group.cluster),
            member: me,
            is_leader,
            leader,
            members: members.collect(),
            servers: if is_leader { group.storage.statuses(&storage) } else { Vec::new() },
            chunks_by_replicas: if is_leader { by_replicas } else { Vec::new() },
            chunks_naming: if is_leader { group.storage.naming() } else { Vec::new() },
            volume: VolumeUse {
                bytes_total: group.size.bytes_total,
                inodes_total: group.size.inodes_total,
                ..VolumeUse::default()
            },
            inline_budget_bytes: group.size.inline_budget_bytes,
            copies: group.copies,
            feature_level: group.level,
            feature_level_max: known,
            behind,
            chunks: 1,
            ..ClusterStatus::default()
        })
    }

    fn who(&self, address: &str) -> Result<MemberIdentity, AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (name, disk) = self.server_at(address).ok_or_else(silent)?;
        let member = member_of(&disk);
        let guard = self.group.lock();
        let was_in = |group: &&Group| {
            group.left.contains(&member) || group.members.iter().any(|(known, _)| *known == member)
        };
        let group = guard.as_ref().filter(was_in);
        let ordinal = name.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(MemberIdentity {
            member,
            address: names::pod_address(NAMESPACE, "db", Component::Metadata, ordinal),
            cluster: guard.as_ref().map_or(ClusterId(0), |group| group.cluster),
            in_group: group.is_some(),
            is_leader: false,
            leader: None,
            term: 0,
            disk_full: false,
        })
    }

    fn bootstrap(&self, access: &Access, address: &str, config: &VolumeConfig) -> Result<(), AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (name, disk) = self.server_at(address).ok_or_else(silent)?;
        let member = member_of(&disk);
        let mut group = self.group.lock();
        if let Some(group) = &*group {
            assert_eq!(group.cluster, access.cluster, "bootstrapped as another cluster");
            let known = group.members.iter().any(|(known, _)| *known == member);
            assert!(known, "a second group was founded, by {name}");
            return Ok(());
        }
        assert_eq!(name, "db-metadata-0", "only the first one founds a group");
        let address = names::pod_address(NAMESPACE, "db", Component::Metadata, 0);
        *group = Some(Group {
            cluster: access.cluster,
            key: access.key.clone(),
            members: vec![(member, address)],
            left: BTreeSet::new(),
            storage: Storage::default(),
            copies: config.copies,
            first: 0,
            level: 1,
            size: ResizeVolume {
                bytes_total: config.bytes_total,
                inodes_total: config.inodes_total,
                inline_budget_bytes: config.inline_budget_bytes,
            },
        });
        *self.changes.lock() += 1;
        Ok(())
    }

    fn resize(&self, address: &str, size: ResizeVolume) -> Result<(), AskError> {
        self.with_group(address, |group| group.size = size)
    }

    fn change_server(&self, address: &str, change: ChangeServer) -> Result<(), AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (_, disk) = self.server_at(address).ok_or_else(silent)?;
        let (me, working) = (member_of(&disk), self.storage_servers());
        let refused = |error| AskError::Refused { address: address.to_owned(), error };
        let mut guard = self.group.lock();
        let group = guard.as_mut().filter(|group| group.members.iter().any(|(known, _)| *known == me));
        let group = group.ok_or_else(|| refused(MetadataError::NotLeader { leader: None }))?;
        let changed = group.storage.change(change, &working);
        if changed.map_err(|why| refused(MetadataError::Refused(why.to_owned())))? {
            *self.changes.lock() += 1;
        }
        Ok(())
    }

    /// The next member leads.
    fn transfer_leader(&self, address: &str) -> Result<(), AskError> {
        self.with_group(address, |group| group.first = (group.first + 1) % group.members.len().max(1))
    }

    fn raise_level(&self, address: &str, level: u32) -> Result<(), AskError> {
        let (known, behind) = self.api.with(|state| versions::known(state));
        assert!(level <= known, "raised to {level}, which {behind:?} don't know");
        self.with_group(address, |group| group.level = group.level.max(level))
    }

    /// Has a member of the group change it.
    fn with_group(&self, address: &str, act: impl FnOnce(&mut Group)) -> Result<(), AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (_, disk) = self.server_at(address).ok_or_else(silent)?;
        let me = member_of(&disk);
        let mut guard = self.group.lock();
        let Some(group) = guard.as_mut().filter(|group| group.members.iter().any(|(known, _)| *known == me))
        else {
            let error = MetadataError::NotLeader { leader: None };
            return Err(AskError::Refused { address: address.to_owned(), error });
        };
        act(group);
        *self.changes.lock() += 1;
        Ok(())
    }

    fn change_members(&self, address: &str, change: &MembersChange) -> Result<(), AskError> {
        let silent = || AskError::Silent { address: address.to_owned() };
        let (_, disk) = self.server_at(address).ok_or_else(silent)?;
        let me = member_of(&disk);
        let mut guard = self.group.lock();
        let refused = || {
            let error = MetadataError::NotLeader { leader: None };
            AskError::Refused { address: address.to_owned(), error }
        };
        let group = guard.as_mut().ok_or_else(refused)?;
        if !group.members.iter().any(|(member, _)| *member == me) {
            return Err(refused());
        }
        let before = group.members.clone();
        match change {
            MembersChange::Add { member, address } => {
                assert!(!group.left.contains(member), "who has left came back");
                if !group.members.iter().any(|(known, _)| known == member) {
                    group.members.push((*member, address.clone()));
                }
            }
            MembersChange::Replace { old, new, address } => {
                for found in group.members.iter_mut().filter(|(member, _)| member == old) {
                    *found = (*new, address.clone());
                }
            }
            MembersChange::Remove { member } => {
                if group.members.iter().any(|(known, _)| known == member) {
                    assert!(group.members.len() > 1, "the last member was removed");
                    group.left.insert(*member);
                    group.members.retain(|(known, _)| known != member);
                }
            }
        }
        group.members.sort_by(|one, other| one.1.cmp(&other.1));
        if group.members != before {
            *self.changes.lock() += 1;
        }
        Ok(())
    }
}

/// Objects of a world whose cluster's servers are asked through the door as well.
impl Servers for Kubernetes {
    fn status<'a>(&'a self, access: &'a Access, address: &'a str) -> Asked<'a, ClusterStatus> {
        let (world, access, at) = (self.clone(), access.clone(), address.to_owned());
        Box::pin(async move {
            let asked = self.api.door.read(move || Kubernetes::status(&world, &access, &at)).await;
            answer(asked, address)
        })
    }

    fn who<'a>(&'a self, _: &'a Access, address: &'a str) -> Asked<'a, MemberIdentity> {
        let (world, at) = (self.clone(), address.to_owned());
        Box::pin(
            async move { answer(self.api.door.read(move || Kubernetes::who(&world, &at)).await, address) },
        )
    }

    fn bootstrap<'a>(
        &'a self,
        access: &'a Access,
        address: &'a str,
        config: &'a VolumeConfig,
    ) -> Asked<'a, ()> {
        let (world, access, at, config) = (self.clone(), access.clone(), address.to_owned(), config.clone());
        Box::pin(async move {
            let act = move || Kubernetes::bootstrap(&world, &access, &at, &config);
            answer(self.api.door.write(act).await, address)
        })
    }

    fn change_members<'a>(
        &'a self,
        _: &'a Access,
        address: &'a str,
        change: &'a MembersChange,
    ) -> Asked<'a, ()> {
        let (world, at, change) = (self.clone(), address.to_owned(), change.clone());
        Box::pin(async move {
            let act = move || Kubernetes::change_members(&world, &at, &change);
            answer(self.api.door.write(act).await, address)
        })
    }

    fn change_server<'a>(&'a self, _: &'a Access, address: &'a str, change: ChangeServer) -> Asked<'a, ()> {
        let (world, at) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let act = move || Kubernetes::change_server(&world, &at, change);
            answer(self.api.door.write(act).await, address)
        })
    }

    fn resize<'a>(&'a self, _: &'a Access, address: &'a str, size: ResizeVolume) -> Asked<'a, ()> {
        let (world, at) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let act = move || Kubernetes::resize(&world, &at, size);
            answer(self.api.door.write(act).await, address)
        })
    }

    fn transfer_leader<'a>(&'a self, _: &'a Access, address: &'a str, _: TransferLeader) -> Asked<'a, ()> {
        let (world, at) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let act = move || Kubernetes::transfer_leader(&world, &at);
            answer(self.api.door.write(act).await, address)
        })
    }

    fn raise_level<'a>(
        &'a self,
        _: &'a Access,
        address: &'a str,
        request: RaiseFeatureLevel,
    ) -> Asked<'a, ()> {
        let (world, at) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let act = move || Kubernetes::raise_level(&world, &at, request.level);
            answer(self.api.door.write(act).await, address)
        })
    }
}

fn answer<T>(outcome: Outcome<Result<T, AskError>>, address: &str) -> Result<T, AskError> {
    match outcome {
        Outcome::Done(result) => result,
        Outcome::Refused(_) => Err(AskError::Silent { address: address.to_owned() }),
    }
}

/// The id that a metadata server has put on its disk.
fn member_of(disk: &str) -> MemberId {
    MemberId(hash(disk))
}

fn hash(text: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Pods that were deleted have ended, and those of no StatefulSet go.
fn collect_garbage(state: &mut State) {
    for pod in state.all("pods") {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        let set = name.rsplit_once('-').map(|(set, _)| set.to_owned()).unwrap_or_default();
        let replicas = state.get("statefulsets", NAMESPACE, &set).map(|set| set["spec"]["replicas"].clone());
        let ordinal: i64 = name.rsplit('-').next().and_then(|text| text.parse().ok()).expect("an ordinal");
        let is_wanted = replicas.and_then(|count| count.as_i64()).is_some_and(|count| ordinal < count);
        if !pod["metadata"]["deletionTimestamp"].is_null() || !is_wanted {
            // Where nobody is, nobody says that a pod has ended.
            if is_off(state, &pod) {
                state.delete("pods", NAMESPACE, &name);
            } else {
                state.erase("pods", NAMESPACE, &name);
            }
        }
    }
}

fn make_pods(state: &mut State, set: &Value) {
    let name = set["metadata"]["name"].as_str().expect("a name");
    let revision = format!("{name}-{:x}", hash(set["spec"]["template"].to_string()));
    let status = json!({
        "replicas": set["spec"]["replicas"],
        "observedGeneration": set["metadata"]["generation"],
        "updateRevision": revision,
    });
    state.change("statefulsets", NAMESPACE, name, |set| set["status"] = status);
    for ordinal in 0..set["spec"]["replicas"].as_i64().expect("replicas") {
        let pod_name = format!("{name}-{ordinal}");
        let claim = format!("data-{pod_name}");
        if let Some(found) = state.get("persistentvolumeclaims", NAMESPACE, &claim) {
            if !found["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
        } else if state.get("pods", NAMESPACE, &pod_name).is_some() {
            // Claims are made with their pods.
            let waits = json!({
                "type": "PodScheduled", "status": "False",
                "message": format!("persistentvolumeclaim \"{claim}\" not found"),
            });
            let unready = json!({ "type": "Ready", "status": "False" });
            state.change("pods", NAMESPACE, &pod_name, |pod| {
                if pod["spec"]["nodeName"].is_null() {
                    pod["status"]["conditions"] = json!([waits, unready]);
                }
            });
            continue;
        } else {
            let mut disk = set["spec"]["volumeClaimTemplates"][0].clone();
            (disk["metadata"]["name"], disk["metadata"]["namespace"]) = (json!(claim), json!(NAMESPACE));
            disk["metadata"]["finalizers"] = json!([PVC_PROTECTION]);
            disk["status"] = json!({ "phase": "Bound" });
            disk["spec"]["volumeName"] = json!(format!("pv-of-{claim}"));
            state.create("persistentvolumeclaims", disk).expect("new");
            make_volume(state, &claim, usize::try_from(ordinal).expect("an ordinal"));
        }
        let node = node_of(state, &claim).filter(|node| !is_node_off(state, node));
        // Without the key it doesn't start.
        let secret = set["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"].as_str();
        let has_key = secret.is_some_and(|secret| state.get("secrets", NAMESPACE, secret).is_some());
        let found = state.get("pods", NAMESPACE, &pod_name).cloned();
        let starts = versions::starts(found.as_ref().unwrap_or(&set["spec"]["template"]));
        let runs = found.as_ref().map_or(node.is_some(), |pod| !is_off(state, pod) && node.is_some());
        let runs = runs && starts;
        let ready = json!([{ "type": "Ready", "status": if has_key && runs { "True" } else { "False" } }]);
        if found.is_some() {
            state.change("pods", NAMESPACE, &pod_name, |pod| pod["status"]["conditions"] = ready);
        } else {
            let mut pod = json!({ "kind": "Pod", "apiVersion": "v1" });
            pod["metadata"] = set["spec"]["template"]["metadata"].clone();
            (pod["metadata"]["name"], pod["metadata"]["namespace"]) = (json!(pod_name), json!(NAMESPACE));
            pod["metadata"]["labels"]["controller-revision-hash"] = json!(revision);
            pod["spec"] = set["spec"]["template"]["spec"].clone();
            pod["status"] = json!({ "phase": "Pending", "conditions": ready });
            if !starts {
                pod["status"]["containerStatuses"] = versions::cannot_be_pulled();
            }
            if let Some(node) = node {
                pod["spec"]["nodeName"] = json!(node);
                pod["status"]["phase"] = json!("Running");
                let net = if name.ends_with("metadata") { 1 } else { 2 };
                pod["status"]["podIP"] = json!(format!("10.{net}.0.{ordinal}"));
            }
            state.create("pods", pod).expect("new");
        }
    }
}

/// Disks that were deleted go once no pod uses them.
fn release_disks(state: &mut State) {
    for disk in state.all("persistentvolumeclaims") {
        let name = disk["metadata"]["name"].as_str().expect("a name").to_owned();
        let pod = name.trim_start_matches("data-").to_owned();
        let used = state.get("pods", NAMESPACE, &pod).is_some_and(|pod| !pod["spec"]["nodeName"].is_null());
        if !disk["metadata"]["deletionTimestamp"].is_null() && !used {
            state.erase("persistentvolumeclaims", NAMESPACE, &name);
            state.erase("persistentvolumes", "", &format!("pv-of-{name}"));
        }
    }
}

/// A disk on one of the nodes that are on.
fn make_volume(state: &mut State, claim: &str, ordinal: usize) {
    let on: Vec<Value> = state.all("nodes").into_iter().filter(|node| !is_tainted(node)).collect();
    let hostname = json!({
        "key": "kubernetes.io/hostname", "operator": "In",
        "values": [on[ordinal % on.len()]["metadata"]["name"]],
    });
    let volume = json!({
        "kind": "PersistentVolume", "apiVersion": "v1", "metadata": { "name": format!("pv-of-{claim}") },
        "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [hostname] }] } } },
    });
    state.create("persistentvolumes", volume).expect("new");
}

/// The node that a disk is on.
fn node_of(state: &State, claim: &str) -> Option<String> {
    let volume = state.get("persistentvolumes", "", &format!("pv-of-{claim}"))?;
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    terms[0]["matchExpressions"][0]["values"][0].as_str().map(str::to_owned)
}

fn is_tainted(node: &Value) -> bool {
    node["spec"]["taints"].as_array().is_some_and(|found| !found.is_empty())
}

fn is_node_off(state: &State, name: &str) -> bool {
    state.get("nodes", "", name).is_none_or(is_tainted)
}

/// The pod's node is off.
fn is_off(state: &State, pod: &Value) -> bool {
    pod["spec"]["nodeName"].as_str().is_some_and(|node| is_node_off(state, node))
}

/// One watch, which hears of all there is.
type Hear = Box<dyn FnMut(&State) + Send>;

/// The watches of an operator, which hear of everything when they are told to.
pub struct Watches {
    /// What they have heard.
    pub caches: Caches,
    watches: Vec<Hear>,
}

impl Watches {
    /// They haven't heard anything yet.
    pub fn new() -> Watches {
        let mut hear: Vec<Hear> = Vec::new();
        let caches = Caches {
            clusters: listen(&mut hear, "filesystemclusters"),
            statefulsets: listen(&mut hear, "statefulsets"),
            services: listen(&mut hear, "services"),
            budgets: listen(&mut hear, "poddisruptionbudgets"),
            pvcs: listen(&mut hear, "persistentvolumeclaims"),
            pods: listen(&mut hear, "pods"),
            volumes: listen(&mut hear, "persistentvolumes"),
            nodes: listen(&mut hear, "nodes"),
            classes: listen(&mut hear, "storageclasses"),
            unreadable: Default::default(),
        };
        Watches { caches, watches: hear }
    }

    /// They hear of everything up to now.
    pub fn hear(&mut self, kubernetes: &Kubernetes) {
        kubernetes.api.with(|state| self.watches.iter_mut().for_each(|hear| hear(state)));
    }
}

fn listen<K>(hear: &mut Vec<Hear>, plural: &'static str) -> reflector::Store<K>
where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, mut writer): (_, Writer<K>) = reflector::store();
    let mut heard: BTreeMap<String, (Value, K)> = BTreeMap::new();
    hear.push(Box::new(move |state| {
        writer.apply_watcher_event(&Event::Init);
        let before = std::mem::take(&mut heard);
        for (key, object) in state.objects().iter().filter(|(key, _)| key.0 == plural) {
            let version = &object["metadata"]["resourceVersion"];
            let known = before.get(&key.2).filter(|(known, _)| known == version);
            let read = || serde_json::from_value(object.clone()).expect("an object of its kind");
            let typed: K = known.map_or_else(read, |(_, known)| known.clone());
            heard.insert(key.2.clone(), (version.clone(), typed.clone()));
            writer.apply_watcher_event(&Event::InitApply(typed));
        }
        writer.apply_watcher_event(&Event::InitDone);
    }));
    store
}
