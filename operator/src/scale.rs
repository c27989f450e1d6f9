//! What an operator of many clusters at rest asks of the API server, and how much memory it takes. The operator is the real one,
//! with its watches and its queue; the API server and the clusters' servers are in memory, and so is time: an hour takes as long
//! as the work in it.
//!
//! `make test-operator-scale` has 1,000 clusters. As one of many tests it has fewer, and the memory is that of all tests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_core::ids::ClusterId;
use atoll_core::records::VolumeConfig;
use atoll_crds::names::{self, Component, annotations, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, KeptVolume};
use atoll_proto::admin::{
    ChangeServer, MemberIdentity, MembersChange, RaiseFeatureLevel, ResizeVolume, TransferLeader,
};
use atoll_proto::metadata::ClusterStatus;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode};
use clap::Parser;
use futures::{FutureExt, StreamExt};
use kube::Client;
use kube::client::Body as KubeBody;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::build::{budget, compare, disk_labels, service, statefulset};
use crate::config::Config;
use crate::http::Told;
use crate::leader::Leadership;
use crate::metadata::{Access, AskError, Asked, Servers};
use crate::metrics::Metrics;
use crate::prerequisites::Unmet;
use crate::settings::Settings;
use crate::testing::{self, MEMBERS};
use crate::validate::{Wanted, validate};
use crate::work;

/// How many clusters there are, unless `ATOLL_CLUSTERS` says otherwise.
const CLUSTERS: usize = 50;
/// Nodes, on three of which each cluster is.
const NODES: usize = 30;
/// Requests that all clusters together may cost in a minute, besides the Lease.
const REQUESTS_PER_MINUTE_MAX: u64 = 20;
/// Memory that the operator may take, with the tests around it (MiB).
const MEMORY_MIB_MAX: u64 = 200;
/// In which the operator sees everything for the first time, and writes each status.
const WARM_UP: Duration = Duration::from_secs(3 * 60);
/// In which requests are counted.
const MINUTES: u64 = 10;
/// Objects in one answer, as API servers have it.
const PAGE: usize = 500;
/// What everybody who ever wrote into an object leaves in it.
const MANAGED_FIELDS: usize = 1500;

