//! `kill -9` of the product's processes under load: of its pods but the node's own, and of the client that serves the mount. No
//! call of the application fails, and all data is there.

use atoll_crds::names::{Component, NAMESPACE_SYSTEM, NAMESPACE_VOLUMES, labels};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;

use super::Promise;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::processes::kill_9_with;
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "killed-pods",
    says: "kill -9 of each metadata and storage pod, the operator, the CSI controller and the mount's client process under load \
           gives no error",
    short: true,
    run: |cluster| prove(cluster).boxed_local(),
};

/// How often the mount's client process is killed.
const CLIENT_KILLS: u32 = 3;

/// Writes numbered files, synced, until it is told to stop; what it prints is what has to be there.
pub const LOAD: &str = "trap '' HUP
        mkdir /data/load && cd /data/load
        i=0
        while ! test -e /tmp/stop; do
          i=$((i+1))
          dd if=/dev/urandom of=f$i bs=64k count=$((i % 20 + 1)) conv=fsync status=none
          sha256sum f$i >>/tmp/sums
          echo $i >/tmp/count
        done
        sha256sum -c --quiet /tmp/sums
        wc -l </tmp/sums";

async fn prove(cluster: &Cluster) -> Outcome {
    let objects = claim("volume", "atoll", "ReadWriteMany", "2Gi") + &pod("load", "volume", None, Some(LOAD));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    progress(cluster).await?;

    for component in Component::ALL {
        let of = format!("{}={name},{}={component}", labels::CLUSTER, labels::COMPONENT);
        for victim in cluster.pods(NAMESPACE_VOLUMES, &of).await? {
            cluster.kill_and_wait(&victim).await?;
            progress(cluster).await?;
        }
    }
    for component in ["operator", "csi-controller"] {
        let of = format!("{}={component}", labels::COMPONENT);
        let victims = cluster.pods(NAMESPACE_SYSTEM, &of).await?;
        ensure(!victims.is_empty(), || format!("there is no pod of the {component}"))?;
        for victim in victims {
            cluster.kill_and_wait(&victim).await?;
        }
        progress(cluster).await?;
    }
    let node = cluster.here::<Pod>().get("load").await?.spec.and_then(|spec| spec.node_name);
    let hosts = cluster.pods(NAMESPACE_SYSTEM, &format!("{}=mount-host", labels::COMPONENT)).await?;
    let is_here = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == node.as_ref();
    let host =
        hosts.iter().find(is_here).ok_or_else(|| Failure::new("there is no mount host on the node"))?;
    let handle = format!("v1/{NAMESPACE_VOLUMES}/{name}");
    for _ in 0..CLIENT_KILLS {
        kill_9_with(host, &handle)?;
        progress(cluster).await?;
    }
    ends_well(cluster).await
}

/// Ends the load, which checks all that it wrote; another pod reads it as well.
pub async fn ends_well(cluster: &Cluster) -> Outcome {
    cluster.shell("load", "touch /tmp/stop").await?;
    cluster.wait_done("load").await?;
    let written = cluster.kubectl(&["logs", "load", "--tail=1"], "").await?;
    let written: u64 =
        written.trim().parse().map_err(|_| Failure::new(format!("the load printed '{written}'")))?;
    ensure(written > 0, || "the load wrote nothing".into())?;

    // Another pod, with nothing cached, reads it all.
    let read = "cd /data/load && cat f* | wc -c";
    cluster.delete_pod("load").await?;
    cluster.apply(&pod("reader", "volume", None, Some(read))).await?;
    cluster.wait_done("reader").await?;
    cluster.delete_pod("reader").await
}

/// Waits until the load has gone on by some files.
pub async fn progress(cluster: &Cluster) -> Outcome {
    let count = async || -> Outcome<u64> {
        let text = cluster.shell("load", "cat /tmp/count 2>/dev/null || echo 0").await?;
        Ok(text.trim().parse().unwrap_or(0))
    };
    let before = count().await?;
    cluster
        .eventually("the load goes on", TIMEOUT, async || Ok((count().await? > before + 1).then_some(())))
        .await
}
