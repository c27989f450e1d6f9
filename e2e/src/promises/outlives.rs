//! A mount outlives everything that runs on its node for it: mount host, holder and node plugin are killed, deleted and rolled
//! out under load, and no call of the application fails.

use atoll_crds::names::{NAMESPACE_SYSTEM, labels};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Promise;
use super::killed_pods::{ends_well, progress};
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome};
use crate::workload::{claim, is_ready, pod};

pub const PROMISE: Promise = Promise {
    name: "outlives",
    says: "mount host, holder and node plugin killed, deleted and rolled out under load give no error, and locks are kept",
    short: true,
    run: |cluster| prove(cluster).boxed_local(),
};

/// Writes numbered files, synced, and lines of a file that is open and locked all the time, until it is told to stop.
const LOAD: &str = "trap '' HUP
        exec 8>>/data/open 9>>/data/open
        flock -x 8
        mkdir /data/load && cd /data/load
        i=0
        while ! test -e /tmp/stop; do
          i=$((i+1))
          dd if=/dev/urandom of=f$i bs=64k count=$((i % 20 + 1)) conv=fsync status=none
          sha256sum f$i >>/tmp/sums
          echo $i >&8
          if flock -n 9; then echo 'the lock was lost'; exit 1; fi
          echo $i >/tmp/count
        done
        sha256sum -c --quiet /tmp/sums
        seq $i | cmp - /data/open
        wc -l </tmp/sums";

async fn prove(cluster: &Cluster) -> Outcome {
    let objects = claim("volume", "atoll", "ReadWriteMany", "2Gi") + &pod("load", "volume", None, Some(LOAD));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    progress(cluster).await?;
    let node = cluster.here::<Pod>().get("load").await?.spec.and_then(|spec| spec.node_name);
    let node = node.ok_or_else(|| Failure::new("the pod is on no node"))?;

    for component in ["mount-host", "holder"] {
        cluster.kill_and_wait(&part(cluster, component, &node).await?).await?;
        progress(cluster).await?;
    }
    for component in ["mount-host", "holder"] {
        let name = part(cluster, component, &node).await?.name_any();
        cluster.kubectl(&["--namespace", NAMESPACE_SYSTEM, "delete", "pod", &name], "").await?;
        again(cluster, component, &node, &name).await?;
        progress(cluster).await?;
    }
    // As an upgrade does it: the mount host and the node plugin at once.
    for daemonset in ["daemonset/atoll-mount-host", "daemonset/atoll-csi-node"] {
        cluster.kubectl(&["--namespace", NAMESPACE_SYSTEM, "rollout", "restart", daemonset], "").await?;
    }
    for daemonset in ["daemonset/atoll-mount-host", "daemonset/atoll-csi-node"] {
        let follow = ["--namespace", NAMESPACE_SYSTEM, "rollout", "status", daemonset, "--timeout=300s"];
        cluster.kubectl(&follow, "").await?;
        progress(cluster).await?;
    }
    ends_well(cluster).await
}

/// The pod of a part of the node's side.
pub async fn part(cluster: &Cluster, component: &str, node: &str) -> Outcome<Pod> {
    let pods = cluster.pods(NAMESPACE_SYSTEM, &format!("{}={component}", labels::COMPONENT)).await?;
    let is_here = |pod: &Pod| {
        let spec = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        spec == Some(node) && pod.metadata.deletion_timestamp.is_none()
    };
    pods.into_iter().find(is_here).ok_or_else(|| Failure::new(format!("there is no {component} on {node}")))
}

/// Waits until another pod of a part is ready.
async fn again(cluster: &Cluster, component: &str, node: &str, before: &str) -> Outcome {
    cluster
        .eventually(&format!("another {component} is ready"), TIMEOUT, async || {
            let pods = cluster.pods(NAMESPACE_SYSTEM, &format!("{}={component}", labels::COMPONENT)).await?;
            let is_new = |pod: &Pod| {
                pod.name_any() != before
                    && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
                    && is_ready(pod)
            };
            Ok(pods.iter().any(is_new).then_some(()))
        })
        .await
}
