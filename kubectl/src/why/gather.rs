//! Reads what `kubectl atoll why` decides from. What a user may not read is left out and noted.

use std::future::Future;

use atoll_crds::names::{DRIVER_NAME, NAMESPACE_SYSTEM, NAMESPACE_VOLUMES, annotations, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::facts::{ClaimFacts, ClusterFacts, Facts, PodFacts, SystemFacts, claims_of};
use crate::exit::{Code, Failure};

/// What was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod(String),
    /// A claim.
    Claim(String),
    /// A cluster.
    Cluster(String),
    /// The first of pod, claim and cluster that has this name.
    Any(String),
}

impl Subject {
    /// Reads `NAME`, `pod/NAME`, `pvc/NAME`, `fsc/NAME` and the long forms.
    ///
    /// # Errors
    /// If the kind isn't one of these.
    pub fn parse(text: &str) -> Result<Subject, Failure> {
        match text.split_once('/') {
            None => Ok(Subject::Any(text.to_owned())),
            Some(("pod" | "pods" | "po", name)) => Ok(Subject::Pod(name.to_owned())),
            Some(("pvc" | "persistentvolumeclaim" | "persistentvolumeclaims", name)) => {
                Ok(Subject::Claim(name.to_owned()))
            }
            Some((
                "fsc" | "filesystemcluster" | "filesystemclusters" | "filesystemcluster.atoll.dev",
                name,
            )) => Ok(Subject::Cluster(name.to_owned())),
            Some((kind, _)) => Err(Failure::new(
                Code::Failed,
                format_args!("'{kind}' isn't a kind that is understood here: pod/NAME, pvc/NAME or fsc/NAME"),
            )),
        }
    }
}

/// Reads everything about a subject.
///
/// # Errors
/// If the subject doesn't exist, or can't be read.
pub async fn gather(client: &Client, namespace: &str, subject: &Subject) -> Result<Facts, Failure> {
    let mut facts = Facts::default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let clusters: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
    let resolved = match subject {
        Subject::Any(name) => {
            if pods.get_opt(name).await.map_err(Failure::api("read the pod"))?.is_some() {
                Subject::Pod(name.clone())
            } else if claims
                .get_opt(name)
                .await
                .map_err(Failure::api("read the PersistentVolumeClaim"))?
                .is_some()
            {
                Subject::Claim(name.clone())
            } else {
                Subject::Cluster(name.clone())
            }
        }
        known => known.clone(),
    };
    match resolved {
        Subject::Pod(name) => {
            let pod = pods.get_opt(&name).await.map_err(Failure::api("read the pod"))?;
            let Some(pod) = pod else { return Err(not_found("pod", namespace, &name)) };
            let events = events(client, namespace, &mut facts.unread).await;
            for claim in claims_of(&pod) {
                claim_and_cluster(client, namespace, &claim, &mut facts).await;
            }
            facts.pod = Some(PodFacts { pod, events });
        }
        Subject::Claim(name) => {
            if claims.get_opt(&name).await.map_err(Failure::api("read the PersistentVolumeClaim"))?.is_none()
            {
                return Err(not_found("PersistentVolumeClaim", namespace, &name));
            }
            claim_and_cluster(client, namespace, &name, &mut facts).await;
            facts.pod = user_of(client, namespace, &name, &mut facts.unread).await;
        }
        Subject::Cluster(name) | Subject::Any(name) => {
            let doing = "read the FileSystemCluster";
            let here = clusters.get_opt(&name).await.map_err(Failure::api(doing))?;
            let place = if here.is_some() { namespace } else { NAMESPACE_VOLUMES };
            let found = of_cluster(client, place, &name, &mut facts.unread).await;
            if found.cluster.is_none() && found.kept_disks == 0 {
                let kinds = match subject {
                    Subject::Any(_) => "pod, PersistentVolumeClaim or FileSystemCluster",
                    _ => "FileSystemCluster",
                };
                return Err(not_found(kinds, namespace, &name));
            }
            facts.clusters.push(found);
        }
    }
    facts.system = system(client, &mut facts.unread).await;
    Ok(facts)
}

fn not_found(kind: &str, namespace: &str, name: &str) -> Failure {
    Failure::new(Code::NotFound, format_args!("{kind} '{name}' doesn't exist in namespace {namespace}"))
}

/// What a call answers; `None`, and a note, if it doesn't.
async fn read<T>(
    unread: &mut Vec<String>,
    what: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Option<T> {
    match call.await {
        Ok(found) => Some(found),
        Err(error) => {
            let why = match &error {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            };
            let note = format!("{what}: {why}");
            if !unread.contains(&note) {
                unread.push(note);
            }
            None
        }
    }
}

async fn events(client: &Client, namespace: &str, unread: &mut Vec<String>) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let what = format!("Events in {namespace}");
    read(unread, &what, api.list(&ListParams::default())).await.map_or_else(Vec::new, |list| list.items)
}

/// A pod that uses a claim: one that has trouble, if one has.
async fn user_of(
    client: &Client,
    namespace: &str,
    claim: &str,
    unread: &mut Vec<String>,
) -> Option<PodFacts> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("pods in {namespace}");
    let mut users = read(unread, &what, api.list(&ListParams::default())).await?.items;
    users.retain(|pod| claims_of(pod).iter().any(|name| name == claim));
    users.sort_by_key(super::facts::is_ready);
    let pod = users.into_iter().next()?;
    Some(PodFacts { pod, events: events(client, namespace, unread).await })
}

