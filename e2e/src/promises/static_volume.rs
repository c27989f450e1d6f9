//! A FileSystemCluster that a user made by hand, in a namespace of theirs, mounted as a static volume.

use atoll_crds::names::{DRIVER_NAME, VolumeHandle};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, Patch, PatchParams};

use super::Promise;
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::pod;

pub const PROMISE: Promise = Promise {
    name: "static-volume",
    says: "a FileSystemCluster made by hand is mounted as a static volume, and outlives its PVC",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "by-hand";

async fn prove(cluster: &Cluster) -> Outcome {
    let made = format!(
        "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: {{ name: {NAME} }}
spec: {{ capacity: 1Gi, copies: 1 }}
"
    );
    cluster.apply(&made).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let volume = format!("e2e-{NAME}");
    let objects = static_volume(&made, &volume)?;
    let result = use_it(cluster, &objects).await;
    result.and(delete_volume(cluster, &volume).await)?;

    delete_with_data(cluster, &made).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await?;
    let left = cluster.kubectl(&["get", "pvc,secret,statefulset,service", "-o", "name"], "").await?;
    ensure(!left.contains(NAME), || format!("left: {left}"))
}

/// The YAML of a PersistentVolume of this name for a cluster of this promise's namespace, and of a PVC `volume` for it.
pub fn static_volume(made: &FileSystemCluster, volume: &str) -> Outcome<String> {
    let namespace = made.namespace_str();
    let handle =
        VolumeHandle::new(namespace, made.name_str()).map_err(|error| Failure::new(error.to_string()))?;
    Ok(format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{ name: {volume} }}
spec:
  accessModes: [ReadWriteMany]
  capacity: {{ storage: 1Gi }}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ''
  claimRef: {{ namespace: {namespace}, name: volume }}
  csi:
    driver: {DRIVER_NAME}
    volumeHandle: {handle}
    nodeStageSecretRef: {{ namespace: {namespace}, name: {secret} }}
    nodePublishSecretRef: {{ namespace: {namespace}, name: {secret} }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: volume }}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ''
  volumeName: {volume}
  resources: {{ requests: {{ storage: 1Gi }} }}
---
",
        secret = made.client_secret_name()
    ))
}

/// Removes a PersistentVolume, which is in no namespace and doesn't go with this promise's.
pub async fn delete_volume(cluster: &Cluster, volume: &str) -> Outcome {
    match cluster.everywhere::<PersistentVolume>().delete(volume, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes a cluster with its data: by the user's word, and only by that.
pub async fn delete_with_data(cluster: &Cluster, made: &FileSystemCluster) -> Outcome {
    let id = made.cluster_id().unwrap_or_default();
    let word = serde_json::json!({ "spec": { "deletionConfirmation": id } });
    let clusters = cluster.here::<FileSystemCluster>();
    clusters.patch(made.name_str(), &PatchParams::default(), &Patch::Merge(&word)).await?;
    cluster.delete::<FileSystemCluster>(made.name_str()).await
}

async fn use_it(cluster: &Cluster, objects: &str) -> Outcome {
    let write = "echo written >/data/file && sync && df -h /data";
    cluster.apply(&(objects.to_owned() + &pod("writer", "volume", None, Some(write)))).await?;
    cluster.wait_done("writer").await?;
    cluster.delete_pod("writer").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    cluster.wait_gone(&cluster.here::<PersistentVolumeClaim>(), "volume").await?;
    let there = cluster.here::<FileSystemCluster>().get(NAME).await?;
    ensure(there.is_ready(), || "the cluster didn't outlive the PVC".into())
}