/// A request's verb and the kind of its objects.
type Count = BTreeMap<(&'static str, String), u64>;

/// One cluster of many, as the API server has it.
struct One {
    cluster: FileSystemCluster,
    wanted: Wanted,
    id: ClusterId,
    number: usize,
}

impl One {
    fn new(number: usize) -> One {
        let id = id_of(number);
        let mut cluster = testing::cluster("1Gi");
        cluster.metadata.namespace = Some(format!("ns-{number}"));
        cluster.metadata.uid = Some(format!("uid-{number}"));
        cluster.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        let status = cluster.status.get_or_insert_default();
        (status.cluster_id, status.bootstrapped) = (Some(id.to_string()), true);
        let wanted = validate(&cluster, &testing::images()).expect("valid");
        One { cluster, wanted, id, number }
    }

    fn places(&self) -> Vec<(Component, u32)> {
        Component::ALL
            .into_iter()
            .flat_map(|component| (0..3).map(move |ordinal| (component, ordinal)))
            .collect()
    }

    fn node(&self, ordinal: u32) -> String {
        format!("node-{}", (self.number + ordinal as usize) % NODES)
    }

    fn volume_name(&self, claim: &str) -> String {
        format!("pv-{}-{claim}", self.number)
    }

    fn statefulset(&self, component: Component) -> Value {
        let mut found = statefulset::statefulset(&self.wanted, component, self.id, None);
        compare::stamp(&mut found, |object| &mut object.metadata);
        found.metadata.generation = Some(1);
        let mut found = serde_json::to_value(found).expect("serialises");
        found["status"] =
            json!({ "observedGeneration": 1, "updateRevision": testing::REVISION, "replicas": 3 });
        found
    }

    fn service(&self, component: Component) -> Value {
        let mut found = service::service(&self.wanted, component);
        compare::stamp(&mut found, |object| &mut object.metadata);
        serde_json::to_value(found).expect("serialises")
    }

    fn budget(&self, component: Component) -> Value {
        let mut found = budget::budget(&self.wanted, component, 1).expect("three servers");
        compare::stamp(&mut found, |object| &mut object.metadata);
        serde_json::to_value(found).expect("serialises")
    }

    fn claim(&self, component: Component, ordinal: u32) -> Value {
        let name = names::pvc("db", component, ordinal);
        let mut found = serde_json::to_value(testing::pvc(&name, component, self.id)).expect("serialises");
        let mut marks = disk_labels(&self.wanted, component, self.id);
        marks.insert(labels::BOOTSTRAPPED.into(), "true".into());
        if component == Component::Metadata {
            marks.insert(labels::MEMBER_ID.into(), MEMBERS[ordinal as usize].to_string());
        }
        let record = KeptVolume::of(&self.cluster).to_text().expect("serialises");
        let meta = &mut found["metadata"];
        meta["labels"] = json!(marks);
        meta["annotations"][annotations::VOLUME] = json!(record);
        meta["annotations"][annotations::CREATED_FOR] = json!(self.wanted.uid);
        found["spec"] = json!({ "storageClassName": "disks", "volumeName": self.volume_name(&name) });
        found
    }

    fn volume(&self, component: Component, ordinal: u32) -> Value {
        let claim = names::pvc("db", component, ordinal);
        let hostname = json!({
            "key": "kubernetes.io/hostname", "operator": "In", "values": [self.node(ordinal)],
        });
        json!({
            "metadata": { "name": self.volume_name(&claim) },
            "spec": {
                "capacity": { "storage": "5Gi" },
                "claimRef": { "name": claim, "namespace": self.wanted.namespace },
                "csi": { "driver": "disks.example", "volumeHandle": self.volume_name(&claim) },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [hostname] }] } },
            },
        })
    }

    /// The PersistentVolume that pods use.
    fn own_volume(&self) -> Value {
        json!({
            "metadata": { "name": format!("pvc-{}", self.number) },
            "spec": {
                "capacity": { "storage": "1Gi" },
                "claimRef": { "name": "data", "namespace": "users" },
                "csi": { "driver": names::DRIVER_NAME, "volumeHandle": format!("v1/{}/db", self.wanted.namespace) },
            },
        })
    }

    fn pod(&self, component: Component, ordinal: u32) -> Value {
        let name = names::pod("db", component, ordinal);
        let set = self.statefulset(component);
        let mut found = json!({ "metadata": set["spec"]["template"]["metadata"], "spec": set["spec"]["template"]["spec"] });
        let ready = serde_json::to_value(testing::pod(&name)).expect("serialises");
        let meta = &mut found["metadata"];
        (meta["name"], meta["uid"]) = (json!(name), json!(format!("uid-of-{name}-{}", self.number)));
        meta["namespace"] = json!(self.wanted.namespace);
        meta["labels"]["controller-revision-hash"] = json!(testing::REVISION);
        found["spec"]["nodeName"] = json!(self.node(ordinal));
        found["status"] = ready["status"].clone();
        found
    }

    fn secret(&self) -> Value {
        let mut found = testing::stored_secret(self.id);
        found.metadata.namespace = Some(self.wanted.namespace.clone());
        found.metadata.labels.get_or_insert_default().insert(labels::BOOTSTRAPPED.into(), "true".into());
        serde_json::to_value(found).expect("serialises")
    }

    /// All its objects of a kind.
    fn objects(&self, plural: &str) -> Vec<Value> {
        let each = |make: &dyn Fn(Component) -> Value| Component::ALL.into_iter().map(make).collect();
        let all = |make: &dyn Fn(Component, u32) -> Value| {
            self.places().into_iter().map(|(component, ordinal)| make(component, ordinal)).collect::<Vec<_>>()
        };
        match plural {
            "statefulsets" => each(&|component| self.statefulset(component)),
            "services" => each(&|component| self.service(component)),
            "poddisruptionbudgets" => each(&|component| self.budget(component)),
            "persistentvolumeclaims" => all(&|component, ordinal| self.claim(component, ordinal)),
            "pods" => all(&|component, ordinal| self.pod(component, ordinal)),
            "persistentvolumes" => {
                let mut found = all(&|component, ordinal| self.volume(component, ordinal));
                found.push(self.own_volume());
                found
            }
            other => panic!("a list of {other}"),
        }
    }
}

