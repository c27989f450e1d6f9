//! `kubectl atoll clients`: who has volumes mounted, and which pods those are.

use std::collections::BTreeMap;

use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::cli::ClientsArgs;
use crate::exit::Failure;
use crate::find;
use crate::output::{self, Row, missing};
use crate::view::{Claim, claim_of};
use crate::why::facts::{claims_of, node_of};

/// A mount. The field names are a contract with programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mounted {
    /// Namespace of the FileSystemCluster.
    pub namespace: String,
    /// Its name.
    pub volume: String,
    /// The claim that it was created for.
    pub claim: Option<Claim>,
    /// The node, which is what a client's name begins with: `node:volume handle`.
    pub node: String,
    /// Its session.
    pub session: String,
    /// Files that it has open.
    pub open_files: i64,
    /// The pods on this node that use the claim, as far as they may be read.
    pub pods: Vec<String>,
}

/// Lists them.
///
/// # Errors
/// If the clusters can't be read.
pub async fn run(client: Client, namespace: &str, args: &ClientsArgs) -> Result<(), Failure> {
    let clusters = find::chosen(&client, namespace, &args.selection).await?;
    let mut pods: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for place in clusters.iter().filter_map(claim_of).map(|claim| claim.namespace) {
        if pods.contains_key(&place) {
            continue;
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), &place);
        let found = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) => {
                eprintln!("note: the pods of namespace {place} are not shown: {error}");
                Vec::new()
            }
        };
        pods.insert(place, found);
    }
    let mut rows = Vec::new();
    for cluster in &clusters {
        let claim = claim_of(cluster);
        let users = claim.as_ref().and_then(|claim| pods.get(&claim.namespace));
        rows.extend(mounts(cluster, users.map_or(&[], Vec::as_slice)));
        let status = cluster.status.as_ref();
        let listed = status.map_or(0, |status| status.clients.len());
        let more = status.map_or(0, |status| status.client_count) - i64::try_from(listed).unwrap_or(i64::MAX);
        if more > 0 {
            eprintln!(
                "note: {}/{} has {more} more mounts than its status lists",
                cluster.namespace_str(),
                cluster.name_str()
            );
        }
    }
    let listing = &args.selection.listing;
    output::listing(&rows, listing.output, &format!("no mounts{}", listing.place(namespace)))
}

/// The mounts of a cluster; `pods` are those of the claim's namespace.
fn mounts(cluster: &FileSystemCluster, pods: &[Pod]) -> Vec<Mounted> {
    let claim = claim_of(cluster);
    let users = |node: &str| {
        let uses = |pod: &&Pod| {
            node_of(pod) == Some(node)
                && claim.as_ref().is_some_and(|claim| claims_of(pod).contains(&claim.name))
        };
        pods.iter().filter(uses).map(ResourceExt::name_any).collect()
    };
    let clients = cluster.status.iter().flat_map(|status| &status.clients);
    let node = |name: &str| name.split(':').next().unwrap_or(name).to_owned();
    clients
        .map(|client| Mounted {
            namespace: cluster.namespace_str().to_owned(),
            volume: cluster.name_str().to_owned(),
            claim: claim.clone(),
            node: node(&client.name),
            session: client.session.clone(),
            open_files: client.open_files,
            pods: users(&node(&client.name)),
        })
        .collect()
}

impl Row for Mounted {
    const HEADER: &'static [&'static str] = &["NAMESPACE", "VOLUME", "CLAIM", "MOUNTED ON", "OPEN FILES"];
    const WIDE: &'static [&'static str] = &["SESSION", "PODS"];

    fn cells(&self) -> Vec<String> {
        let claim = self.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        vec![
            self.namespace.clone(),
            self.volume.clone(),
            claim.unwrap_or_else(missing),
            self.node.clone(),
            self.open_files.to_string(),
        ]
    }

    fn wide_cells(&self) -> Vec<String> {
        let pods = if self.pods.is_empty() { missing() } else { self.pods.join(",") };
        vec![self.session.clone(), pods]
    }

    fn resource(&self) -> String {
        format!("node/{}", self.node)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mount_is_shown_with_the_pods_that_use_it() {
        let cluster: FileSystemCluster = serde_json::from_value(json!({
            "apiVersion": "atoll.dev/v1alpha1", "kind": "FileSystemCluster",
            "metadata": {
                "namespace": "atoll-volumes", "name": "pvc-1",
                "labels": { "atoll.dev/pvc-namespace": "web" }, "annotations": { "atoll.dev/pvc-name": "data" },
            },
            "spec": { "capacity": "1Gi" },
            "status": { "clientCount": 2, "clients": [
                { "session": "1", "name": "node-1:v1/atoll-volumes/pvc-1", "openFiles": 4 }, { "session": "2", "name": "node-2", "openFiles": 0 },
            ] },
        }))
        .expect("a cluster");
        let pod = |name: &str, node: &str, claim: &str| {
            serde_json::from_value::<Pod>(json!({
                "metadata": { "name": name },
                "spec": {
                    "nodeName": node, "containers": [],
                    "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }],
                },
            }))
            .expect("a pod")
        };
        let pods = [
            pod("a", "node-1", "data"),
            pod("b", "node-1", "data"),
            pod("c", "node-1", "other"),
            pod("d", "node-3", "data"),
        ];
        let found = mounts(&cluster, &pods);
        assert_eq!((found[0].pods.join(","), found[0].open_files), ("a,b".to_owned(), 4));
        assert_eq!((found[1].node.as_str(), found[1].pods.len()), ("node-2", 0));
        assert_eq!(found[1].wide_cells(), ["2", "-"]);
        assert_eq!(found[0].cells(), ["atoll-volumes", "pvc-1", "web/data", "node-1", "4"]);
    }
}
