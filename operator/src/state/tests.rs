//! What is said of a cluster in each state.

use atoll_crds::names;
use atoll_crds::v1alpha1::conditions;

use super::*;
use crate::plan::plan;
use crate::testing::{self, FRESH};
use crate::validate::validate;

fn judged(seen: &Observed) -> Assessment {
    let wanted = validate(&seen.cluster, &testing::images())
        .map(|wanted| crate::plan::held(crate::plan::sized(wanted, seen), seen));
    assess(seen, &wanted, &plan(seen, &wanted, FRESH))
}

fn was_ready_before(seen: &mut Observed) {
    testing::change(seen, |cluster| cluster.status.get_or_insert_default().phase = Some(Phase::Ready));
}

#[test]
fn a_cluster_that_runs_is_ready_and_nothing_else() {
    let judged = judged(&testing::running());
    assert!(judged.ready.holds && !judged.degraded.holds && !judged.progressing.holds, "{judged:?}");
    assert_eq!(judged.phase, Phase::Ready);
}

#[test]
fn a_cluster_that_is_made_says_what_it_waits_for() {
    let mut seen = testing::observed("1Gi");
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds, found.progressing.holds), (Phase::Creating, false, true));
    seen = testing::applied();
    let found = judged(&seen);
    assert_eq!(found.ready.reason, Reason::PodsStarting);
    assert!(found.ready.message.contains("db-metadata-0"), "{}", found.ready.message);
    seen = testing::started();
    assert_eq!(judged(&seen).ready.reason, Reason::Bootstrapping);
    // It begins with all its copies.
    seen = testing::running();
    testing::answer(&mut seen).servers[0].alive = false;
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.reason), (Phase::Creating, Reason::StorageUnavailable));
}

#[test]
fn a_volume_begins_with_all_its_metadata_servers_and_is_used_while_more_come() {
    let mut seen = testing::running();
    testing::answer(&mut seen).members.truncate(1);
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.reason), (Phase::Creating, Reason::Bootstrapping));
    assert!(found.ready.message.contains("1 of 3 metadata servers"), "{}", found.ready.message);
    was_ready_before(&mut seen);
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds, found.progressing.holds), (Phase::Ready, true, true));
    assert!(found.progressing.message.contains("1 of 3 metadata servers"), "{}", found.progressing.message);
}

#[test]
fn a_cluster_that_nobody_can_make_says_what_to_do() {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    seen.nodes_usable = 1;
    let found = judged(&seen);
    assert_eq!(found.phase, Phase::Blocked);
    assert_eq!((found.ready.holds, found.ready.reason), (false, Reason::TooFewNodes));
    assert!(found.degraded.holds && !found.progressing.holds);
    assert!(found.ready.message.contains("lower copies"), "{}", found.ready.message);
}

#[test]
fn a_server_that_is_away_degrades_a_volume_and_too_many_end_it() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    testing::answer(&mut seen).servers[0].alive = false;
    testing::answer(&mut seen).problems = vec!["storage server 0 is silent: start it".into()];
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds), (Phase::Degraded, true));
    assert!(found.degraded.message.contains("start it"), "{}", found.degraded.message);
    testing::answer(&mut seen).servers[1].alive = false;
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds), (Phase::Unavailable, false));
    assert_eq!(found.ready.reason, Reason::StorageUnavailable);
}

#[test]
fn a_metadata_service_that_does_not_answer_is_named_with_the_reason() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    seen.metadata = MetadataFact::Unreachable("connection refused".into());
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.reason), (Phase::Unavailable, Reason::MetadataUnreachable));
    assert!(found.degraded.holds && found.degraded.message.contains("connection refused"));
    // The pod knows more.
    seen.pods.get_mut("db-metadata-0").expect("pod").status = None;
    assert_eq!(judged(&seen).ready.reason, Reason::PodsStarting);
}

