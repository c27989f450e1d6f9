//! Ten volumes at once.

use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::Promise;
use super::provision::nothing_is_left;
use crate::cluster::Cluster;
use crate::failure::Outcome;
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "many-volumes",
    says: "ten PVCs at once are all provided, used and removed",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const VOLUMES: usize = 10;

async fn prove(cluster: &Cluster) -> Outcome {
    let name = |at| format!("volume-{at}");
    let write = "head -c 3000000 /dev/urandom >/data/file && sha256sum /data/file >/data/sum && sync && sha256sum -c --quiet /data/sum";
    let objects: String = (0..VOLUMES)
        .map(|at| {
            claim(&name(at), "atoll-single", "ReadWriteOnce", "1Gi")
                + &pod(&format!("pod-{at}"), &name(at), None, Some(write))
        })
        .collect();
    cluster.apply(&objects).await?;
    let mut made = Vec::new();
    for at in 0..VOLUMES {
        cluster.wait_done(&format!("pod-{at}")).await?;
        made.push(cluster.volume_of(&name(at)).await?.0);
    }
    for at in 0..VOLUMES {
        cluster.delete_pod(&format!("pod-{at}")).await?;
        cluster.delete::<PersistentVolumeClaim>(&name(at)).await?;
    }
    for name in made {
        nothing_is_left(cluster, &name).await?;
    }
    Ok(())
}
