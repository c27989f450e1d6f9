//! Pods on three nodes write and read the same files at the same time.

use futures::FutureExt;

use super::Promise;
use crate::cluster::Cluster;
use crate::failure::{Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "shared",
    says: "pods on all nodes see each other's files, and exactly one wins an exclusive creation",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

async fn prove(cluster: &Cluster) -> Outcome {
    let nodes = cluster.nodes().await?;
    let mut objects = claim("volume", "atoll", "ReadWriteMany", "1Gi");
    let names: Vec<String> = (0..nodes.len()).map(|at| format!("pod-{at}")).collect();
    for (name, node) in names.iter().zip(&nodes) {
        objects += &pod(name, "volume", Some(node), None);
    }
    cluster.apply(&objects).await?;
    for name in &names {
        cluster.wait_running(name).await?;
    }
    let write = |name: &str| {
        format!(
            "mkdir /data/{name} && cp -a /etc /data/{name}/
             if mkdir /data/once 2>/dev/null; then echo {name} >>/data/won; fi
             cd /data/{name} && find . -type f -exec sha256sum {{}} + >/tmp/sums && mv /tmp/sums /data/{name}.sums"
        )
    };
    let writing = names.iter().map(async |name| cluster.shell(name, &write(name)).await);
    futures::future::try_join_all(writing).await?;
    for reader in &names {
        for writer in &names {
            let check = format!("cd /data/{writer} && sha256sum -c --quiet ../{writer}.sums");
            cluster.shell(reader, &check).await?;
        }
        let won = cluster.shell(reader, "wc -l </data/won").await?;
        ensure(won.trim() == "1", || format!("{won} pods made the same folder"))?;
    }
    // A rename and a removal on one node are seen on the others at once.
    cluster.shell(&names[0], "mv /data/won /data/moved && rm -r /data/once").await?;
    for reader in &names {
        cluster.shell(reader, "test -e /data/moved && ! test -e /data/won && ! test -e /data/once").await?;
    }
    Ok(())
}