#[test]
fn a_problem_with_the_spec_of_a_volume_in_use_does_not_take_it_away() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    testing::change(&mut seen, |cluster| cluster.spec.version = Some("9".into()));
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds), (Phase::Degraded, true));
    assert_eq!(found.degraded.reason, Reason::UnknownVersion);
    testing::change(&mut seen, |cluster| (cluster.spec.version, cluster.spec.paused) = (None, true));
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds, found.degraded.holds), (Phase::Paused, true, false));
}

#[test]
fn a_deletion_says_what_it_waits_for() {
    let mut seen = testing::running();
    testing::deleted(&mut seen);
    testing::change(&mut seen, |cluster| {
        cluster.spec.deletion_confirmation =
            cluster.status.as_ref().and_then(|status| status.cluster_id.clone());
    });
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds), (Phase::Deleting, false));
    assert_eq!(found.ready.reason, Reason::DeletionBlocked);
    let blocked = found.deletion_blocked.expect("it is being deleted");
    assert_eq!((blocked.holds, blocked.reason), (true, Reason::Mounted));
    testing::answer(&mut seen).sessions.clear();
    let found = judged(&seen);
    let blocked = found.deletion_blocked.expect("it is being deleted");
    assert_eq!((blocked.holds, found.ready.reason), (false, Reason::Deleting));
    assert_eq!(judged(&testing::running()).deletion_blocked, None);
}

#[test]
fn a_new_volume_does_not_begin_as_degraded_because_its_pods_are_a_moment_behind() {
    let mut seen = testing::running();
    seen.pods.get_mut("db-storage-2").expect("pod").status = None;
    let found = judged(&seen);
    assert_eq!((found.phase, found.degraded.holds), (Phase::Ready, false));
    assert!(found.progressing.holds, "{found:?}");
    was_ready_before(&mut seen);
    assert_eq!(judged(&seen).phase, Phase::Degraded);
}

#[test]
fn an_election_is_no_outage_and_a_leader_that_stays_away_is_one() {
    let mut seen = testing::running();
    let ready = judged(&seen).ready;
    testing::change(&mut seen, |cluster| {
        let status = cluster.status.get_or_insert_default();
        status.phase = Some(Phase::Ready);
        let words = (ready.reason, ready.message.as_str());
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default());
        conditions::set(&mut status.conditions, ConditionType::Ready, true, words, None, now);
    });
    // A follower knows no storage servers.
    let answer = testing::answer(&mut seen);
    (answer.is_leader, answer.leader) = (false, None);
    answer.servers.clear();
    answer.problems = vec!["this member waits".into()];
    let silent = MetadataFact::Unreachable("a doesn't respond".into());
    for fact in [seen.metadata.clone(), silent] {
        seen.metadata = fact;
        seen.leaderless_for = Some(Duration::ZERO);
        let found = judged(&seen);
        assert_eq!((found.phase, found.ready.holds, found.degraded.holds), (Phase::Ready, true, false));
        seen.leaderless_for = Some(LEADERLESS_GRACE);
        let found = judged(&seen);
        assert_eq!((found.phase, found.ready.reason), (Phase::Unavailable, Reason::MetadataUnreachable));
        assert_eq!(found.available.map(|available| available.holds), Some(false));
    }
    // Without a majority there is no election to wait for.
    seen.leaderless_for = Some(Duration::ZERO);
    for pod in ["db-metadata-0", "db-metadata-1"] {
        seen.pods.remove(pod);
    }
    assert!(!judged(&seen).ready.holds);
}

#[test]
fn a_volume_whose_data_may_be_on_servers_that_are_away_is_not_said_to_be_available() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    let answer = testing::answer(&mut seen);
    let mut more = answer.servers[0].clone();
    answer.copies = 2;
    for number in 3..10 {
        more.address = names::pod_address("ns", "db", Component::Storage, number);
        answer.servers.push(more.clone());
    }
    for server in &mut answer.servers[1..] {
        server.alive = false;
    }
    // All chunks have been copied to the one that is left.
    assert_eq!(judged(&seen).available.map(|available| available.holds), Some(true));
    testing::answer(&mut seen).chunks_short = 5;
    assert_eq!(judged(&seen).available.map(|available| available.holds), Some(true));
    testing::answer(&mut seen).chunks_by_replicas = vec![5, 0, 0];
    let found = judged(&seen);
    assert_eq!(found.available, None);
    assert_eq!((found.ready.holds, found.ready.reason), (false, Reason::DataUnavailable));
    assert!(found.ready.message.contains("9 of 10") && found.ready.message.contains("db-storage-1"));
    // One may be away.
    for server in &mut testing::answer(&mut seen).servers[2..] {
        server.alive = true;
    }
    let found = judged(&seen);
    assert!(found.ready.holds && found.available.is_some_and(|available| available.holds));
}

