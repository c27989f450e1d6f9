//! `kubectl atoll dump`: a support bundle. Objects, Events, logs and metrics of the chosen volumes and of Atoll's own pods, in a
//! tar.gz, without secrets: Secrets are never read, and what looks like one elsewhere is removed ([`redact`]).

mod redact;

use std::fmt::Debug;
use std::io::Write;
use std::path::PathBuf;

use atoll_crds::names::{Component, DRIVER_NAME, NAMESPACE_SYSTEM, labels, ports};
use atoll_crds::v1alpha1::FileSystemCluster;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use kube::api::{ListParams, LogParams};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::DumpArgs;
use crate::exit::{Code, Failure};
use crate::find::{self, Target};
use crate::output;
use crate::proxy;
use crate::status::now_seconds;
use crate::view::{Claim, claim_of, screen, view};

/// Bytes of one log at most.
const LOG_BYTES_MAX: i64 = 16 << 20;

/// The files of a bundle, in memory until they are written.
#[derive(Debug, Default)]
struct Bundle {
    files: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Bundle {
    fn add(&mut self, path: impl Into<String>, text: String) {
        self.files.push((path.into(), text));
    }

    fn note(&mut self, what: &str, error: &impl std::fmt::Display) {
        self.notes.push(format!("{what}: {error}"));
    }

    /// The objects of a kind, one document each, redacted.
    fn objects<T: Serialize>(&mut self, path: impl Into<String>, objects: &[T]) {
        if objects.is_empty() {
            return;
        }
        let mut text = String::new();
        for object in objects {
            let value = serde_json::to_value(object).map(redact::object);
            match value
                .map_err(|error| error.to_string())
                .and_then(|value| serde_yaml::to_string(&value).map_err(|error| error.to_string()))
            {
                Ok(document) => text += &format!("---\n{document}"),
                Err(error) => text += &format!("---\n# {error}\n"),
            }
        }
        self.add(path, text);
    }

    /// The bundle as a tar.gz whose files are below `root`. `time` is seconds since 1970.
    fn archive(&self, root: &str, time: u64) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let notes = self.notes.join("\n") + "\n";
        let all = self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        for (path, text) in all.chain((!self.notes.is_empty()).then_some(("not-read.txt", notes.as_str()))) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(time);
            archive.append_data(&mut header, format!("{root}/{path}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()
    }
}

/// Writes a bundle.
///
/// # Errors
/// If the volumes can't be read, or the file can't be written.
pub async fn run(client: Client, namespace: &str, args: &DumpArgs) -> Result<(), Failure> {
    let clusters = match &args.selection.target {
        Some(target) => vec![find::one(&client, namespace, &Target::parse(target)?).await?],
        None => find::all(&client, (!args.selection.all_namespaces).then_some(namespace)).await?,
    };
    let mut bundle = Bundle::default();
    of_kubernetes(&client, &mut bundle).await;
    of_system(&client, args, &mut bundle).await;
    for cluster in &clusters {
        eprintln!("reading {}/{}", cluster.namespace_str(), cluster.name_str());
        of_volume(&client, cluster, args, &mut bundle).await;
    }
    let now = now_seconds();
    let root = format!("atoll-dump-{now}");
    let archive = bundle
        .archive(&root, u64::try_from(now).unwrap_or(0))
        .map_err(|error| Failure::new(Code::Failed, error))?;
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{root}.tar.gz")));
    let failed = |error: std::io::Error| {
        Failure::new(Code::Failed, format_args!("can't write {}: {error}", path.display()))
    };
    if path.as_os_str() == "-" {
        return std::io::stdout().lock().write_all(&archive).map_err(failed);
    }
    // It is for who asked for it, until that one gives it away.
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).map_err(failed)?;
    file.write_all(&archive).and_then(|()| file.sync_all()).map_err(failed)?;
    let unread = bundle.notes.len();
    let unread =
        if unread > 0 { format!("; {unread} things couldn't be read (not-read.txt)") } else { String::new() };
    output::text(&format!(
        "{}: {} files of {} volumes{unread}. Secrets are not read, and what looks like one is removed; check it before you \
         give it away: names of namespaces, nodes and claims are in it\n",
        path.display(),
        bundle.files.len(),
        clusters.len()
    ))
}

/// What is outside of namespaces.
async fn of_kubernetes(client: &Client, bundle: &mut Bundle) {
    match client.apiserver_version().await {
        Ok(version) => bundle.add(
            "version.txt",
            format!(
                "kubectl atoll {}\nKubernetes {} {}\n",
                env!("CARGO_PKG_VERSION"),
                version.git_version,
                version.platform
            ),
        ),
        Err(error) => bundle.note("the API server's version", &error),
    }
    let nodes: Vec<Node> = everywhere(client, "nodes", bundle).await;
    bundle.objects("kubernetes/nodes.yaml", &nodes);
    let nodes: Vec<CSINode> = everywhere(client, "CSINodes", bundle).await;
    bundle.objects("kubernetes/csinodes.yaml", &nodes);
    let classes: Vec<StorageClass> = everywhere(client, "StorageClasses", bundle).await;
    bundle.objects("kubernetes/storageclasses.yaml", &classes);
    let mut drivers: Vec<CSIDriver> = everywhere(client, "CSIDrivers", bundle).await;
    drivers.retain(|driver| driver.name_any() == DRIVER_NAME);
    bundle.objects("kubernetes/csidriver.yaml", &drivers);
}

/// Atoll's own pods.
async fn of_system(client: &Client, args: &DumpArgs, bundle: &mut Bundle) {
    let namespace = NAMESPACE_SYSTEM;
    let all = ListParams::default();
    let deployments: Vec<Deployment> = within(client, namespace, "Deployments", &all, bundle).await;
    bundle.objects("system/deployments.yaml", &deployments);
    let daemons: Vec<DaemonSet> = within(client, namespace, "DaemonSets", &all, bundle).await;
    bundle.objects("system/daemonsets.yaml", &daemons);
    let leases: Vec<Lease> = within(client, namespace, "Leases", &all, bundle).await;
    bundle.objects("system/leases.yaml", &leases);
    let ours = ListParams::default().labels(&format!("{}={}", labels::NAME, labels::NAME_VALUE));
    let configs: Vec<ConfigMap> = within(client, namespace, "ConfigMaps", &ours, bundle).await;
    bundle.objects("system/configmaps.yaml", &configs);
    let events: Vec<Event> = within(client, namespace, "Events", &all, bundle).await;
    bundle.objects("system/events.yaml", &events);
    let pods: Vec<Pod> = within(client, namespace, "pods", &all, bundle).await;
    bundle.objects("system/pods.yaml", &pods);
    for pod in &pods {
        logs(client, namespace, pod, "system", args.log_lines, bundle).await;
        let component = pod.labels().get(labels::COMPONENT).map_or("", String::as_str);
        let port = match component {
            "operator" => ports::OPERATOR_HTTP,
            "csi-controller" => ports::CSI_CONTROLLER_HTTP,
            "csi-node" => ports::CSI_NODE_HTTP,
            "mount-host" => ports::MOUNT_HOST_HTTP,
            _ => continue,
        };
        metrics(client, namespace, pod, port, "system", bundle).await;
    }
}

/// A volume with its claim.
async fn of_volume(client: &Client, cluster: &FileSystemCluster, args: &DumpArgs, bundle: &mut Bundle) {
    let (namespace, name) = (cluster.namespace_str(), cluster.name_str());
    let place = format!("volumes/{namespace}/{name}");
    bundle.objects(format!("{place}/filesystemcluster.yaml"), std::slice::from_ref(cluster));
    let of_cluster = ListParams::default().labels(&format!("{}={name}", labels::CLUSTER));
    let sets: Vec<StatefulSet> = within(client, namespace, "StatefulSets", &of_cluster, bundle).await;
    bundle.objects(format!("{place}/statefulsets.yaml"), &sets);
    let services: Vec<Service> = within(client, namespace, "Services", &of_cluster, bundle).await;
    bundle.objects(format!("{place}/services.yaml"), &services);
    let budgets: Vec<PodDisruptionBudget> =
        within(client, namespace, "PodDisruptionBudgets", &of_cluster, bundle).await;
    bundle.objects(format!("{place}/poddisruptionbudgets.yaml"), &budgets);
    let disks: Vec<PersistentVolumeClaim> =
        within(client, namespace, "PersistentVolumeClaims", &of_cluster, bundle).await;
    bundle.objects(format!("{place}/disks.yaml"), &disks);
    let pods: Vec<Pod> = within(client, namespace, "pods", &of_cluster, bundle).await;
    bundle.objects(format!("{place}/pods.yaml"), &pods);
    bundle.add(format!("{place}/status.txt"), redact::text(&screen(&view(cluster, &pods, now_seconds()))));
    let events: Vec<Event> = within(client, namespace, "Events", &ListParams::default(), bundle).await;
    let events: Vec<Event> = events.into_iter().filter(|event| is_about(event, name)).collect();
    bundle.objects(format!("{place}/events.yaml"), &events);
    if let Some(claim) = claim_of(cluster) {
        of_claim(client, &claim, &place, bundle).await;
    }
    for pod in &pods {
        logs(client, namespace, pod, &place, args.log_lines, bundle).await;
        let component = pod.labels().get(labels::COMPONENT).map(String::as_str);
        if let Some(component) = component.and_then(Component::from_label) {
            metrics(client, namespace, pod, component.http_port(), &place, bundle).await;
        }
    }
}

async fn of_claim(client: &Client, claim: &Claim, place: &str, bundle: &mut Bundle) {
    let named = ListParams::default().fields(&format!("metadata.name={}", claim.name));
    let claims: Vec<PersistentVolumeClaim> =
        within(client, &claim.namespace, "the PersistentVolumeClaim", &named, bundle).await;
    bundle.objects(format!("{place}/claim.yaml"), &claims);
    let of_claim = ListParams::default()
        .fields(&format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={}", claim.name));
    let events: Vec<Event> = within(client, &claim.namespace, "the claim's Events", &of_claim, bundle).await;
    bundle.objects(format!("{place}/claim-events.yaml"), &events);
    if let Some(volume) = &claim.volume {
        let api: Api<PersistentVolume> = Api::all(client.clone());
        match api.get_opt(volume).await {
            Ok(found) => bundle.objects(format!("{place}/persistentvolume.yaml"), found.as_slice()),
            Err(error) => bundle.note(&format!("PersistentVolume {volume}"), &error),
        }
    }
}

/// An Event of an object whose name begins with the cluster's: more than [`crate::events`] shows, and good enough for a bundle.
fn is_about(event: &Event, cluster: &str) -> bool {
    let name = event.involved_object.name.as_deref().unwrap_or_default();
    let name = name.strip_prefix("data-").unwrap_or(name);
    name == cluster || name.strip_prefix(cluster).is_some_and(|rest| rest.starts_with('-'))
}

async fn everywhere<T>(client: &Client, what: &str, bundle: &mut Bundle) -> Vec<T>
where
    T: Resource<Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug,
    T::DynamicType: Default,
{
    match Api::<T>::all(client.clone()).list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) => {
            bundle.note(what, &error);
            Vec::new()
        }
    }
}

