//! The node plugin is killed and restarted: mounts that are there don't notice, and new pods find it again.

use atoll_crds::names::{NAMESPACE_SYSTEM, labels};
use futures::FutureExt;

use super::Promise;
use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "node-plugin",
    says: "mounts live on while the node plugin is killed with -9 and comes back",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let nodes = cluster.nodes().await?;
    let node = nodes.first().ok_or_else(|| Failure::new("there is no node"))?;
    let objects =
        claim("volume", "atoll", "ReadWriteMany", "1Gi") + &pod("before", "volume", Some(node), None);
    cluster.apply(&objects).await?;
    cluster.wait_running("before").await?;
    cluster.shell("before", "exec 9>/data/open; echo one >&9; sync; cat /data/open").await?;

    let of = format!("{}=csi-node", labels::COMPONENT);
    let plugins = cluster.pods(NAMESPACE_SYSTEM, &of).await?;
    let plugin = plugins
        .iter()
        .find(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node))
        .ok_or_else(|| Failure::new(format!("there is no node plugin on {node}")))?;
    for _ in 0..2 {
        cluster.kill_and_wait(plugin_again(cluster, plugin).await?.as_ref().unwrap_or(plugin)).await?;
        let seen = cluster.shell("before", "echo more >>/data/open && cat /data/open").await?;
        ensure(seen.starts_with("one"), || format!("the file holds '{seen}'"))?;
    }
    cluster.apply(&pod("after", "volume", Some(node), None)).await?;
    cluster.wait_running("after").await?;
    let lines = cluster.shell("after", "wc -l </data/open").await?;
    ensure(lines.trim() == "3", || format!("{lines} lines instead of 3"))?;
    cluster.delete_pod("before").await?;
    cluster.shell("after", "echo still >>/data/open").await?;
    Ok(())
}

async fn plugin_again(
    cluster: &Cluster,
    plugin: &k8s_openapi::api::core::v1::Pod,
) -> Outcome<Option<k8s_openapi::api::core::v1::Pod>> {
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = cluster.of(NAMESPACE_SYSTEM);
    Ok(pods.get_opt(&kube::ResourceExt::name_any(plugin)).await?)
}