fn id_of(number: usize) -> ClusterId {
    ClusterId(1000 + number as u128)
}

/// What is there whichever clusters there are.
fn shared(plural: &str) -> Vec<Value> {
    match plural {
        "nodes" => (0..NODES)
            .map(|number| {
                let name = format!("node-{number}");
                let labels = json!({ "kubernetes.io/hostname": name });
                let ready = json!([{ "type": "Ready", "status": "True" }]);
                json!({ "metadata": { "name": name, "labels": labels }, "spec": {}, "status": { "conditions": ready } })
            })
            .collect(),
        "storageclasses" => vec![json!({
            "metadata": {
                "name": "disks",
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": "disks.example",
        })],
        other => panic!("a list of {other}"),
    }
}

struct Inside {
    /// The resources, by their numbers, as text: their memory isn't the operator's.
    clusters: Vec<String>,
    /// What the operator itself keeps, by path.
    kept: BTreeMap<String, Value>,
    counts: Count,
    version: u64,
}

/// An API server that makes objects up when it is asked for them.
#[derive(Clone)]
struct ApiServer {
    inside: Arc<Mutex<Inside>>,
    changes: broadcast::Sender<String>,
}

impl ApiServer {
    fn new(clusters: usize) -> ApiServer {
        let resource = |number| serde_json::to_string(&One::new(number).cluster).expect("serialises");
        let inside = Inside {
            clusters: (0..clusters).map(resource).collect(),
            kept: BTreeMap::new(),
            counts: BTreeMap::new(),
            version: 1,
        };
        ApiServer { inside: Arc::new(Mutex::new(inside)), changes: broadcast::channel(4 * clusters).0 }
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<KubeBody>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(request).await) }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, request: Request<KubeBody>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.expect("a body in memory");
        let content: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let query: BTreeMap<&str, &str> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|part| part.split_once('='))
            .collect();
        let path = parts.uri.path();
        let place: Vec<&str> = path.trim_matches('/').split('/').collect();
        // api/v1/…, apis/group/version/…
        let place = if place[0] == "api" { &place[2..] } else { &place[3..] };
        let (namespace, place) = match place {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let plural = place[0];
        let verb = match (&parts.method, place.len() > 1) {
            (&Method::GET, true) => "get",
            (&Method::GET, false) if query.contains_key("watch") => "watch",
            (&Method::GET, false) => "list",
            (&Method::POST, _) => "create",
            (&Method::DELETE, _) => "delete",
            _ => "change",
        };
        *self.inside.lock().counts.entry((verb, plural.to_owned())).or_default() += 1;
        match verb {
            "watch" => {
                let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
                self.watch(plural == "filesystemclusters", Duration::from_secs(seconds))
            }
            "list" if query.get("fieldSelector").is_some_and(|text| text.starts_with("metadata.name")) => {
                let name = query["fieldSelector"].rsplit(['=', 'D']).next().unwrap_or_default();
                let found = self.inside.lock().kept.get(&format!("{path}/{name}")).cloned();
                list(found.into_iter().collect(), None)
            }
            "list" => {
                self.list(plural, query.get("continue").and_then(|text| text.parse().ok()).unwrap_or(0))
            }
            "get" if plural == "secrets" => respond(200, &One::new(number_of(namespace)).secret()),
            "get" => match self.inside.lock().kept.get(path) {
                Some(found) => respond(200, found),
                None => refuse(404, path),
            },
            "change" if plural == "filesystemclusters" => self.write_status(number_of(namespace), &content),
            // What an operator keeps as it starts.
            "change" if !namespace.starts_with("ns-") => self.keep(path, content),
            "create" if plural == "events" => respond(201, &content),
            _ => refuse(500, path),
        }
    }

    fn list(&self, plural: &str, first: usize) -> Response<Body> {
        let clusters = self.inside.lock().clusters.len();
        if matches!(plural, "nodes" | "storageclasses") {
            return list(shared(plural), None);
        }
        let mut items = Vec::new();
        for number in first..clusters {
            if plural == "filesystemclusters" {
                items.push(serde_json::from_str(&self.inside.lock().clusters[number]).expect("JSON"));
            } else {
                items.extend(One::new(number).objects(plural));
            }
            if items.len() >= PAGE {
                return list(items, Some(number + 1).filter(|next| *next < clusters));
            }
        }
        list(items, None)
    }

    /// Ends by itself, as the API server's watches do.
    fn watch(&self, changes: bool, lasts: Duration) -> Response<Body> {
        let over = tokio::time::sleep(lasts).map(|()| None).into_stream();
        let changed = tokio_stream_of(self.changes.subscribe());
        let lines = if changes { changed.boxed() } else { futures::stream::pending().boxed() };
        let lines = futures::stream::select(lines.map(Some), over)
            .take_while(|line| std::future::ready(line.is_some()))
            .filter_map(|line| std::future::ready(line.map(|line| Ok::<_, Infallible>(Bytes::from(line)))));
        Response::new(Body::from_stream(lines))
    }

    fn write_status(&self, number: usize, content: &Value) -> Response<Body> {
        let mut inside = self.inside.lock();
        inside.version += 1;
        let version = inside.version.to_string();
        let mut resource: Value = serde_json::from_str(&inside.clusters[number]).expect("JSON");
        resource["status"] = content["status"].clone();
        resource["metadata"]["resourceVersion"] = json!(version);
        let event = json!({ "type": "MODIFIED", "object": resource });
        inside.clusters[number] = resource.to_string();
        let _ = self.changes.send(format!("{event}\n"));
        respond(200, &resource)
    }

    fn keep(&self, path: &str, mut content: Value) -> Response<Body> {
        content["metadata"]["resourceVersion"] = json!("1");
        if path.contains("customresourcedefinitions") {
            content["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
        }
        self.inside.lock().kept.insert(path.to_owned(), content.clone());
        respond(200, &content)
    }

    fn take_counts(&self) -> Count {
        std::mem::take(&mut self.inside.lock().counts)
    }
}