async fn within<T>(
    client: &Client,
    namespace: &str,
    what: &str,
    params: &ListParams,
    bundle: &mut Bundle,
) -> Vec<T>
where
    T: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    T::DynamicType: Default,
{
    match Api::<T>::namespaced(client.clone(), namespace).list(params).await {
        Ok(list) => list.items,
        Err(error) => {
            bundle.note(&format!("{what} in {namespace}"), &error);
            Vec::new()
        }
    }
}

async fn logs(client: &Client, namespace: &str, pod: &Pod, place: &str, lines: u32, bundle: &mut Bundle) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let name = pod.name_any();
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let restarted = pod
            .status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten())
            .any(|status| status.name == container.name && status.restart_count > 0);
        for (previous, suffix) in [(false, ""), (true, ".previous")] {
            if previous && !restarted {
                continue;
            }
            let params = LogParams {
                container: Some(container.name.clone()),
                previous,
                tail_lines: Some(lines.into()),
                limit_bytes: Some(LOG_BYTES_MAX),
                timestamps: true,
                ..LogParams::default()
            };
            match api.logs(&name, &params).await {
                Ok(text) => bundle
                    .add(format!("{place}/logs/{name}.{}{suffix}.log", container.name), redact::text(&text)),
                Err(error) => {
                    bundle.note(&format!("the log of {namespace}/{name} {}", container.name), &error)
                }
            }
        }
    }
}

