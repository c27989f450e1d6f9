//! `kubectl atoll orphans`: disks of volumes whose FileSystemCluster is gone. They cost money, and nothing else shows them.

use std::collections::BTreeMap;

use atoll_crds::Quantity;
use atoll_crds::names::{annotations, labels};
use atoll_crds::v1alpha1::{FileSystemCluster, KeptVolume};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;

use crate::cli::OrphansArgs;
use crate::exit::Failure;
use crate::output::{self, Row, missing, size};

/// The disks of a volume without a resource. The field names are a contract with programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// Namespace of the disks.
    pub namespace: String,
    /// The name that the resource had, and has to have again.
    pub name: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// PVCs.
    pub disks: usize,
    /// What they ask for together, in bytes.
    pub bytes: u64,
    /// The volume was created: there may be data.
    pub bootstrapped: bool,
    /// The claim that it was made for: `namespace/name`.
    pub claim: Option<String>,
    /// A FileSystemCluster of this name exists, and is another one.
    pub name_taken: bool,
    /// What the resource was, if the disks say so.
    #[serde(skip)]
    pub record: Option<KeptVolume>,
}

/// Shows them.
///
/// # Errors
/// If PVCs or FileSystemClusters can't be listed.
pub async fn run(client: Client, namespace: &str, args: &OrphansArgs) -> Result<(), Failure> {
    let found = find(&client, args.listing.scope(namespace)).await?;
    let empty = format!("no disks without a FileSystemCluster{}", args.listing.place(namespace));
    output::listing(&found, args.listing.output, &empty)
}

/// Those of a namespace, or of all.
///
/// # Errors
/// If PVCs or FileSystemClusters can't be listed.
pub async fn find(client: &Client, namespace: Option<&str>) -> Result<Vec<Orphan>, Failure> {
    let disks: Api<PersistentVolumeClaim> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let of_clusters = ListParams::default().labels(labels::CLUSTER_ID);
    let disks = disks.list(&of_clusters).await.map_err(Failure::api("list PersistentVolumeClaims"))?;
    let clusters: Api<FileSystemCluster> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let clusters =
        clusters.list(&ListParams::default()).await.map_err(Failure::api("list FileSystemClusters"))?;
    Ok(orphans(&disks.items, &clusters.items))
}

/// Disks, by volume, that no cluster uses.
fn orphans(disks: &[PersistentVolumeClaim], clusters: &[FileSystemCluster]) -> Vec<Orphan> {
    let mut found: BTreeMap<(String, String, String), Orphan> = BTreeMap::new();
    for disk in disks {
        let (Some(name), Some(id)) =
            (disk.labels().get(labels::CLUSTER), disk.labels().get(labels::CLUSTER_ID))
        else {
            continue;
        };
        let namespace = disk.namespace().unwrap_or_default();
        let owner = clusters
            .iter()
            .find(|cluster| cluster.namespace_str() == namespace && cluster.name_str() == name);
        // One that has no id yet is about to take them over, or says why not.
        if owner.is_some_and(|owner| owner.cluster_id().is_none_or(|found| found == id)) {
            continue;
        }
        let key = (namespace.clone(), name.clone(), id.clone());
        let orphan = found.entry(key).or_insert_with(|| Orphan {
            namespace,
            name: name.clone(),
            cluster_id: id.clone(),
            disks: 0,
            bytes: 0,
            bootstrapped: false,
            claim: None,
            name_taken: owner.is_some(),
            record: None,
        });
        orphan.disks += 1;
        orphan.bytes += requested(disk);
        let marks = [labels::BOOTSTRAPPED, labels::MEMBER_ID];
        orphan.bootstrapped |= marks.iter().any(|mark| disk.labels().contains_key(*mark));
        let record =
            disk.annotations().get(annotations::VOLUME).and_then(|text| KeptVolume::parse(text).ok());
        if let Some(record) = record {
            orphan.claim = claim_of(&record);
            orphan.record = Some(record);
        }
    }
    found.into_values().collect()
}

