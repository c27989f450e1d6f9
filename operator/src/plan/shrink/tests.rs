//! Servers go one at a time, once nothing depends on them, and come back when they are asked for again.

use atoll_core::ids::ServerId;
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;

use super::*;
use crate::plan::Owned;
use crate::plan::tests::{does_settled as does, planned, wanted};
use crate::testing::{self, ID};

/// A volume with so many storage servers on disks of 3Gi, and metadata servers.
fn running(storage: u32, metadata: u32) -> Observed {
    let mut seen = testing::running();
    asks(&mut seen, storage, metadata);
    for (component, count, size) in
        [(Component::Storage, storage, "3Gi"), (Component::Metadata, metadata, "2Gi")]
    {
        let size = || BTreeMap::from([("storage".to_owned(), ApiQuantity(size.to_owned()))]);
        for place in Place::all(component, count) {
            let (pvc, pod, address) = (place.pvc_name(&seen), place.pod_name(&seen), place.address(&seen));
            let mut disk = testing::pvc(&pvc, component, ID);
            disk.spec = Some(PersistentVolumeClaimSpec {
                storage_class_name: Some("disks".into()),
                volume_name: Some("a-volume".into()),
                resources: Some(VolumeResourceRequirements { requests: Some(size()), limits: None }),
                ..PersistentVolumeClaimSpec::default()
            });
            disk.status.as_mut().expect("status").capacity = Some(size());
            seen.pvcs.insert(pvc, disk);
            seen.pods.insert(pod.clone(), testing::pod(&pod));
            let answer = testing::answer(&mut seen);
            if place.ordinal >= 3 && component == Component::Storage {
                let mut server = answer.servers[0].clone();
                (server.server, server.address) = (ServerId(place.ordinal.into()), address);
                answer.servers.push(server);
            } else if place.ordinal >= 3 {
                let mut member = answer.members[0].clone();
                (member.member, member.address) = (id(place.ordinal), address);
                answer.members.push(member);
            }
        }
    }
    for ordinal in 0..metadata {
        testing::mark_member(&mut seen, ordinal, id(ordinal));
    }
    has_chunks(&mut seen, storage);
    testing::answer(&mut seen).inline_budget_bytes = 1 << 40;
    testing::mark_all(&mut seen);
    for _ in 0..3 {
        apply(&mut seen);
    }
    does(&seen, &[]);
    seen
}

fn id(ordinal: u32) -> MemberId {
    MemberId(0xa + u64::from(ordinal))
}

/// Each of so many servers has a chunk.
fn has_chunks(seen: &mut Observed, servers: u32) {
    testing::answer(seen).chunks_naming =
        (0..u64::from(servers)).map(|server| (ServerId(server), 1)).collect();
}

fn asks(seen: &mut Observed, storage: u32, metadata: u32) {
    spec(seen, |cluster| {
        cluster.spec.storage.replicas = Some(u8::try_from(storage).expect("few"));
        cluster.spec.metadata.replicas = Some(u8::try_from(metadata).expect("few"));
    });
}

fn spec(seen: &mut Observed, change: impl FnOnce(&mut FileSystemCluster)) {
    testing::change(seen, change);
    testing::mark_all(seen);
}

/// Objects are as the plan has them.
fn apply(seen: &mut Observed) {
    for action in planned(seen).actions {
        match action {
            Action::Apply(Owned::StatefulSet(mut set)) => {
                set.metadata.generation = Some(1);
                let status = set.status.get_or_insert_default();
                (status.observed_generation, status.update_revision) =
                    (Some(1), Some(testing::REVISION.into()));
                let name = set.name_any();
                let of = if name.ends_with("storage") { Component::Storage } else { Component::Metadata };
                seen.statefulsets.insert(of, *set);
            }
            Action::Apply(Owned::Budget(budget)) => {
                let name = budget.name_any();
                let of = if name.ends_with("storage") { Component::Storage } else { Component::Metadata };
                seen.budgets.insert(of, *budget);
            }
            Action::Delete(_, name) => seen.budgets.retain(|_, budget| budget.name_any() != name),
            _ => {}
        }
    }
}

fn count(seen: &Observed, component: Component) -> u32 {
    replicas_now(seen, component).expect("a StatefulSet")
}

fn server(seen: &mut Observed, ordinal: usize) -> &mut ServerStatus {
    &mut testing::answer(seen).servers[ordinal]
}

fn says(seen: &Observed, reason: Reason, words: &[&str]) {
    let problem = pending(seen, &wanted(seen).expect("valid")).expect("something to say");
    assert_eq!(problem.reason, reason, "{}", problem.message);
    for word in words {
        assert!(problem.message.contains(word), "no '{word}': {}", problem.message);
    }
}

fn pod_goes(seen: &mut Observed, name: &str) {
    seen.pods.remove(name).expect("pod");
}

