//! A metadata server's disk is gone, under load: another one takes its place by itself.

use atoll_crds::names::{self, Component, NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::DeleteParams;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "new-disk",
    says: "a metadata server whose PVC is deleted gets a new disk and its place in the group, and no application notices",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// Writes and reads numbered files until it is told to stop.
const LOAD: &str = "mkdir /data/load && cd /data/load
        i=0
        while ! test -e /tmp/stop; do
          i=$((i+1))
          echo $i >f$((i % 100)) && sync f$((i % 100)) && test \"$(cat f$((i % 100)))\" = $i
        done
        echo $i";

async fn prove(cluster: &Cluster) -> Outcome {
    let objects = claim("volume", "atoll", "ReadWriteMany", "1Gi") + &pod("load", "volume", None, Some(LOAD));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    let volumes = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    let disks = cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES);
    let members = async || -> Outcome<Vec<String>> {
        let found = volumes.get(&name).await?;
        let members = found.status.and_then(|status| status.metadata).map(|found| found.members);
        Ok(members.unwrap_or_default().into_iter().map(|member| member.id).collect())
    };
    let before = members().await?;
    ensure(before.len() == 3, || format!("the group has the members {before:?}"))?;

    // The first one is the one that founded the group, and leads unless it was busy.
    for ordinal in [0, 2] {
        let (disk, server) = (
            names::pvc(&name, Component::Metadata, ordinal),
            names::pod(&name, Component::Metadata, ordinal),
        );
        let now = async || -> Outcome<Option<(String, String)>> {
            let found = disks.get_opt(&disk).await?;
            let label = |found: &PersistentVolumeClaim| {
                found.metadata.labels.as_ref()?.get(labels::MEMBER_ID).cloned()
            };
            Ok(found.and_then(|found| Some((found.metadata.uid.clone()?, label(&found)?))))
        };
        let old = now().await?.ok_or_else(|| Failure::new(format!("{disk} carries no member's id")))?;
        let gone = DeleteParams::default();
        disks.delete(&disk, &gone).await?;
        let pods = cluster.of::<Pod>(NAMESPACE_VOLUMES);
        pods.delete(&server, &gone).await?;
        cluster
            .eventually(&format!("{disk} is another member's"), TIMEOUT, async || {
                let now = now().await?.filter(|(uid, member)| *uid != old.0 && *member != old.1);
                let members = members().await?;
                Ok(now.filter(|(_, id)| {
                    members.len() == 3 && members.contains(id) && !members.contains(&old.1)
                }))
            })
            .await?;
    }
    cluster.shell("load", "touch /tmp/stop").await?;
    cluster.wait_done("load").await
}