async fn claim_and_cluster(client: &Client, namespace: &str, name: &str, facts: &mut Facts) {
    let unread = &mut facts.unread;
    let mut found =
        ClaimFacts { namespace: namespace.to_owned(), name: name.to_owned(), ..ClaimFacts::default() };
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let what = format!("PersistentVolumeClaim {namespace}/{name}");
    let Some(claim) = read(unread, &what, api.get_opt(name)).await else { return };
    found.claim = claim;
    if found.claim.is_some() {
        found.events = events(client, namespace, unread).await;
    }
    let spec = found.claim.as_ref().and_then(|claim| claim.spec.as_ref());
    let volume = spec.and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    if let Some(volume) = &volume {
        let api: Api<PersistentVolume> = Api::all(client.clone());
        let what = format!("PersistentVolume {volume}");
        found.volume = read(unread, &what, api.get_opt(volume)).await.flatten();
    }
    let named = found.handle().map(|handle| (handle.namespace().to_owned(), handle.name().to_owned()));
    found.cluster = match named {
        Some(place) => Some(place),
        // Who may not read PersistentVolumes finds the cluster by its labels.
        None if found.claim.is_some() && found.volume.is_none() => {
            created_for(client, namespace, name, unread).await
        }
        None => None,
    };
    let place = found.cluster.clone();
    facts.claims.push(found);
    if let Some((namespace, name)) = place {
        let cluster = of_cluster(client, &namespace, &name, &mut facts.unread).await;
        facts.clusters.push(cluster);
    }
}

/// The cluster that was created for a claim.
async fn created_for(
    client: &Client,
    namespace: &str,
    claim: &str,
    unread: &mut Vec<String>,
) -> Option<(String, String)> {
    let api: Api<FileSystemCluster> = Api::namespaced(client.clone(), NAMESPACE_VOLUMES);
    let selector = ListParams::default().labels(&format!("{}={namespace}", labels::PVC_NAMESPACE));
    let what = format!("FileSystemClusters in {NAMESPACE_VOLUMES}");
    let found = read(unread, &what, api.list(&selector)).await?;
    let of_claim = |cluster: &&FileSystemCluster| {
        cluster.annotations().get(annotations::PVC_NAME).is_some_and(|name| name == claim)
    };
    let cluster = found.items.iter().find(of_claim)?;
    Some((cluster.namespace_str().to_owned(), cluster.name_str().to_owned()))
}

async fn of_cluster(client: &Client, namespace: &str, name: &str, unread: &mut Vec<String>) -> ClusterFacts {
    let mut found =
        ClusterFacts { namespace: namespace.to_owned(), name: name.to_owned(), ..ClusterFacts::default() };
    let of_name = ListParams::default().labels(&format!("{}={name}", labels::CLUSTER));
    let clusters: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
    let what = format!("FileSystemCluster {namespace}/{name}");
    found.cluster = read(unread, &what, clusters.get_opt(name)).await.flatten();
    let disks: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let what = format!("PersistentVolumeClaims in {namespace}");
    found.disks = read(unread, &what, disks.list(&of_name)).await.map_or_else(Vec::new, |list| list.items);
    if found.cluster.is_none() {
        found.kept_disks = found.disks.len();
        return found;
    }
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let what = format!("StatefulSets in {namespace}");
    found.sets = read(unread, &what, sets.list(&of_name)).await.map_or_else(Vec::new, |list| list.items);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("pods in {namespace}");
    found.pods = read(unread, &what, pods.list(&of_name)).await.map_or_else(Vec::new, |list| list.items);
    found.events = events(client, namespace, unread).await;
    found
}

async fn system(client: &Client, unread: &mut Vec<String>) -> SystemFacts {
    let everything = ListParams::default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    let classes: Api<StorageClass> = Api::all(client.clone());
    let nodes: Api<Node> = Api::all(client.clone());
    SystemFacts {
        pods: read(unread, &format!("pods in {NAMESPACE_SYSTEM}"), pods.list(&everything))
            .await
            .map(|list| list.items),
        driver: read(unread, "the CSIDriver", drivers.get_opt(DRIVER_NAME))
            .await
            .map(|found| found.is_some()),
        classes: read(unread, "StorageClasses", classes.list(&everything)).await.map(|list| list.items),
        nodes: read(unread, "nodes", nodes.list(&everything)).await.map_or_else(Vec::new, |list| list.items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_read_with_and_without_its_kind() {
        let of = |text| Subject::parse(text).expect("understood");
        assert_eq!(of("a"), Subject::Any("a".into()));
        assert_eq!((of("pod/a"), of("po/a")), (Subject::Pod("a".into()), Subject::Pod("a".into())));
        assert_eq!(of("pvc/a"), Subject::Claim("a".into()));
        assert_eq!(of("filesystemcluster.atoll.dev/a"), Subject::Cluster("a".into()));
        assert!(Subject::parse("svc/a").expect_err("refused").message.contains("pod/NAME"));
    }
}
