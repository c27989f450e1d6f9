//! Every step of a cluster's life, with every change that it takes failing in every way, one at a time: each life ends as it
//! does without faults. The operator is the real one, from observing to the status; what it speaks to is in memory.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::{self, labels::CLUSTER_ID};
use atoll_crds::v1alpha1::{FileSystemCluster, FileSystemClusterSpec};
use kube::runtime::reflector::ObjectRef;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use crate::config::VERSION;
use crate::context::{Context, Parts, recorder};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::reconcile::reconcile;
use crate::settings::Settings;
use crate::testing::fault::{At, Fault};
use crate::testing::kubernetes::{Kubernetes, NAMESPACE, Watches};
use crate::testing::versions::{self, BROKEN, EARLIER};

mod kills;

/// Looks after which a life that still changes is one that goes round in circles.
const LOOKS_MAX: usize = 200;
/// Looks without a change after which nothing changes any more.
const QUIET_LOOKS: usize = 3;
/// Codes with which changes are refused, in turn: out of date, by a rule, for a moment.
const REFUSALS: [u16; 3] = [409, 422, 503];
/// Every so many questions one fails: they are much alike.
const READ_STEP: usize = 5;
/// The ConfigMap with the operator's configuration.
const CONFIG: &str = "atoll-operator-config";
/// Storage servers that a resource may have.
const SERVERS_MAX: usize = 8;
/// Conditions that a resource may have.
const CONDITIONS_MAX: usize = 16;

/// What somebody does to a cluster, one thing after the other, each when nothing changes any more.
type Life = &'static [fn(&Kubernetes)];

fn create(kubernetes: &Kubernetes) {
    create_with(kubernetes, |_| {});
}

fn create_with(kubernetes: &Kubernetes, change: impl FnOnce(&mut FileSystemClusterSpec)) {
    let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
    change(&mut cluster.spec);
    cluster.metadata.namespace = Some(NAMESPACE.into());
    let object = serde_json::to_value(cluster).expect("serialises");
    kubernetes.api.with(|state| state.create("filesystemclusters", object).expect("new"));
}

fn spec(kubernetes: &Kubernetes, change: impl FnOnce(&mut Value)) {
    kubernetes.api.with(|state| {
        state.change("filesystemclusters", NAMESPACE, "db", |cluster| change(&mut cluster["spec"]));
    });
}

fn add_storage_server(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["storage"]["replicas"] = json!(4));
}

fn give_storage_servers_memory(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["storage"]["resources"] = json!({ "requests": { "memory": "512Mi" } }));
}

fn pause(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["paused"] = json!(true));
}

fn go_on(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["paused"] = json!(false));
}

fn confirm(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        state.change("filesystemclusters", NAMESPACE, "db", |cluster| {
            cluster["spec"]["deletionConfirmation"] = cluster["status"]["clusterId"].clone();
        });
    });
}

fn delete(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| state.delete("filesystemclusters", NAMESPACE, "db"));
}

/// A disk is lost, and its pod with it.
fn lose_metadata_disk(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        state.delete("persistentvolumeclaims", NAMESPACE, "data-db-metadata-1");
        state.delete("pods", NAMESPACE, "db-metadata-1");
    });
}

/// Somebody deletes a storage server's disk, while its pod uses it.
fn delete_storage_disk(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| state.delete("persistentvolumeclaims", NAMESPACE, "data-db-storage-1"));
}

/// A node is off, and somebody says that it is for good.
fn lose_node(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        state.change("nodes", "", "two", |node| {
            let taint = json!({ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" });
            node["spec"]["taints"] = json!([taint]);
        });
    });
}

fn remove_storage_server(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["storage"]["replicas"] = json!(3));
}

fn five_metadata_servers(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["metadata"]["replicas"] = json!(5));
}

fn three_metadata_servers(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["metadata"]["replicas"] = json!(3));
}

fn one_metadata_server(kubernetes: &Kubernetes) {
    spec(kubernetes, |spec| spec["metadata"]["replicas"] = json!(1));
}

/// As many disks as there shall be, and pods that use them.
fn has_servers(kubernetes: &Kubernetes, metadata: usize, storage: usize) {
    let kinds = kinds(kubernetes);
    let count = |of: &str| kinds.iter().filter(|kind| kind.starts_with(of)).count();
    let disks =
        (count("persistentvolumeclaims/data-db-metadata-"), count("persistentvolumeclaims/data-db-storage-"));
    assert_eq!(disks, (metadata, storage), "{kinds:?}");
    assert_eq!((count("pods/db-metadata-"), count("pods/db-storage-")), (metadata, storage), "{kinds:?}");
    is_well(kubernetes);
}

