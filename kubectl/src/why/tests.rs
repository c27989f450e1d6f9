//! Each kind of cause, from what a Kubernetes cluster shows of it.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::causes::{Kind, causes};
use super::facts::{ClaimFacts, ClusterFacts, Facts, PodFacts, SystemFacts};

/// An object of any kind.
fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn event(kind: &str, name: &str, reason: &str, message: &str) -> Value {
    json!({
        "metadata": { "name": format!("{name}.{reason}") },
        "involvedObject": { "kind": kind, "name": name },
        "reason": reason, "message": message, "type": "Warning", "lastTimestamp": "2026-01-01T00:00:00Z",
    })
}

/// A user's pod on node-1 that uses the claim `data` and runs.
fn pod() -> Value {
    json!({
        "metadata": { "namespace": "web", "name": "app" },
        "spec": {
            "nodeName": "node-1", "containers": [{ "name": "c" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }],
        },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }],
        },
    })
}

fn pending(mut pod: Value) -> Value {
    pod["status"]["phase"] = json!("Pending");
    pod["status"]["conditions"][0]["status"] = json!("False");
    pod
}

fn claim() -> Value {
    json!({
        "metadata": { "namespace": "web", "name": "data" },
        "spec": { "storageClassName": "atoll", "volumeName": "pvc-1" },
        "status": { "phase": "Bound" },
    })
}

fn server(component: &str, number: u32) -> Value {
    json!({
        "metadata": {
            "namespace": "atoll-volumes", "name": format!("pvc-1-{component}-{number}"),
            "labels": { "app.kubernetes.io/component": component },
        },
        "spec": { "nodeName": format!("node-{number}"), "containers": [{ "name": component }] },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }],
            "containerStatuses": [{
                "name": component, "ready": true, "restartCount": 0, "image": "i:1", "imageID": "",
            }],
        },
    })
}

