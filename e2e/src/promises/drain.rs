//! `kubectl atoll drain` gives a storage server a new disk under load; what would lose data it refuses.

use atoll_crds::names::{self, Component, NAMESPACE_VOLUMES};
use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::DeleteParams;

use super::Promise;
use super::new_storage_disk::servers;
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{LOAD_CHECKED, claim, pod};

pub const PROMISE: Promise = Promise {
    name: "drain",
    says: "kubectl atoll drain replaces a storage server's disk, no application notices, and it refuses to drain the only copy",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const CLASS: &str = "e2e-drain";

async fn prove(cluster: &Cluster) -> Outcome {
    let class = format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{ name: {CLASS} }}
provisioner: {driver}
parameters:
  {{ csi.storage.k8s.io/node-stage-secret-name: '${{pv.name}}',
    csi.storage.k8s.io/node-stage-secret-namespace: {NAMESPACE_VOLUMES},
    csi.storage.k8s.io/node-publish-secret-name: '${{pv.name}}',
    csi.storage.k8s.io/node-publish-secret-namespace: {NAMESPACE_VOLUMES},
    copies: '1', storageServers: '2', metadataServers: '1' }}
---
",
        driver = names::DRIVER_NAME,
    );
    let objects = class
        + &claim("volume", CLASS, "ReadWriteMany", "1Gi")
        + &pod("load", "volume", None, Some(LOAD_CHECKED))
        + &claim("single", "atoll-single", "ReadWriteMany", "1Gi");
    cluster.apply(&objects).await?;
    let proved = drained(cluster).await;
    cluster.delete_pod("load").await?;
    for claim in ["volume", "single"] {
        cluster.delete::<PersistentVolumeClaim>(claim).await?;
        cluster.wait_gone(&cluster.here::<PersistentVolumeClaim>(), claim).await?;
    }
    cluster.everywhere::<StorageClass>().delete(CLASS, &DeleteParams::default()).await?;
    proved
}

async fn drained(cluster: &Cluster) -> Outcome {
    cluster.wait_running("load").await?;
    let write = "head -c 50000000 /dev/urandom >/data/big && sync /data/big && sha256sum /data/big >/tmp/sum";
    cluster.shell("load", write).await?;
    let (name, _) = cluster.volume_of("volume").await?;
    let disks = cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES);
    let disk = names::pvc(&name, Component::Storage, 1);
    let old = disks.get(&disk).await?.uid();

    cluster.plugin(&["drain", "volume", "--server", "1", "--yes", "--timeout", "180"]).await?;
    ensure(disks.get(&disk).await?.uid() != old, || format!("{disk} is the same"))?;
    ensure(servers(cluster, &name).await?.len() == 2, || "a server that was replaced is known".to_owned())?;
    // That servers are removed the promise `shrink` proves; a claim's volume keeps as many as it has.
    let fewer = cluster.plugin(&["drain", "volume", "--replicas", "1", "--yes"]).await;
    ensure(fewer.is_err_and(|refusal| format!("{refusal}").contains("--server")), || {
        "not refused".to_owned()
    })?;
    cluster.shell("load", "sha256sum -c --quiet /tmp/sum && touch /tmp/stop").await?;
    cluster.wait_done("load").await?;

    // The only copy of everything.
    let (single, _) = cluster.volume_of("single").await?;
    match cluster.plugin(&["drain", "single", "--server", "0", "--yes"]).await {
        Ok(said) => Err(Failure::new(format!("the only disk was drained: {said}"))),
        Err(refusal) => {
            let said = format!("{refusal}");
            ensure(said.contains("raise spec.storage.replicas"), || said.clone())?;
            let disk = disks.get(&names::pvc(&single, Component::Storage, 0)).await?;
            ensure(disk.metadata.deletion_timestamp.is_none(), || "the only disk is being deleted".to_owned())
        }
    }
}