/// A way back to the release before is kept.
fn create_for_a_trial(kubernetes: &Kubernetes) {
    create_with(kubernetes, |spec| spec.feature_level_max = Some(1));
}

fn run_version(kubernetes: &Kubernetes, version: &str) {
    spec(kubernetes, |spec| spec["version"] = json!(version));
}

/// All pods were made for this version, and work.
fn runs(kubernetes: &Kubernetes, version: &str) {
    kubernetes.api.with(|state| {
        let pods = state.all("pods");
        assert_eq!(pods.len(), 6);
        assert!(pods.iter().all(|pod| versions::version_of(pod) == version), "{pods:?}");
        let status = &state.get("filesystemclusters", NAMESPACE, "db").expect("a resource")["status"];
        let (runs, target) = (&status["version"], &status["targetVersion"]);
        assert_eq!((runs, target, &status["rollout"]), (&json!(version), &json!(version), &Value::Null));
    });
    is_well(kubernetes);
}

/// One pod has the version, which doesn't work, and the resource says so.
fn is_stuck(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        let pods = state.all("pods");
        let count = |version: &str| pods.iter().filter(|pod| versions::version_of(pod) == version).count();
        assert_eq!((count(BROKEN), count(VERSION)), (1, 5));
    });
    assert_eq!(condition(kubernetes, "UpgradeBlocked"), ("True".to_owned(), "ImageUnavailable".to_owned()));
    assert_eq!(condition(kubernetes, "Ready").0, "True");
}

/// Status and reason of a condition.
fn condition(kubernetes: &Kubernetes, kind: &str) -> (String, String) {
    kubernetes.api.with(|state| {
        let cluster = state.get("filesystemclusters", NAMESPACE, "db").expect("a resource");
        let conditions = cluster["status"]["conditions"].as_array().expect("conditions");
        let found = conditions.iter().find(|found| found["type"] == kind);
        let found = found.unwrap_or_else(|| panic!("no {kind}: {conditions:?}"));
        let text = |field: &str| found[field].as_str().expect("a text").to_owned();
        (text("status"), text("reason"))
    })
}

fn is_well(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        let cluster = state.get("filesystemclusters", NAMESPACE, "db").expect("a resource");
        assert_eq!(cluster["status"]["phase"], "Ready", "{}", cluster["status"]["conditions"]);
    });
}

fn delete_services(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| {
        for name in ["db-metadata", "db-storage"] {
            state.delete("services", NAMESPACE, name);
        }
    });
}

/// The operator is configured to take volumes along.
fn follow_the_operator(kubernetes: &Kubernetes) {
    let config = json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": CONFIG, "namespace": NAMESPACE },
        "data": { "config.yaml": "upgrades: {mode: Automatic}" },
    });
    kubernetes.api.with(|state| state.create("configmaps", config).expect("new"));
}

/// What an operator is configured to do as it starts.
fn settings(kubernetes: &Kubernetes) -> Settings {
    let config = kubernetes.api.with(|state| state.get("configmaps", NAMESPACE, CONFIG).cloned());
    let text = config.map(|config| config["data"]["config.yaml"].as_str().expect("a file").to_owned());
    text.map(|text| serde_yaml::from_str(&text).expect("valid")).unwrap_or_default()
}

/// An operator process.
struct Operator {
    kubernetes: Kubernetes,
    watches: Watches,
    context: Arc<Context>,
}

impl Operator {
    fn start(kubernetes: &Kubernetes) -> Operator {
        let watches = Watches::new();
        let client = kubernetes.api.client();
        let context = Context::new(Parts {
            recorder: recorder(&client, "test".to_owned()),
            client,
            caches: watches.caches.clone(),
            servers: Box::new(kubernetes.clone()),
            leadership: Leadership::always(),
            settings: settings(kubernetes),
            images: versions::images(),
            feature_level: kubernetes.api.with(|state| versions::newest(state)),
            metrics: Metrics::register(&mut Registry::default()),
            concurrency: 1,
        });
        Operator { kubernetes: kubernetes.clone(), watches, context: Arc::new(context) }
    }

