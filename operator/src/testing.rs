//! Clusters in every state, for tests, and a Kubernetes in memory.

pub mod api_server;
pub mod fault;
pub mod kubernetes;
pub mod storage;
pub mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_core::attributes::VolumeUse;
use atoll_core::ids::{ClusterId, MemberId, ServerId, SessionId};
use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, FileSystemClusterSpec, FileSystemClusterStatus, KeptVolume};
use atoll_proto::ClusterKey;
use atoll_proto::admin::MemberIdentity;
use atoll_proto::metadata::{ClusterStatus, MemberStatus, ServerStatus, SessionStatus};
use clap::Parser;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSetStatus;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateWaiting, ContainerStatus, PersistentVolumeClaim,
    PersistentVolumeClaimStatus, Pod, PodCondition, PodStatus, Secret,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use crate::build::{budget, compare, created_for, disk_labels, secret, service, statefulset};
use crate::config::{Config, Images};
use crate::nodes::Nodes;
use crate::observe::{ClassFact, MetadataFact, Observed, UpgradeFact};
use crate::validate::{Wanted, validate};

/// An id that no cluster has.
pub const FRESH: ClusterId = ClusterId(0xf5e5);
/// The id of [`running`]'s cluster.
pub const ID: ClusterId = ClusterId(7);
/// The first metadata server of [`running`]'s cluster.
pub const MEMBER: MemberId = MemberId(0xa);
/// All of them.
pub const MEMBERS: [MemberId; 3] = [MEMBER, MemberId(0xb), MemberId(0xc)];
/// The revision of the pods of [`running`]'s cluster.
pub const REVISION: &str = "db-1";

pub fn images() -> Images {
    Images::parse(&Config::parse_from(["atoll-operator"])).expect("valid")
}

/// A resource as a user makes it, with what the API server adds.
pub fn cluster(capacity: &str) -> FileSystemCluster {
    let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity(capacity.into()));
    cluster.metadata.namespace = Some("ns".into());
    cluster.metadata.uid = Some("uid-1".into());
    cluster.metadata.generation = Some(1);
    cluster
}

pub fn wanted(capacity: &str) -> Wanted {
    validate(&cluster(capacity), &images()).expect("valid")
}

/// A resource that nobody has looked at yet, on three nodes.
pub fn observed(capacity: &str) -> Observed {
    let class = |name: &str, provisioner: &str, is_default| ClassFact {
        name: name.into(),
        provisioner: provisioner.into(),
        is_default,
        expandable: false,
    };
    Observed {
        cluster: Arc::new(cluster(capacity)),
        statefulsets: BTreeMap::new(),
        services: BTreeMap::new(),
        budgets: BTreeMap::new(),
        secret: None,
        secret_before: None,
        elsewhere: Vec::new(),
        pvcs: BTreeMap::new(),
        pods: BTreeMap::new(),
        pvc_warnings: BTreeMap::new(),
        pod_refusals: BTreeMap::new(),
        contested: BTreeMap::new(),
        volumes: Vec::new(),
        nodes_usable: 3,
        nodes: Nodes::default(),
        classes: vec![class("disks", "disks.example", true), class("atoll", names::DRIVER_NAME, false)],
        metadata: MetadataFact::NotAsked,
        joiners: BTreeMap::new(),
        unreadable: Vec::new(),
        leaderless_for: None,
        upgrade: UpgradeFact {
            versions: images().versions().into_iter().map(str::to_owned).collect(),
            feature_level: versions::NEXT_LEVEL,
            ..UpgradeFact::default()
        },
        confirmed_for: None,
        namespace_terminating: false,
        crd_terminating: false,
    }
}

pub fn change(seen: &mut Observed, change: impl FnOnce(&mut FileSystemCluster)) {
    change(Arc::make_mut(&mut seen.cluster));
}

pub fn with_status(seen: &mut Observed, status: FileSystemClusterStatus) {
    change(seen, |cluster| cluster.status = Some(status));
}

pub fn with_finalizer(seen: &mut Observed) {
    change(seen, |cluster| cluster.metadata.finalizers = Some(vec![names::FINALIZER.into()]));
}

pub fn with_id(seen: &mut Observed, id: ClusterId) {
    change(seen, |cluster| {
        cluster.status.get_or_insert_default().cluster_id = Some(id.to_string());
    });
}

/// Some time or other.
pub fn moment() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

pub fn deleted(seen: &mut Observed) {
    change(seen, |cluster| cluster.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)));
}

pub fn answer(seen: &mut Observed) -> &mut ClusterStatus {
    match &mut seen.metadata {
        MetadataFact::Answers(answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

/// The Secret as the API server has it.
pub fn stored_secret(id: ClusterId) -> Secret {
    let mut found = secret::secret(&wanted("1Gi"), id, &ClusterKey::new([3; 32]));
    let texts = found.string_data.take().unwrap_or_default();
    found.data = Some(texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))).collect());
    found
}

pub fn pvc(name: &str, component: Component, id: ClusterId) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(disk_labels(&wanted("1Gi"), component, id)),
            annotations: Some(created_for(&wanted("1Gi"))),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(PersistentVolumeClaimStatus {
            phase: Some("Bound".into()),
            ..PersistentVolumeClaimStatus::default()
        }),
    }
}

