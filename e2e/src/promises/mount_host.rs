//! A node's mount host is killed: in this version its mounts end with it. Nothing that was synced is lost, other nodes
//! don't notice, a pod that is started again has its files, and all of it can be taken away.

use atoll_crds::names::{NAMESPACE_SYSTEM, labels};
use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::Promise;
use super::provision::nothing_is_left;
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "mount-host",
    says: "a killed mount host ends its node's mounts: pods that are started again have what was synced",
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

    let of = format!("{}=mount-host", labels::COMPONENT);
    let hosts = cluster.pods(NAMESPACE_SYSTEM, &of).await?;
    let host = hosts
        .iter()
        .find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(first))
        .ok_or_else(|| Failure::new(format!("there is no mount host on {first}")))?;
    cluster.kill_and_wait(host).await?;

    let dead = cluster.shell("hit", "stat /data/file").await;
    ensure(dead.is_err(), || "the mount outlived its mount host".into())?;
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
