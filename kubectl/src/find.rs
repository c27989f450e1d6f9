//! From what a user names to the clusters that are meant.

use atoll_crds::names::{DRIVER_NAME, NAMESPACE_VOLUMES, VolumeHandle, annotations, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::core::{DeserializeGuard, error_boundary::InvalidObject};
use kube::{Api, Client, ResourceExt};

use crate::cli::Selection;
use crate::exit::{Code, Failure};

/// What a user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A PersistentVolumeClaim.
    Pvc(String),
    /// A FileSystemCluster.
    Cluster(String),
    /// One of them.
    Either(String),
}

impl Target {
    /// Reads `NAME`, `pvc/NAME`, `fsc/NAME` and the long forms.
    ///
    /// # Errors
    /// If the kind isn't one of these.
    pub fn parse(text: &str) -> Result<Target, Failure> {
        match text.split_once('/') {
            None => Ok(Target::Either(text.to_owned())),
            Some(("pvc" | "persistentvolumeclaim" | "persistentvolumeclaims", name)) => {
                Ok(Target::Pvc(name.to_owned()))
            }
            Some((
                "fsc" | "filesystemcluster" | "filesystemclusters" | "filesystemcluster.atoll.dev",
                name,
            )) => Ok(Target::Cluster(name.to_owned())),
            Some((kind, _)) => Err(Failure::new(
                Code::Failed,
                format_args!(
                    "'{kind}' is no kind of a volume: name a PersistentVolumeClaim (pvc/NAME) or a FileSystemCluster (fsc/NAME)"
                ),
            )),
        }
    }
}

/// The one cluster that was named, or all of a listing.
///
/// # Errors
/// If the one isn't there, or they can't be listed.
pub async fn chosen(
    client: &Client,
    namespace: &str,
    selection: &Selection,
) -> Result<Vec<FileSystemCluster>, Failure> {
    match &selection.target {
        Some(target) => Ok(vec![one(client, namespace, &Target::parse(target)?).await?]),
        None => all(client, selection.listing.scope(namespace)).await,
    }
}

/// The cluster that is meant.
///
/// # Errors
/// If there is none.
pub async fn one(client: &Client, namespace: &str, target: &Target) -> Result<FileSystemCluster, Failure> {
    match target {
        Target::Cluster(name) => match cluster(client, namespace, name).await? {
            Some(found) => Ok(found),
            None => Err(not_found(format_args!(
                "FileSystemCluster '{name}' doesn't exist in namespace {namespace}"
            ))),
        },
        Target::Pvc(name) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let claim = claims.get_opt(name).await.map_err(Failure::api("read the PersistentVolumeClaim"))?;
            match claim {
                Some(claim) => of_claim(client, namespace, &claim).await,
                None => Err(not_found(format_args!(
                    "PersistentVolumeClaim '{name}' doesn't exist in namespace {namespace}"
                ))),
            }
        }
        Target::Either(name) => {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            if let Some(claim) = claims.get_opt(name).await.ok().flatten() {
                return of_claim(client, namespace, &claim).await;
            }
            for place in [namespace, NAMESPACE_VOLUMES] {
                if let Some(found) = cluster(client, place, name).await? {
                    return Ok(found);
                }
            }
            Err(not_found(format_args!(
                "neither a PersistentVolumeClaim nor a FileSystemCluster '{name}' exists in namespace \
                 {namespace}; kubectl atoll list -A shows all"
            )))
        }
    }
}

/// The clusters of a namespace: those in it, and those that were made for its claims.
///
/// # Errors
/// If they can't be listed.
pub async fn all(client: &Client, namespace: Option<&str>) -> Result<Vec<FileSystemCluster>, Failure> {
    let doing = "list FileSystemClusters";
    let mut found = match namespace {
        None => list(&Api::all(client.clone()), &ListParams::default()).await.map_err(Failure::api(doing))?,
        Some(namespace) => {
            let api = Api::namespaced(client.clone(), namespace);
            let mut found = list(&api, &ListParams::default()).await.map_err(Failure::api(doing))?;
            if namespace != NAMESPACE_VOLUMES {
                let made = Api::namespaced(client.clone(), NAMESPACE_VOLUMES);
                let selector = format!("{}={namespace}", labels::PVC_NAMESPACE);
                match list(&made, &ListParams::default().labels(&selector)).await {
                    Ok(more) => found.extend(more),
                    Err(error) => eprintln!(
                        "note: volumes of PersistentVolumeClaims are not shown: can't list \
                         FileSystemClusters in {NAMESPACE_VOLUMES}: {error}"
                    ),
                }
            }
            found
        }
    };
    found.sort_by_key(|cluster| (cluster.namespace(), cluster.name_any()));
    Ok(found)
}

/// The clusters of a list that can be read. Of each other one it is said on standard error why it isn't shown: one that another
/// version has written must not hide the rest.
async fn list(
    api: &Api<DeserializeGuard<FileSystemCluster>>,
    parameters: &ListParams,
) -> kube::Result<Vec<FileSystemCluster>> {
    let (found, notes) = sift(api.list(parameters).await?.items);
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(found)
}

