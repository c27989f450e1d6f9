//! Each step of a volume's growth, and of each way in which it can't be had.

use std::collections::BTreeMap;

use atoll_core::ids::ServerId;
use atoll_crds::v1alpha1::FileSystemCluster;
use atoll_proto::metadata::ServerStatus;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimCondition, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::*;
use crate::plan::{Kind, Owned, Plan, held, plan};
use crate::testing::{self, FRESH, ID};
use crate::validate::validate;

const GIB: u64 = 1 << 30;

/// A volume of 1Gi on disks of 3Gi, those of the metadata servers of 2Gi.
fn running(expandable: bool) -> Observed {
    let mut seen = testing::running();
    seen.classes[0].expandable = expandable;
    let names: Vec<String> = seen.pvcs.keys().cloned().collect();
    for name in names {
        let size = if name.contains("metadata") { "2Gi" } else { "3Gi" };
        bind(&mut seen, &name, size);
    }
    testing::answer(&mut seen).inline_budget_bytes = inline_budget(2 * GIB);
    seen
}

fn storage(text: &str) -> BTreeMap<String, ApiQuantity> {
    BTreeMap::from([("storage".to_owned(), ApiQuantity(text.to_owned()))])
}

/// The disk is there and has what it asks for.
fn bind(seen: &mut Observed, name: &str, size: &str) {
    let pvc = seen.pvcs.get_mut(name).expect("disk");
    pvc.spec = Some(PersistentVolumeClaimSpec {
        storage_class_name: Some("disks".into()),
        volume_name: Some(format!("pv-of-{name}")),
        resources: Some(VolumeResourceRequirements { requests: Some(storage(size)), limits: None }),
        ..PersistentVolumeClaimSpec::default()
    });
    let status = pvc.status.get_or_insert_default();
    status.phase = Some("Bound".into());
    status.capacity = Some(storage(size));
    (status.conditions, status.allocated_resource_statuses) = (None, None);
}

/// The disk asks for a size that it doesn't have yet.
fn ask(seen: &mut Observed, name: &str, size: &str) {
    let pvc = seen.pvcs.get_mut(name).expect("disk");
    let requests = &mut pvc.spec.as_mut().expect("spec").resources.as_mut().expect("resources").requests;
    *requests = Some(storage(size));
}

fn state(seen: &mut Observed, name: &str, state: &str) {
    let status = seen.pvcs.get_mut(name).expect("disk").status.get_or_insert_default();
    status.allocated_resource_statuses = Some(BTreeMap::from([("storage".to_owned(), state.to_owned())]));
}

fn spec(seen: &mut Observed, change: impl FnOnce(&mut FileSystemCluster)) {
    testing::change(seen, change);
    testing::mark_all(seen);
}

fn capacity(seen: &mut Observed, capacity: &str) {
    spec(seen, |cluster| cluster.spec.capacity = capacity.into());
}

fn wanted(seen: &Observed) -> Wanted {
    held(sized(validate(&seen.cluster, &testing::images()).expect("valid"), seen), seen)
}

fn planned(seen: &Observed) -> Plan {
    plan(seen, &Ok(wanted(seen)), FRESH)
}

