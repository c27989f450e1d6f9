//! Servers are added and removed again under load: storage servers are drained first, metadata servers leave the group first.

use atoll_crds::names::{self, Component};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::Promise;
use super::static_volume::{delete_volume, delete_with_data, static_volume};
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome};
use crate::workload::{LOAD_CHECKED, pod};

pub const PROMISE: Promise = Promise {
    name: "shrink",
    says: "servers are added and removed again with their disks, in a volume that is used, and no application notices",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

const NAME: &str = "elastic";

async fn prove(cluster: &Cluster) -> Outcome {
    let made = format!(
        "apiVersion: atoll.dev/v1alpha1
kind: FileSystemCluster
metadata: {{ name: {NAME} }}
spec: {{ capacity: 1Gi, copies: 2, metadata: {{ replicas: 3 }}, storage: {{ replicas: 2 }} }}
"
    );
    cluster.apply(&made).await?;
    let made = cluster.wait_for::<FileSystemCluster>(NAME, "is Ready", FileSystemCluster::is_ready).await?;
    let volume = format!("e2e-{NAME}");
    let objects = static_volume(&made, &volume)? + &pod("load", "volume", None, Some(LOAD_CHECKED));
    cluster.apply(&objects).await?;
    let proved = async {
        cluster.wait_running("load").await?;
        asks(cluster, json!({ "storage": { "replicas": 3 } }), (3, 3)).await?;
        // What is written now is on it as well.
        let write =
            "head -c 100000000 /dev/urandom >/data/big && sync /data/big && sha256sum /data/big >/tmp/sum";
        cluster.shell("load", write).await?;
        cluster
            .plugin(&["drain", &format!("fsc/{NAME}"), "--replicas", "2", "--yes", "--timeout", "180"])
            .await?;
        asks(cluster, json!({ "storage": { "replicas": 2 } }), (3, 2)).await?;
        asks(cluster, json!({ "metadata": { "replicas": 1 } }), (1, 2)).await?;
        asks(cluster, json!({ "metadata": { "replicas": 3 } }), (3, 2)).await?;
        cluster.shell("load", "sha256sum -c --quiet /tmp/sum && touch /tmp/stop").await?;
        cluster.wait_done("load").await?;
        cluster.delete_pod("load").await?;
        cluster.delete::<PersistentVolumeClaim>("volume").await?;
        cluster.wait_gone(&cluster.here::<PersistentVolumeClaim>(), "volume").await
    }
    .await;
    proved.and(delete_volume(cluster, &volume).await)?;
    delete_with_data(cluster, &made).await?;
    cluster.wait_gone(&cluster.here::<FileSystemCluster>(), NAME).await
}

/// Changes the spec, and waits until there are so many metadata servers and storage servers, with as many disks.
async fn asks(cluster: &Cluster, spec: Value, (metadata, storage): (u32, u32)) -> Outcome {
    let clusters = cluster.here::<FileSystemCluster>();
    let patch = json!({ "spec": spec });
    clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let what = format!("{metadata} metadata servers and {storage} storage servers");
    cluster
        .eventually(&what, TIMEOUT, async || {
            let found = clusters.get(NAME).await?;
            let is =
                |kind| found.condition(kind).map(|found| (found.status.as_str(), found.message.as_str()));
            let settled = [ConditionType::Progressing, ConditionType::Degraded]
                .into_iter()
                .all(|kind| is(kind).is_some_and(|(status, _)| status == "False"));
            let status = found.status.clone().unwrap_or_default();
            let members = status.metadata.map_or(0, |metadata| metadata.members.len());
            let servers = status.storage.map_or(0, |storage| storage.servers.len());
            let disks = disks(cluster).await?;
            let there = (disks, (members, servers));
            if settled && there == ((metadata, storage), (metadata as usize, storage as usize)) {
                return Ok(Some(()));
            }
            Err(Failure::new(format!("there are {there:?}: {:?}", is(ConditionType::Progressing))))
        })
        .await
}

/// PVCs of metadata servers and of storage servers.
async fn disks(cluster: &Cluster) -> Outcome<(u32, u32)> {
    let claims = cluster.here::<PersistentVolumeClaim>().list(&kube::api::ListParams::default()).await?;
    let count = |component: Component| {
        let prefix = format!("{}-{}-", names::DATA_VOLUME, names::workload(NAME, component));
        let of = |claim: &&PersistentVolumeClaim| {
            claim.metadata.name.as_ref().is_some_and(|name| name.starts_with(&prefix))
        };
        u32::try_from(claims.items.iter().filter(of).count()).unwrap_or(u32::MAX)
    };
    Ok((count(Component::Metadata), count(Component::Storage)))
}
