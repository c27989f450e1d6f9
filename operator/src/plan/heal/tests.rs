//! What is gone for good is replaced, what may come back is waited for, and nothing is let go that anything depends on.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_core::ids::{MemberId, ServerId};

use atoll_proto::admin::MembersChange;
use k8s_openapi::api::core::v1::{PodCondition, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::nodes::NodeState;
use crate::plan::tests::{does_settled as does, wanted};
use crate::testing;

const GONE: NodeState = NodeState::OutOfService;

/// A cluster with a server of each kind on each of the nodes node-0, node-1 and node-2, and their disks too.
fn placed() -> Observed {
    let mut seen = testing::running();
    for component in Component::ALL {
        for place in Place::all(component, 3) {
            let node = format!("node-{}", place.ordinal);
            seen.nodes.disks.insert(place.pvc_name(&seen), BTreeSet::from([node.clone()]));
            seen.nodes.states.insert(node.clone(), NodeState::Ready);
            runs_on(&mut seen, place, Some(&node));
        }
    }
    does(&seen, &[]);
    seen
}

fn server(ordinal: u32) -> Place {
    Place { component: Component::Storage, ordinal }
}

fn member(ordinal: u32) -> Place {
    Place { component: Component::Metadata, ordinal }
}

fn runs_on(seen: &mut Observed, place: Place, node: Option<&str>) {
    let name = place.pod_name(seen);
    let pod = seen.pods.get_mut(&name).expect("pod");
    pod.spec = Some(PodSpec { node_name: node.map(str::to_owned), ..PodSpec::default() });
}

/// A server that isn't there; `terminates`: its pod can't end, since nobody is there to say so.
fn falls_silent(seen: &mut Observed, place: Place, terminates: bool) {
    let (name, address) = (place.pod_name(seen), place.address(seen));
    let pod = seen.pods.get_mut(&name).expect("pod");
    pod.status = None;
    pod.metadata.deletion_timestamp = terminates.then_some(Time(Timestamp::UNIX_EPOCH));
    let answer = testing::answer(seen);
    for found in answer.servers.iter_mut().filter(|found| found.address == address) {
        found.alive = false;
    }
    for found in answer.members.iter_mut().filter(|found| found.address == address) {
        found.silent_ms = Some(60_000);
    }
}

fn is_deleted(seen: &mut Observed, place: Place) {
    let name = place.pvc_name(seen);
    let pvc = seen.pvcs.get_mut(&name).expect("disk");
    pvc.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
}

/// Chunks by their replicas.
fn chunks(seen: &mut Observed, by_replicas: &[u64]) {
    testing::answer(seen).chunks_by_replicas = by_replicas.to_vec();
}

fn drained(seen: &mut Observed, place: Place) {
    let address = place.address(seen);
    let answer = testing::answer(seen);
    answer
        .servers
        .iter_mut()
        .filter(|found| found.address == address)
        .for_each(|found| found.draining = true);
}

fn says(seen: &Observed, reason: Reason, words: &[&str]) {
    let problem = pending(seen, &wanted(seen).expect("valid")).expect("something to say");
    assert_eq!(problem.reason, reason, "{}", problem.message);
    for word in words {
        assert!(problem.message.contains(word), "no '{word}': {}", problem.message);
    }
}

fn says_nothing(seen: &Observed) {
    assert_eq!(pending(seen, &wanted(seen).expect("valid")), None);
}

#[test]
fn a_storage_server_on_a_node_that_is_gone_is_replaced_step_by_step() {
    let mut seen = placed();
    says_nothing(&seen);
    seen.nodes.states.insert("node-1".into(), GONE);
    falls_silent(&mut seen, server(1), true);
    falls_silent(&mut seen, member(1), true);
    // Both of the node's servers wait; the metadata server is the first, and the copies on the other count no more.
    does(&seen, &["Drain 1"]);
    drained(&mut seen, server(1));
    chunks(&mut seen, &[0, 0, 1, 0]);
    does(&seen, &["discard data-db-metadata-1", "evict db-metadata-1 by force"]);
    says(&seen, Reason::ReplacingServer, &["db-metadata-1", "node node-1", "out of service"]);

    // The pod has a new disk elsewhere, and waits to get into the group.
    let new = MemberId(0xd);
    seen.nodes.disks.insert("data-db-metadata-1".into(), BTreeSet::from(["node-2".to_owned()]));
    seen.pods.insert("db-metadata-1".into(), testing::pod("db-metadata-1"));
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["db-storage-1 waits until db-metadata-1 is back"]);
    testing::joins(&mut seen, 1, new);
    let address = member(1).address(&seen);
    does(&seen, &[&format!("{:?}", MembersChange::Replace { old: testing::MEMBERS[1], new, address })]);
    seen.joiners.clear();
    let answer = testing::answer(&mut seen);
    (answer.members[1].member, answer.members[1].silent_ms) = (new, Some(0));
    testing::mark_member(&mut seen, 1, new);

    does(&seen, &["discard data-db-storage-1", "evict db-storage-1 by force"]);
    seen.nodes.disks.insert("data-db-storage-1".into(), BTreeSet::from(["node-0".to_owned()]));
    seen.pods.insert("db-storage-1".into(), testing::pod("db-storage-1"));
    // Its server registers, at the address of the one before.
    let mut second = testing::answer(&mut seen).servers[1].clone();
    (second.server, second.alive, second.draining) = (ServerId(9), true, false);
    testing::answer(&mut seen).servers.push(second);
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["db-storage-1 has a new disk", "1 chunks"]);
    testing::answer(&mut seen).chunks_naming = vec![(ServerId(0), 1), (ServerId(2), 1), (ServerId(9), 1)];
    chunks(&mut seen, &[0, 0, 0, 1]);
    does(&seen, &["Forget 1"]);
    testing::answer(&mut seen).servers.remove(1);
    does(&seen, &[]);
    says_nothing(&seen);
}

