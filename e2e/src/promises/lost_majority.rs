//! Two of three metadata servers lose their disks at once: the one that is left becomes the only one, by an administrator's word.

use atoll_crds::names::{self, Component};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Promise;
use super::static_volume::{delete_volume, delete_with_data, static_volume};
use crate::cluster::Cluster;
use crate::failure::{Outcome, ensure};
use crate::workload::{is_ready, pod};

pub const PROMISE: Promise = Promise {
    name: "lost-majority",
    says: "a volume whose majority of metadata servers lost its disks is used again, with one server's records",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "alone";
const VOLUME: &str = "e2e-alone";
const MADE: &str = "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: { name: alone }
spec: { capacity: 1Gi, copies: 1, metadata: { replicas: 3 } }
";

async fn prove(cluster: &Cluster) -> Outcome {
    cluster.apply(MADE).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let result = lose_and_recover(cluster, &made).await;
    result.and(delete_volume(cluster, VOLUME).await)?;
    delete_with_data(cluster, &made).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await
}

async fn lose_and_recover(cluster: &Cluster, made: &FileSystemCluster) -> Outcome {
    let write = "echo kept >/data/file && sync";
    cluster.apply(&(static_volume(made, VOLUME)? + &pod("writer", "volume", None, Some(write)))).await?;
    cluster.wait_done("writer").await?;
    cluster.delete_pod("writer").await?;

    // The operator replaces a member as soon as it sees one lost: both are lost before it looks.
    let clusters = cluster.here::<FileSystemCluster>();
    let paused = Patch::Merge(json!({ "spec": { "paused": true } }));
    clusters.patch(NAME, &PatchParams::default(), &paused).await?;
    for ordinal in [1, 2] {
        let (disk, server) =
            (names::pvc(NAME, Component::Metadata, ordinal), names::pod(NAME, Component::Metadata, ordinal));
        let (disks, pods) = (cluster.here::<PersistentVolumeClaim>(), cluster.here::<Pod>());
        let lost = disks.get(&disk).await?.uid();
        cluster.delete::<PersistentVolumeClaim>(&disk).await?;
        pods.delete(&server, &Default::default()).await?;
        cluster
            .wait_for::<PersistentVolumeClaim>(&disk, "is another one", |found| found.uid() != lost)
            .await?;
        cluster.wait_for::<Pod>(&server, "waits with an empty disk", is_ready).await?;
    }

    // An election is no loss: for some seconds the cluster stays as it was said to be, and nothing is there to recover.
    cluster.wait_for::<FileSystemCluster>(NAME, "is said to be lost", |found| !found.is_ready()).await?;
    let refused = ["unsafe-recovery", NAME, "--member", "0", "--yes"];
    ensure(cluster.plugin(&refused).await.is_err(), || "it recovers without the word".into())?;
    let recover: Vec<&str> = refused.into_iter().chain(["--the-others-are-gone"]).collect();
    let says = cluster.plugin(&recover).await?;
    ensure(says.contains("only member"), || format!("it says '{says}'"))?;

    let complete = |found: &FileSystemCluster| {
        let metadata = found.status.as_ref().and_then(|status| status.metadata.as_ref());
        found.is_ready() && metadata.is_some_and(|metadata| metadata.members.len() == 3)
    };
    let again = cluster.wait_for::<FileSystemCluster>(NAME, "has three members again", complete).await?;
    ensure(again.cluster_id() == made.cluster_id(), || "it is another cluster".into())?;
    let read = "test $(cat /data/file) = kept && echo more >>/data/file && sync";
    cluster.apply(&pod("reader", "volume", None, Some(read))).await?;
    cluster.wait_done("reader").await?;
    cluster.delete_pod("reader").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await
}