fn requested(disk: &PersistentVolumeClaim) -> u64 {
    let requests = disk.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let size = requests.and_then(|requests| requests.get("storage"));
    size.and_then(|size| Quantity::from(size.0.as_str()).bytes().ok()).unwrap_or(0)
}

fn claim_of(record: &KeptVolume) -> Option<String> {
    let namespace = record.labels.get(labels::PVC_NAMESPACE)?;
    Some(format!("{namespace}/{}", record.annotations.get(annotations::PVC_NAME)?))
}

impl Row for Orphan {
    const HEADER: &'static [&'static str] =
        &["NAMESPACE", "NAME", "CLUSTER-ID", "DISKS", "SIZE", "CLAIM", "WHAT TO DO"];
    const WIDE: &'static [&'static str] = &["HELD DATA", "NAME TAKEN"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.namespace.clone(),
            self.name.clone(),
            self.cluster_id.clone(),
            self.disks.to_string(),
            size(i64::try_from(self.bytes).unwrap_or(i64::MAX)),
            self.claim.clone().unwrap_or_else(missing),
            advice(self).to_owned(),
        ]
    }

    fn wide_cells(&self) -> Vec<String> {
        let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        vec![word(self.bootstrapped), word(self.name_taken)]
    }

    /// What `adopt` takes: the resource that the disks had.
    fn resource(&self) -> String {
        format!("filesystemcluster.atoll.dev/{}", self.name)
    }
}

fn advice(orphan: &Orphan) -> &'static str {
    match (orphan.bootstrapped, orphan.name_taken, orphan.record.is_some()) {
        (false, _, _) => "never held data: delete the PVCs",
        (true, true, _) => "another FileSystemCluster has this name",
        (true, false, true) => "kubectl atoll adopt",
        (true, false, false) => "create a FileSystemCluster of this name",
    }
}

#[cfg(test)]
pub mod tests {
    use atoll_crds::v1alpha1::FileSystemClusterSpec;
    use serde_json::json;

    use super::*;

    pub fn cluster() -> FileSystemCluster {
        let mut cluster = FileSystemCluster::new("db", FileSystemClusterSpec::with_capacity("1Gi".into()));
        cluster.metadata.namespace = Some("ns".into());
        cluster.labels_mut().insert(labels::PVC_NAMESPACE.into(), "web".into());
        cluster.annotations_mut().insert(annotations::PVC_NAME.into(), "data".into());
        cluster
    }

    fn disk(name: &str, id: &str, record: Option<&str>) -> PersistentVolumeClaim {
        let mut disk: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "ns",
                "labels": { labels::CLUSTER: "db", labels::CLUSTER_ID: id },
            },
            "spec": { "resources": { "requests": { "storage": "2Gi" } } },
        }))
        .expect("a PVC");
        if let Some(record) = record {
            disk.labels_mut().insert(labels::BOOTSTRAPPED.into(), "true".into());
            disk.annotations_mut().insert(annotations::VOLUME.into(), record.into());
        }
        disk
    }

    #[test]
    fn disks_without_a_cluster_are_shown_with_what_to_do() {
        let record = KeptVolume::of(&cluster()).to_text().expect("serialises");
        let mut disks = vec![disk("a", "7", Some(&record)), disk("b", "7", None), disk("c", "8", None)];
        let found = orphans(&disks, &[]);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].disks, found[0].bytes, found[0].bootstrapped), (2, 4 << 30, true));
        assert_eq!(found[0].claim.as_deref(), Some("web/data"));
        assert_eq!(advice(&found[0]), "kubectl atoll adopt");
        assert!(advice(&found[1]).contains("never held data"));
        // In use, or about to be.
        let mut user = cluster();
        assert_eq!(orphans(&disks, std::slice::from_ref(&user)), []);
        user.status.get_or_insert_default().cluster_id = Some("7".into());
        let found = orphans(&disks, std::slice::from_ref(&user));
        assert_eq!((found.len(), found[0].cluster_id.as_str(), found[0].name_taken), (1, "8", true));
        // What isn't labelled with a cluster is none of ours.
        for disk in &mut disks {
            disk.labels_mut().remove(labels::CLUSTER);
        }
        assert_eq!(orphans(&disks, &[]), []);
    }
}