fn cluster() -> Value {
    json!({
        "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
        "metadata": { "namespace": "atoll-volumes", "name": "pvc-1", "generation": 1 },
        "spec": { "capacity": "1Gi" },
        "status": {
            "bootstrapped": true, "phase": "Ready",
            "usage": { "bytesTotal": 1000, "bytesUsed": 10, "inodesTotal": 1000, "inodesUsed": 10, "used": "10" },
            "conditions": [condition("Ready", "True", "Serving", "fine")],
        },
    })
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn system_pod(component: &str, node: &str) -> Value {
    json!({
        "metadata": { "name": format!("{component}-{node}"), "labels": { "app.kubernetes.io/component": component } },
        "spec": { "nodeName": node, "containers": [] },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

fn node(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })
}

/// A pod with its claim and cluster, all of it well.
fn well() -> Facts {
    let servers = ["metadata", "storage"].into_iter().flat_map(|kind| (0..3).map(move |at| server(kind, at)));
    Facts {
        pod: Some(PodFacts { pod: object(pod()), events: Vec::new() }),
        claims: vec![ClaimFacts {
            namespace: "web".into(),
            name: "data".into(),
            claim: Some(object(claim())),
            volume: Some(object(json!({
                "metadata": { "name": "pvc-1" },
                "spec": { "csi": { "driver": "csi.atoll.dev", "volumeHandle": "v1/atoll-volumes/pvc-1" } },
            }))),
            cluster: Some(("atoll-volumes".into(), "pvc-1".into())),
            ..ClaimFacts::default()
        }],
        clusters: vec![ClusterFacts {
            namespace: "atoll-volumes".into(),
            name: "pvc-1".into(),
            cluster: Some(object(cluster())),
            pods: servers.map(object).collect(),
            ..ClusterFacts::default()
        }],
        system: SystemFacts {
            pods: Some(
                [
                    ("operator", "node-0"),
                    ("csi-controller", "node-0"),
                    ("csi-node", "node-1"),
                    ("mount-host", "node-1"),
                ]
                .map(|(component, node)| object(system_pod(component, node)))
                .into(),
            ),
            driver: Some(true),
            classes: Some(vec![object(json!({
                "metadata": { "name": "atoll" }, "provisioner": "csi.atoll.dev",
            }))]),
            nodes: (0..3).map(|at| object(node(&format!("node-{at}")))).collect(),
        },
        unread: Vec::new(),
    }
}

/// What is found when the facts are changed so.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<super::Cause> {
    let mut facts = well();
    change(&mut facts);
    causes(&facts)
}

/// The kinds that are found, and the words that the first one has.
fn kinds(change: impl FnOnce(&mut Facts), words: &[&str]) -> Vec<Kind> {
    let found = found(change);
    let first = found.first().expect("a cause");
    let text = format!("{} {} {}", first.object, first.problem, first.remedy);
    for word in words {
        assert!(text.contains(word), "'{word}' is missing: {text}");
    }
    found.iter().map(|cause| cause.kind).collect()
}

/// The claim as it is before it has a volume.
fn unbind(facts: &mut Facts) {
    let claim = &mut facts.claims[0];
    claim.volume = None;
    claim.cluster = None;
    let resource = claim.claim.as_mut().expect("a claim");
    resource.status.as_mut().expect("status").phase = Some("Pending".into());
    resource.spec.as_mut().expect("spec").volume_name = None;
    facts.clusters.clear();
    facts.pod = None;
}

fn set_server(facts: &mut Facts, name: &str, change: impl FnOnce(&mut Value)) {
    let pods = &mut facts.clusters[0].pods;
    let at = pods.iter().position(|pod| pod.name_any() == name).expect("there");
    let mut value = serde_json::to_value(&pods[at]).expect("serialises");
    value["status"]["conditions"][0]["status"] = json!("False");
    change(&mut value);
    pods[at] = object(value);
}

fn set_cluster(facts: &mut Facts, change: impl FnOnce(&mut Value)) {
    let mut value = cluster();
    change(&mut value);
    facts.clusters[0].cluster = Some(object(value));
}

fn set_pod(facts: &mut Facts, value: Value, events: Vec<Value>) {
    facts.pod = Some(PodFacts { pod: object(value), events: events.into_iter().map(object).collect() });
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(found(|_| {}), []);
    // What may not be read is no cause.
    assert_eq!(found(|facts| facts.system = SystemFacts::default()), []);
}

#[test]
fn an_install_that_is_missing() {
    let of = kinds(|facts| facts.system.driver = Some(false), &["csi.atoll.dev", "install it"]);
    assert_eq!(of, [Kind::NotInstalled]);
}

#[test]
fn a_node_that_does_not_report_is_named_with_its_servers() {
    let of = kinds(
        |facts| {
            set_server(facts, "pvc-1-storage-2", |_| {});
            facts.system.nodes[2] = object(json!({
                "metadata": { "name": "node-2" },
                "status": { "conditions": [{
                    "type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status.",
                }] },
            }));
        },
        &["pvc-1-storage-2", "node node-2 is not ready: Kubelet stopped", "out-of-service"],
    );
    assert_eq!(of, [Kind::NodeNotReady]);
}

#[test]
fn an_operator_that_does_not_run() {
    let of = kinds(
        |facts| {
            facts.system.pods.as_mut().expect("pods").retain(|pod| !pod.name_any().starts_with("operator"))
        },
        &["atoll-operator", "no ready pod", "describe pods"],
    );
    assert_eq!(of, [Kind::OperatorDown]);
}

#[test]
fn an_operator_that_is_paused() {
    let of = kinds(
        |facts| set_cluster(facts, |value| value["spec"]["paused"] = json!(true)),
        &["spec.paused", "patch fsc pvc-1"],
    );
    assert_eq!(of, [Kind::Paused]);
}

#[test]
fn an_image_that_can_not_be_had() {
    let of = kinds(
        |facts| {
            set_server(facts, "pvc-1-metadata-1", |value| {
                value["status"]["containerStatuses"][0]["ready"] = json!(false);
                value["status"]["containerStatuses"][0]["state"] =
                    json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such host" } });
            });
        },
        &["pvc-1-metadata-1", "i:1", "no such host", "pull secrets"],
    );
    assert_eq!(of, [Kind::ImageUnavailable]);
}

#[test]
fn a_server_that_needs_more_memory_and_one_that_crashes() {
    let ended = |reason: &'static str| {
        move |facts: &mut Facts| {
            set_server(facts, "pvc-1-storage-0", |value| {
                let container = &mut value["status"]["containerStatuses"][0];
                container["ready"] = json!(false);
                container["restartCount"] = json!(7);
                container["state"] = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
                container["lastState"] = json!({ "terminated": { "exitCode": 137, "reason": reason, "message": "disk is broken\n" } });
            });
        }
    };
    assert_eq!(kinds(ended("OOMKilled"), &["more memory", "spec.storage.resources"]), [Kind::OutOfMemory]);
    let words = ["7 times", "exit code 137", "disk is broken", "logs pvc-1-storage-0 -c storage --previous"];
    assert_eq!(kinds(ended("Error"), &words), [Kind::ServerCrashes]);
}

