//! Pods that are made anew, as a table.

use std::collections::BTreeMap;

use atoll_core::ids::ServerId;
use k8s_openapi::api::core::v1::{Container, PodCondition, PodSpec, PodStatus};

use super::*;
use crate::plan::tests::{does, does_settled, settled, wanted};
use crate::testing::{self, MEMBERS, REVISION as OLD};

const NEW: &str = "db-2";

/// The templates are others now, and ask for something else.
fn newer(seen: &mut Observed) {
    for set in seen.statefulsets.values_mut() {
        set.status.as_mut().expect("status").update_revision = Some(NEW.into());
    }
}

/// The pod is there again, from the newest template.
fn renew(seen: &mut Observed, name: &str) {
    let mut back = testing::pod(name);
    back.metadata.labels.as_mut().expect("labels").insert(REVISION.into(), NEW.into());
    seen.pods.insert(name.into(), back);
}

fn pod<'a>(seen: &'a mut Observed, name: &str) -> &'a mut Pod {
    seen.pods.get_mut(name).expect("pod")
}

/// Kubelet says so of its container.
fn waits(seen: &mut Observed, name: &str, reason: &str) {
    pod(seen, name).status =
        Some(PodStatus { container_statuses: Some(vec![testing::waiting(reason)]), ..PodStatus::default() });
}

/// The API server has heard nothing of the pod for a while; it may work all the same.
fn unheard(seen: &mut Observed, name: &str) {
    let conditions = pod(seen, name).status.as_mut().expect("status").conditions.as_mut();
    conditions.expect("conditions")[0].status = "Unknown".into();
}

#[test]
fn pods_are_made_anew_one_after_the_other_the_leader_last() {
    let mut seen = testing::running();
    newer(&mut seen);
    for name in ["db-storage-0", "db-storage-1", "db-storage-2", "db-metadata-1", "db-metadata-2"] {
        does(&seen, &[&format!("restart {name}")]);
        // Until it is back, nothing else happens.
        let gone = seen.pods.remove(name);
        does(&seen, &[]);
        seen.pods.extend(gone.map(|gone| (name.to_owned(), gone)));
        renew(&mut seen, name);
    }
    // The one that leads lets another one lead before it goes.
    does(&seen, &["transfer leader"]);
    let answer = testing::answer(&mut seen);
    answer.leader = Some((MEMBERS[1], answer.members[1].address.clone()));
    does(&seen, &["restart db-metadata-0"]);
    renew(&mut seen, "db-metadata-0");
    does(&seen, &[]);
}

#[test]
fn nothing_goes_while_anything_is_amiss() {
    let sick = |change: fn(&mut Observed)| {
        let mut seen = testing::running();
        newer(&mut seen);
        change(&mut seen);
        settled(&mut seen);
        does(&seen, &[]);
    };
    sick(|seen| testing::answer(seen).servers[0].alive = false);
    sick(|seen| testing::answer(seen).chunks_short = 1);
    sick(|seen| testing::answer(seen).problems.push("a disk is full".into()));
    sick(|seen| testing::answer(seen).is_leader = false);
    sick(|seen| seen.metadata = crate::observe::MetadataFact::Unreachable("no route".into()));
    sick(|seen| drop(seen.pods.remove("db-metadata-2")));
    // The controller hasn't seen the template yet: nothing is known.
    sick(|seen| seen.statefulsets.values_mut().for_each(|set| set.metadata.generation = Some(2)));
}

#[test]
fn pods_that_only_look_not_ready_are_left_alone() {
    // A node is cut off from the API server, with pods that serve.
    let mut seen = testing::running();
    newer(&mut seen);
    unheard(&mut seen, "db-storage-0");
    does(&seen, &[]);
    unheard(&mut seen, "db-metadata-0");
    does(&seen, &[]);
    // All nodes are.
    for name in ["db-storage-1", "db-storage-2", "db-metadata-1", "db-metadata-2"] {
        unheard(&mut seen, name);
    }
    does(&seen, &[]);
    for server in &mut testing::answer(&mut seen).servers {
        server.alive = false;
    }
    settled(&mut seen);
    does(&seen, &[]);
}