#[test]
fn a_node_that_may_come_back_is_waited_for_and_it_is_said_what_to_do_if_it_does_not() {
    for state in [NodeState::NotReady, NodeState::Missing(Duration::from_secs(5))] {
        let mut seen = placed();
        seen.nodes.states.insert("node-1".into(), state);
        falls_silent(&mut seen, server(1), true);
        falls_silent(&mut seen, member(1), true);
        chunks(&mut seen, &[0, 0, 1, 0]);
        does(&seen, &[]);
        says(&seen, Reason::NodeNotReady, &["node-1"]);
    }
    let mut seen = placed();
    seen.nodes.states.insert("node-1".into(), NodeState::NotReady);
    falls_silent(&mut seen, server(1), true);
    says(&seen, Reason::NodeNotReady, &["kubectl delete node node-1", "out-of-service"]);
    // It doesn't matter where nothing is.
    seen.nodes.states.insert("node-1".into(), NodeState::Ready);
    says_nothing(&seen);
}

#[test]
fn a_disk_that_any_node_can_use_stays_and_its_pod_goes_elsewhere() {
    let mut seen = placed();
    seen.nodes.disks.clear();
    seen.nodes.states.insert("node-1".into(), GONE);
    falls_silent(&mut seen, server(1), true);
    does(&seen, &["evict db-storage-1 by force"]);
    // Nobody has noticed yet.
    let mut seen = placed();
    seen.nodes.disks.clear();
    seen.nodes.states.insert("node-1".into(), GONE);
    does(&seen, &[]);
}

#[test]
fn the_last_copy_is_never_let_go() {
    let mut seen = placed();
    seen.nodes.disks.retain(|pvc, _| pvc.contains("storage"));
    seen.nodes.states.insert("node-1".into(), GONE);
    falls_silent(&mut seen, server(1), false);
    does(&seen, &["Drain 1"]);
    drained(&mut seen, server(1));
    chunks(&mut seen, &[1, 0, 3, 0]);
    does(&seen, &[]);
    says(&seen, Reason::ReplacementBlocked, &["1 chunks", "bring the node", "delete pvc data-db-storage-1"]);
    // There is a copy, and another one is made that there is room for.
    chunks(&mut seen, &[0, 1, 3, 0]);
    testing::answer(&mut seen).repair.eta_seconds = Some(7);
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["once 1 chunks have more replicas", "for another 7 s"]);
    chunks(&mut seen, &[0, 0, 4, 0]);
    does(&seen, &["discard data-db-storage-1", "evict db-storage-1 by force"]);
    // A leader of an earlier version doesn't say which copies there are.
    chunks(&mut seen, &[]);
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["version"]);
}

#[test]
fn one_server_at_a_time_is_replaced() {
    let mut seen = placed();
    seen.nodes.disks.retain(|pvc, _| pvc.contains("storage"));
    for ordinal in [1, 2] {
        seen.nodes.states.insert(format!("node-{ordinal}"), GONE);
        falls_silent(&mut seen, server(ordinal), true);
    }
    does(&seen, &["Drain 1", "Drain 2"]);
    (1..3).for_each(|ordinal| drained(&mut seen, server(ordinal)));
    chunks(&mut seen, &[0, 1, 0, 0]);
    does(&seen, &["discard data-db-storage-1", "evict db-storage-1 by force"]);
    // It starts elsewhere.
    seen.nodes.disks.remove("data-db-storage-1");
    seen.pods.remove("db-storage-1");
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["db-storage-2 waits until db-storage-1 is back"]);
    // It is back, and has no copies yet.
    seen.pods.insert("db-storage-1".into(), testing::pod("db-storage-1"));
    let mut second = testing::answer(&mut seen).servers[1].clone();
    (second.server, second.alive, second.draining) = (ServerId(9), true, false);
    testing::answer(&mut seen).servers.push(second);
    does(&seen, &[]);
    chunks(&mut seen, &[0, 0, 1, 0]);
    does(&seen, &["discard data-db-storage-2", "evict db-storage-2 by force"]);
}

