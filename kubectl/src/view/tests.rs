//! What is shown in each state.

use serde_json::json;

use super::*;

fn cluster(status: serde_json::Value) -> FileSystemCluster {
    serde_json::from_value(json!({
        "apiVersion": "atoll.dev/v1alpha1",
        "kind": "FileSystemCluster",
        "metadata": {
            "namespace": "atoll-volumes",
            "name": "pvc-1",
            "generation": 1,
            "creationTimestamp": "1970-01-01T00:00:10Z",
            "labels": { "atoll.dev/pvc-namespace": "web" },
            "annotations": { "atoll.dev/pvc-name": "data", "atoll.dev/pv-name": "pvc-1" },
        },
        "spec": { "capacity": "1Gi" },
        "status": status,
    }))
    .expect("a cluster")
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn running() -> serde_json::Value {
    json!({
        "observedGeneration": 1,
        "phase": "Ready",
        "clusterId": "00000000000000000000000000000007",
        "version": "0.1.0",
        "usage": {
            "bytesTotal": 1_i64 << 30, "bytesUsed": 1_i64 << 29, "inodesTotal": 1000, "inodesUsed": 10, "used": "512.0Mi",
        },
        "metadata": { "replicas": 1, "ready": 1, "summary": "1/1" },
        "storage": {
            "replicas": 3, "ready": 3, "summary": "3/3",
            "servers": [{
                "id": "a", "address": "pvc-1-storage-0.pvc-1-storage.atoll-volumes.svc:7500", "alive": true,
                "bytesTotal": 100, "bytesUsed": 2048, "chunks": 1,
            }],
        },
        "clientCount": 1,
        "clients": [{ "session": "1", "name": "node-1", "openFiles": 4 }],
        "conditions": [
            condition("Ready", "True", "Serving", "the volume can be mounted and used"),
            condition("Degraded", "False", "AsSpecified", "all servers are there"),
        ],
    })
}

fn pod(name: &str, ready: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "nodeName": "node-2", "containers": [] },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": ready }],
            "containerStatuses": [{
                "name": "x", "ready": true, "restartCount": 2, "image": "i", "imageID": "i",
            }],
        },
    }))
    .expect("a pod")
}

#[test]
fn a_healthy_volume_fits_on_a_screen() {
    let view =
        view(&cluster(running()), &[pod("pvc-1-storage-0", "True"), pod("pvc-1-metadata-0", "True")], 130);
    assert!(view.healthy, "{view:?}");
    assert_eq!(view.claim.as_ref().map(|claim| claim.name.as_str()), Some("data"));
    let screen = screen(&view);
    for part in [
        "atoll-volumes/pvc-1   Ready: healthy",
        "web/data   PV pvc-1",
        "age 2m",
        "[###############...............] 50 %   512.0Mi of 1.0Gi",
        "metadata 1/1   storage 3/3",
        "pvc-1-storage-0    yes     Running   2          node-2   2.0Ki",
        "node-1       1         4",
    ] {
        assert!(screen.contains(part), "{part}\n{screen}");
    }
    assert!(!screen.contains("Problems"), "{screen}");
    assert!(screen.lines().count() < 24, "{screen}");
}

#[test]
fn what_is_wrong_is_said_once_with_what_to_do() {
    let mut status = running();
    status["phase"] = json!("Unavailable");
    status["conditions"] = json!([
        condition("Ready", "False", "StorageUnavailable", "1 storage servers are there: start them"),
        condition("Degraded", "True", "StorageUnavailable", "1 storage servers are there: start them"),
    ]);
    status["usage"]["bytesUsed"] = json!(1_i64 << 30);
    let view = view(&cluster(status), &[pod("pvc-1-storage-0", "False")], 130);
    assert!(!view.healthy);
    assert_eq!(view.problems.len(), 2, "{:?}", view.problems);
    assert!(view.problems[0].contains("start them"));
    assert!(view.problems[1].contains("100 %"));
    let screen = screen(&view);
    assert!(screen.contains("Problems:") && screen.contains("no      Running"), "{screen}");
}

#[test]
fn servers_that_are_removed_are_progress_unless_they_cannot_be() {
    let with = |kind: &str, status: &str, reason: &str| {
        let mut all = running();
        let conditions = all["conditions"].as_array_mut().expect("conditions");
        conditions.retain(|found| found["type"] != kind);
        conditions.push(condition(kind, status, reason, "db-storage-3 is drained"));
        view(&cluster(all), &[], 130)
    };
    let seen = with("Progressing", "True", "DrainingServers");
    assert!(seen.healthy, "{seen:?}");
    assert!(screen(&seen).contains("Removal   db-storage-3 is drained"), "{}", screen(&seen));
    let seen = with("Progressing", "True", "Applying");
    assert_eq!(seen.removal, None);
    let seen = with("Stalled", "True", "ShrinkBlocked");
    assert_eq!(seen.problems, ["ShrinkBlocked: db-storage-3 is drained"]);
}