/// Lines that are sent from now on.
fn tokio_stream_of(receiver: broadcast::Receiver<String>) -> impl futures::Stream<Item = String> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await.expect("no watch is slower than that");
        Some((line, receiver))
    })
}

fn number_of(namespace: &str) -> usize {
    namespace.strip_prefix("ns-").and_then(|text| text.parse().ok()).expect("a namespace of a cluster")
}

fn list(mut items: Vec<Value>, next: Option<usize>) -> Response<Body> {
    for item in &mut items {
        let meta = &mut item["metadata"];
        if meta["resourceVersion"].is_null() {
            meta["resourceVersion"] = json!("1");
        }
        meta["managedFields"] = json!([{ "manager": "x".repeat(MANAGED_FIELDS) }]);
    }
    let next = next.map(|next| next.to_string()).unwrap_or_default();
    let meta = json!({ "resourceVersion": "1", "continue": next });
    respond(200, &json!({ "kind": "List", "apiVersion": "v1", "metadata": meta, "items": items }))
}

fn respond(code: u16, content: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(content).expect("serialises")));
    *response.status_mut() = StatusCode::from_u16(code).expect("a code");
    response
}

fn refuse(code: u16, path: &str) -> Response<Body> {
    let reason = if code == 404 { "NotFound" } else { "InternalError" };
    let status =
        json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": path });
    respond(code, &status)
}

/// Clusters' own servers, which say that all is well.
struct Reports(ClusterStatus);