#[test]
fn pods_that_the_api_server_refuses() {
    let of = kinds(
        |facts| {
            let cluster = &mut facts.clusters[0];
            cluster.sets = vec![object(json!({
                "metadata": { "name": "pvc-1-storage" },
                "spec": { "replicas": 3, "selector": {}, "template": {}, "serviceName": "s" },
                "status": { "replicas": 2 },
            }))];
            cluster.events = vec![object(event(
                "StatefulSet",
                "pvc-1-storage",
                "FailedCreate",
                "exceeded quota: pods=10",
            ))];
        },
        &["StatefulSet atoll-volumes/pvc-1-storage", "exceeded quota", "quota, limit or policy"],
    );
    assert_eq!(of, [Kind::PodsRefused]);
}

#[test]
fn a_disk_that_is_not_provisioned() {
    let of = kinds(
        |facts| {
            let cluster = &mut facts.clusters[0];
            let name = "data-pvc-1-storage-0";
            cluster.disks = vec![object(json!({
                "metadata": { "name": name }, "spec": { "storageClassName": "slow" }, "status": { "phase": "Pending" },
            }))];
            let said = event("PersistentVolumeClaim", name, "ProvisioningFailed", "no capacity left");
            cluster.events = vec![object(said)];
            set_cluster(facts, |value| {
                value["status"]["conditions"] =
                    json!([condition("Ready", "False", "VolumesPending", "waits for disks")]);
            });
        },
        &[name_of_disk(), "no capacity left", "StorageClass slow"],
    );
    // What the operator says of it isn't said a second time.
    assert_eq!(of, [Kind::DiskPending]);
}

fn name_of_disk() -> &'static str {
    "data-pvc-1-storage-0"
}

#[test]
fn a_server_that_no_node_takes() {
    let of = kinds(
        |facts| {
            set_server(facts, "pvc-1-storage-2", |value| {
                value["spec"]["nodeName"] = Value::Null;
                value["status"]["conditions"][1] = json!({
                    "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient memory",
                });
            });
        },
        &["pvc-1-storage-2", "Insufficient memory", "placement"],
    );
    assert_eq!(of, [Kind::ServerUnschedulable]);
}

#[test]
fn a_majority_that_is_away() {
    let away = |facts: &mut Facts| {
        set_server(facts, "pvc-1-metadata-1", |_| {});
        set_server(facts, "pvc-1-metadata-2", |_| {});
    };
    assert_eq!(kinds(away, &["1 of 3 metadata servers", "unsafe-recovery"]), [Kind::MajorityLost]);
    // A volume that is being created has no majority yet.
    let created = |facts: &mut Facts| {
        away(facts);
        set_cluster(facts, |value| value["status"]["bootstrapped"] = json!(false));
    };
    assert_eq!(found(created), []);
}