#[test]
fn what_does_not_pass_by_waiting_is_stalled() {
    let mut seen = testing::observed("1Gi");
    testing::with_finalizer(&mut seen);
    assert_eq!(judged(&seen).stalled, None);
    seen.nodes_usable = 1;
    let found = judged(&seen);
    assert_eq!(found.stalled.map(|stalled| stalled.reason), Some(Reason::TooFewNodes));
    assert_eq!(found.name_conflict, None);
    testing::change(&mut seen, |cluster| cluster.spec.paused = true);
    assert_eq!(judged(&seen).stalled, None);
}

#[test]
fn a_server_that_is_replaced_degrades_the_volume_and_one_that_cannot_be_needs_somebody() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    let pvc = seen.pvcs.get_mut("data-db-storage-1").expect("disk");
    pvc.status.as_mut().expect("status").phase = Some("Lost".into());
    let server = &mut testing::answer(&mut seen).servers[1];
    (server.alive, server.draining) = (false, true);
    let found = judged(&seen);
    assert_eq!((found.degraded.holds, found.degraded.reason), (true, Reason::ReplacingServer));
    assert_eq!((found.progressing.holds, found.progressing.reason), (true, Reason::ReplacingServer));
    assert_eq!((found.phase, found.stalled), (Phase::Degraded, None));
    testing::answer(&mut seen).chunks_by_replicas = vec![1, 0, 0, 0];
    let found = judged(&seen);
    assert_eq!((found.degraded.holds, found.degraded.reason), (true, Reason::ReplacementBlocked));
    assert!(!found.progressing.holds);
    assert_eq!(found.stalled.map(|stalled| stalled.reason), Some(Reason::ReplacementBlocked));
}

#[test]
fn servers_that_are_removed_are_progress_and_nothing_is_worse_for_it() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    testing::change(&mut seen, |cluster| {
        (cluster.spec.copies, cluster.spec.storage.replicas) = (2, Some(2));
    });
    testing::answer(&mut seen).copies = 2;
    let found = judged(&seen);
    assert_eq!((found.ready.holds, found.degraded.holds), (true, false), "{found:?}");
    assert_eq!((found.progressing.holds, found.progressing.reason), (true, Reason::DrainingServers));
    assert_eq!((found.phase, found.stalled), (Phase::Ready, None));
}

#[test]
fn a_name_conflict_is_a_condition_while_it_is_there_and_false_afterwards() {
    let mut seen = testing::running();
    assert_eq!(judged(&seen).name_conflict, None);
    let labels = testing::running().services[&Component::Metadata].metadata.labels.clone();
    seen.services.get_mut(&Component::Metadata).expect("service").metadata.labels = None;
    let conflict = judged(&seen).name_conflict.expect("a conflict");
    assert!(conflict.holds && conflict.message.contains("db-metadata"), "{conflict:?}");
    testing::change(&mut seen, |cluster| {
        let found = &mut cluster.status.get_or_insert_default().conditions;
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default());
        conditions::set(found, ConditionType::NameConflict, true, (Reason::NameConflict, "m"), None, now);
    });
    seen.services.get_mut(&Component::Metadata).expect("service").metadata.labels = labels;
    assert_eq!(judged(&seen).name_conflict.map(|conflict| conflict.holds), Some(false));
}

#[test]
fn what_waits_to_be_deleted_serves_its_users() {
    let mut seen = testing::running();
    testing::deleted(&mut seen);
    let found = judged(&seen);
    assert_eq!((found.ready.holds, found.available.map(|available| available.holds)), (false, Some(true)));
}