impl Servers for Reports {
    fn status<'a>(&'a self, access: &'a Access, _: &'a str) -> Asked<'a, ClusterStatus> {
        let number = usize::try_from(access.cluster.0).expect("small") - 1000;
        let mut said = self.0.clone();
        said.cluster = Some(access.cluster);
        let namespace = format!(".ns-{number}.");
        let leader = said.leader.iter_mut().map(|(_, address)| address);
        let members = said.members.iter_mut().map(|member| &mut member.address);
        let servers = said.servers.iter_mut().map(|server| &mut server.address);
        leader
            .chain(members)
            .chain(servers)
            .for_each(|address| *address = address.replace(".ns.", &namespace));
        std::future::ready(Ok(said)).boxed()
    }

    fn who<'a>(&'a self, _: &'a Access, address: &'a str) -> Asked<'a, MemberIdentity> {
        nobody(address)
    }

    fn bootstrap<'a>(&'a self, _: &'a Access, address: &'a str, _: &'a VolumeConfig) -> Asked<'a, ()> {
        nobody(address)
    }

    fn change_members<'a>(&'a self, _: &'a Access, address: &'a str, _: &'a MembersChange) -> Asked<'a, ()> {
        nobody(address)
    }

    fn change_server<'a>(&'a self, _: &'a Access, address: &'a str, _: ChangeServer) -> Asked<'a, ()> {
        nobody(address)
    }

    fn resize<'a>(&'a self, _: &'a Access, address: &'a str, _: ResizeVolume) -> Asked<'a, ()> {
        nobody(address)
    }

    fn transfer_leader<'a>(&'a self, _: &'a Access, address: &'a str, _: TransferLeader) -> Asked<'a, ()> {
        nobody(address)
    }

    fn raise_level<'a>(&'a self, _: &'a Access, address: &'a str, _: RaiseFeatureLevel) -> Asked<'a, ()> {
        nobody(address)
    }
}

fn nobody<T: Send + 'static>(address: &str) -> Asked<'_, T> {
    std::future::ready(Err(AskError::Silent { address: address.to_owned() })).boxed()
}

/// Memory that this process takes (MiB): now, or at most so far.
fn memory_mib(of: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix(of)).expect("a size");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
}

#[tokio::test(start_paused = true)]
async fn clusters_at_rest_cost_few_requests() {
    let asked = std::env::var("ATOLL_CLUSTERS").ok().map(|text| text.parse().expect("a number of clusters"));
    let clusters = asked.unwrap_or(CLUSTERS);
    let server = ApiServer::new(clusters);
    let reports = Reports(testing::answer(&mut testing::running()).clone());
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (caches, reached) = (OnceLock::new(), OnceLock::new());
    let told = Arc::new(Told { registry, metrics, caches, reached, unmet: Unmet::default() });
    let stopping = CancellationToken::new();
    let (client, stop, heard) = (server.client(), stopping.clone(), Arc::clone(&told));
    let operator = tokio::spawn(async move {
        let config = Config::parse_from(["atoll-operator"]);
        let configured = (testing::images(), Settings::default());
        let leads = ("test".to_owned(), Leadership::always());
        work(&config, client, Box::new(reports), configured, &heard, leads, stop).await
    });
    tokio::time::sleep(WARM_UP).await;
    let caches = told.caches.get().expect("the operator works");
    let ready = caches.clusters.state().iter().filter(|cluster| cluster.is_ready()).count();
    let first = caches.clusters.state().into_iter().find(|cluster| !cluster.is_ready());
    assert_eq!(ready, clusters, "{:?}", first.map(|cluster| cluster.status.clone()));
    println!("{clusters} clusters; requests while the operator starts: {:?}", server.take_counts());
    tokio::time::sleep(Duration::from_secs(MINUTES * 60)).await;
    let counts = server.take_counts();
    let sum: u64 = counts.values().sum();
    println!(
        "at rest, in {MINUTES} minutes: {sum} requests, {:.1} a minute: {counts:?}",
        sum as f64 / MINUTES as f64
    );
    let most = memory_mib("VmHWM:");
    println!("memory: {} MiB, {most} MiB at most", memory_mib("VmRSS:"));
    assert!(sum < REQUESTS_PER_MINUTE_MAX * MINUTES, "{counts:?}");
    assert!(!counts.keys().any(|(verb, _)| matches!(*verb, "create" | "change" | "delete")), "{counts:?}");
    if asked.is_some() {
        assert!(most < MEMORY_MIB_MAX, "{most} MiB");
    }
    stopping.cancel();
    operator.await.expect("no panic").expect("no failure");
}
