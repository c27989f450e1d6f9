//! A node's mount host and holder are killed at once: its mounts end with both. Nothing that was synced is lost, other nodes
//! don't notice, the pods are told what to do, a pod that is started again has its files, and all of it can be taken away.

use atoll_crds::names::NAMESPACE_SYSTEM;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use super::Promise;
use super::outlives::part;
use super::provision::nothing_is_left;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::processes::kill_9;
use crate::workload::{claim, is_ready, pod, restarts};

pub const PROMISE: Promise = Promise {
    name: "mount-host",
    says: "mount host and holder killed at once end their node's mounts: pods are told, and have what was synced when \
           they are started again",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let nodes = cluster.nodes().await?;
    let [first, second, ..] = nodes.as_slice() else { return Err(Failure::new("two nodes are needed")) };
    let objects = claim("volume", "atoll", "ReadWriteMany", "1Gi")
        + &pod("hit", "volume", Some(first), None)
        + &pod("elsewhere", "volume", Some(second), None);
    cluster.apply(&objects).await?;
    cluster.wait_running("hit").await?;
    cluster.wait_running("elsewhere").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    cluster.shell("hit", "dd if=/dev/urandom of=/data/file bs=64k count=40 conv=fsync status=none").await?;
    let written = cluster.shell("hit", "sha256sum </data/file").await?;

    let (host, holder) = (part(cluster, "mount-host", first).await?, part(cluster, "holder", first).await?);
    kill_9(&holder)?;
    kill_9(&host)?;
    for part in [&host, &holder] {
        let pods = cluster.of::<Pod>(NAMESPACE_SYSTEM);
        let name = part.name_any();
        cluster
            .eventually(&format!("{name} runs again"), TIMEOUT, async || {
                let found = pods.get_opt(&name).await?;
                Ok(found.filter(|pod| restarts(pod) > restarts(part) && is_ready(pod)).map(|_| ()))
            })
            .await?;
    }

    let dead = cluster.shell("hit", "stat /data/file").await;
    ensure(dead.is_err(), || "the mount outlived everything that had it".into())?;
    cluster
        .eventually("the pod is told what to do", TIMEOUT, async || {
            let events = cluster.events_of("hit").await?;
            Ok(events.iter().any(|event| event.contains("deleted and created again")).then_some(()))
        })
        .await?;
    let seen = cluster.shell("elsewhere", "echo more >/data/more && sha256sum </data/file").await?;
    ensure(seen == written, || "another node reads something else".into())?;
    cluster.delete_pod("hit").await?;
    cluster.apply(&pod("hit", "volume", Some(first), None)).await?;
    cluster.wait_running("hit").await?;
    let seen = cluster.shell("hit", "cat /data/more && sha256sum </data/file").await?;
    ensure(seen == format!("more\n{written}"), || format!("started again it reads '{seen}'"))?;

    for name in ["hit", "elsewhere"] {
        cluster.delete_pod(name).await?;
    }
    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    nothing_is_left(cluster, &name).await
}
