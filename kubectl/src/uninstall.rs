//! `kubectl atoll uninstall`: removes what an install brings, in the order in which nothing is lost and nothing hangs, and
//! says what stays.
//!
//! What is data is none of it: the FileSystemClusters with their servers, disks and keys, the definition, and the
//! namespace of the volumes. Finalizers are removed once the operator is gone, since nobody would do it later: whoever
//! deletes a FileSystemCluster then deletes an entry in a list, and no disk.

use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use atoll_crds::names::{self, FINALIZER, NAMESPACE_SYSTEM, NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::ClusterResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cli::UninstallArgs;
use crate::exit::{Code, Failure};
use crate::output;

/// How often it is checked whether something is gone.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The operator's Deployment.
const OPERATOR: &str = "atoll-operator";
/// What every object of an install carries, and no object of a volume that isn't in the system's namespace.
const OF_INSTALL: &str = "app.kubernetes.io/name=atoll";
/// Kinds outside of namespaces that are deleted, if they carry [`OF_INSTALL`]; objects in namespaces go with
/// [`NAMESPACE_SYSTEM`]. Definitions and admission policies are not among them.
const KINDS_DELETED: [&str; 4] = ["CSIDriver", "StorageClass", "ClusterRoleBinding", "ClusterRole"];
/// Names in a message at most.
const NAMED_MAX: usize = 5;

/// What there is before anything is done.
#[derive(Clone, Debug, Default)]
struct Found {
    clusters: Vec<FileSystemCluster>,
    /// PVCs that are disks of clusters.
    disks: usize,
    operator: bool,
}

/// Uninstalls.
///
/// # Errors
/// If volumes are mounted or being deleted, the word wasn't given, or something doesn't go in time.
pub async fn run(client: Client, args: &UninstallArgs) -> Result<(), Failure> {
    let found = find(&client).await?;
    if let Some(refusal) = refusal(&found, args.ignore_mounts) {
        return Err(Failure::new(Code::Refused, refusal));
    }
    if !args.yes {
        ask(&found)?;
    }
    let patience = Duration::from_secs(args.timeout);
    // The operator first: it would put its finalizer back, and take missing objects for something to be created.
    stop_operator(&client, patience).await?;
    for cluster in &found.clusters {
        release(&client, cluster).await?;
    }
    delete_all::<CSIDriver>(&client).await?;
    delete_all::<StorageClass>(&client).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    delete(&namespaces, NAMESPACE_SYSTEM, &DeleteParams::default()).await?;
    wait_gone(&namespaces, NAMESPACE_SYSTEM, patience).await?;
    delete_all::<ClusterRoleBinding>(&client).await?;
    delete_all::<ClusterRole>(&client).await?;
    output::text(&stays(&found))
}

async fn find(client: &Client) -> Result<Found, Failure> {
    let everywhere = ListParams::default();
    let clusters: Api<FileSystemCluster> = Api::all(client.clone());
    let clusters = match clusters.list(&everywhere).await {
        Ok(list) => list.items,
        // No definition, no clusters.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(Failure::api("list FileSystemClusters")(error)),
    };
    let disks: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let disks = disks
        .list(&ListParams::default().labels(labels::CLUSTER_ID))
        .await
        .map_err(Failure::api("list PersistentVolumeClaims"))?
        .items
        .len();
    let operators: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    let operator =
        operators.get_opt(OPERATOR).await.map_err(Failure::api("read the operator's Deployment"))?;
    Ok(Found { clusters, disks, operator: operator.is_some() })
}

/// Why nothing is done.
fn refusal(found: &Found, ignore_mounts: bool) -> Option<String> {
    let ending = named(found.clusters.iter().filter(|cluster| cluster.is_terminating()));
    if let (Some(ending), true) = (ending, found.operator) {
        return Some(format!(
            "FileSystemClusters are being deleted, and only the operator can finish that: {ending}; wait until they \
             are gone (kubectl get fsc -A)"
        ));
    }
    let mounts =
        |cluster: &&FileSystemCluster| cluster.status.as_ref().is_some_and(|status| status.client_count > 0);
    let mounted = named(found.clusters.iter().filter(mounts)).filter(|_| !ignore_mounts)?;
    Some(format!(
        "volumes are mounted, and pods that use them would get errors: {mounted}; delete the pods first, or use \
         --ignore-mounts"
    ))
}

fn named<'a>(clusters: impl Iterator<Item = &'a FileSystemCluster>) -> Option<String> {
    let all: Vec<String> =
        clusters.map(|cluster| format!("{}/{}", cluster.namespace_str(), cluster.name_str())).collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!all.is_empty()).then(|| format!("{}{more}", all[..all.len().min(NAMED_MAX)].join(", ")))
}