#[test]
fn what_the_operator_says() {
    let of = kinds(
        |facts| {
            set_cluster(facts, |value| {
                value["status"]["conditions"] = json!([
                    condition("Ready", "False", "TooFewNodes", "3 copies need 3 nodes"),
                    condition("Stalled", "True", "TooFewNodes", "3 copies need 3 nodes"),
                ]);
            });
        },
        &["TooFewNodes", "3 copies need 3 nodes"],
    );
    assert_eq!(of, [Kind::Reported]);
    let silent = kinds(|facts| set_cluster(facts, |value| value["status"] = Value::Null), &["not reported"]);
    assert_eq!(silent, [Kind::Reported]);
}

#[test]
fn a_volume_without_free_space() {
    let full = |field: &'static str| {
        move |facts: &mut Facts| set_cluster(facts, |value| value["status"]["usage"][field] = json!(990))
    };
    let words = ["990 of 1000 bytes", "No space left on device", "expand the volume"];
    assert_eq!(kinds(full("bytesUsed"), &words), [Kind::Full]);
    assert_eq!(kinds(full("inodesUsed"), &["990 of 1000 inodes"]), [Kind::Full]);
}

#[test]
fn a_cluster_that_is_gone_with_and_without_its_disks() {
    let gone = |disks: usize| {
        move |facts: &mut Facts| {
            facts.clusters[0] = ClusterFacts {
                namespace: "atoll-volumes".into(),
                name: "pvc-1".into(),
                kept_disks: disks,
                ..ClusterFacts::default()
            };
        }
    };
    assert_eq!(kinds(gone(6), &["6 disks are kept", "kubectl atoll adopt pvc-1"]), [Kind::ClusterMissing]);
    assert_eq!(kinds(gone(0), &["backup"]), [Kind::ClusterMissing]);
}

#[test]
fn a_volume_that_is_gone() {
    let of = kinds(
        |facts| {
            facts.pod = None;
            facts.clusters.clear();
            let claim = &mut facts.claims[0];
            claim.volume = None;
            claim.claim.as_mut().expect("a claim").status.as_mut().expect("status").phase =
                Some("Lost".into());
        },
        &["web/data", "PersistentVolume doesn't exist"],
    );
    assert_eq!(of, [Kind::VolumeMissing]);
}

#[test]
fn a_class_that_does_not_exist_and_one_that_was_not_named() {
    let class = |name: Option<&'static str>| {
        move |facts: &mut Facts| {
            unbind(facts);
            let claim = facts.claims[0].claim.as_mut().expect("a claim");
            claim.spec.as_mut().expect("spec").storage_class_name = name.map(str::to_owned);
        }
    };
    assert_eq!(kinds(class(Some("atol")), &["StorageClass atol", "classes: atoll"]), [Kind::ClassMissing]);
    assert_eq!(kinds(class(None), &["no default", "storageClassName"]), [Kind::NoDefaultClass]);
    assert_eq!(kinds(class(Some("")), &["on purpose", "PersistentVolume"]), [Kind::ClaimUnbound]);
}

#[test]
fn a_request_that_the_driver_refuses() {
    let message = "rpc error: code = InvalidArgument desc = unknown parameter 'copys'";
    let of = kinds(
        |facts| {
            unbind(facts);
            let said = event("PersistentVolumeClaim", "data", "ProvisioningFailed", message);
            facts.claims[0].events = vec![object(said)];
        },
        &["unknown parameter 'copys'", "docs/parameters.md"],
    );
    assert_eq!(of, [Kind::RequestRefused]);
}