    /// One look. Whether it got to its end; `None`: the process ended in it.
    async fn look(&self) -> Option<bool> {
        let key = ObjectRef::new("db").within(NAMESPACE);
        let Some(cluster) = self.watches.caches.clusters.get(&key) else { return Some(true) };
        tokio::select! {
            biased;
            () = self.kubernetes.api.door.crashed() => None,
            result = reconcile(cluster, Arc::clone(&self.context)) => Some(result.is_ok()),
        }
    }
}

/// A PersistentVolume refers to the resource, whose deletion waits for that.
fn refer(kubernetes: &Kubernetes) {
    let volume = json!({
        "kind": "PersistentVolume", "apiVersion": "v1", "metadata": { "name": "pvc-1" },
        "spec": { "csi": { "driver": names::DRIVER_NAME, "volumeHandle": format!("v1/{NAMESPACE}/db") } },
    });
    kubernetes.api.with(|state| state.create("persistentvolumes", volume).expect("new"));
}

/// Until nothing changes any more. `lag`: watches hear of things only every so many looks.
async fn settle(kubernetes: &Kubernetes, operator: &mut Operator, lag: usize, what: &str) {
    let mut quiet = 0;
    for number in 0..LOOKS_MAX {
        let before = kubernetes.version();
        kubernetes.tick();
        if number % lag == 0 {
            operator.watches.hear(kubernetes);
        }
        let ended = operator.look().await;
        let was_late = kubernetes.api.door.deliver();
        if ended.is_none() {
            *operator = Operator::start(kubernetes);
        }
        let changed = kubernetes.version() != before || was_late || ended != Some(true);
        quiet = if changed { 0 } else { quiet + 1 };
        if quiet >= QUIET_LOOKS * lag {
            return;
        }
    }
    panic!("it doesn't come to an end: {what}");
}

/// A whole life, with one fault, and what is left. Also how many changes and questions there were up to the end of each step.
async fn live(life: Life, fault: Option<(At, Fault)>, lag: usize) -> (Value, Vec<(usize, usize)>) {
    let kubernetes = Kubernetes::new();
    kubernetes.api.door.set(fault);
    let mut operator = None;
    let mut counts = Vec::new();
    for (step, happens) in life.iter().enumerate() {
        happens(&kubernetes);
        let operator = operator.get_or_insert_with(|| Operator::start(&kubernetes));
        settle(&kubernetes, operator, lag, &format!("step {step} with {fault:?}")).await;
        counts.push(kubernetes.api.door.counts());
    }
    (what_is_left(&kubernetes), counts)
}

/// All objects, without what is by chance: ids, keys, versions, times.
fn what_is_left(kubernetes: &Kubernetes) -> Value {
    let mut chances: Vec<(String, String)> = Vec::new();
    let mut left = serde_json::Map::new();
    kubernetes.api.with(|state| {
        for ((kind, _, name), object) in state.objects() {
            let mut object = object.clone();
            let id =
                object.pointer("/status/clusterId").or_else(|| object["metadata"]["labels"].get(CLUSTER_ID));
            chances.extend(id.and_then(Value::as_str).map(|id| (id.to_owned(), "ID".to_owned())));
            // It is made of a template that names the id.
            let revision = object.pointer("/status/updateRevision").and_then(Value::as_str);
            chances.extend(revision.map(|revision| (revision.to_owned(), format!("{name}-now"))));
            remove(&mut object, "/metadata", &["resourceVersion", "generation"]);
            remove(&mut object, "/metadata/annotations", &[names::annotations::TEMPLATE_HASH]);
            remove(&mut object, "/status", &["observedGeneration"]);
            // Who leads after a transfer that was asked for twice is another one.
            remove(&mut object, "/status/metadata", &["leader"]);
            // Of more servers than copies, which of them have one.
            for server in 0..SERVERS_MAX {
                remove(&mut object, &format!("/status/storage/servers/{server}"), &["chunks"]);
            }
            for condition in 0..CONDITIONS_MAX {
                let of = format!("/status/conditions/{condition}");
                remove(&mut object, &of, &["lastTransitionTime", "observedGeneration"]);
            }
            if kind == "secrets" {
                object["data"] = json!("a key");
            }
            left.insert(format!("{kind}/{name}"), object);
        }
    });
    left.insert("volume".to_owned(), json!({ "has_records": kubernetes.has_group() }));
    let ids: BTreeSet<&String> = chances.iter().filter(|(_, is)| is == "ID").map(|(id, _)| id).collect();
    assert!(ids.len() <= 1, "several clusters: {ids:?}");
    let text = Value::Object(left).to_string();
    let text = chances.iter().fold(text, |text, (chance, is)| text.replace(chance, is));
    serde_json::from_str(&text).expect("JSON")
}

