//! Things that are deleted before they were finished leave nothing behind.

use atoll_crds::names::{NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};

use super::Promise;
use super::provision::nothing_is_left;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::Outcome;
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "unfinished",
    says: "a PVC deleted while it is being provided, and a pod deleted while it is being staged, leave nothing",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    // The PVC goes as soon as its cluster exists: nothing of that is ready yet.
    cluster.apply(&claim("early", "atoll", "ReadWriteMany", "1Gi")).await?;
    let name = cluster_for(cluster).await?;
    cluster.delete::<PersistentVolumeClaim>("early").await?;
    cluster.wait_gone(&cluster.here::<PersistentVolumeClaim>(), "early").await?;
    nothing_is_left(cluster, &name).await?;

    // The pod goes as soon as it has a node: kubelet is staging, or about to.
    let objects =
        claim("volume", "atoll-single", "ReadWriteOnce", "1Gi") + &pod("brief", "volume", None, None);
    cluster.apply(&objects).await?;
    let (name, _) = cluster.volume_of("volume").await?;
    let scheduled = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    cluster.wait_for("brief", "has a node", scheduled).await?;
    cluster.here::<Pod>().delete("brief", &DeleteParams::default().grace_period(0)).await?;
    cluster.wait_gone(&cluster.here::<Pod>(), "brief").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    nothing_is_left(cluster, &name).await
}

/// The cluster that is being made for a PVC of this namespace.
async fn cluster_for(cluster: &Cluster) -> Outcome<String> {
    let of = ListParams::default().labels(&format!("{}={}", labels::PVC_NAMESPACE, cluster.namespace()));
    let clusters = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    cluster
        .eventually("a cluster is being made", TIMEOUT, async || {
            Ok(clusters.list(&of).await?.items.first().map(ResourceExt::name_any))
        })
        .await
}
