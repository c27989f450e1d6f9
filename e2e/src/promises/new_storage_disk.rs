//! A storage server's PVC is deleted under load: once its copies are elsewhere it gets a new disk by itself.

use std::collections::BTreeSet;

use atoll_crds::names::{self, Component, NAMESPACE_VOLUMES};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::DeleteParams;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{LOAD_CHECKED, claim, pod};

pub const PROMISE: Promise = Promise {
    name: "new-storage-disk",
    says: "a storage server whose PVC is deleted gets a new disk and all copies again, and no application notices",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let objects =
        claim("volume", "atoll", "ReadWriteMany", "1Gi") + &pod("load", "volume", None, Some(LOAD_CHECKED));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    let disk = names::pvc(&name, Component::Storage, 1);
    let disks = cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES);
    let before = servers(cluster, &name).await?;
    ensure(before.len() == 3, || format!("there are the storage servers {before:?}"))?;
    let old = disks.get(&disk).await?.uid().ok_or_else(|| Failure::new(format!("{disk} has no uid")))?;
    // The pod goes on with it, and nobody but the operator does anything about that.
    disks.delete(&disk, &DeleteParams::default()).await?;
    cluster
        .eventually(&format!("{disk} is another one"), TIMEOUT, async || {
            Ok(disks.get_opt(&disk).await?.and_then(|found| found.uid()).filter(|uid| *uid != old))
        })
        .await?;
    whole_again(cluster, &name, &before).await?;
    cluster.shell("load", "touch /tmp/stop").await?;
    cluster.wait_done("load").await
}

/// Ids of the storage servers that are known.
pub async fn servers(cluster: &Cluster, name: &str) -> Outcome<BTreeSet<String>> {
    let found = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES).get(name).await?;
    let storage = found.status.and_then(|status| status.storage).unwrap_or_default();
    Ok(storage.servers.into_iter().map(|server| server.id).collect())
}

/// Waits until one of three storage servers is another one, the old one is forgotten, and nothing is amiss.
pub async fn whole_again(cluster: &Cluster, name: &str, before: &BTreeSet<String>) -> Outcome {
    let volumes = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    cluster
        .eventually(&format!("{name} is whole again"), TIMEOUT, async || {
            let found = volumes.get(name).await?;
            let degraded = found.condition(ConditionType::Degraded).map(|found| found.message.clone());
            let is = found.condition(ConditionType::Degraded).map(|found| found.status.clone());
            let after = servers(cluster, name).await?;
            let storage = found.status.and_then(|status| status.storage).unwrap_or_default();
            let replaced = after.len() == 3 && after.intersection(before).count() == 2;
            let well = is.as_deref() == Some("False") && storage.chunks_short_of_copies == 0;
            if replaced && well && storage.servers.iter().all(|server| server.alive) {
                return Ok(Some(()));
            }
            Err(Failure::new(format!("the servers are {after:?}, and were {before:?}: {degraded:?}")))
        })
        .await
}