fn remove(object: &mut Value, of: &str, fields: &[&str]) {
    if let Some(Value::Object(of)) = object.pointer_mut(of) {
        fields.iter().for_each(|field| drop(of.remove(*field)));
    }
}

/// Where two values differ first, and how.
fn difference(expected: &Value, found: &Value) -> Option<String> {
    if expected == found {
        return None;
    }
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
            let of = |object: &serde_json::Map<String, Value>, key: &str| {
                object.get(key).cloned().unwrap_or_default()
            };
            let below =
                |key: &String| Some(format!("{key} {}", difference(&of(expected, key), &of(found, key))?));
            keys.into_iter().find_map(below)
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            expected.iter().zip(found).find_map(|(expected, found)| difference(expected, found))
        }
        _ => Some(format!("is {found}, and {expected} without the fault")),
    }
}

/// Faults begin after the first step: another life has them in it.
async fn ends_as_without_faults(life: Life) {
    ends_as_without_faults_in(1..life.len(), life).await;
}

/// With faults in these steps.
async fn ends_as_without_faults_in(steps: Range<usize>, life: Life) {
    let (expected, counts) = live(life, None, 1).await;
    let until = |step: usize| step.checked_sub(1).map_or((0, 0), |last| counts[last]);
    let (first, last) = (until(steps.start), until(steps.end));
    let mut faults: Vec<(At, Fault)> = Vec::new();
    for number in first.0..last.0 {
        let refused = Fault::Refuse(REFUSALS[number % REFUSALS.len()]);
        let kinds = [refused, Fault::LoseAnswer, Fault::Crash, Fault::Late];
        faults.extend(kinds.map(|fault| (At::Write(number), fault)));
    }
    let reads = (first.1..last.1).step_by(READ_STEP);
    faults.extend(reads.map(|number| (At::Read(number), Fault::Refuse(500))));
    let mut wrong = Vec::new();
    for fault in faults {
        let (found, _) = live(life, Some(fault), 1).await;
        wrong.extend(difference(&expected, &found).map(|what| format!("after {fault:?}: {what}")));
    }
    // What watches say is out of date most of the time.
    let (found, _) = live(life, None, 3).await;
    wrong.extend(difference(&expected, &found).map(|what| format!("with slow watches: {what}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is there at this step of a life.
fn kinds(kubernetes: &Kubernetes) -> Vec<String> {
    let brief = |((kind, _, name), _): (&(String, String, String), &Value)| format!("{kind}/{name}");
    kubernetes.api.with(|state| state.objects().iter().map(brief).collect())
}

fn is_all_there(kubernetes: &Kubernetes) {
    let kinds = kinds(kubernetes);
    for kind in [
        "statefulsets/db-storage",
        "secrets/db-key",
        "persistentvolumeclaims/data-db-metadata-2",
        "pods/db-storage-2",
    ] {
        assert!(kinds.iter().any(|found| found == kind), "no {kind}: {kinds:?}");
    }
    assert!(kubernetes.has_group());
    kubernetes.api.with(|state| {
        let cluster = state.get("filesystemclusters", NAMESPACE, "db").expect("a resource");
        assert_eq!(cluster["status"]["phase"], "Ready");
    });
}

fn is_kept(kubernetes: &Kubernetes) {
    let kinds = kinds(kubernetes);
    let count = |of: &str| kinds.iter().filter(|kind| kind.starts_with(of)).count();
    assert_eq!((count("persistentvolumeclaims/"), count("secrets/")), (6, 1), "{kinds:?}");
    assert_eq!((count("pods/"), count("services/"), count("filesystemclusters/")), (0, 0, 0), "{kinds:?}");
}

fn is_gone(kubernetes: &Kubernetes) {
    let kinds = kinds(kubernetes);
    assert!(!kinds.iter().any(|kind| kind.contains("/db-") || kind.contains("/data-db-")), "{kinds:?}");
}

#[tokio::test]
async fn a_cluster_is_made_whatever_fails_meanwhile() {
    ends_as_without_faults_in(0..2, &[create, is_all_there]).await;
}

#[tokio::test]
async fn a_cluster_is_changed_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, add_storage_server, give_storage_servers_memory, delete_services]).await;
}

#[tokio::test]
async fn a_pause_changes_nothing_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, pause, add_storage_server, go_on]).await;
}