#[test]
fn storage_servers_are_drained_and_removed_the_highest_first() {
    let mut seen = running(5, 3);
    assert_eq!(pending(&seen, &wanted(&seen).expect("valid")), None);
    asks(&mut seen, 3, 3);
    // All that go, so that no chunk goes to one that goes next.
    does(&seen, &["Drain 3", "Drain 4"]);
    says(&seen, Reason::DrainingServers, &["db-storage-3", "2 replicas"]);
    (server(&mut seen, 3).draining, server(&mut seen, 4).draining) = (true, true);
    does(&seen, &[]);
    // The lower one is empty first: the highest goes first all the same.
    testing::answer(&mut seen).chunks_naming.retain(|(server, _)| server.0 != 3);
    does(&seen, &[]);
    has_chunks(&mut seen, 3);
    says(&seen, Reason::RemovingServers, &[]);
    does(&seen, &["apply StatefulSet db-storage"]);
    apply(&mut seen);
    assert_eq!(count(&seen, Component::Storage), 4);
    does(&seen, &[]);
    pod_goes(&mut seen, "db-storage-4");
    // It may still be thought to be there.
    does(&seen, &[]);
    server(&mut seen, 4).alive = false;
    does(&seen, &["Forget 4"]);
    testing::answer(&mut seen).servers.pop();
    does(&seen, &["discard data-db-storage-4"]);
    seen.pvcs.remove("data-db-storage-4");
    does(&seen, &["apply StatefulSet db-storage"]);
    apply(&mut seen);
    pod_goes(&mut seen, "db-storage-3");
    server(&mut seen, 3).alive = false;
    does(&seen, &["Forget 3"]);
    testing::answer(&mut seen).servers.pop();
    seen.pvcs.remove("data-db-storage-3");
    does(&seen, &[]);
    assert_eq!(count(&seen, Component::Storage), 3);
    assert_eq!(pending(&seen, &wanted(&seen).expect("valid")), None);
}

#[test]
fn nothing_goes_without_the_leaders_word_and_what_went_stays_away() {
    let mut seen = running(4, 3);
    asks(&mut seen, 3, 3);
    testing::answer(&mut seen).is_leader = false;
    does(&seen, &[]);
    says(&seen, Reason::RemovingServers, &["leader"]);
    testing::answer(&mut seen).is_leader = true;
    server(&mut seen, 3).draining = true;
    has_chunks(&mut seen, 3);
    apply(&mut seen);
    assert_eq!(count(&seen, Component::Storage), 3);
    testing::answer(&mut seen).is_leader = false;
    does(&seen, &[]);
    // A StatefulSet that is created anew around its pods loses none.
    seen.statefulsets.remove(&Component::Storage);
    apply(&mut seen);
    assert_eq!(count(&seen, Component::Storage), 4);
    // A leader of an earlier version doesn't say who has chunks.
    let mut seen = running(4, 3);
    asks(&mut seen, 3, 3);
    server(&mut seen, 3).draining = true;
    testing::answer(&mut seen).chunks_by_replicas = Vec::new();
    has_chunks(&mut seen, 3);
    does(&seen, &[]);
}

#[test]
fn a_removal_is_called_off_by_the_number_before() {
    let mut seen = running(4, 3);
    server(&mut seen, 3).draining = true;
    does(&seen, &["Undrain 3"]);
    // Its pod has gone already: it comes back first.
    asks(&mut seen, 3, 3);
    has_chunks(&mut seen, 3);
    apply(&mut seen);
    pod_goes(&mut seen, "db-storage-3");
    server(&mut seen, 3).alive = false;
    asks(&mut seen, 4, 3);
    does(&seen, &["apply StatefulSet db-storage"]);
    apply(&mut seen);
    does(&seen, &[]);
    server(&mut seen, 3).alive = true;
    does(&seen, &["Undrain 3"]);
}

#[test]
fn servers_whose_room_is_needed_stay_and_it_is_said_what_to_do() {
    let mut seen = running(5, 3);
    spec(&mut seen, |cluster| cluster.spec.capacity = "2Gi".into());
    testing::answer(&mut seen).volume.bytes_total = 2 << 30;
    asks(&mut seen, 3, 3);
    does(&seen, &[]);
    says(&seen, Reason::ShrinkBlocked, &["spec.storage.replicas is 3", "3 copies of 2Gi", "set it to 4"]);
    // What was begun before is taken back.
    server(&mut seen, 4).draining = true;
    does(&seen, &["Undrain 4"]);
    server(&mut seen, 4).draining = false;
    asks(&mut seen, 4, 3);
    does(&seen, &["Drain 4"]);
}

#[test]
fn nothing_is_drained_while_one_that_stays_is_away() {
    let mut seen = running(4, 3);
    asks(&mut seen, 3, 3);
    server(&mut seen, 1).alive = false;
    does(&seen, &[]);
    says(&seen, Reason::DrainingServers, &["waits until db-storage-1 is back"]);
    server(&mut seen, 1).alive = true;
    // Its pod is just being made anew, and the leader hasn't noticed.
    let pod = seen.pods.get_mut("db-storage-1").expect("pod");
    let status = pod.status.take();
    does(&seen, &[]);
    seen.pods.get_mut("db-storage-1").expect("pod").status = status;
    does(&seen, &["Drain 3"]);
    // A leader of an earlier release wouldn't say when it is empty.
    testing::answer(&mut seen).chunks_by_replicas.clear();
    does(&seen, &[]);
    says(&seen, Reason::DrainingServers, &["waits until all metadata servers run this version"]);
}

