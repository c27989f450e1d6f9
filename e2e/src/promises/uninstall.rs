//! Uninstalling deletes no data: in which order, how often, and by whom it is ever done.

use std::process::{Command, Stdio};

use atoll_crds::names::{NAMESPACE_SYSTEM, NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::ListParams;

use super::Promise;
use super::provision::nothing_is_left;
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Failure, Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "uninstall",
    says: "Atoll uninstalled twice, by kubectl and by its plugin, keeps every byte, and another install finds it",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// What the operator creates and no install brings.
const DEFINITION: &str = "filesystemclusters.atoll.dev";
/// What an install brings.
const INSTALLED: &str = "config/default";
const WRITE: &str = "cd /data && cp -a /usr/share .
        find share -type f -exec sha256sum {} + >sums && test -s sums && sync";
const READ: &str = "cd /data && test -s sums && sha256sum -c --quiet sums";

async fn prove(cluster: &Cluster) -> Outcome {
    let result = uninstall(cluster).await;
    // Whatever failed, the promises that follow need Atoll.
    let installed = install().await;
    result.and(installed)
}

async fn uninstall(cluster: &Cluster) -> Outcome {
    let objects =
        claim("volume", "atoll-single", "ReadWriteMany", "1Gi") + &pod("writer", "volume", None, Some(WRITE));
    cluster.apply(&objects).await?;
    cluster.wait_done("writer").await?;
    cluster.delete_pod("writer").await?;
    let (name, made) = cluster.volume_of("volume").await?;
    let disks = disks(cluster, &name).await?;
    ensure(disks.len() == 2, || format!("{} disks instead of 2", disks.len()))?;

    // As a script does that tries again until nothing is left.
    for _ in 0..2 {
        run("kubectl", &["delete", "-k", INSTALLED, "--ignore-not-found", "--timeout=180s"]).await?;
        everything_stays(cluster, &name, &made, &disks).await?;
    }
    let system = cluster.everywhere::<Namespace>().get_opt(NAMESPACE_SYSTEM).await?;
    ensure(system.is_none(), || "the operator's namespace is still there".into())?;
    install().await?;
    read_back(cluster, "after-kubectl").await?;

    // By the plugin, which the second time finds nothing to do.
    for _ in 0..2 {
        let says = run("kubectl", &["atoll", "uninstall", "--yes"]).await?;
        ensure(says.contains("No data was deleted"), || format!("it says '{says}'"))?;
        everything_stays(cluster, &name, &made, &disks).await?;
    }
    let kept = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES).get(&name).await?;
    ensure(kept.finalizers().is_empty(), || format!("left: {:?}", kept.finalizers()))?;
    // Whoever then deletes the definition as well deletes no server and no disk: only the list of what there is.
    run("kubectl", &["delete", "crd", DEFINITION, "--timeout=60s"]).await?;
    let after = self::disks(cluster, &name).await?;
    ensure(after == disks, || format!("disks {after:?} instead of {disks:?}"))?;
    install().await?;
    run("kubectl", &["atoll", "adopt", "--all"]).await?;
    let clusters = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    let again = cluster
        .eventually("the volume is Ready again", TIMEOUT, async || {
            Ok(clusters.get_opt(&name).await?.filter(FileSystemCluster::is_ready))
        })
        .await?;
    ensure(again.cluster_id() == made.cluster_id(), || "it is another cluster".into())?;
    read_back(cluster, "after-plugin").await?;

    cluster.delete::<PersistentVolumeClaim>("volume").await?;
    nothing_is_left(cluster, &name).await
}

/// Names and uids of a cluster's PVCs.
async fn disks(cluster: &Cluster, name: &str) -> Outcome<Vec<(String, Option<String>)>> {
    let of = ListParams::default().labels(&format!("{}={name}", labels::CLUSTER));
    let found = cluster.of::<PersistentVolumeClaim>(NAMESPACE_VOLUMES).list(&of).await?.items;
    ensure(found.iter().all(|disk| disk.metadata.deletion_timestamp.is_none()), || {
        "a disk is being deleted".into()
    })?;
    Ok(found.iter().map(|disk| (disk.name_any(), disk.uid())).collect())
}

async fn everything_stays(
    cluster: &Cluster,
    name: &str,
    made: &FileSystemCluster,
    before: &[(String, Option<String>)],
) -> Outcome {
    let now = disks(cluster, name).await?;
    ensure(now == before, || format!("disks {now:?} instead of {before:?}"))?;
    let kept = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES).get(name).await?;
    ensure(kept.uid() == made.uid() && !kept.is_terminating(), || format!("{name} is another one, or goes"))?;
    // The guard is still there as well.
    let refused = run("kubectl", &["delete", "namespace", NAMESPACE_VOLUMES, "--dry-run=server"]).await;
    let says = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure(says.contains("delete-all-volumes=yes"), || format!("the namespace isn't protected: '{says}'"))
}

/// Writes nothing: only reads what the first pod wrote.
async fn read_back(cluster: &Cluster, reader: &str) -> Outcome {
    cluster.apply(&pod(reader, "volume", None, Some(READ))).await?;
    cluster.wait_done(reader).await?;
    cluster.delete_pod(reader).await
}

async fn install() -> Outcome {
    run("hack/install.sh", &[]).await.map(|_| ())
}

/// Runs a program in the project's folder; its standard output.
async fn run(program: &str, arguments: &[&str]) -> Outcome<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    let bounded = tokio::time::timeout(TIMEOUT * 2, output).await;
    let output = bounded
        .map_err(|_| Failure::new(format!("{program} {} doesn't end", arguments.join(" "))))?
        .map_err(|error| Failure::new(error.to_string()))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Failure::new(format!("{program} {}: {}", arguments.join(" "), text(&output.stderr))))
}