#[test]
fn a_template_that_does_not_work_stops_after_one_pod_and_is_taken_back_at_once() {
    for reason in ["CrashLoopBackOff", "ImagePullBackOff"] {
        let mut seen = testing::running();
        newer(&mut seen);
        renew(&mut seen, "db-storage-0");
        waits(&mut seen, "db-storage-0", reason);
        testing::answer(&mut seen).servers[0].alive = false;
        settled(&mut seen);
        does(&seen, &[]);
        // Back: the pods that are left are as they shall be, and the one that doesn't run is made anew.
        for set in seen.statefulsets.values_mut() {
            set.status.as_mut().expect("status").update_revision = Some(OLD.into());
        }
        does(&seen, &["restart db-storage-0"]);
        pod(&mut seen, "db-storage-0").metadata.deletion_timestamp = Some(testing::moment());
        does(&seen, &[]);
    }
    // It runs and never gets ready. Nobody hears it, and all others are there.
    let mut seen = testing::running();
    renew(&mut seen, "db-storage-0");
    unheard(&mut seen, "db-storage-0");
    does(&seen, &[]);
    testing::answer(&mut seen).servers[0].alive = false;
    settled(&mut seen);
    does(&seen, &["restart db-storage-0"]);
    unheard(&mut seen, "db-metadata-2");
    does(&seen, &[]);
}

#[test]
fn an_operator_that_makes_other_templates_stops_no_pod_by_that() {
    let mut seen = testing::running();
    newer(&mut seen);
    let requested = |set: &StatefulSet| {
        let meta = set.spec.clone().expect("spec").template.metadata.expect("meta");
        meta.annotations.expect("annotations")[annotations::REQUESTED].clone()
    };
    let of: BTreeMap<Component, String> =
        seen.statefulsets.iter().map(|(component, set)| (*component, requested(set))).collect();
    for component in Component::ALL {
        for ordinal in 0..3 {
            let name = names::pod("db", component, ordinal);
            let meta = &mut pod(&mut seen, &name).metadata;
            meta.annotations =
                Some(BTreeMap::from([(annotations::REQUESTED.to_owned(), of[&component].clone())]));
        }
    }
    does(&seen, &[]);
    // A pod that doesn't run gets the newest template whatever the difference is.
    waits(&mut seen, "db-storage-1", "CrashLoopBackOff");
    does(&seen, &["restart db-storage-1"]);
    // One of a release before that said nothing: its image and its resources tell.
    let mut seen = testing::running();
    newer(&mut seen);
    for component in Component::ALL {
        let template = seen.statefulsets[&component].spec.clone().expect("spec").template;
        let Container { image, resources, .. } = template.spec.expect("pod").containers.remove(0);
        for ordinal in 0..3 {
            let container =
                Container { image: image.clone(), resources: resources.clone(), ..Container::default() };
            let name = names::pod("db", component, ordinal);
            pod(&mut seen, &name).spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
        }
    }
    does(&seen, &[]);
    let spec = pod(&mut seen, "db-metadata-2").spec.as_mut().expect("spec");
    spec.containers[0].image = Some("another".into());
    does(&seen, &["restart db-metadata-2"]);
}

#[test]
fn a_pod_that_no_node_takes_is_made_anew_when_its_template_is_another_one() {
    let mut seen = testing::running();
    let unplaced = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        ..PodCondition::default()
    };
    pod(&mut seen, "db-storage-2").status =
        Some(PodStatus { conditions: Some(vec![unplaced]), ..PodStatus::default() });
    does(&seen, &[]);
    newer(&mut seen);
    does(&seen, &["restart db-storage-2"]);
}

fn disk_is_deleted(seen: &mut Observed, name: &str) {
    let disk = seen.pvcs.get_mut(&format!("data-{name}")).expect("disk");
    disk.metadata.deletion_timestamp = Some(testing::moment());
}