#[tokio::test]
async fn a_metadata_server_is_replaced_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, lose_metadata_disk, is_all_there]).await;
}

#[tokio::test]
async fn a_storage_server_whose_disk_is_deleted_is_replaced_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, delete_storage_disk, |world| has_servers(world, 3, 3)]).await;
}

#[tokio::test]
async fn the_servers_of_a_node_that_is_lost_are_replaced_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, lose_node, |world| has_servers(world, 3, 3)]).await;
}

#[tokio::test]
async fn a_storage_server_is_removed_whatever_fails_meanwhile() {
    let life: Life = &[
        create,
        add_storage_server,
        |world| has_servers(world, 3, 4),
        remove_storage_server,
        |world| has_servers(world, 3, 3),
    ];
    ends_as_without_faults_in(3..life.len(), life).await;
}

#[tokio::test]
async fn metadata_servers_leave_one_by_one_whatever_fails_meanwhile() {
    let life: Life = &[
        |world| {
            create(world);
            five_metadata_servers(world);
        },
        three_metadata_servers,
        |world| has_servers(world, 3, 3),
    ];
    ends_as_without_faults(life).await;
}

#[tokio::test]
async fn a_single_metadata_server_is_left_and_others_come_again_whatever_fails_meanwhile() {
    let life: Life = &[
        create,
        one_metadata_server,
        |world| has_servers(world, 1, 3),
        three_metadata_servers,
        |world| has_servers(world, 3, 3),
    ];
    ends_as_without_faults(life).await;
}

#[tokio::test]
async fn disks_are_kept_and_adopted_whatever_fails_meanwhile() {
    ends_as_without_faults(&[create, delete, is_kept, create, is_all_there]).await;
}