fn does(seen: &Observed, expected: &[&str]) {
    let plan = planned(seen);
    assert_eq!(plan.problem, None);
    let words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::ResizeDisk { pvc, size } => format!("resize {pvc} {size}"),
            Action::Recreate(name) => format!("recreate {name}"),
            Action::ResizeVolume(size) => format!(
                "volume {} {} {}",
                Quantity::from_bytes(size.bytes_total),
                size.inodes_total,
                size.inline_budget_bytes
            ),
            Action::Apply(Owned::StatefulSet(set)) => {
                let count = set.spec.as_ref().and_then(|spec| spec.replicas).expect("replicas");
                let size = disk_of(set).expect("disk").size;
                format!("apply {} {count} {size}", set.metadata.name.as_deref().expect("name"))
            }
            Action::DiscardClaim(name) => format!("discard {name}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(words, expected);
}

fn waits(seen: &Observed, reason: Reason, message: &str) {
    let problem = pending(seen, &wanted(seen)).expect("pending");
    assert_eq!(problem.reason, reason, "{}", problem.message);
    assert!(problem.message.contains(message), "{}", problem.message);
}

fn applied(seen: &mut Observed, component: Component) {
    let set = planned(seen).actions.into_iter().find_map(|action| match action {
        Action::Apply(Owned::StatefulSet(set)) => Some(*set),
        _ => None,
    });
    let mut set = set.expect("a StatefulSet is applied");
    set.metadata.generation = Some(1);
    let status = set.status.get_or_insert_default();
    (status.observed_generation, status.update_revision) = (Some(1), Some(testing::REVISION.into()));
    seen.statefulsets.insert(component, set);
}

/// A storage server that came later, whose disk is there, has registered.
fn add_server(seen: &mut Observed, ordinal: u32, size: &str) {
    let name = names::pvc("db", Component::Storage, ordinal);
    seen.pvcs.insert(name.clone(), testing::pvc(&name, Component::Storage, ID));
    bind(seen, &name, size);
    let pod = names::pod("db", Component::Storage, ordinal);
    seen.pods.insert(pod.clone(), testing::pod(&pod));
    let like = testing::answer(seen).servers[0].clone();
    let address = names::pod_address("ns", "db", Component::Storage, ordinal);
    let server = ServerStatus { server: ServerId(ordinal.into()), address, ..like };
    testing::answer(seen).servers.push(server);
    testing::mark_all(seen);
}

#[test]
fn a_volume_whose_disks_have_its_size_is_left_alone() {
    for expandable in [true, false] {
        let seen = running(expandable);
        does(&seen, &[]);
        assert_eq!(pending(&seen, &wanted(&seen)), None);
    }
    // Nor is anything done about one that isn't made yet.
    let seen = testing::started();
    assert_eq!(pending(&seen, &wanted(&seen)), None);
}

#[test]
fn the_quota_is_raised_at_once_if_the_disks_have_room() {
    for expandable in [true, false] {
        let mut seen = running(expandable);
        capacity(&mut seen, "1536Mi");
        waits(&seen, Reason::ResizingVolume, "1536Mi");
        does(&seen, &["volume 1536Mi 393216 214748364"]);
        // Full, degraded, with a server away: all the same.
        let answer = testing::answer(&mut seen);
        answer.volume.bytes_used = GIB;
        (answer.chunks_short, answer.servers[0].alive) = (5, false);
        answer.problems = vec!["something".into()];
        seen.pods.remove("db-storage-0");
        does(&seen, &["volume 1536Mi 393216 214748364"]);
        // Nobody else than the leader can.
        testing::answer(&mut seen).is_leader = false;
        does(&seen, &[]);
        waits(&seen, Reason::MetadataUnreachable, "leader");
    }
}

#[test]
fn disks_that_can_grow_do_and_the_quota_follows_them() {
    let mut seen = running(true);
    capacity(&mut seen, "100Gi");
    let storage = ["data-db-storage-0", "data-db-storage-1", "data-db-storage-2"];
    let metadata = ["data-db-metadata-0", "data-db-metadata-1", "data-db-metadata-2"];
    let all = |names: [&str; 3], size: &str| names.map(|name| format!("resize {name} {size}"));
    does(&seen, &all(storage, "111Gi").each_ref().map(String::as_str));
    waits(&seen, Reason::ResizingDisks, "PVC data-db-storage-0 is being expanded from 3Gi to 111Gi");
    // It ended in between.
    storage[..2].iter().for_each(|name| ask(&mut seen, name, "111Gi"));
    does(&seen, &["resize data-db-storage-2 111Gi"]);
    ask(&mut seen, storage[2], "111Gi");
    // The template, without the pods.
    does(&seen, &["recreate db-storage"]);
    seen.statefulsets.remove(&Component::Storage);
    does(&seen, &["apply db-storage 3 111Gi"]);
    applied(&mut seen, Component::Storage);
    does(&seen, &[]);
    storage[..2].iter().for_each(|name| bind(&mut seen, name, "111Gi"));
    seen.pvc_warnings.insert(storage[2].to_owned(), "no quota".to_owned());
    does(&seen, &[]);
    waits(&seen, Reason::ResizingDisks, "data-db-storage-2 is being expanded from 3Gi to 111Gi: no quota");

    // Once the data can be kept, the disks of those who say where it is; the volume doesn't wait for them.
    bind(&mut seen, storage[2], "111Gi");
    does(&seen, &all(metadata, "5Gi").each_ref().map(String::as_str));
    metadata.iter().for_each(|name| ask(&mut seen, name, "5Gi"));
    does(&seen, &["recreate db-metadata"]);
    seen.statefulsets.remove(&Component::Metadata);
    does(&seen, &["apply db-metadata 3 5Gi"]);
    applied(&mut seen, Component::Metadata);
    does(&seen, &["volume 100Gi 26214400 214748364"]);
    let answer = testing::answer(&mut seen);
    (answer.volume.bytes_total, answer.volume.inodes_total) = (100 * GIB, 26_214_400);
    // No pod is made anew for any of it.
    does(&seen, &[]);
    assert_eq!(pending(&seen, &wanted(&seen)), None);
    metadata.iter().for_each(|name| bind(&mut seen, name, "5Gi"));
    does(&seen, &["volume 100Gi 26214400 536870912"]);
    testing::answer(&mut seen).inline_budget_bytes = inline_budget(5 * GIB);
    does(&seen, &[]);
    // A disk that its provisioner made larger, or somebody by hand, is as good.
    bind(&mut seen, storage[0], "120Gi");
    does(&seen, &[]);
}

#[test]
fn a_template_follows_disks_that_have_grown_before_it_could() {
    let mut seen = running(true);
    capacity(&mut seen, "10Gi");
    for name in ["data-db-storage-0", "data-db-storage-1", "data-db-storage-2"] {
        bind(&mut seen, name, "12Gi");
    }
    does(&seen, &["recreate db-storage"]);
    seen.statefulsets.remove(&Component::Storage);
    does(&seen, &["apply db-storage 3 12Gi"]);
    applied(&mut seen, Component::Storage);
    does(&seen, &["volume 10Gi 2621440 214748364"]);
    // Disks that only came out larger than they were asked for to be are no reason.
    let mut seen = running(true);
    for pvc in seen.pvcs.values_mut() {
        pvc.status.as_mut().expect("status").capacity = Some(storage("7Gi"));
    }
    testing::answer(&mut seen).inline_budget_bytes = inline_budget(7 * GIB);
    does(&seen, &[]);
}

#[test]
fn metadata_disks_grow_by_their_own_size_and_more_small_files_stay_on_them() {
    let mut seen = running(true);
    spec(&mut seen, |cluster| {
        cluster.spec.metadata.storage.get_or_insert_default().size = Some("4Gi".into());
    });
    let names = ["data-db-metadata-0", "data-db-metadata-1", "data-db-metadata-2"];
    does(
        &seen,
        &names.map(|name| format!("resize {name} 4Gi")).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    names.iter().for_each(|name| ask(&mut seen, name, "4Gi"));
    does(&seen, &["recreate db-metadata"]);
    seen.statefulsets.remove(&Component::Metadata);
    applied(&mut seen, Component::Metadata);
    waits(&seen, Reason::ResizingDisks, "from 2Gi to 4Gi");
    names.iter().for_each(|name| bind(&mut seen, name, "4Gi"));
    does(&seen, &["volume 1Gi 262144 429496729"]);
    // A metadata server of before can't be asked.
    testing::answer(&mut seen).inline_budget_bytes = 0;
    does(&seen, &[]);
}

#[test]
fn where_disks_cannot_grow_servers_are_added_as_many_as_it_takes() {
    let mut seen = running(false);
    capacity(&mut seen, "3Gi");
    // 3 copies of 3Gi on disks of 3Gi, of which 1Gi and a tenth is room to work in.
    does(&seen, &["apply db-storage 5 3Gi"]);
    waits(&seen, Reason::AddingServers, "3 of the 5 storage servers");
    applied(&mut seen, Component::Storage);
    does(&seen, &[]);
    waits(&seen, Reason::AddingServers, "pod db-storage-3 doesn't exist yet");
    add_server(&mut seen, 3, "3Gi");
    does(&seen, &[]);
    // Its disk alone is no server yet.
    let mut early = seen.clone();
    add_server(&mut early, 4, "3Gi");
    testing::answer(&mut early).servers.pop();
    does(&early, &[]);
    add_server(&mut seen, 4, "3Gi");
    does(&seen, &["volume 3Gi 786432 214748364"]);
    testing::answer(&mut seen).volume.bytes_total = 3 * GIB;
    does(&seen, &[]);
    assert_eq!(pending(&seen, &wanted(&seen)), None);
    // They stay, also when nobody says how many there were, and when a disk is gone.
    testing::answer(&mut seen).is_leader = false;
    does(&seen, &[]);
    testing::answer(&mut seen).is_leader = true;
    seen.pvcs.remove("data-db-storage-4");
    does(&seen, &[]);
    add_server(&mut seen, 4, "3Gi");
    seen.statefulsets.remove(&Component::Storage);
    does(&seen, &["apply db-storage 5 3Gi"]);
}

#[test]
fn what_was_asked_for_in_vain_is_called_off_with_the_capacity() {
    let mut seen = running(false);
    capacity(&mut seen, "3Gi");
    applied(&mut seen, Component::Storage);
    add_server(&mut seen, 3, "3Gi");
    // No node has room for the last one.
    let name = "data-db-storage-4";
    seen.pvcs.insert(name.into(), testing::pvc(name, Component::Storage, ID));
    seen.pvcs.get_mut(name).expect("disk").status.as_mut().expect("status").phase = Some("Pending".into());
    seen.pods.insert("db-storage-4".into(), testing::pod("db-storage-4"));
    testing::mark_all(&mut seen);
    waits(&seen, Reason::AddingServers, "PVC data-db-storage-4 waits for a volume");
    capacity(&mut seen, "2Gi");
    does(&seen, &["apply db-storage 4 3Gi"]);
    // Only the leader knows that it never registered.
    testing::answer(&mut seen).is_leader = false;
    does(&seen, &[]);
    testing::answer(&mut seen).is_leader = true;
    applied(&mut seen, Component::Storage);
    does(&seen, &["volume 2Gi 524288 214748364"]);
    seen.pods.remove("db-storage-4");
    does(&seen, &["discard data-db-storage-4"]);
    // One that has a disk, or is somebody else's, stays.
    let mut other = seen.clone();
    let pvc = other.pvcs.get_mut(name).expect("disk");
    pvc.metadata.annotations.as_mut().expect("marks").insert(annotations::CREATED_FOR.into(), "uid-0".into());
    does(&other, &["volume 2Gi 524288 214748364"]);
    bind(&mut seen, name, "3Gi");
    does(&seen, &["apply db-storage 5 3Gi"]);
}

#[test]
fn a_number_of_servers_that_the_spec_names_is_kept_and_what_to_name_is_said() {
    let mut seen = running(false);
    spec(&mut seen, |cluster| {
        (cluster.spec.capacity, cluster.spec.storage.replicas) = ("3Gi".into(), Some(3));
    });
    does(&seen, &[]);
    waits(
        &seen,
        Reason::ExpansionInfeasible,
        "class disks can't expand their disks: raise spec.storage.replicas to 5",
    );
    // A claim's volume has nobody who would.
    let managed = (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_CSI.to_owned());
    spec(&mut seen, |cluster| cluster.metadata.labels = Some([managed].into()));
    does(&seen, &["apply db-storage 5 3Gi"]);
    capacity(&mut seen, "1Ti");
    does(&seen, &[]);
    // Nor do other disks grow then.
    let mut others = seen.clone();
    others.classes[0].expandable = true;
    for pvc in others
        .pvcs
        .values_mut()
        .filter(|pvc| pvc.metadata.name.as_deref().is_some_and(|n| n.contains("storage")))
    {
        pvc.spec.as_mut().expect("spec").storage_class_name = Some("fixed".into());
    }
    does(&others, &[]);
    waits(&seen, Reason::ExpansionInfeasible, "lower spec.capacity, down to 1Gi");
    let mut seen = running(true);
    spec(&mut seen, |cluster| {
        cluster.spec.capacity = "4Gi".into();
        (cluster.spec.storage.replicas, cluster.spec.storage.size) = (Some(3), Some("3Gi".into()));
    });
    does(&seen, &[]);
    waits(
        &seen,
        Reason::ExpansionInfeasible,
        "with disks of spec.storage.size are too small for 4Gi: raise spec.storage.replicas to 4",
    );
    spec(&mut seen, |cluster| cluster.spec.storage.replicas = None);
    does(&seen, &["apply db-storage 4 3Gi"]);
    let mut seen = running(false);
    spec(&mut seen, |cluster| cluster.spec.storage.size = Some("4Gi".into()));
    does(&seen, &[]);
    waits(&seen, Reason::NotExpandable, "spec.storage.size is 4Gi, and class disks can't expand");
}

#[test]
fn an_expansion_that_cannot_be_had_is_called_off_with_a_smaller_capacity() {
    let mut seen = running(true);
    capacity(&mut seen, "10Gi");
    let storage = ["data-db-storage-0", "data-db-storage-1", "data-db-storage-2"];
    storage.iter().for_each(|name| ask(&mut seen, name, "12Gi"));
    seen.statefulsets.remove(&Component::Storage);
    applied(&mut seen, Component::Storage);
    does(&seen, &[]);
    state(&mut seen, storage[1], "ControllerResizeInfeasible");
    seen.pvc_warnings.insert(storage[1].to_owned(), "no such large disks".to_owned());
    does(&seen, &[]);
    waits(
        &seen,
        Reason::ExpansionInfeasible,
        "PVC data-db-storage-1 can't be expanded to 12Gi (no such large disks)",
    );
    // To something in between: the claims ask for less, above what they have.
    capacity(&mut seen, "4Gi");
    does(
        &seen,
        &storage.map(|name| format!("resize {name} 6Gi")).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    // To what there is: a claim may not ask for what it has already. The template follows.
    let mut back = seen.clone();
    capacity(&mut back, "1Gi");
    does(&back, &[]);
    assert_eq!(pending(&back, &wanted(&back)), None);
    storage.iter().for_each(|name| state(&mut back, name, "ControllerResizeInfeasible"));
    does(&back, &["recreate db-storage"]);
    back.statefulsets.remove(&Component::Storage);
    does(&back, &["apply db-storage 3 3Gi"]);
    // One that has grown meanwhile doesn't get smaller.
    storage.iter().for_each(|name| ask(&mut seen, name, "6Gi"));
    seen.statefulsets.remove(&Component::Storage);
    bind(&mut seen, storage[0], "12Gi");
    applied(&mut seen, Component::Storage);
    bind(&mut seen, storage[1], "6Gi");
    bind(&mut seen, storage[2], "6Gi");
    does(&seen, &["volume 4Gi 1048576 214748364"]);
}

#[test]
fn a_server_that_is_away_is_not_waited_for_if_its_disk_has_grown() {
    let mut seen = running(true);
    capacity(&mut seen, "10Gi");
    let storage = ["data-db-storage-0", "data-db-storage-1", "data-db-storage-2"];
    storage.iter().for_each(|name| ask(&mut seen, name, "12Gi"));
    seen.statefulsets.remove(&Component::Storage);
    applied(&mut seen, Component::Storage);
    bind(&mut seen, storage[0], "12Gi");
    bind(&mut seen, storage[1], "12Gi");
    waits(&seen, Reason::ResizingDisks, "data-db-storage-2");
    let status = seen.pvcs.get_mut(storage[2]).expect("disk").status.as_mut().expect("status");
    status.conditions = Some(vec![PersistentVolumeClaimCondition {
        type_: "FileSystemResizePending".into(),
        status: "True".into(),
        ..PersistentVolumeClaimCondition::default()
    }]);
    // Its file system grows at any moment.
    does(&seen, &[]);
    waits(&seen, Reason::ResizingDisks, "once its pod runs");
    seen.pods.remove("db-storage-2");
    does(&seen, &["volume 10Gi 2621440 214748364"]);
}

#[test]
fn a_capacity_can_be_lowered_to_what_files_use() {
    let mut seen = running(true);
    capacity(&mut seen, "512Mi");
    does(&seen, &["volume 512Mi 131072 214748364"]);
    testing::answer(&mut seen).volume.bytes_used = 600 << 20;
    does(&seen, &[]);
    waits(&seen, Reason::CapacityInUse, "files use 629145600 bytes");
    testing::answer(&mut seen).volume.bytes_used = 1;
    testing::answer(&mut seen).volume.inodes_used = 200_000;
    does(&seen, &["volume 512Mi 200000 214748364"]);
}

#[test]
fn a_deletion_takes_the_pods_of_a_set_that_was_to_be_created_anew() {
    let mut seen = running(true);
    testing::answer(&mut seen).sessions.clear();
    testing::deleted(&mut seen);
    for pod in seen.pods.values_mut() {
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(labels::MANAGED_BY.into(), labels::MANAGED_BY_OPERATOR.into());
        labels.insert(labels::CLUSTER.into(), "db".into());
    }
    seen.statefulsets.clear();
    let pods = |actions: &[Action]| {
        actions.iter().filter(|found| matches!(found, Action::Delete(Kind::Pod, _))).count()
    };
    assert_eq!(pods(&planned(&seen).actions), 6);
    // While there is a StatefulSet, it has them.
    let seen = {
        let mut with = running(true);
        testing::answer(&mut with).sessions.clear();
        testing::deleted(&mut with);
        with
    };
    assert_eq!(pods(&planned(&seen).actions), 0);
}