/// What is left, and how it is used again or deleted for good.
fn stays(found: &Found) -> String {
    let (clusters, disks) = (found.clusters.len(), found.disks);
    format!(
        "Atoll is uninstalled. No data was deleted; this stays:\n  \
         * {clusters} FileSystemClusters, their running servers, {disks} PersistentVolumeClaims and the keys' Secrets\n  \
         * the namespace {NAMESPACE_VOLUMES} and the admission policies that protect it\n  \
         * the CustomResourceDefinition filesystemclusters.{group}\n\
         After another installation all volumes can be used as before. To delete a volume, install Atoll and use kubectl \
         atoll delete, or delete its PersistentVolumeClaim.\n",
        group = names::GROUP
    )
}

fn ask(found: &Found) -> Result<(), Failure> {
    eprintln!(
        "The operator, the CSI driver and their rights are removed: no volume can be created or mounted any more. {} \
         FileSystemClusters keep their data.",
        found.clusters.len()
    );
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::Refused, "standard input isn't a terminal: use --yes"));
    }
    eprint!("Type 'uninstall' to continue: ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(_) if answer.trim() == "uninstall" => Ok(()),
        _ => Err(Failure::new(Code::Refused, "nothing was changed")),
    }
}

/// The operator's pods are gone when this returns, not only asked to stop.
async fn stop_operator(client: &Client, patience: Duration) -> Result<(), Failure> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    delete(&deployments, OPERATOR, &DeleteParams::foreground()).await?;
    wait_gone(&deployments, OPERATOR, patience).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    let of_operator = ListParams::default().labels(&format!("{OF_INSTALL},{}=operator", labels::COMPONENT));
    let deadline = Instant::now() + patience;
    loop {
        let left = pods.list(&of_operator).await.map_err(Failure::api("list the operator's pods"))?.items;
        let Some(pod) = left.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let message = format!("the operator's pod {} doesn't end: check its node", pod.name_any());
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Removes the operator's finalizer, of what is there now.
async fn release(client: &Client, cluster: &FileSystemCluster) -> Result<(), Failure> {
    let api: Api<FileSystemCluster> = Api::namespaced(client.clone(), cluster.namespace_str());
    let name = cluster.name_str();
    loop {
        let found = api.get_opt(name).await.map_err(Failure::api("read the FileSystemCluster"))?;
        let Some(found) = found.filter(|found| found.finalizers().iter().any(|other| other == FINALIZER))
        else {
            return Ok(());
        };
        let others: Vec<&String> = found.finalizers().iter().filter(|other| *other != FINALIZER).collect();
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": found.resource_version(), "finalizers": others },
        }));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Failure::api("remove the operator's finalizer")(error)),
        }
    }
}

async fn delete_all<K>(client: &Client) -> Result<(), Failure>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug,
{
    let kind = K::kind(&());
    debug_assert!(KINDS_DELETED.contains(&kind.as_ref()));
    let api: Api<K> = Api::all(client.clone());
    let found = api
        .list(&ListParams::default().labels(OF_INSTALL))
        .await
        .map_err(Failure::api(format_args!("list {kind} objects")))?;
    for object in found.items {
        delete(&api, &object.name_any(), &DeleteParams::default()).await?;
    }
    Ok(())
}