#[test]
fn a_controller_that_does_not_run() {
    let of = kinds(
        |facts| {
            unbind(facts);
            let pods = facts.system.pods.as_mut().expect("pods");
            pods.retain(|pod| !pod.name_any().starts_with("csi-controller"));
        },
        &["atoll-csi-controller", "no volumes are created"],
    );
    assert_eq!(of, [Kind::ControllerDown]);
}

#[test]
fn a_claim_that_waits_for_its_pod_and_one_of_which_nothing_is_said() {
    let waits = |facts: &mut Facts| {
        unbind(facts);
        let said =
            event("PersistentVolumeClaim", "data", "WaitForFirstConsumer", "waiting for first consumer");
        facts.claims[0].events = vec![object(said)];
    };
    assert_eq!(kinds(waits, &["until a pod uses it", "Immediate"]), [Kind::WaitsForPod]);
    assert_eq!(kinds(unbind, &["no volume yet", "logs"]), [Kind::ClaimUnbound]);
}

#[test]
fn a_claim_that_is_being_deleted_or_not_there() {
    let deleted = |facts: &mut Facts| {
        let mut value = claim();
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        facts.claims[0].claim = Some(object(value));
    };
    assert_eq!(kinds(deleted, &["is being deleted", "delete the pods"]), [Kind::ClaimDeleting]);
    let missing = |facts: &mut Facts| {
        facts.clusters.clear();
        facts.claims[0] =
            ClaimFacts { namespace: "web".into(), name: "data".into(), ..ClaimFacts::default() };
        let mut value = pending(pod());
        value["status"]["conditions"][1] = json!({
            "type": "PodScheduled", "status": "False", "message": "persistentvolumeclaim \"data\" not found",
        });
        set_pod(facts, value, Vec::new());
    };
    assert_eq!(kinds(missing, &["web/data", "doesn't exist", "get pvc"]), [Kind::ClaimMissing]);
}

#[test]
fn mounts_that_fail() {
    let failed = |message: &'static str| {
        move |facts: &mut Facts| {
            set_pod(facts, pending(pod()), vec![event("Pod", "app", "FailedMount", message)]);
        }
    };
    let elsewhere =
        "node-2 uses the volume (a Deployment with a ReadWriteOnce volume needs strategy: Recreate)";
    assert_eq!(kinds(failed(elsewhere), &["node-2", "ReadWriteMany"]), [Kind::UsedElsewhere]);
    let driver = "driver name csi.atoll.dev not found in the list of registered CSI drivers";
    assert_eq!(kinds(failed(driver), &["kubelet's directory"]), [Kind::NodePluginDown]);
    let secret = "fetching NodeStageSecretRef failed: secrets \"pvc-1\" not found";
    assert_eq!(kinds(failed(secret), &["without the key"]), [Kind::SecretMissing]);
    assert_eq!(kinds(failed("input/output error"), &["input/output error"]), [Kind::MountFailed]);
    // A mount that came to be after all isn't a cause any more.
    let mounted = found(|facts| set_pod(facts, pod(), vec![event("Pod", "app", "FailedMount", elsewhere)]));
    assert_eq!(mounted, []);
}

#[test]
fn a_node_without_plugin_and_one_without_mount_host() {
    let without = |component: &'static str| {
        move |facts: &mut Facts| {
            set_pod(facts, pending(pod()), Vec::new());
            let pods = facts.system.pods.as_mut().expect("pods");
            pods.retain(|pod| !pod.name_any().starts_with(component));
        }
    };
    let words = ["no pod of DaemonSet atoll-csi-node", "node-1"];
    assert_eq!(kinds(without("csi-node"), &words), [Kind::NodePluginDown]);
    assert_eq!(kinds(without("mount-host"), &["atoll-mount-host"]), [Kind::MountHostDown]);
    let not_ready = |facts: &mut Facts| {
        set_pod(facts, pending(pod()), Vec::new());
        let pods = facts.system.pods.as_mut().expect("pods");
        for pod in pods.iter_mut().filter(|pod| pod.name_any().starts_with("mount-host")) {
            pod.status.as_mut().expect("status").conditions = None;
        }
    };
    assert_eq!(kinds(not_ready, &["isn't ready on node node-1"]), [Kind::MountHostDown]);
}