pub fn pod(name: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("uid-of-{name}")),
            labels: Some(BTreeMap::from([("controller-revision-hash".into(), REVISION.into())])),
            ..ObjectMeta::default()
        },
        spec: None,
        status: Some(PodStatus {
            pod_ip: Some("10.0.0.1".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

/// A container that waits, in kubelet's words.
pub fn waiting(reason: &str) -> ContainerStatus {
    ContainerStatus {
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message: None }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    }
}

/// Objects are there as they shall be; pods and disks aren't.
pub fn applied() -> Observed {
    let mut seen = observed("1Gi");
    with_finalizer(&mut seen);
    with_id(&mut seen, ID);
    seen.secret = Some(stored_secret(ID));
    let wanted = wanted("1Gi");
    for component in Component::ALL {
        let mut found = service::service(&wanted, component);
        compare::stamp(&mut found, |object| &mut object.metadata);
        seen.services.insert(component, found);
        let mut found = statefulset::statefulset(&wanted, component, ID, None);
        compare::stamp(&mut found, |object| &mut object.metadata);
        found.metadata.generation = Some(1);
        found.status = Some(StatefulSetStatus {
            observed_generation: Some(1),
            update_revision: Some(REVISION.into()),
            ..StatefulSetStatus::default()
        });
        seen.statefulsets.insert(component, found);
        if let Some(mut found) = budget::budget(&wanted, component, 1) {
            compare::stamp(&mut found, |object| &mut object.metadata);
            seen.budgets.insert(component, found);
        }
    }
    seen
}

/// Pods and disks are there, and the metadata service waits to be told what it is.
pub fn started() -> Observed {
    let mut seen = applied();
    for (component, count) in [(Component::Metadata, 3), (Component::Storage, 3)] {
        for ordinal in 0..count {
            let name = names::pvc("db", component, ordinal);
            seen.pvcs.insert(name.clone(), pvc(&name, component, ID));
            let name = names::pod("db", component, ordinal);
            seen.pods.insert(name.clone(), pod(&name));
        }
    }
    let answer = ClusterStatus {
        member: MEMBER,
        problems: vec!["the cluster isn't bootstrapped: run atoll-fs bootstrap".into()],
        ..ClusterStatus::default()
    };
    seen.metadata = MetadataFact::Answers(Box::new(answer));
    seen
}

/// Everything runs, and one node has mounted it.
pub fn running() -> Observed {
    let mut seen = started();
    change(&mut seen, |cluster| cluster.status.get_or_insert_default().bootstrapped = true);
    for (ordinal, member) in (0..).zip(MEMBERS) {
        mark_member(&mut seen, ordinal, member);
    }
    let address = |ordinal| names::pod_address("ns", "db", Component::Storage, ordinal);
    let server = |ordinal: u32| ServerStatus {
        draining: false,
        server: ServerId(ordinal.into()),
        address: address(ordinal),
        alive: true,
        capacity: 3 << 30,
        used: 1 << 20,
        free: 3 << 30,
        chunks: 1,
        silent_ms: 10,
        stored: 1 << 20,
    };
    let session = SessionStatus {
        session: SessionId(1),
        client: "node-1".into(),
        opened: Default::default(),
        open_files: 2,
        bytes_reserved: 0,
    };
    let member = |ordinal: u32| MemberStatus {
        member: MEMBERS[ordinal as usize],
        address: names::pod_address("ns", "db", Component::Metadata, ordinal),
        voter: true,
        lag: Some(0),
        silent_ms: Some(0),
        snapshot: None,
    };
    seen.metadata = MetadataFact::Answers(Box::new(ClusterStatus {
        cluster: Some(ID),
        member: MEMBER,
        is_leader: true,
        leader: Some((MEMBER, names::pod_address("ns", "db", Component::Metadata, 0))),
        members: (0..3).map(member).collect(),
        servers: (0..3).map(server).collect(),
        sessions: vec![session],
        volume: VolumeUse {
            bytes_total: 1 << 30,
            bytes_used: 1 << 20,
            inodes_total: 1 << 18,
            ..VolumeUse::default()
        },
        copies: 3,
        chunks: 1,
        chunks_by_replicas: vec![0, 0, 0, 1],
        chunks_naming: (0..3).map(|server| (ServerId(server), 1)).collect(),
        ..ClusterStatus::default()
    }));
    mark_all(&mut seen);
    seen
}

/// Disks and key say that the volume was made, and what it is now.
pub fn mark_all(seen: &mut Observed) {
    let record = KeptVolume::of(&seen.cluster).to_text().expect("serialises");
    for pvc in seen.pvcs.values_mut() {
        let labels = pvc.metadata.labels.get_or_insert_default();
        labels.insert(labels::BOOTSTRAPPED.into(), "true".into());
        let annotations = pvc.metadata.annotations.get_or_insert_default();
        annotations.insert(annotations::VOLUME.into(), record.clone());
    }
    if let Some(secret) = &mut seen.secret {
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.insert(labels::BOOTSTRAPPED.into(), "true".into());
    }
}

pub fn mark_member(seen: &mut Observed, ordinal: u32, member: MemberId) {
    let pvc = seen.pvcs.get_mut(&names::pvc("db", Component::Metadata, ordinal)).expect("disk");
    let labels = pvc.metadata.labels.get_or_insert_default();
    labels.insert(labels::MEMBER_ID.into(), member.to_string());
}

/// A metadata server that waits with an empty disk.
pub fn joins(seen: &mut Observed, ordinal: u32, member: MemberId) {
    let joiner = MemberIdentity {
        member,
        address: names::pod_address("ns", "db", Component::Metadata, ordinal),
        cluster: ID,
        in_group: false,
        is_leader: false,
        leader: None,
        term: 0,
        disk_full: false,
    };
    seen.joiners.insert(ordinal, joiner);
}
