//! Deleting a FileSystemCluster without the deliberate word keeps its data; the same name takes it over again.

use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::ListParams;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Outcome, ensure};

pub const PROMISE: Promise = Promise {
    name: "deletion-keeps-data",
    says: "a FileSystemCluster deleted without confirmation leaves PVCs and key, and its name finds the data again",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "kept";
const MADE: &str = "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: { name: kept }
spec: { capacity: 1Gi, copies: 1 }
";

async fn prove(cluster: &Cluster) -> Outcome {
    cluster.apply(MADE).await?;
    let first = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let secret = first.client_secret_name();
    let key = cluster.here::<Secret>().get(&secret).await?.data;
    let claims = |list: Vec<PersistentVolumeClaim>| -> Vec<(Option<String>, Option<String>)> {
        list.into_iter().map(|claim| (claim.metadata.name, claim.metadata.uid)).collect()
    };
    let all = ListParams::default();
    let before = claims(cluster.here::<PersistentVolumeClaim>().list(&all).await?.items);
    ensure(before.len() == 2, || format!("{} PVCs instead of 2", before.len()))?;

    cluster.delete::<FileSystemCluster>(NAME).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await?;
    cluster
        .eventually("workloads are gone", TIMEOUT, async || {
            let sets = cluster.here::<StatefulSet>().list(&all).await?.items.len();
            let pods = cluster.here::<Pod>().list(&all).await?.items.len();
            Ok((sets + pods == 0).then_some(()))
        })
        .await?;
    let kept = claims(cluster.here::<PersistentVolumeClaim>().list(&all).await?.items);
    ensure(kept == before, || format!("PVCs {kept:?} instead of {before:?}"))?;
    ensure(cluster.here::<Secret>().get(&secret).await?.data == key, || "the key has changed".into())?;

    cluster.apply(MADE).await?;
    let second = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    ensure(second.cluster_id() == first.cluster_id(), || "it is another cluster".into())?;
    let after = claims(cluster.here::<PersistentVolumeClaim>().list(&all).await?.items);
    ensure(after == before, || format!("PVCs {after:?} instead of {before:?}"))
}