async fn metrics(client: &Client, namespace: &str, pod: &Pod, port: u16, place: &str, bundle: &mut Bundle) {
    let name = pod.name_any();
    match proxy::page(client, namespace, &name, port, "/metrics").await {
        Ok(page) => bundle.add(format!("{place}/metrics/{name}.txt"), page),
        Err(error) => bundle.note(&format!("the metrics of {namespace}/{name}"), &error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use serde_json::json;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            found.insert(path, text);
        }
        found
    }

    #[test]
    fn a_bundle_has_its_files_and_no_secrets() {
        let key = "ab".repeat(32);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "c", "env": [{ "name": "API_TOKEN", "value": "hunter2" }], "args": [key] }] },
        }))
        .expect("a pod");
        let mut bundle = Bundle::default();
        bundle.objects("pods.yaml", &[pod.clone(), pod]);
        bundle.objects::<Pod>("empty.yaml", &[]);
        bundle.add(format!("a/{}/long.txt", "n".repeat(200)), "x".to_owned());
        bundle.note("nodes", &"forbidden");
        let found = files(&bundle.archive("root", 1).expect("an archive"));
        assert_eq!(found.len(), 3);
        let pods = &found["root/pods.yaml"];
        assert!(!pods.contains("hunter2") && !pods.contains(&key), "{pods}");
        assert_eq!((pods.matches("---\n").count(), pods.matches("API_TOKEN").count()), (2, 2));
        assert_eq!(found["root/not-read.txt"], "nodes: forbidden\n");
        assert!(found.keys().any(|path| path.ends_with("n/long.txt")));
    }

    #[test]
    fn events_are_those_of_the_clusters_objects() {
        let event = |name: &str| {
            serde_json::from_value::<Event>(json!({ "metadata": {}, "involvedObject": { "name": name } }))
                .expect("an event")
        };
        for name in ["db", "db-metadata-0", "data-db-storage-1", "db-fsck"] {
            assert!(is_about(&event(name), "db"), "{name}");
        }
        for name in ["dbx", "other", "data-other-storage-1"] {
            assert!(!is_about(&event(name), "db"), "{name}");
        }
    }
}