#[test]
fn a_disk_that_was_deleted_goes_with_its_pod_once_its_copies_are_elsewhere() {
    let mut seen = placed();
    is_deleted(&mut seen, server(0));
    does(&seen, &["Drain 0"]);
    drained(&mut seen, server(0));
    chunks(&mut seen, &[0, 1, 3, 0]);
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["PVC data-db-storage-0 was deleted", "1 chunks"]);
    // As many as there can be on two others.
    chunks(&mut seen, &[0, 0, 4, 0]);
    does(&seen, &["evict db-storage-0"]);
    // It ends; nothing is done meanwhile.
    falls_silent(&mut seen, server(0), true);
    does(&seen, &[]);
    // A metadata server's disk goes as soon as the others are a majority.
    let mut seen = placed();
    is_deleted(&mut seen, member(2));
    does(&seen, &["evict db-metadata-2"]);
    falls_silent(&mut seen, member(0), false);
    does(&seen, &[]);
}

#[test]
fn a_disk_that_was_deleted_and_whose_node_is_gone_goes_whatever_was_on_it() {
    let mut seen = placed();
    is_deleted(&mut seen, server(1));
    seen.nodes.states.insert("node-1".into(), GONE);
    falls_silent(&mut seen, server(1), true);
    chunks(&mut seen, &[1, 0, 3, 0]);
    does(&seen, &["evict db-storage-1 by force"]);
}

#[test]
fn the_only_server_is_not_let_go_and_it_is_said_what_to_do() {
    let single = || {
        let mut seen = placed();
        testing::change(&mut seen, |cluster| cluster.spec.copies = 1);
        for name in ["db-metadata-1", "db-metadata-2", "db-storage-1", "db-storage-2"] {
            seen.pods.remove(name);
            seen.pvcs.remove(&format!("data-{name}"));
        }
        let answer = testing::answer(&mut seen);
        answer.members.truncate(1);
        answer.servers.truncate(1);
        (answer.copies, answer.chunks_by_replicas) = (1, vec![0, 1]);
        seen
    };
    let mut seen = single();
    is_deleted(&mut seen, server(0));
    assert_eq!(next(&seen, &wanted(&seen).expect("valid")), []);
    says(&seen, Reason::ReplacementBlocked, &["db-storage-0 is needed", "spec.storage.replicas"]);
    let mut seen = single();
    is_deleted(&mut seen, member(0));
    assert_eq!(next(&seen, &wanted(&seen).expect("valid")), []);
    says(&seen, Reason::ReplacementBlocked, &["only metadata server", "spec.metadata.replicas"]);
}

#[test]
fn a_majority_that_is_lost_needs_somebody() {
    let mut seen = placed();
    for ordinal in [0, 1] {
        seen.nodes.states.insert(format!("node-{ordinal}"), GONE);
        falls_silent(&mut seen, member(ordinal), false);
    }
    testing::answer(&mut seen).is_leader = false;
    does(&seen, &[]);
    says(&seen, Reason::ReplacementBlocked, &["unsafe-recovery"]);
    // One is lost, and there is an election.
    seen.nodes.states.insert("node-0".into(), NodeState::Ready);
    does(&seen, &[]);
    says(&seen, Reason::ReplacingServer, &["once the metadata servers' leader responds"]);
}

#[test]
fn a_claim_that_waits_for_a_disk_on_a_node_that_is_gone_waits_elsewhere() {
    let mut seen = placed();
    seen.nodes.states.insert("node-1".into(), GONE);
    let pvc = seen.pvcs.get_mut("data-db-storage-1").expect("disk");
    pvc.status.as_mut().expect("status").phase = Some("Pending".into());
    falls_silent(&mut seen, server(1), false);
    runs_on(&mut seen, server(1), None);
    does(&seen, &["discard data-db-storage-1", "evict db-storage-1"]);
    // The pod is created again by whoever creates its claim; that the claim isn't seen says little.
    seen.pvcs.remove("data-db-storage-1");
    does(&seen, &[]);
    let pod = seen.pods.get_mut("db-storage-1").expect("pod");
    pod.status.get_or_insert_default().conditions = Some(vec![PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        message: Some("0/3 nodes: persistentvolumeclaim \"data-db-storage-1\" not found.".into()),
        ..PodCondition::default()
    }]);
    does(&seen, &["evict db-storage-1"]);
}

#[test]
fn a_volume_that_is_lost_is_a_disk_that_is_lost() {
    let mut seen = placed();
    let pvc = seen.pvcs.get_mut("data-db-storage-1").expect("disk");
    pvc.status.as_mut().expect("status").phase = Some("Lost".into());
    falls_silent(&mut seen, server(1), false);
    drained(&mut seen, server(1));
    chunks(&mut seen, &[0, 0, 1, 0]);
    does(&seen, &["discard data-db-storage-1", "evict db-storage-1"]);
}
