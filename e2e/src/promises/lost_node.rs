//! A node is gone for good, with the disks on it: its servers wait for another one, since copies are on different nodes by rule, and
//! are replaced on those that are left once they may.

use atoll_crds::names::{self, Component, NAMESPACE_VOLUMES};
use atoll_crds::v1alpha1::ConditionType;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::DeleteParams;

use super::Promise;
use super::new_storage_disk::{servers, whole_again};
use super::stuck_upgrade::wait;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::nodes;
use crate::workload::{LOAD_CHECKED, claim, is_ready, pod};

pub const PROMISE: Promise = Promise {
    name: "lost-node",
    says: "servers of a node that was powered off and deleted say that they need another one, are replaced on those left once copies may share nodes, and no application notices",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let nodes = cluster.nodes().await?;
    let [stays, .., goes] = nodes.as_slice() else {
        return Err(Failure::new(format!("two nodes are needed, and there are {nodes:?}")));
    };
    let objects = claim("volume", "atoll", "ReadWriteMany", "1Gi")
        + &pod("load", "volume", Some(stays), Some(LOAD_CHECKED));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    let before = servers(cluster, &name).await?;
    let lost = cluster.pods(NAMESPACE_VOLUMES, &format!("{}={name}", names::labels::CLUSTER)).await?;
    let lost: Vec<String> = lost.iter().filter(|pod| node_of(pod) == Some(goes)).map(name_of).collect();
    for component in Component::ALL {
        let prefix = format!("{}-", names::workload(&name, component));
        let count = lost.iter().filter(|pod| pod.starts_with(&prefix)).count();
        ensure(count == 1, || format!("{goes} has {lost:?}"))?;
    }

    let proved = async {
        nodes::power_off(goes).await?;
        cluster.everywhere::<Node>().delete(goes, &DeleteParams::default()).await?;
        // Two nodes are left, and there are three copies.
        wait(cluster, &name, "says that it needs another node", |found| {
            let placement = found.condition(ConditionType::PlacementDegraded);
            placement.is_some_and(|found| found.status == "True" && found.reason == "TooFewNodes")
        })
        .await?;
        let_share_nodes(cluster, &name).await?;
        let pods = cluster.of::<Pod>(NAMESPACE_VOLUMES);
        for pod in &lost {
            cluster
                .eventually(&format!("{pod} works on another node"), TIMEOUT, async || {
                    let found = pods.get_opt(pod).await?.filter(is_ready);
                    Ok(found.filter(|pod| node_of(pod).is_some_and(|node| node != goes)))
                })
                .await?;
        }
        whole_again(cluster, &name, &before).await?;
        settled(cluster, &name).await?;
        cluster.shell("load", "touch /tmp/stop").await?;
        cluster.wait_done("load").await
    }
    .await;
    let restored = restore(cluster, goes).await;
    proved.and(restored)
}

/// The nodes that are left are fewer than the copies.
async fn let_share_nodes(cluster: &Cluster, name: &str) -> Outcome {
    let patch = r#"{"spec": {"placement": {"whenUnsatisfiable": "ScheduleAnyway"}}}"#;
    let arguments = ["patch", "fsc", name, "--type", "merge", "--patch", patch];
    cluster.kubectl(&[&["--namespace", NAMESPACE_VOLUMES], &arguments[..]].concat(), "").await.map(|_| ())
}

/// All pods were re-created for it, under load, and nothing is left to do.
async fn settled(cluster: &Cluster, name: &str) -> Outcome {
    wait(cluster, name, "has nothing left to do", |found| {
        let seen = found.status.as_ref().and_then(|status| status.observed_generation);
        let settled = [ConditionType::Progressing, ConditionType::Degraded]
            .into_iter()
            .all(|kind| found.condition(kind).is_some_and(|found| found.status == "False"));
        seen == found.metadata.generation && settled
    })
    .await
    .map(|_| ())
}

/// Other promises need all nodes.
async fn restore(cluster: &Cluster, node: &str) -> Outcome {
    nodes::power_on(node).await?;
    let found = cluster.everywhere::<Node>();
    cluster
        .eventually(&format!("{node} is ready"), TIMEOUT, async || {
            let found = found.get_opt(node).await?;
            let conditions = found.and_then(|node| node.status?.conditions).unwrap_or_default();
            let ready = conditions.iter().any(|found| found.type_ == "Ready" && found.status == "True");
            Ok(ready.then_some(()))
        })
        .await
}

fn node_of(pod: &Pod) -> Option<&String> {
    pod.spec.as_ref()?.node_name.as_ref()
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}
