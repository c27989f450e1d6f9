//! A version that doesn't work stops after one pod, and is taken back at once, while a pod writes and checks all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_crds::names::{NAMESPACE_SYSTEM, NAMESPACE_VOLUMES, labels};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster};
use futures::FutureExt;
use kube::ResourceExt;

use super::Promise;
use super::killed_pods::{LOAD, ends_well, progress};
use crate::cluster::{Cluster, TIMEOUT};
use crate::failure::{Outcome, ensure};
use crate::workload::{claim, pod};

pub const PROMISE: Promise = Promise {
    name: "stuck-upgrade",
    says: "a version whose image can't be pulled or crashes stops after one pod and is taken back, without an error",
    short: false,
    run: |cluster| prove(cluster).boxed_local(),
};

/// Several times over, all pods are re-created one by one; a bound on hanging.
const ROLL_TIMEOUT: Duration = TIMEOUT.saturating_mul(5);

/// The version that pods run at first.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Versions that don't work: one has no image, the other an image without the program.
const BAD: [(&str, &str, &str); 2] = [
    ("0.0.9", "ghcr.io/atoll-dev/absent:0.0.9", "ImageUnavailable"),
    ("0.0.8", "ghcr.io/atoll-dev/workload", "PodsFailing"),
];

async fn prove(cluster: &Cluster) -> Outcome {
    let workload = crate::workload::image();
    let images: Vec<String> = BAD
        .iter()
        .map(|(version, image, _)| {
            let image = if image.ends_with("workload") { workload.as_str() } else { image };
            format!("{version}={image}")
        })
        .collect();
    configure(cluster, &[&format!("ATOLL_IMAGES={}", images.join(","))]).await?;
    let outcome = under_load(cluster).await;
    configure(cluster, &["ATOLL_IMAGES-"]).await?;
    outcome
}

async fn under_load(cluster: &Cluster) -> Outcome {
    let objects = claim("volume", "atoll", "ReadWriteMany", "2Gi") + &pod("load", "volume", None, Some(LOAD));
    cluster.apply(&objects).await?;
    cluster.wait_running("load").await?;
    let (name, _) = cluster.volume_of("volume").await?;
    progress(cluster).await?;
    for (version, _, reason) in BAD {
        let before = servers(cluster, &name).await?;
        run_version(cluster, &name, version).await?;
        wait(cluster, &name, &format!("says that {version} is stuck"), |found| {
            let blocked = found.condition(ConditionType::UpgradeBlocked);
            blocked.is_some_and(|blocked| blocked.status == "True" && blocked.reason == reason)
        })
        .await?;
        progress(cluster).await?;
        let now = servers(cluster, &name).await?;
        let renewed = before.iter().filter(|(pod, uid)| now.get(*pod) != Some(uid)).count();
        ensure(renewed == 1, || format!("{renewed} pods were re-created for a version that doesn't work"))?;
        run_version(cluster, &name, VERSION).await?;
        wait(cluster, &name, &format!("runs {VERSION} again"), |found| runs(found, VERSION)).await?;
        progress(cluster).await?;
        let after = servers(cluster, &name).await?;
        let renewed = before.iter().filter(|(pod, uid)| after.get(*pod) != Some(uid)).count();
        ensure(renewed == 1, || format!("{renewed} pods were re-created on the way back"))?;
    }
    ends_well(cluster).await
}

/// Sets or removes environment variables of the operator, and waits until it is there again.
pub async fn configure(cluster: &Cluster, variables: &[&str]) -> Outcome {
    let system = ["--namespace", NAMESPACE_SYSTEM];
    let set = ["set", "env", "deployment/atoll-operator"];
    cluster.kubectl(&[&system, &set[..], variables].concat(), "").await?;
    let wait = ["rollout", "status", "deployment/atoll-operator", "--timeout", "180s"];
    cluster.kubectl(&[&system[..], &wait].concat(), "").await.map(|_| ())
}

/// Asks for a version.
async fn run_version(cluster: &Cluster, name: &str, version: &str) -> Outcome {
    let patch = format!(r#"{{"spec": {{"version": "{version}"}}}}"#);
    let volumes = ["--namespace", NAMESPACE_VOLUMES];
    let arguments = ["patch", "fsc", name, "--type", "merge", "--patch", patch.as_str()];
    cluster.kubectl(&[&volumes[..], &arguments].concat(), "").await.map(|_| ())
}

/// Pods of the volume's servers, with their uids.
pub async fn servers(cluster: &Cluster, name: &str) -> Outcome<BTreeMap<String, String>> {
    let of = format!("{}={name}", labels::CLUSTER);
    let pods = cluster.pods(NAMESPACE_VOLUMES, &of).await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect())
}

/// Waits for the volume's resource.
pub async fn wait(
    cluster: &Cluster,
    name: &str,
    what: &str,
    is: impl Fn(&FileSystemCluster) -> bool,
) -> Outcome<FileSystemCluster> {
    let resources = cluster.of::<FileSystemCluster>(NAMESPACE_VOLUMES);
    let look = async || Ok(resources.get_opt(name).await?.filter(|found| is(found)));
    cluster.eventually(&format!("the volume {what}"), ROLL_TIMEOUT, look).await
}

/// All pods run the version and are ready, and nothing is said against it.
pub fn runs(found: &FileSystemCluster, version: &str) -> bool {
    let Some(status) = &found.status else { return false };
    let blocked = found.condition(ConditionType::UpgradeBlocked);
    status.version.as_deref() == Some(version)
        && status.target_version.as_deref() == Some(version)
        && status.rollout.is_none()
        && found.is_ready()
        && blocked.is_none_or(|blocked| blocked.status == "False")
}