#[test]
fn mounts_that_ended_or_do_not_respond() {
    let told = |reason: &'static str| {
        move |facts: &mut Facts| set_pod(facts, pod(), vec![event("Pod", "app", reason, "of volume v")])
    };
    assert_eq!(kinds(told("VolumeMountLost"), &["delete pod app"]), [Kind::MountLost]);
    assert_eq!(kinds(told("VolumeNotResponding"), &["continue by themselves"]), [Kind::MountNotResponding]);
}

#[test]
fn a_pod_that_no_node_takes() {
    let unscheduled = |message: &'static str| {
        move |facts: &mut Facts| {
            let mut value = pending(pod());
            value["status"]["conditions"][1] =
                json!({ "type": "PodScheduled", "status": "False", "message": message });
            set_pod(facts, value, Vec::new());
        }
    };
    assert_eq!(kinds(unscheduled("3 Insufficient cpu"), &["Insufficient cpu"]), [Kind::PodUnschedulable]);
    let once =
        "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use";
    assert_eq!(kinds(unscheduled(once), &["delete the other pod"]), [Kind::UsedElsewhere]);
}

#[test]
fn a_volume_of_another_kind() {
    let of = kinds(
        |facts| {
            facts.clusters.clear();
            facts.claims[0].volume = Some(object(json!({
                "metadata": { "name": "pvc-1" },
                "spec": { "csi": { "driver": "ebs.csi.aws.com", "volumeHandle": "vol-1" } },
            })));
        },
        &["ebs.csi.aws.com", "isn't an Atoll volume"],
    );
    assert_eq!(of, [Kind::NotAtoll]);
}

#[test]
fn a_program_of_the_users_own() {
    let of = kinds(
        |facts| {
            let mut value = pod();
            value["status"]["conditions"][0]["status"] = json!("False");
            value["status"]["containerStatuses"] = json!([{
                "name": "c", "ready": false, "restartCount": 3, "image": "i", "imageID": "",
                "lastState": { "terminated": { "exitCode": 1, "reason": "Error" } },
            }]);
            set_pod(facts, value, Vec::new());
        },
        &["3 times", "not a matter of its volumes", "--previous"],
    );
    assert_eq!(of, [Kind::Application]);
}

#[test]
fn the_deepest_cause_comes_first_and_all_are_shown() {
    let mut facts = well();
    set_server(&mut facts, "pvc-1-metadata-1", |_| {});
    set_server(&mut facts, "pvc-1-metadata-2", |_| {});
    facts.system.nodes[1] = object(json!({
        "metadata": { "name": "node-1" }, "status": { "conditions": [{ "type": "Ready", "status": "False" }] },
    }));
    set_pod(&mut facts, pod(), vec![event("Pod", "app", "VolumeNotResponding", "waits")]);
    facts.unread.push("nodes: forbidden".into());
    let answer =
        super::Answer { chain: super::chain(&facts), causes: causes(&facts), unread: facts.unread.clone() };
    let kinds: Vec<Kind> = answer.causes.iter().map(|cause| cause.kind).collect();
    assert_eq!(kinds, [Kind::NodeNotReady, Kind::MajorityLost, Kind::MountNotResponding]);
    let text = super::screen(&answer);
    for line in [
        "pod web/app -> PersistentVolumeClaim web/data -> FileSystemCluster atoll-volumes/pvc-1",
        "1. NodeNotReady: pod atoll-volumes/pvc-1-metadata-1",
        "2. MajorityLost:",
        "Begin with the first",
        "Not checked, since it can't be read:\n  * nodes: forbidden",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    let distinct: BTreeSet<Kind> = kinds.into_iter().collect();
    assert_eq!(distinct.len(), 3);
}
