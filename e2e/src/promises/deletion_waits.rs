//! A FileSystemCluster that is deleted while pods use it waits for them, says so, and serves them until they are gone.

use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::Promise;
use super::static_volume::{delete_volume, delete_with_data, static_volume};
use crate::cluster::Cluster;
use crate::failure::{Outcome, ensure};
use crate::workload::pod;

pub const PROMISE: Promise = Promise {
    name: "deletion-waits",
    says: "a FileSystemCluster that is deleted while it is mounted says by whom, and serves until the pods are gone",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "in-use";
const VOLUME: &str = "e2e-in-use";
const MADE: &str = "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: { name: in-use }
spec: { capacity: 1Gi, copies: 1 }
";

async fn prove(cluster: &Cluster) -> Outcome {
    cluster.apply(MADE).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let result = delete_in_use(cluster, &made).await;
    result.and(delete_volume(cluster, VOLUME).await)
}

async fn delete_in_use(cluster: &Cluster, made: &FileSystemCluster) -> Outcome {
    cluster.apply(&(static_volume(made, VOLUME)? + &pod("user", "volume", None, None))).await?;
    cluster.wait_running("user").await?;
    delete_with_data(cluster, made).await?;
    let blocked = |found: &FileSystemCluster| {
        found.condition(ConditionType::Ready).is_some_and(|ready| ready.reason == "DeletionBlocked")
    };
    let waiting = cluster.wait_for::<FileSystemCluster>(NAME, "waits for its users", blocked).await?;
    let says = waiting.condition(ConditionType::Ready).map(|ready| ready.message.clone()).unwrap_or_default();
    ensure(says.contains("still mounted by 1"), || format!("it says '{says}'"))?;
    cluster.shell("user", "echo here >/data/file && sync && cat /data/file").await?;
    let reason = |kind| waiting.condition(kind).map(|found| (found.status.clone(), found.reason.clone()));
    let blocked = reason(ConditionType::DeletionBlocked);
    ensure(blocked == Some(("True".into(), "Mounted".into())), || format!("DeletionBlocked is {blocked:?}"))?;

    cluster.delete_pod("user").await?;
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await?;
    let left = cluster.kubectl(&["get", "pvc,secret,statefulset,service", "-o", "name"], "").await?;
    ensure(!left.contains(NAME), || format!("left: {left}"))
}
