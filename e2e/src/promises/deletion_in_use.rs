//! A FileSystemCluster that is deleted without confirmation while it is used, in the way that garbage collection likes best,
//! serves until nobody refers to it; one that was made for a claim isn't deleted by hand at all.

use atoll_crds::names::NAMESPACE_VOLUMES;
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::api::{DeleteParams, ListParams};

use super::Promise;
use super::provision::nothing_is_left;
use super::static_volume::{delete_volume, delete_with_data, static_volume};
use crate::cluster::Cluster;
use crate::failure::{Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "deletion-in-use",
    says: "a FileSystemCluster deleted in the foreground without confirmation serves until no mount and no volume is left",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "busy";
const VOLUME: &str = "e2e-busy";
const MADE: &str = "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: { name: busy }
spec: { capacity: 1Gi, copies: 1 }
";

async fn prove(cluster: &Cluster) -> Outcome {
    cluster.apply(MADE).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let result = delete_in_use(cluster, &made).await;
    result.and(delete_volume(cluster, VOLUME).await)?;
    of_a_claim(cluster).await
}

async fn delete_in_use(cluster: &Cluster, made: &FileSystemCluster) -> Outcome {
    let write = "echo before >/data/file && sync && exec sleep infinity";
    cluster.apply(&(static_volume(made, VOLUME)? + &pod("user", "volume", None, Some(write)))).await?;
    cluster.wait_running("user").await?;
    cluster.here::<FileSystemCluster>().delete(NAME, &DeleteParams::foreground()).await?;
    blocked_by(cluster, "Mounted").await?;
    // The collector had its chance: the servers are there, and serve what isn't in the mount's memory.
    let sets = cluster.here::<StatefulSet>().list(&ListParams::default()).await?.items;
    let going = sets.iter().filter(|set| set.metadata.deletion_timestamp.is_some()).count();
    ensure((sets.len(), going) == (2, 0), || format!("{} StatefulSets, {going} of them go", sets.len()))?;
    cluster.shell("user", "cat /data/file; echo after >/data/other && sync && cat /data/other").await?;

    cluster.delete_pod("user").await?;
    blocked_by(cluster, "ReferencedByVolume").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    delete_volume(cluster, VOLUME).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await?;
    let disks = cluster.here::<PersistentVolumeClaim>().list(&ListParams::default()).await?.items.len();
    ensure(disks == 2, || format!("{disks} disks were kept instead of 2"))?;

    // Nor does anybody delete the one key by mistake.
    let secret = made.client_secret_name();
    let refused = cluster.here::<Secret>().delete(&secret, &DeleteParams::default()).await.err();
    let says = refused.map(|error| error.to_string()).unwrap_or_default();
    ensure(says.contains("only key of a volume"), || format!("the key's deletion isn't refused: '{says}'"))?;

    // What was kept is seen, and used again as it was.
    let orphans = cluster.plugin(&["orphans"]).await?;
    ensure(orphans.contains(NAME) && orphans.contains("kubectl atoll adopt"), || orphans.clone())?;
    cluster.plugin(&["adopt", NAME]).await?;
    let again = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    ensure(again.cluster_id() == made.cluster_id(), || "it is another cluster".into())?;
    ensure(again.spec == made.spec, || format!("{:?} instead of {:?}", again.spec, made.spec))?;
    let read = "test $(cat /data/file) = before && test $(cat /data/other) = after";
    cluster.apply(&(static_volume(&again, VOLUME)? + &pod("reader", "volume", None, Some(read)))).await?;
    cluster.wait_done("reader").await?;
    cluster.delete_pod("reader").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    delete_with_data(cluster, &again).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await
}

async fn blocked_by(cluster: &Cluster, reason: &str) -> Outcome {
    let says = |found: &FileSystemCluster| {
        found
            .condition(ConditionType::DeletionBlocked)
            .is_some_and(|blocked| blocked.status == "True" && blocked.reason == reason)
    };
    cluster.wait_for::<FileSystemCluster>(NAME, &format!("says {reason}"), says).await.map(|_| ())
}

async fn of_a_claim(cluster: &Cluster) -> Outcome {
    cluster.apply(&claim("claimed", "atoll-single", "ReadWriteMany", "1Gi")).await?;
    let (name, _) = cluster.volume_of("claimed").await?;
    let clusters = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    let refused = clusters.delete(&name, &DeleteParams::default()).await.err().map(|error| error.to_string());
    let says = refused.unwrap_or_default();
    ensure(says.contains("delete that claim"), || format!("the deletion isn't refused: '{says}'"))?;
    cluster.delete::<PersistentVolumeClaim>("claimed").await?;
    nothing_is_left(cluster, &name).await
}