/// Some pods are still to be made anew.
fn rolling_to(seen: &mut Observed, version: &str) {
    was_ready_before(seen);
    testing::change(seen, |cluster| {
        let status = cluster.status.get_or_insert_default();
        status.target_version = Some(crate::config::VERSION.into());
        status.version = Some(version.into());
    });
    for set in seen.statefulsets.values_mut() {
        set.status.as_mut().expect("status").update_revision = Some("db-2".into());
    }
}

#[test]
fn a_version_that_was_asked_for_says_how_it_stands() {
    let mut seen = testing::running();
    assert_eq!(judged(&seen).upgrade_blocked, None);
    rolling_to(&mut seen, "0.0.9");
    let found = judged(&seen).upgrade_blocked.expect("a roll");
    assert_eq!((found.holds, found.reason), (false, Reason::RollingOut));
    assert!(judged(&seen).ready.holds);
    // A pod of the new version ends again and again: the others stay, and it is said how to go back.
    let mut back = testing::pod("db-storage-0");
    let labels = back.metadata.labels.as_mut().expect("labels");
    labels.insert("controller-revision-hash".into(), "db-2".into());
    let status = back.status.as_mut().expect("status");
    status.conditions = None;
    status.container_statuses = Some(vec![crate::testing::waiting("ImagePullBackOff")]);
    seen.pods.insert("db-storage-0".into(), back);
    let found = judged(&seen).upgrade_blocked.expect("stuck");
    assert_eq!((found.holds, found.reason), (true, Reason::ImageUnavailable));
    assert!(found.message.ends_with("to go back, set spec.version to 0.0.9"), "{}", found.message);
    assert!(found.message.contains("the other 5 pods"), "{}", found.message);
    // What was said once is taken back when it is over.
    let mut seen = testing::running();
    let mut conditions = Vec::new();
    let blocked = ConditionType::UpgradeBlocked;
    conditions::set(&mut conditions, blocked, true, (found.reason, &found.message), None, testing::moment());
    testing::change(&mut seen, |cluster| cluster.status.get_or_insert_default().conditions = conditions);
    let found = judged(&seen).upgrade_blocked.expect("was said");
    assert_eq!((found.holds, found.reason), (false, Reason::AsSpecified));
}

#[test]
fn a_version_that_is_refused_leaves_the_cluster_as_it_is() {
    let mut seen = testing::running();
    rolling_to(&mut seen, crate::config::VERSION);
    for set in seen.statefulsets.values_mut() {
        set.status.as_mut().expect("status").update_revision = Some(testing::REVISION.into());
    }
    testing::change(&mut seen, |cluster| cluster.spec.version = Some("9.9.9".into()));
    let found = judged(&seen);
    assert_eq!((found.phase, found.ready.holds, found.degraded.holds), (Phase::Ready, true, false));
    let blocked = found.upgrade_blocked.expect("refused");
    assert_eq!((blocked.holds, blocked.reason), (true, Reason::UnknownVersion));
}

#[test]
fn pods_that_wait_since_copies_may_not_share_a_node_say_so_in_a_condition() {
    let mut seen = testing::running();
    was_ready_before(&mut seen);
    assert_eq!(judged(&seen).placement, None);
    seen.nodes_usable = 2;
    let unplaced = serde_json::json!({
        "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints.",
        }],
    });
    seen.pods.get_mut("db-storage-2").expect("pod").status =
        Some(serde_json::from_value(unplaced).expect("a status"));
    testing::answer(&mut seen).servers[2].alive = false;
    let found = judged(&seen);
    let placement = found.placement.expect("said");
    assert_eq!((placement.holds, placement.reason), (true, Reason::TooFewNodes));
    assert!(placement.message.contains("Add a node"), "{}", placement.message);
    assert_eq!((found.phase, found.degraded.reason), (Phase::Degraded, Reason::TooFewNodes));
    assert_eq!(found.stalled.map(|stalled| stalled.reason), Some(Reason::TooFewNodes));
    assert!(found.ready.holds, "it can be used");
}