/// Pods are to be made anew.
fn newer(seen: &mut Observed) {
    for set in seen.statefulsets.values_mut() {
        set.status.as_mut().expect("status").update_revision = Some("db-2".into());
    }
}

#[test]
fn no_pod_is_made_anew_while_servers_go() {
    let mut seen = running(4, 3);
    asks(&mut seen, 3, 3);
    newer(&mut seen);
    does(&seen, &["Drain 3"]);
    server(&mut seen, 3).draining = true;
    does(&seen, &[]);
    // What can't be as the spec says keeps no pod from being made anew.
    let mut seen = running(5, 3);
    spec(&mut seen, |cluster| cluster.spec.capacity = "2Gi".into());
    testing::answer(&mut seen).volume.bytes_total = 2 << 30;
    asks(&mut seen, 3, 3);
    newer(&mut seen);
    does(&seen, &["restart db-storage-0"]);
    // A metadata server leaves first.
    let mut seen = running(3, 5);
    asks(&mut seen, 3, 3);
    newer(&mut seen);
    does(&seen, &["data-db-metadata-4 leaves"]);
    let pod = seen.pods.get_mut("db-metadata-1").expect("pod");
    pod.metadata.deletion_timestamp = Some(testing::moment());
    let disk = seen.pvcs.get_mut("data-db-metadata-4").expect("disk");
    let annotations = disk.metadata.annotations.get_or_insert_default();
    annotations.insert(annotations::REMOVED_MEMBER.into(), id(4).to_string());
    does(&seen, &[]);
}

#[test]
fn servers_that_came_by_themselves_stay() {
    let mut seen = running(5, 3);
    spec(&mut seen, |cluster| cluster.spec.storage.replicas = None);
    does(&seen, &[]);
    assert_eq!(pending(&seen, &wanted(&seen).expect("valid")), None);
    // And go when a number is named.
    asks(&mut seen, 4, 3);
    does(&seen, &["Drain 4"]);
}

#[test]
fn metadata_servers_leave_the_group_before_their_pods_go() {
    let mut seen = running(3, 5);
    asks(&mut seen, 3, 3);
    does(&seen, &["data-db-metadata-4 leaves"]);
    let mark = |seen: &mut Observed, ordinal: u32| {
        let disk = seen.pvcs.get_mut(&format!("data-db-metadata-{ordinal}")).expect("disk");
        let annotations = disk.metadata.annotations.get_or_insert_default();
        annotations.insert(annotations::REMOVED_MEMBER.into(), id(ordinal).to_string());
    };
    mark(&mut seen, 4);
    let remove = |ordinal| format!("{:?}", MembersChange::Remove { member: id(ordinal) });
    does(&seen, &[&remove(4)]);
    says(&seen, Reason::RemovingServers, &["2 metadata servers"]);
    // One that stays doesn't respond: nobody leaves.
    testing::answer(&mut seen).members[1].silent_ms = Some(60_000);
    does(&seen, &[]);
    says(&seen, Reason::RemovingServers, &["waits until db-metadata-1 is back"]);
    testing::answer(&mut seen).members[1].silent_ms = Some(0);
    testing::answer(&mut seen).members.pop();
    does(&seen, &["apply StatefulSet db-metadata"]);
    apply(&mut seen);
    assert_eq!(count(&seen, Component::Metadata), 4);
    pod_goes(&mut seen, "db-metadata-4");
    // The next one leaves meanwhile.
    does(&seen, &["data-db-metadata-3 leaves", "discard data-db-metadata-4"]);
    seen.pvcs.remove("data-db-metadata-4");
    mark(&mut seen, 3);
    does(&seen, &[&remove(3)]);

    // Called off: who stays a member is no longer marked, and who has left gets a new disk.
    asks(&mut seen, 3, 5);
    apply(&mut seen);
    does(&seen, &["data-db-metadata-3 stays"]);
    testing::answer(&mut seen).members.pop();
    does(&seen, &["discard data-db-metadata-3", "evict db-metadata-3"]);
}

#[test]
fn the_disk_of_a_member_that_left_by_other_means_stays() {
    let mut seen = running(3, 5);
    asks(&mut seen, 3, 3);
    testing::answer(&mut seen).members.truncate(3);
    apply(&mut seen);
    pod_goes(&mut seen, "db-metadata-4");
    does(&seen, &[]);
    says(&seen, Reason::ShrinkBlocked, &["PVC data-db-metadata-", "delete the PVC"]);
    // One that never was a member's is of no use.
    let disk = seen.pvcs.get_mut("data-db-metadata-4").expect("disk");
    disk.metadata.labels.as_mut().expect("labels").remove(labels::MEMBER_ID);
    does(&seen, &["discard data-db-metadata-4"]);
}
