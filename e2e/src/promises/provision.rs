//! A PVC becomes a volume; what one pod writes another reads on another node; deleting it leaves nothing.

use atoll_crds::names::{NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "provision",
    says: "a PVC is provided, written, read on another node, and leaves nothing when it is deleted",
    short: true,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let nodes = cluster.nodes().await?;
    let [first, second, ..] = nodes.as_slice() else { return Err(Failure::new("two nodes are needed")) };
    let write = "cd /data
        cp -a /usr/share . && (cd /usr && find share -type f -exec sha256sum {} +) | sort -k2 >sums
        df -h .; sync; sha256sum sums >sum-of-sums";
    let objects =
        claim("volume", "atoll", "ReadWriteMany", "1Gi") + &pod("writer", "volume", Some(first), Some(write));
    cluster.apply(&objects).await?;
    cluster.wait_done("writer").await?;
    let (name, made) = cluster.volume_of("volume").await?;
    ensure(made.is_ready(), || format!("{name} is used and not Ready"))?;
    let read = "cd /data && sha256sum -c --quiet sum-of-sums && sha256sum -c --quiet sums && wc -l <sums";
    cluster.apply(&pod("reader", "volume", Some(second), Some(read))).await?;
    cluster.wait_done("reader").await?;

    cluster.delete_pod("writer").await?;
    cluster.delete_pod("reader").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    nothing_is_left(cluster, &name).await
}

/// Waits until nothing of a cluster that was made for a PVC is left.
pub async fn nothing_is_left(cluster: &Cluster, name: &str) -> Outcome {
    cluster.wait_gone(&cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES), name).await?;
    let of = ListParams::default().labels(&format!("{}={name}", labels::CLUSTER));
    cluster
        .eventually(&format!("nothing of {name} is left"), TIMEOUT, async || {
            let mut left = Vec::new();
            left.extend(names(&cluster.of::<StatefulSet>(NAMESPACE_VOLUMES), &of).await?);
            left.extend(names(&cluster.of::<Service>(NAMESPACE_VOLUMES), &of).await?);
            left.extend(names(&cluster.of::<Secret>(NAMESPACE_VOLUMES), &of).await?);
            left.extend(names(&cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES), &of).await?);
            left.extend(names(&cluster.of::<k8s_openapi::api::core::v1::Pod>(NAMESPACE_VOLUMES), &of).await?);
            ensure(left.is_empty(), || left.join(", "))?;
            Ok(Some(()))
        })
        .await
}

async fn names<K>(api: &Api<K>, of: &ListParams) -> Outcome<Vec<String>>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    Ok(api.list(of).await?.items.iter().map(ResourceExt::name_any).collect())
}