fn is_unwell(seen: &Observed, text: &str) {
    let why = unwell(seen, &wanted(seen).expect("valid")).expect("something is amiss");
    assert!(why.contains(text), "{why}");
}

#[test]
fn no_pod_is_made_anew_while_a_server_is_replaced() {
    let mut seen = testing::running();
    newer(&mut seen);
    disk_is_deleted(&mut seen, "db-storage-0");
    does(&seen, &["Drain 0"]);
    testing::answer(&mut seen).servers[0].draining = true;
    testing::answer(&mut seen).chunks_by_replicas = vec![0, 1, 0, 0];
    does(&seen, &[]);
    is_unwell(&seen, "PVC data-db-storage-0 was deleted");
    testing::answer(&mut seen).chunks_by_replicas = vec![0, 0, 1, 0];
    does(&seen, &["evict db-storage-0"]);
    // It has a new disk, and the record of the old one is still there: nor is the feature level raised.
    seen.pvcs.get_mut("data-db-storage-0").expect("disk").metadata.deletion_timestamp = None;
    renew(&mut seen, "db-storage-0");
    let answer = testing::answer(&mut seen);
    let mut new = answer.servers[0].clone();
    (new.server, new.draining, answer.servers[0].alive) = (ServerId(9), false, false);
    answer.servers.push(new);
    does_settled(&seen, &[]);
    is_unwell(&seen, "db-storage-0 has a new disk");
    let answer = testing::answer(&mut seen);
    answer.chunks_naming = [1, 2, 9].map(|server| (ServerId(server), 1)).to_vec();
    answer.chunks_by_replicas = vec![0, 0, 0, 1];
    does_settled(&seen, &["Forget 0"]);
    testing::answer(&mut seen).servers.remove(0);
    does(&seen, &["restart db-storage-1"]);
}

#[test]
fn a_pod_whose_disk_was_deleted_is_never_stopped_for_a_template() {
    // It doesn't run, and has the only copy of something.
    let mut seen = testing::running();
    newer(&mut seen);
    disk_is_deleted(&mut seen, "db-storage-1");
    waits(&mut seen, "db-storage-1", "CrashLoopBackOff");
    let answer = testing::answer(&mut seen);
    (answer.servers[1].alive, answer.servers[1].draining) = (false, true);
    answer.chunks_by_replicas = vec![1, 0, 0, 0];
    does_settled(&seen, &[]);
    // A leader of an earlier release doesn't say what is where: all others are made anew first.
    let mut seen = testing::running();
    newer(&mut seen);
    testing::answer(&mut seen).chunks_by_replicas.clear();
    disk_is_deleted(&mut seen, "db-storage-0");
    testing::answer(&mut seen).servers[0].draining = true;
    for name in ["db-storage-1", "db-storage-2", "db-metadata-1", "db-metadata-2"] {
        does(&seen, &[&format!("restart {name}")]);
        renew(&mut seen, name);
    }
    let answer = testing::answer(&mut seen);
    answer.leader = Some((MEMBERS[1], answer.members[1].address.clone()));
    does(&seen, &["restart db-metadata-0"]);
    renew(&mut seen, "db-metadata-0");
    does(&seen, &[]);
    testing::answer(&mut seen).chunks_by_replicas = vec![0, 0, 1, 0];
    does(&seen, &["evict db-storage-0"]);
}

#[test]
fn nothing_is_replaced_while_a_pod_is_made_anew() {
    let mut seen = testing::running();
    newer(&mut seen);
    renew(&mut seen, "db-storage-0");
    pod(&mut seen, "db-storage-0").status = None;
    disk_is_deleted(&mut seen, "db-storage-1");
    testing::answer(&mut seen).servers[1].draining = true;
    testing::answer(&mut seen).chunks_by_replicas = vec![0, 0, 1, 0];
    does(&seen, &[]);
    renew(&mut seen, "db-storage-0");
    does(&seen, &["evict db-storage-1"]);
}