/// Deletes an object; that it isn't there is as good.
async fn delete<K>(api: &Api<K>, name: &str, params: &DeleteParams) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match api.delete(name, params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(Failure::api(format_args!("delete the {} {name}", K::kind(&())))(error)),
    }
}

async fn wait_gone<K>(api: &Api<K>, name: &str, patience: Duration) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let (kind, deadline) = (K::kind(&()), Instant::now() + patience);
    loop {
        let found = api.get_opt(name).await.map_err(Failure::api(format_args!("read the {kind} {name}")))?;
        if found.is_none() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message = format!(
                "the {kind} {name} isn't gone after {} s: kubectl describe shows what keeps it; then run this again",
                patience.as_secs()
            );
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use atoll_crds::v1alpha1::FileSystemClusterSpec;
    use serde::Deserialize;
    use serde_yaml::Value;

    use super::*;

    fn cluster(name: &str, mounts: i64) -> FileSystemCluster {
        let mut cluster = FileSystemCluster::new(name, FileSystemClusterSpec::with_capacity("1Gi".into()));
        cluster.metadata.namespace = Some("ns".into());
        cluster.status.get_or_insert_default().client_count = mounts;
        cluster
    }

    #[test]
    fn what_is_mounted_or_being_deleted_is_waited_for() {
        let mut found = Found { clusters: vec![cluster("a", 0)], operator: true, ..Found::default() };
        assert_eq!(refusal(&found, false), None);
        found.clusters.push(cluster("b", 2));
        assert!(refusal(&found, false).expect("refused").contains("ns/b"));
        assert_eq!(refusal(&found, true), None);
        found.clusters[0].metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("time"));
        assert!(refusal(&found, true).expect("refused").contains("being deleted"));
        // Nobody would finish it.
        found.operator = false;
        assert_eq!(refusal(&found, true), None);
        found.clusters = (0..7).map(|number| cluster(&format!("c{number}"), 1)).collect();
        assert!(refusal(&found, false).expect("refused").contains("ns/c4 and 2 more"));
    }

    #[test]
    fn it_is_said_what_stays() {
        let text = stays(&Found { clusters: vec![cluster("a", 0)], disks: 4, operator: true });
        for part in [
            "1 FileSystemClusters",
            "4 PersistentVolumeClaims",
            "atoll-volumes",
            "filesystemclusters.atoll.dev",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// The objects of a base and of those that it names.
    fn objects(base: &Path) -> Vec<Value> {
        let text =
            |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let list: Value = serde_yaml::from_str(&text(&base.join("kustomization.yaml"))).expect("YAML");
        let resources = list["resources"].as_sequence().expect("resources");
        resources
            .iter()
            .map(|name| base.join(name.as_str().expect("a path")))
            .flat_map(|path| match path.is_dir() {
                true => objects(&path),
                false => serde_yaml::Deserializer::from_str(&text(&path))
                    .map(|document| Value::deserialize(document).expect("YAML"))
                    .collect(),
            })
            .collect()
    }

    #[test]
    fn what_is_installed_holds_no_data_and_is_all_that_is_uninstalled() {
        let crate_folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
        let installed = objects(&PathBuf::from(crate_folder).join("../config/default"));
        assert!(installed.len() > 15, "{} objects", installed.len());
        for object in installed {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
            let namespace = text(&object["metadata"]["namespace"]);
            let is_ours = text(&object["metadata"]["labels"]["app.kubernetes.io/name"]) == "atoll";
            let uninstalled = match (kind.as_str(), namespace.as_str()) {
                ("Namespace", "") => name == NAMESPACE_SYSTEM,
                (kind, "") => is_ours && KINDS_DELETED.contains(&kind),
                (_, namespace) => namespace == NAMESPACE_SYSTEM,
            };
            assert!(uninstalled, "{kind} {namespace}/{name} is installed and wouldn't be uninstalled");
        }
    }
}