fn sift(items: Vec<DeserializeGuard<FileSystemCluster>>) -> (Vec<FileSystemCluster>, Vec<String>) {
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    for DeserializeGuard(item) in items {
        match item {
            Ok(cluster) => found.push(cluster),
            Err(InvalidObject { error, metadata }) => notes.push(format!(
                "FileSystemCluster {}/{} is not shown: this version of kubectl atoll can't read it: {error}",
                metadata.namespace.unwrap_or_default(),
                metadata.name.unwrap_or_default()
            )),
        }
    }
    (found, notes)
}

async fn cluster(client: &Client, namespace: &str, name: &str) -> Result<Option<FileSystemCluster>, Failure> {
    let api: Api<FileSystemCluster> = Api::namespaced(client.clone(), namespace);
    api.get_opt(name).await.map_err(Failure::api("read the FileSystemCluster"))
}

async fn of_claim(
    client: &Client,
    namespace: &str,
    claim: &PersistentVolumeClaim,
) -> Result<FileSystemCluster, Failure> {
    let name = claim.name_any();
    let volume =
        claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    if let Some(volume) = volume {
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let found = volumes.get(volume).await.map_err(Failure::api("read the PersistentVolume"))?;
        let source = found.spec.and_then(|spec| spec.csi).filter(|csi| csi.driver == DRIVER_NAME);
        let Some(source) = source else {
            return Err(Failure::new(
                Code::NotFound,
                format_args!("the volume of PersistentVolumeClaim '{name}' isn't an Atoll volume"),
            ));
        };
        let handle: VolumeHandle =
            source.volume_handle.parse().map_err(|error| Failure::new(Code::Failed, error))?;
        return match cluster(client, handle.namespace(), handle.name()).await? {
            Some(found) => Ok(found),
            None => Err(not_found(format_args!(
                "the FileSystemCluster {}/{} of PersistentVolumeClaim '{name}' doesn't exist any more",
                handle.namespace(),
                handle.name()
            ))),
        };
    }
    let made = Api::namespaced(client.clone(), NAMESPACE_VOLUMES);
    let selector = format!("{}={namespace}", labels::PVC_NAMESPACE);
    let listed = list(&made, &ListParams::default().labels(&selector)).await;
    let found = listed.map_err(Failure::api("list FileSystemClusters"))?;
    let for_claim = |cluster: &FileSystemCluster| {
        cluster.annotations().get(annotations::PVC_NAME).is_some_and(|found| *found == name)
    };
    match found.into_iter().find(for_claim) {
        Some(found) => Ok(found),
        None => Err(waiting(client, namespace, claim).await),
    }
}

/// A claim for which nothing was made: what was said of it.
async fn waiting(client: &Client, namespace: &str, claim: &PersistentVolumeClaim) -> Failure {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let fields = format!("involvedObject.uid={}", claim.uid().unwrap_or_default());
    let said = match events.list(&ListParams::default().fields(&fields)).await {
        Ok(found) => found.items.into_iter().filter_map(|event| event.message).next_back(),
        Err(_) => None,
    };
    let said = said.unwrap_or_else(|| "it has no events yet".to_owned());
    not_found(format_args!(
        "PersistentVolumeClaim '{}' has no volume yet, and no FileSystemCluster was created for it: {said}",
        claim.name_any()
    ))
}

fn not_found(message: impl std::fmt::Display) -> Failure {
    Failure::new(Code::NotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_can_not_be_read_hides_no_other() {
        let item = |name: &str, spec: serde_json::Value| {
            let object = serde_json::json!({
                "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
                "metadata": { "namespace": "shop", "name": name }, "spec": spec,
            });
            serde_json::from_value::<DeserializeGuard<FileSystemCluster>>(object).unwrap()
        };
        let good = serde_json::json!({ "capacity": "1Gi" });
        let items = vec![
            item("a", good.clone()),
            item("later", serde_json::json!({ "capacity": { "bytes": 1 } })),
            item("b", good),
        ];
        let (found, notes) = sift(items);
        assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["a", "b"]);
        assert!(notes.len() == 1 && notes[0].contains("shop/later is not shown"), "{notes:?}");
    }

    #[test]
    fn targets_are_read_with_and_without_their_kind() {
        assert_eq!(Target::parse("a").unwrap(), Target::Either("a".into()));
        assert_eq!(Target::parse("pvc/a").unwrap(), Target::Pvc("a".into()));
        assert_eq!(Target::parse("filesystemcluster/a").unwrap(), Target::Cluster("a".into()));
        // As `-o name` prints it.
        assert_eq!(Target::parse("filesystemcluster.atoll.dev/a").unwrap(), Target::Cluster("a".into()));
        assert!(Target::parse("pod/a").unwrap_err().message.contains("pvc/NAME"));
    }
}