#[test]
fn an_upgrade_is_progress_unless_it_is_blocked() {
    let with = |status: &str, reason: &str| {
        let mut all = running();
        all["targetVersion"] = json!("0.2.0");
        let conditions = all["conditions"].as_array_mut().expect("conditions");
        conditions.push(condition("UpgradeBlocked", status, reason, "4 pods are still to be re-created"));
        view(&cluster(all), &[], 130)
    };
    let seen = with("False", "RollingOut");
    assert!(seen.healthy, "{seen:?}");
    let line = "Upgrade   0.1.0 -> 0.2.0: 4 pods are still to be re-created";
    assert!(screen(&seen).contains(line), "{}", screen(&seen));
    let seen = with("True", "ImageUnavailable");
    assert_eq!(seen.problems, ["ImageUnavailable: 4 pods are still to be re-created"]);
    assert_eq!(seen.upgrade.as_deref(), Some("0.1.0 -> 0.2.0"));
    assert_eq!(view(&cluster(running()), &[], 130).upgrade, None);
}

#[test]
fn copies_that_share_a_node_are_shown_and_are_no_problem_where_they_may() {
    let mut all = running();
    let conditions = all["conditions"].as_array_mut().expect("conditions");
    conditions.push(condition("PlacementDegraded", "True", "SharedNode", "2 copies are on node one"));
    let seen = view(&cluster(all), &[], 130);
    assert!(seen.healthy, "{seen:?}");
    assert!(screen(&seen).contains("Placement 2 copies are on node one"), "{}", screen(&seen));
}

#[test]
fn a_volume_that_grows_says_what_it_waits_for_and_a_full_one_how_it_grows() {
    let mut status = running();
    status["conditions"].as_array_mut().expect("conditions").push(condition(
        "ExpansionPending",
        "True",
        "ResizingDisks",
        "PVC data-x is being expanded",
    ));
    let seen = view(&cluster(status.clone()), &[], 130);
    assert!(seen.healthy, "{seen:?}");
    assert!(
        screen(&seen).contains("Expansion 1Gi requested: PVC data-x is being expanded"),
        "{}",
        screen(&seen)
    );
    status["conditions"][2]["reason"] = json!("ExpansionInfeasible");
    status["usage"]["bytesUsed"] = json!(1_i64 << 30);
    let seen = view(&cluster(status.clone()), &[], 130);
    assert!(!seen.healthy);
    assert_eq!(seen.problems[0], "ExpansionInfeasible: PVC data-x is being expanded");
    assert!(seen.problems[1].ends_with("(kubectl -n web edit pvc data)"), "{:?}", seen.problems);
    let mut by_hand = cluster(status);
    by_hand.metadata.labels = None;
    let seen = view(&by_hand, &[], 130);
    assert!(seen.problems[1].ends_with("(kubectl -n atoll-volumes edit fsc pvc-1)"), "{:?}", seen.problems);
}

#[test]
fn a_volume_that_nobody_has_looked_at_says_where_to_look() {
    let view = view(&cluster(json!({})), &[], 20);
    assert!(!view.healthy && view.health.contains("does it run"), "{view:?}");
    assert!(screen(&view).contains("1Gi requested"));
}

#[test]
fn the_document_for_programs_keeps_its_names() {
    let document = serde_json::to_value(view(&cluster(running()), &[pod("pvc-1-storage-0", "True")], 130))
        .expect("JSON");
    let names: Vec<&String> = document.as_object().expect("object").keys().collect();
    let expected = [
        "age_seconds",
        "capacity",
        "chunksShortOfCopies",
        "claim",
        "clusterId",
        "copies",
        "expansion",
        "removal",
        "health",
        "healthy",
        "metadata",
        "mountCount",
        "mounts",
        "name",
        "namespace",
        "phase",
        "placement",
        "pods",
        "problems",
        "storage",
        "targetVersion",
        "upgrade",
        "usage",
        "version",
    ];
    let mut expected: Vec<String> =
        expected.iter().map(|name| name.replace("age_seconds", "ageSeconds")).collect();
    expected.sort();
    let mut names: Vec<String> = names.into_iter().cloned().collect();
    names.sort();
    assert_eq!(names, expected);
    let pod = document["pods"][0].as_object().expect("pod");
    for name in ["name", "node", "ready", "state", "restarts", "diskUsed"] {
        assert!(pod.contains_key(name), "{name}");
    }
    for name in ["bytesTotal", "bytesUsed", "inodesTotal", "inodesUsed", "percent"] {
        assert!(document["usage"].get(name).is_some(), "{name}");
    }
}

#[test]
fn wide_shows_all_conditions_and_the_servers_with_their_ids() {
    let mut status = running();
    status["metadata"]["leader"] = json!("m1");
    status["metadata"]["members"] =
        json!([{ "id": "m1", "address": "a:1" }, { "id": "m2", "address": "b:1" }]);
    status["storage"]["servers"][0]["alive"] = json!(false);
    let text = details(&cluster(status));
    for line in [
        "Degraded    False    AsSpecified   all servers are there",
        "metadata   m1   a:1",
        "leader",
        "m2   b:1",
        "not alive, 2.0Ki of 100B",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    assert_eq!(details(&cluster(json!(null))), "");
}