#[tokio::test]
async fn a_volume_whose_deletion_waits_is_kept_whole_whatever_fails_meanwhile() {
    let life: Life = &[
        |world| {
            create(world);
            refer(world);
        },
        delete,
        delete_storage_disk,
        |world| {
            let kinds = kinds(world);
            let count = |of: &str| kinds.iter().filter(|kind| kind.starts_with(of)).count();
            assert_eq!((count("pods/db-storage-"), count("persistentvolumeclaims/")), (3, 6), "{kinds:?}");
            assert_eq!(condition(world, "DeletionBlocked"), ("True".into(), "ReferencedByVolume".into()));
            world.api.with(|state| state.delete("persistentvolumes", "", "pvc-1"));
        },
        is_kept,
    ];
    ends_as_without_faults_in(2..3, life).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_somebody_deletes_is_created_again() {
    let kubernetes = Kubernetes::new();
    create(&kubernetes);
    let mut operator = Operator::start(&kubernetes);
    settle(&kubernetes, &mut operator, 1, "created").await;
    let key = |kubernetes: &Kubernetes| {
        kubernetes.api.with(|state| Some(state.get("secrets", NAMESPACE, "db-key")?["data"].clone()))
    };
    let before = key(&kubernetes).expect("a key");
    kubernetes.api.with(|state| state.delete("secrets", NAMESPACE, "db-key"));
    // Nobody says so; it is read again after a while.
    tokio::time::advance(Duration::from_secs(60)).await;
    settle(&kubernetes, &mut operator, 1, "the key is deleted").await;
    assert_eq!(key(&kubernetes), Some(before));
    is_well(&kubernetes);
    // Who never read it has no other one.
    kubernetes.api.with(|state| state.delete("secrets", NAMESPACE, "db-key"));
    let mut operator = Operator::start(&kubernetes);
    settle(&kubernetes, &mut operator, 1, "another operator").await;
    assert_eq!(key(&kubernetes), None);
    assert_eq!(condition(&kubernetes, "Degraded"), ("True".into(), "KeyMissing".into()));
}

#[tokio::test]
async fn all_of_a_cluster_is_deleted_on_the_word_whatever_fails_meanwhile() {
    ends_as_without_faults_in(1..3, &[create, confirm, delete, is_gone, create, is_all_there]).await;
}

#[tokio::test]
async fn a_volume_goes_to_another_version_and_back_whatever_fails_meanwhile() {
    let life: Life = &[
        |world| {
            create_for_a_trial(world);
            run_version(world, EARLIER);
        },
        |world| runs(world, EARLIER),
        |world| run_version(world, VERSION),
        |world| runs(world, VERSION),
        |world| run_version(world, EARLIER),
        |world| runs(world, EARLIER),
    ];
    // The way back is the same one.
    ends_as_without_faults_in(2..4, life).await;
}

#[tokio::test]
async fn a_volume_that_names_no_version_follows_the_operator_whatever_fails_meanwhile() {
    let life: Life = &[
        |world| {
            follow_the_operator(world);
            create_for_a_trial(world);
            run_version(world, EARLIER);
        },
        |world| runs(world, EARLIER),
        |world| spec(world, |spec| spec["version"] = Value::Null),
        |world| runs(world, VERSION),
    ];
    ends_as_without_faults_in(2..life.len(), life).await;
}

#[tokio::test]
async fn a_version_that_does_not_work_stops_and_is_taken_back_whatever_fails_meanwhile() {
    let life: Life = &[
        create_for_a_trial,
        |world| run_version(world, BROKEN),
        is_stuck,
        |world| run_version(world, VERSION),
        |world| runs(world, VERSION),
    ];
    ends_as_without_faults(life).await;
}

#[tokio::test]
async fn no_way_back_is_left_once_the_level_was_raised_whatever_fails_meanwhile() {
    fn is_raised(kubernetes: &Kubernetes) {
        runs(kubernetes, VERSION);
        kubernetes.api.with(|state| {
            let status = &state.get("filesystemclusters", NAMESPACE, "db").expect("a resource")["status"];
            assert_eq!((&status["featureLevel"], &status["minVersion"]), (&json!(2), &json!(VERSION)));
        });
    }
    fn is_refused(kubernetes: &Kubernetes) {
        assert_eq!(condition(kubernetes, "UpgradeBlocked"), ("True".to_owned(), "VersionRefused".to_owned()));
        is_raised(kubernetes);
    }
    let life: Life = &[
        |world| {
            world.api.with(versions::know_next_level);
            create_with(world, |spec| spec.version = Some(EARLIER.into()));
        },
        |world| runs(world, EARLIER),
        |world| run_version(world, VERSION),
        is_raised,
        |world| run_version(world, EARLIER),
        is_refused,
    ];
    ends_as_without_faults_in(2..life.len(), life).await;
}

/// A policy that takes images from a mirror and adds a container, as many do.
fn mutate(kind: &str, object: &mut Value) {
    if kind != "statefulsets" {
        return;
    }
    let containers = object["spec"]["template"]["spec"]["containers"].as_array_mut().expect("containers");
    if containers.iter().all(|found| found["name"] != "proxy") {
        containers.insert(0, json!({ "name": "proxy", "image": "proxy" }));
    }
    for container in containers {
        container["image"] = json!("mirror.example/image");
    }
}

fn install_webhook(kubernetes: &Kubernetes) {
    kubernetes.api.with(|state| state.webhook = Some(mutate));
}

#[tokio::test]
async fn a_webhook_that_changes_objects_causes_no_loop_and_keeps_no_change_from_being_made() {
    let life: Life = &[install_webhook, create, give_storage_servers_memory, add_storage_server];
    let (left, with) = live(life, None, 1).await;
    let pod = &left["pods/db-storage-3"]["spec"]["containers"];
    assert_eq!((&pod[0]["name"], &pod[1]["image"]), (&json!("proxy"), &json!("mirror.example/image")));
    assert_eq!(
        left["pods/db-storage-0"]["spec"]["containers"][1]["resources"]["requests"]["memory"],
        "512Mi"
    );
    let conditions = left["filesystemclusters/db"]["status"]["conditions"].as_array().expect("conditions");
    let is = |kind: &str| conditions.iter().find(|found| found["type"] == kind).map(|found| &found["status"]);
    assert_eq!((is("Ready"), is("Progressing")), (Some(&json!("True")), Some(&json!("False"))));
    let life: Life = &[create, give_storage_servers_memory, add_storage_server];
    let (_, without) = live(life, None, 1).await;
    // A warning more for each StatefulSet.
    let (with, without) = (with[with.len() - 1].0, without[without.len() - 1].0);
    assert!(with <= without + 4, "{with} changes, and {without} without the webhook");
}
